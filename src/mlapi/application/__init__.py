"""The use cases, over the ports of the domain."""
