"""``mlapi`` with a key rotation that waits 4 seconds for requests in flight instead of 10.

Usage: ``python -m tests.e2e.fast_rotation secrets rotate``. The test server answers all requests well within that time.
"""

from mlapi.application import secret_rotation
from mlapi.entrypoints.cli import main

if __name__ == "__main__":
    secret_rotation.SETTLE_SECONDS = 4.0
    main(prog_name="mlapi")
