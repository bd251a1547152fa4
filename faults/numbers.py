"""Numbers that are not finite, or soon will not be: the run stops or skips as told, and says where it was."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import train
from config.schema import Config
from faults.process import trainer
from faults.runs import rows, small_config, write_shards
from faults.tally import Tally, expect, keep
from runtime import checkpoint
from runtime.run import Run

AT = 5  # the step before whose update the fault comes


def run(tally: Tally, folder: Path) -> None:
    """Poisoned weights, gradients and losses, under both policies; float16; spikes; runaway coefficients."""
    data_dir = folder / "data"
    data_dir.mkdir()
    base = dataclasses.replace(small_config(write_shards(data_dir), folder / "run"), checkpoint_interval=2, keep_checkpoints=20)
    poisons = [Poison(where, value) for where in ("weight", "gradient", "loss") for value in (math.nan, math.inf)]
    for poison in poisons if tally.full else poisons[2:3]:
        for policy in ("stop", "skip"):
            tally.plan(1, 1)
            with tally.fault(f"{poison.value} as a {poison.where}, nonfinite={policy}"):
                config = dataclasses.replace(
                    base, nonfinite=policy, out_dir=str(folder / f"{poison.where}-{poison.value}-{policy}")
                )
                poisoned(config, poison)
    others: dict[str, Callable[[Config], None]] = {
        "float16 beyond its range": scaled, "a loss spike": spike, "a coefficient that runs away": runaway,
        "a learning rate that diverges": diverging,
    }  # fmt: skip
    tally.plan(len(others), 1)
    for name, check in list(others.items())[0 if tally.full else 2 : None if tally.full else 3]:
        with tally.fault(name):
            check(dataclasses.replace(base, out_dir=str(folder / check.__name__)))


@dataclass(frozen=True)
class Poison:
    """In the child: a number of the second layer's coefficients, of their gradient, or the loss, is this at step AT alone."""

    where: str
    value: float

    def __call__(self) -> None:
        if self.where == "weight":
            before_step(AT, lambda run: fill(run, self.value))
            return

        def arm(run: Run) -> None:
            parameter = run.gpt.get_parameter(coefficient(run))
            if self.where == "gradient":
                handle = parameter.register_hook(lambda gradient: gradient + self.value)
                after_step(run, handle.remove)
            else:
                original = run.model
                run.model = Scaled(original, self.value)
                after_step(run, lambda: setattr(run, "model", original))

        before_step(AT, arm)


class Scaled(torch.nn.Module):
    """A model whose loss is multiplied by a number."""

    def __init__(self, model: torch.nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, *arguments: Any) -> torch.Tensor:
        loss: torch.Tensor = self.model(*arguments)
        return loss * self.factor


@dataclass(frozen=True)
class Grow:
    """In the child: before step AT the second layer's coefficients, or all matrices, are multiplied."""

    factor: float
    matrices: bool = False

    def __call__(self) -> None:
        before_step(AT, self.grow)

    def grow(self, run: Run) -> None:
        """Multiply, in place."""
        with torch.no_grad():
            if self.matrices:
                run.gpt.transformer.wte.weight.mul_(self.factor)
            else:
                run.gpt.get_parameter(coefficient(run)).mul_(self.factor)


def before_step(at: int, act: Callable[[Run], object]) -> None:
    """Call act(run) when the run is about to take the step that follows `step` updates."""
    original = train.take_step

    def take_step(run: Run, step: int, batch: Any) -> Any:
        if step == at:
            act(run)
        taken = original(run, step, batch)
        for undo in _after.pop(id(run), []):
            undo()
        return taken

    train.take_step = take_step


_after: dict[int, list[Callable[[], object]]] = {}


def after_step(run: Run, undo: Callable[[], object]) -> None:
    """Call undo() when the step is taken."""
    _after.setdefault(id(run), []).append(undo)


def coefficient(run: Run) -> str:
    """The name of the second layer's first coefficients."""
    return next(name for name, _ in run.gpt.named_parameters() if name.startswith("transformer.h.1.mlp.act."))


def fill(run: Run, value: float) -> None:
    """One bad number among the coefficients."""
    with torch.no_grad():
        run.gpt.get_parameter(coefficient(run)).view(-1)[0] = value


