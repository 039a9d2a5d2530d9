"""Implementations of the ports, each with one library. They are independent; `mlapi.bootstrap` wires them up."""
