"""The script that measures layers runs, and shows every layer."""

import asyncio
from argparse import Namespace
from pathlib import Path

import pytest
from bench.layers import OPERATIONS, measure_layers


def test_every_layer_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = Namespace(rounds=1, requests=64, users=64, storages=["memory", "sqlite"], operations=OPERATIONS)

    asyncio.run(measure_layers(arguments, tmp_path)).print()

    shown = capsys.readouterr().out
    for operation in OPERATIONS:
        assert f"\n{operation} " in shown
    changes = [
        "bare Starlette",
        "mlapi, HTTP layers",
        "batching, writer thread",
        "memory, users",
        "sqlite, audit trail",
    ]
    for layer in [*changes, "memory, guard", "sqlite, guard"]:
        assert f"  {layer} " in shown
