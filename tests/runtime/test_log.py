"""metrics.jsonl has neither gaps nor repeated steps nor a torn line."""

import dataclasses
import json
import math
import sys
import tempfile
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.schema import Config
from runtime.log import Metrics, config_hash, cut, grouped, read
from runtime.setup import set_up
from tests.runs import rows, train_here


@settings(deadline=None)  # the disk's time says nothing
@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 60))
def test_cut_at_any_step_after_any_crash(written: int, step: int, torn: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        lines = [json.dumps({"step": i, "train_loss": i / 3}) for i in range(written)]
        path.write_text("".join(line + "\n" for line in lines) + json.dumps({"step": written, "train_loss": 0.123456})[:torn])
        cut(path, step)
        assert path.read_text() == "".join(line + "\n" for line in lines[: step + 1])


def test_rows_come_back_and_non_finite_numbers_are_null(small: Config, tmp_path: Path) -> None:
    log = Metrics(tmp_path, small, 0)
    log.write({"step": 0, "val_loss": 1.25})
    log.write({"step": 1, "train_loss": math.nan, "grad_norm": math.inf})
    log.sync()
    log.close()
    cut(tmp_path / "metrics.jsonl", 1)
    assert read(tmp_path / "metrics.jsonl") == [
        {"step": 0, "val_loss": 1.25},
        {"step": 1, "train_loss": None, "grad_norm": None},
    ]


def test_config_hash_leaves_the_place_out(small: Config) -> None:
    for change in ({"out_dir": "elsewhere"}, {"timeout_s": 5.0}, {"wandb": "offline"}, {"lr_decay_steps": small.max_steps}):
        assert config_hash(small) == config_hash(dataclasses.replace(small, **change))
    assert config_hash(small) != config_hash(dataclasses.replace(small, seed=1))


def test_wandb_offline_gets_the_same_numbers(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """With W&B's own module replaced: what it is told is what metrics.jsonl says."""
    told: list[dict[str, object]] = []
    run = types.SimpleNamespace(log=lambda row, step: told.append(dict(row)), finish=lambda: told.append({"finished": True}))
    fake = types.ModuleType("wandb")
    fake.init = lambda **settings: told.append(settings) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = train_here(small, wandb="offline", wandb_group="sweep", max_steps=3, telemetry_interval=3)
    assert (told[0]["mode"], told[0]["group"]) == ("offline", "sweep")
    record = json.loads((Path(config.out_dir) / "run.json").read_text())
    assert told[0]["config"] == json.loads((Path(config.out_dir) / "config.json").read_text()) | {
        name: record[name] for name in ("config_hash", "parameters", "activation_parameters", "flops_per_token")
    } | {"activation": record["activation"], "data": record["data"], "hardware": record["hardware"]}
    assert told[0]["config"]["data"]["corpus_sha256"]
    assert told[-1] == {"finished": True}
    found = rows(config)
    assert told[1:-1] == [grouped(row) for row in found]
    for sent, row in zip(told[1:-1], found, strict=True):
        assert list(sent.values()) == list(row.values())
        assert {name.split("/")[0] for name in sent} - {"step"} in ({"train"}, {"val"}, {"activations"})


def test_a_run_that_died_before_its_first_checkpoint_begins_again(small: Config) -> None:
    out_dir = Path(small.out_dir)
    set_up(small).resources.close()
    config = (out_dir / "config.json").read_bytes()
    (out_dir / "config.json").unlink()
    (out_dir / "metrics.jsonl").write_text('{"step": 0, "val_loss": 5.0}\n{"step": 1, "train_loss": 5.0}\n{"st')
    with pytest.raises(ValueError, match=r"holds the rows of a run whose config\.json is gone; remove its metrics\.jsonl, or"):
        set_up(small)
    (out_dir / "config.json").write_bytes(config)
    train_here(small)
    assert [row["step"] for row in rows(small) if "val_loss" in row] == [0, 6, 12]
    assert [row["step"] for row in rows(small) if "train_loss" in row] == list(range(1, 13))


@pytest.mark.parametrize("line", ["[1]", "{}", "x", '{"step": "1"}'])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is no row"):
        read(path)


def cut_evaluation(path: Path) -> list[dict[str, object]]:
    cut(path, 2, without_evaluation=True)
    return read(path)


def test_an_evaluation_that_is_made_again_is_cut(tmp_path: Path) -> None:
    kept = [{"step": 1, "val_loss": 1.0}, {"step": 2, "train_loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*kept, {"step": 2, "val_loss": 1.0}]))
    assert cut_evaluation(tmp_path / "metrics.jsonl") == kept