def poisoned(config: Config, poison: Poison) -> None:
    """`stop`: exit code 1, the step, layer and tensor named; `skip`: it goes on where it can. Checkpoints are finite."""
    child = trainer(config, Path(config.out_dir).with_suffix(".log"), poison)
    code = child.finish()
    said = child.said
    expect("Traceback" not in said, f"a traceback: {said[-600:]}")
    if config.nonfinite == "stop":
        expect(code == 1, f"exit code {code}: {said[-500:]}")
        expect(f"step {AT + 1} gave loss" in said and "--nonfinite skip" in said, f"it does not say so: {said[-500:]}")
        expect(poison.where == "loss" or "transformer.h.1.mlp.act" in said, f"it does not name the layer: {said[-500:]}")
    elif poison.where == "weight":  # every later step is skipped, too: nothing is learned, nothing is hidden
        expect(code == 0, f"exit code {code}: {said[-500:]}")
        expect(
            max(row.get("skipped_steps", 0) for row in rows(config)) == config.max_steps - AT, "skipped steps are not counted"
        )
    else:
        expect(code == 0, f"exit code {code}: {said[-500:]}")
        expect(max(row.get("skipped_steps", 0) for row in rows(config)) == 1, "the skipped step is not counted")
    if config.nonfinite == "skip":
        expect(f"step {AT + 1} is skipped" in said, f"it does not say so: {said[-500:]}")
        expect(poison.where == "loss" or "transformer.h.1.mlp.act" in said, f"it does not name the layer: {said[-500:]}")
    before = [path for path in checkpoint.checkpoints(Path(config.out_dir)) if int(path.name[5:]) < AT]
    keep(before, "no checkpoint from before the trouble")
    for path in before if poison.where == "weight" else checkpoint.checkpoints(Path(config.out_dir)):
        keep(all(tensor.isfinite().all() for tensor in load_file(path / "model.safetensors").values()), f"{path} is not finite")


def scaled(config: Config) -> None:
    """The scaler's first scale overflows float16: it is lowered, the steps are counted as skipped, and the run learns."""
    config = dataclasses.replace(config, dtype="float16", max_steps=30, eval_interval=30)
    child = trainer(config, Path(config.out_dir).with_suffix(".log"), Grow(1e4))
    code = child.finish()
    expect("Traceback" not in child.said and code in (0, 1), f"exit code {code}: {child.said[-500:]}")
    skipped = max(row.get("skipped_steps", 0) for row in rows(config))
    expect(code == 1 or skipped > 0, f"exit code {code}, {skipped} steps skipped: nothing overflowed")
    expect(code == 0 or "transformer.h." in child.said, f"it does not name the layer: {child.said[-500:]}")


def spike(config: Config) -> None:
    """A loss that jumps is logged."""
    config = dataclasses.replace(config, max_steps=10)
    child = trainer(config, Path(config.out_dir).with_suffix(".log"), Grow(30.0, matrices=True))
    expect(child.finish() == 0, f"it failed: {child.said[-500:]}")
    expect("loss spike" in child.said, f"it says nothing of it: {child.said[-900:]}")


def runaway(config: Config) -> None:
    """A coefficient that is far from where it began is reported, with layer and step."""
    child = trainer(config, Path(config.out_dir).with_suffix(".log"), Grow(200.0))
    expect(child.finish() in (0, 1), f"it failed: {child.said[-500:]}")
    expect(f"step {AT + 1}: coefficient transformer.h.1.mlp.act." in child.said, f"it says nothing of it: {child.said[-900:]}")


def diverging(config: Config) -> None:
    """A learning rate of a million, as a user may type it."""
    config = dataclasses.replace(
        config, learning_rate=1e12, min_lr=1e12, warmup_steps=0, max_steps=60, lr_decay_steps=60, grad_clip=0.0
    )
    child = trainer(config, Path(config.out_dir).with_suffix(".log"))
    code = child.finish()
    if code == 0:
        expect("runs away" in child.said, f"it says nothing of it: {child.said[-500:]}")
        return
    expect(code == 1 and "Traceback" not in child.said, f"exit code {code}: {child.said[-500:]}")
    expect("gave loss" in child.said, f"it does not say where: {child.said[-500:]}")
