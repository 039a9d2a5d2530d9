"""Serve mlapi with your own backend.

    MLAPI_DATABASE__URL=journal://users.jsonl uvicorn examples.own_adapter.app:app --port 8001

To use the command line with this backend, run ``python -m examples.own_adapter.app users list``.
"""

from examples.own_adapter.storage import JournalStorage

from mlapi.__main__ import main
from mlapi.bootstrap import register_storage
from mlapi.entrypoints.http import app

__all__ = ["app"]

register_storage("journal", JournalStorage.from_url)

if __name__ == "__main__":
    main()
