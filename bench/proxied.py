"""Measure `/verify` behind nginx: ``python -m bench.proxied``. Prints Markdown.

nginx runs with deploy/nginx.conf. It asks mlapi, or bare Starlette, or answers with a static 204. The models
are Starlette applications. All processes share all cores, as on a single small machine.
"""

import argparse
import re
import statistics
import subprocess
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.deployed_proxies import Replacements, deployed_nginx
from tests.e2e.server import MlapiServer, Server

from bench import bulk
from bench.builder import CREDENTIALS
from bench.environment import mlapi_environ
from bench.measure import LOAD

MODELS = {
    "none: a constant": "bench.ceiling:app",
    "scikit-learn, logistic regression": "bench.models:regression",
    "50 ms on another processor": "bench.models:waiting",
}
VERIFIERS: dict[str, Replacements] = {
    "static 204": [("proxy_pass http://mlapi/verify;", "return 204;")],
    "bare Starlette": [("proxy_pass http://mlapi/verify;", "proxy_pass http://mlapi/health/live;")],
    "mlapi": [],
}


def rate(base: str, credentials: Path, connections: int, seconds: float) -> float:
    """Return the successful requests per second. Fail if a request fails."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(LOAD / "guard.lua")]
    output = subprocess.run([*command, base, "--", str(credentials)], capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"Requests/sec:\s+([\d.]+)", output)
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(output)
    return float(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="seconds for each measurement")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", default="1", help="workers of mlapi")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlapi-bench-")))
        environ = mlapi_environ(f"sqlite:///{folder}/mlapi.db", "fernet")
        bulk.register(environ, 10_000)
        bulk.write_credentials(environ, CREDENTIALS, folder, users=10_000)
        environ["MLAPI_HTTP__TRUSTED_PROXIES"] = "127.0.0.1"
        options = ("--workers", arguments.workers, "--no-access-log")
        mlapi = stack.enter_context(MlapiServer(folder, environ, *options))
        quiet = ("--no-access-log", "--log-level", "warning")
        bare = stack.enter_context(Server(folder, None, *quiet, app="bench.ceiling:app"))
        bases: dict[tuple[str, str], str] = {}
        for model, app in MODELS.items():
            server = stack.enter_context(Server(folder, None, *quiet, app=app))
            for verifier, replacements in VERIFIERS.items():
                port = bare.port if verifier == "bare Starlette" else mlapi.port
                nginx = deployed_nginx(folder / str(len(bases)), port, server.port, replacements)
                bases[model, verifier] = stack.enter_context(nginx)
        rates: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for _ in range(arguments.rounds):
            for names, base in bases.items():
                rates[names].append(rate(base, folder / "keys", arguments.connections, arguments.seconds))
    print("| model | checked by | requests per second | share of the static 204 |\n|---|---|---|---|")
    for (model, verifier), found in rates.items():
        static = rates[model, "static 204"]
        share = statistics.median(one / other for one, other in zip(found, static, strict=True))
        print(f"| {model} | {verifier} | {statistics.median(found):,.0f} | {share:.2f} |")


if __name__ == "__main__":
    main()
