"""The step benchmark takes train.py's step, and its plain contender is plain."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import step
from data.shards import header, open_split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards of random bytes."""
    tokens = np.random.default_rng(0).integers(0, 256, 3000).astype("<u2")
    for split in ("train", "val"):
        (tmp_path / f"{split}_000000.bin").write_bytes(header(tokens.size) + tokens.tobytes())
    return tmp_path


def test_contenders_are_the_defaults_and_plain(folder: Path) -> None:
    config = step.make_config("tiny", folder, torch.device("cpu"))
    gelu, plain = step.contender(config, "gelu"), step.contender(config, step.PLAIN)
    assert (gelu.dtype, gelu.compile, plain.dtype, plain.compile) == ("auto", True, "float32", False)
    assert plain.activation == gelu.activation
    assert plain.out_dir != gelu.out_dir
    swiglu = step.contender(config, "swiglu")
    assert (swiglu.mlp, swiglu.activation, gelu.mlp) == ("gated", "silu", "plain")


def test_times_processes_in_turns(folder: Path) -> None:
    config = replace(step.make_config("tiny", folder, torch.device("cpu")), compile=False)
    rows = step.compare_times(config, [step.PLAIN, "gelu"], rounds=2)
    assert [row["contender"] for row in rows] == [step.PLAIN, "gelu"]
    for row in rows:
        assert len(row["rounds_ms"]) == 2
        assert row["peak_memory_bytes"] > 1e7
        assert 0 < row["mfu"] < 1
        assert row["parts_ms"]["matrix products"] > 0
        assert min(row["parts_ms"].values()) >= 0
    assert rows[1]["against_gelu"] == 1


def test_a_worker_s_error_ends_the_run(folder: Path) -> None:
    config = step.make_config("tiny", folder / "missing", torch.device("cpu"))
    with pytest.raises(EOFError):
        step.compare_times(config, [step.PLAIN, "gelu"], rounds=1)


def test_losses_are_of_the_same_tokens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(step.make_config("tiny", folder, torch.device("cpu"), max_steps=3), compile=False)
    rows = step.compare_losses(config, 2)
    assert [row["seed"] for row in rows] == [0, 1]
    assert all(row[step.PLAIN] == pytest.approx(row["gelu"], abs=0.02) for row in rows)
    last = [json.loads((folder / "run" / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("plain0", "gelu0")]
    assert last[0]["data_hash"] == last[1]["data_hash"]
    step.show_quality(rows)
    assert "mean difference" in capsys.readouterr().out


def test_shards_are_bytes_of_text(tmp_path: Path) -> None:
    step.write_shards(tmp_path)
    tokens = open_split(tmp_path, "train")
    assert len(tokens) > 1_000_000
    assert b"def " in tokens.read(0, 100_000).astype(np.uint8).tobytes()
