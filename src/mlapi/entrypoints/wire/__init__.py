"""The HTTP API, independent of a web framework: how requests are parsed and what responses contain."""
