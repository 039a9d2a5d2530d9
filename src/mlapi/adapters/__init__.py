"""Implementations of the ports, each using one library. They are independent; `mlapi.bootstrap` wires them up."""
