"""Run folders as train.py leaves them, without the training: losses are what a test says they are."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.schema import Config
from config.tiny import config as tiny

# What these tests name in numbers, whatever the preset says.
preset = replace(tiny, n_layer=4, max_steps=500, eval_interval=250, learning_rate=2e-3, min_lr=2e-4)

Maker = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> Maker:
    """make_run(activation, seed, loss, field=value, ...) -> the folder of a finished run of that final validation loss."""

    def make(
        activation: str, seed: int, loss: float, measured: bool = True, run: dict[str, Any] | None = None, **fields: Any
    ) -> Path:
        name = "-".join([activation.replace(":", "-"), *(f"{k}={v}" for k, v in fields.items()), f"seed={seed}"])
        config = replace(preset, activation=activation, seed=seed, out_dir=str(tmp_path / "runs" / name), **fields)
        return _write(config, loss, measured, run or {})

    return make


@pytest.fixture
def finish_run() -> Maker:
    """finish_run(config, loss) -> the folder of that run, finished with that validation loss."""
    return lambda config, loss: _write(config, loss, measured=True, run={})


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without pictures, which take most of their time; test_plots.py and the report of a sweep have them."""
    monkeypatch.setattr("comparison.plots.figures", lambda summary: {})


def _write(config: Config, loss: float, measured: bool, run: dict[str, Any]) -> Path:
    folder = Path(config.out_dir)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(asdict(replace(config, vocab_size=257, tokenizer="bytes"))))
    facts = {"init_hash": f"init{config.seed}", "parameters": 1000, "activation_parameters": 16, "peak_memory_bytes": 2**28}
    facts |= {
        "data": {"corpus_sha256": "c0"},
        "commit": "abc",
        "dirty": False,
        "command": ["train.py"],
        "hardware": {"device": "cpu"},
    }
    (folder / "run.json").write_text(json.dumps(facts | run))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows(config.max_steps, config.seed, loss)))
    if measured:
        (folder / "measured.json").write_text(json.dumps(_measured(config, loss)))
    return folder


def _rows(max_steps: int, seed: int, loss: float) -> list[dict[str, Any]]:
    noise = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for step in range(0, max_steps + 1, 10):
        now = loss + 4 * np.exp(-step / max_steps * 7) + 0.1 * noise.normal()
        if step:
            rows.append(
                {"step": step, "train_loss": now, "tokens_per_second": 1e4, "ms_per_step": 40.0, "data_hash": f"{seed}-{step}"}
            )
        if step % (max_steps // 10) == 0:
            value = loss + 4 * (np.exp(-step / max_steps * 7) - np.exp(-7)) if step < max_steps else loss
            rows.append(
                {
                    "step": step,
                    "val_loss": value,
                    "val_bits_per_byte": value / np.log(2),
                    "data_hash": f"{seed}-{step}",
                    "elapsed_s": 0.05 * step,
                }
            )
    return rows


def _measured(config: Config, loss: float) -> dict[str, Any]:
    noise = np.random.default_rng(1000 + config.seed)
    targets = np.random.default_rng(0).integers(100, 900, 30)  # the documents are the same for all seeds
    hardness = 1 + 0.1 * noise.normal(size=30)
    nats = targets * hardness * loss
    nats *= loss * targets.sum() / nats.sum()
    x = np.linspace(-3, 3, 31)
    shapes = {
        f"transformer.h.{layer}.mlp.act": {
            "x": x.tolist(),
            **{str(step): (x * (x > 0) + layer * 0.1 * np.cos(x) * step / 500).tolist() for step in (0, 250, 500)},
        }
        for layer in range(4)
    }
    return {
        "step": config.max_steps,
        "documents": {"nats": nats.tolist(), "targets": targets.tolist(), "bytes": targets.tolist()},
        "shapes": {} if config.activation.startswith("gelu") else shapes,
    }
