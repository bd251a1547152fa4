"""The same config and seed twice are the same run, and run.json says what ran."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from config.schema import Config
from faults.process import trainer
from faults.runs import assert_same, small_config, write_shards
from faults.tally import Tally, expect, keep

RECORDED = {"commit", "dirty", "command", "config_hash", "hardware", "init_hash", "data"}
HARDWARE = {"device", "cores", "threads", "platform", "python", "torch", "cuda", "processes", "dtype"}


def run(tally: Tally, folder: Path) -> None:
    """Twice each, for several activations and precisions; on CUDA, where it is there, with deterministic=True."""
    data_dir = folder / "data"
    data_dir.mkdir()
    base = small_config(write_shards(data_dir), folder / "run")
    changes: list[dict[str, Any]] = [{"activation": "gelu"}, {"dropout": 0.1}, {"dtype": "bfloat16"}, {"deterministic": True}]
    if torch.cuda.is_available():
        changes.append({"device": "cuda", "deterministic": True, "dtype": "auto"})
    else:
        tally.notes.append("no CUDA device here: deterministic=True was tested on the CPU alone")
    chosen = changes if tally.full else changes[:1]
    tally.plan(len(changes) + 1, len(chosen) + 1)
    for number, change in enumerate(chosen):
        with tally.fault(f"twice with {change}"):
            twice = [dataclasses.replace(base, out_dir=str(folder / f"{number}-{i}"), **change) for i in range(2)]
            for config in twice:
                child = trainer(config, Path(config.out_dir).with_suffix(".log"))
                expect(child.finish() == 0, f"the run failed: {child.said[-500:]}")
            assert_same(*twice)
    with tally.fault("what run.json records"):
        recorded(twice[0], twice[1])


def recorded(one: Config, other: Config) -> None:
    """Commit, dirty state, versions, hardware, command line and config hash are there; the hash is of what matters."""
    records = [json.loads((Path(config.out_dir) / "run.json").read_text()) for config in (one, other)]
    for record in records:
        missing = (RECORDED - record.keys()) | (HARDWARE - record["hardware"].keys())
        keep(not missing, f"run.json lacks {sorted(missing)}")
        expect(record["command"][0].endswith("train.py") and len(record["command"]) > 2, f"command {record['command']}")
    expect(records[0]["config_hash"] == records[1]["config_hash"], "equal configs have different hashes")
