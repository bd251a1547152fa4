"""The same config and seed twice are the same run, and run.json says what ran."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from config.schema import Config
from tests.faults.forms import some
from tests.processes import trained
from tests.runs import assert_same, keep

pytestmark = pytest.mark.fault
RECORDED = {"commit", "dirty", "command", "config_hash", "hardware", "init_hash", "data"}
HARDWARE = {"device", "cores", "threads", "platform", "python", "torch", "cuda", "processes", "dtype"}
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("gelu", {"activation": "gelu"}), ("dropout", {"dropout": 0.1}), ("bfloat16", {"dtype": "bfloat16"}),
    ("deterministic", {"deterministic": True}), ("cuda", {"device": "cuda", "deterministic": True, "dtype": "auto"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), some(CHANGES, slice(1)))
def test_twice(base: Config, name: str, change: dict[str, Any]) -> None:
    """Equal to the bit; commit, versions, hardware, command line and config hash are recorded; the hash is of what matters."""
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here: deterministic=True was tested on the CPU alone")
    one, other = (trained(dataclasses.replace(base, out_dir=f"{base.out_dir}-{name}-{i}", **change)) for i in range(2))
    assert_same(one, other)
    records = [json.loads((Path(config.out_dir) / "run.json").read_text()) for config in (one, other)]
    for record in records:
        missing = (RECORDED - record.keys()) | (HARDWARE - record["hardware"].keys())
        keep(not missing, f"run.json lacks {sorted(missing)}")
        assert record["command"][0].endswith("train.py")
        assert len(record["command"]) > 2
    assert records[0]["config_hash"] == records[1]["config_hash"], "equal configs have different hashes"
