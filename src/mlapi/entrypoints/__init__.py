"""Where the world comes in: HTTP and the command line. ``wire`` and ``management`` know no web framework."""
