"""The use cases, built on the domain's ports."""
