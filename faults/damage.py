"""Checkpoints that a disk, a copy or a stranger damaged: refused with exit code 2 and one line, before anything is loaded."""

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from config.schema import Config
from faults.process import one_line, trainer
from faults.runs import assert_same, small_config, write_shards
from faults.tally import Tally, expect, keep
from runtime import checkpoint

FLIPS, CUTS, SWAPS = (40, 1), (5, 1), (1, 1)  # a file, in the full and in the short form
NEWEST, OLDER = "step_00000008", "step_00000004"


def run(tally: Tally, folder: Path) -> None:
    """One run is trained to step 8; each fault gets a copy of it, and the resume to step 12 has to refuse it."""
    data_dir = folder / "data"
    data_dir.mkdir()
    config = dataclasses.replace(
        small_config(write_shards(data_dir), folder / "run"), max_steps=8, lr_decay_steps=12, checkpoint_interval=4,
        keep_checkpoints=3, eval_interval=4,
    )  # fmt: skip
    whole = dataclasses.replace(config, max_steps=12, out_dir=str(folder / "whole"))
    expect(trainer(config, folder / "run.log").finish() == 0, "the run to damage failed")
    expect(trainer(whole, folder / "whole.log").finish() == 0, "the undisturbed run failed")
    generator = random.Random(12)
    files = (*checkpoint.FILES, checkpoint.SUMS)
    for file in files:
        for number in range(tally.plan(FLIPS[0], FLIPS[1])):
            if tally.has_time:
                with tally.fault(f"flip {number} in {file}"):
                    damaged(folder, config, flip(file, generator), "is damaged", NEWEST, OLDER)
    for file in files:
        for number in range(tally.plan(CUTS[0], CUTS[1] if file == "state.pt" else 0)):
            if tally.has_time:
                with tally.fault(f"cut {number} of {file}"):
                    damaged(folder, config, cut(file, generator), "is damaged", OLDER)
    for file in files:
        for _ in range(tally.plan(SWAPS[0], SWAPS[1] if file == "model.safetensors" else 0)):
            with tally.fault(f"{file} of another checkpoint"):
                damaged(folder, config, swap(file), "is damaged")
    for name in list(HOSTILE)[: tally.plan(len(HOSTILE), 2)]:
        with tally.fault(f"a state with {name}"):
            damaged(folder, config, hostile(HOSTILE[name]), "state.pt does not fit this run")
    tally.plan(1, 1)
    with tally.fault("the whole older checkpoint under the newest one's name"):
        damaged(folder, config, swap(*files), "it is of step 4, its folder of step 8")
    tally.plan(1, 1)
    with tally.fault("the way that the line names"):
        place = damaged(folder, config, flip("state.pt", generator), f"{OLDER} is whole: remove")
        shutil.rmtree(place / "checkpoints" / NEWEST)
        resumed = dataclasses.replace(whole, out_dir=str(place))
        expect(trainer(resumed, place.with_suffix(".again.log")).finish() == 0, "the older checkpoint does not resume")
        assert_same(whole, resumed)


def damaged(folder: Path, config: Config, damage: Callable[[Path], object], *needed: str) -> Path:
    """A copy of the run with its newest checkpoint damaged: train.py refuses it and leaves every file as it was."""
    place = folder / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(config.out_dir, place)
    damage(place / "checkpoints" / NEWEST)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    log = place.with_suffix(".log")
    log.unlink(missing_ok=True)
    one_line(trainer(dataclasses.replace(config, max_steps=12, out_dir=str(place)), log), 2, *needed)
    after = {path: path.read_bytes() for path in before if path.is_file()}
    changed = [path.name for path in before if after.get(path) != before[path] and path.name != ".lock"]
    keep(not changed, f"changed: {changed}")
    return place


def flip(file: str, generator: random.Random) -> Callable[[Path], None]:
    """One bit at a random place."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / file).read_bytes())
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        (folder / file).write_bytes(data)

    return damage


def cut(file: str, generator: random.Random) -> Callable[[Path], None]:
    """The file ends at a random place."""

    def damage(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: generator.randrange(len(data))])

    return damage


def swap(*files: str) -> Callable[[Path], None]:
    """Files of the older checkpoint in place of the newest one's; config.json is made another by a blank."""

    def damage(folder: Path) -> None:
        for file in files:
            shutil.copy(folder.parent / OLDER / file, folder / file)
        if files == ("config.json",):
            with open(folder / "config.json", "a") as config:
                config.write(" ")

    return damage


def hostile(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A stranger's state, without sums: as in a checkpoint from before they were written."""

    def damage(folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        change(state)
        torch.save(state, folder / "state.pt")
        (folder / checkpoint.SUMS).unlink()

    return damage


def moments(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], None]:
    """The same change to every parameter's tensor of that name."""

    def change(state: dict[str, Any]) -> None:
        for entry in state["optimizer"]["state"].values():
            entry[name] = make(entry[name])

    return change


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "moments of one number": moments("exp_avg", lambda t: torch.full((1,), 0.125)),
    "moments of stride 0": moments("exp_avg_sq", lambda t: torch.full((1,), 0.125).expand(t.shape)),
    "moments in float64": moments("exp_avg", lambda t: t.double()),
    "moments that are not finite": moments("exp_avg", lambda t: t + torch.inf),
    "negative squares": moments("exp_avg_sq", lambda t: t - 1),
    "another step": moments("step", lambda t: t + 1000),
    "no moments": lambda state: state["optimizer"]["state"].clear(),
    "groups of another model": lambda state: state["optimizer"]["param_groups"].pop(),
    "progress ahead": lambda state: state["progress"].update(step=900),
    "a best loss that is NaN": lambda state: state["progress"].update(best_loss=float("nan")),
    "no scaler": lambda state: state.pop("scaler"),
    "progress that is none": lambda state: state.update(progress=[]),
}
