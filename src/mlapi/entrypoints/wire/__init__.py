"""The HTTP API without a web framework: what requests contain and what responses look like."""
