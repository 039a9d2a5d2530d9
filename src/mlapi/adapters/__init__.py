"""Implementations of the ports, each with one library. They do not import each other; `mlapi.bootstrap` wires them."""
