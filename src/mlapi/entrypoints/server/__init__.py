"""The processes of ``mlapi serve``: a supervisor that owns the port, and workers that handle requests."""
