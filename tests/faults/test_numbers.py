"""Numbers that are not finite, or soon will not be: the run stops or skips as told, and says where it was."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from safetensors.torch import load_file

from config.schema import Config
from runtime import checkpoint
from tests.faults.forms import some
from tests.faults.injection import AT, Grow, Poison
from tests.processes import ends, trainer
from tests.runs import keep, rows

pytestmark = pytest.mark.fault
POISONS = [
    (where, value, policy)
    for where in ("gradient", "weight", "loss")
    for value in (math.nan, math.inf)
    for policy in ("stop", "skip")
]


@pytest.fixture
def config(base: Config, tmp_path: Path) -> Config:
    return dataclasses.replace(base, checkpoint_interval=2, keep_checkpoints=20, out_dir=str(tmp_path / "run"))


@pytest.mark.parametrize(("where", "value", "policy"), some(POISONS, slice(2)))
def test_a_number_that_is_not_finite(config: Config, where: str, value: float, policy: Literal["stop", "skip"]) -> None:
    """`stop`: exit code 1, the step, layer and tensor named; `skip`: it goes on where it can. Checkpoints are finite."""
    config = dataclasses.replace(config, nonfinite=policy)
    said = ends(trainer(config, Poison(where, value)), 1 if policy == "stop" else 0)
    told = [f"step {AT + 1} gave loss", "--nonfinite skip"] if policy == "stop" else [f"step {AT + 1} is skipped"]
    for word in told + ["transformer.h.1.mlp.act"] * (where != "loss"):
        assert word in said, f"it does not say {word!r}: {said[-500:]}"
    if policy == "skip":  # with a bad weight every later step is skipped, too: nothing is learned, nothing is hidden
        skipped = max(row.get("skipped_steps", 0) for row in rows(config))
        assert skipped == (config.max_steps - AT if where == "weight" else 1), "skipped steps are not counted"
    there = checkpoint.checkpoints(Path(config.out_dir))
    before = [path for path in there if int(path.name[5:]) < AT]
    keep(before, "no checkpoint from before the trouble")
    for path in before if where == "weight" else there:
        keep(all(tensor.isfinite().all() for tensor in load_file(path / "model.safetensors").values()), f"{path} is not finite")


def runaway(config: Config) -> None:
    """A coefficient that is far from where it began is reported, with layer and step."""
    child = trainer(config, Grow(200.0))
    assert child.finish() in (0, 1), child.said[-500:]
    assert f"step {AT + 1}: coefficient transformer.h.1.mlp.act." in child.said, child.said[-900:]


def scaled(config: Config) -> None:
    """The scaler's first scale overflows float16: it is lowered, the steps are counted as skipped, and the run learns."""
    config = dataclasses.replace(config, dtype="float16", max_steps=30, eval_interval=30)
    child = trainer(config, Grow(1e4))
    code = child.finish()
    said = ends(child, int(code != 0))
    skipped = max(row.get("skipped_steps", 0) for row in rows(config))
    assert code == 1 or skipped > 0, f"exit code {code}, {skipped} steps skipped: nothing overflowed"
    assert code == 0 or "transformer.h." in said, f"it does not name the layer: {said[-500:]}"


def spike(config: Config) -> None:
    """A loss that jumps is logged."""
    said = ends(trainer(dataclasses.replace(config, max_steps=10), Grow(30.0, matrices=True)))
    assert "loss spike" in said, said[-900:]


def diverging(config: Config) -> None:
    """A learning rate far too high, as a user may type it."""
    child = trainer(
        dataclasses.replace(
            config, learning_rate=1e12, min_lr=1e12, warmup_steps=0, max_steps=60, lr_decay_steps=60, grad_clip=0.0
        )
    )
    code = child.finish()
    said = ends(child, int(code != 0))
    assert ("gave loss" if code else "runs away") in said, said[-500:]


OTHERS = [(check.__name__, check) for check in (runaway, scaled, spike, diverging)]


@pytest.mark.parametrize(("name", "check"), some(OTHERS, slice(1)))
def test_numbers_that_grow(config: Config, name: str, check: Callable[[Config], None]) -> None:
    check(config)
