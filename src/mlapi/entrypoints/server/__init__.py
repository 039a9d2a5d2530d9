"""The processes of ``mlapi serve``: a supervisor that holds the port, and workers that handle requests."""
