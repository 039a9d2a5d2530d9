"""The processes of ``mlapi serve``: `supervisor` holds the port, `worker` serves it, `connections` bounds who calls."""
