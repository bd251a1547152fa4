"""Checkpoints that a disk, a copy or a stranger damaged: refused with exit code 2 and one line, before anything is loaded."""

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from config.schema import Config
from runtime import checkpoint
from tests.faults.forms import some
from tests.processes import one_line, trained, trainer
from tests.runs import assert_same, keep

pytestmark = pytest.mark.fault
NEWEST, OLDER = "step_00000008", "step_00000004"
FILES = (*checkpoint.FILES, checkpoint.SUMS)
Damage = Callable[[Path], object]


def flip(file: str, seed: int) -> Damage:
    """One bit at a random place."""

    def damage(folder: Path) -> None:
        generator, data = random.Random(seed), bytearray((folder / file).read_bytes())
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        (folder / file).write_bytes(data)

    return damage


def cut(file: str, seed: int) -> Damage:
    """The file ends at a random place."""

    def damage(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: random.Random(seed).randrange(len(data))])

    return damage


def swap(*files: str) -> Damage:
    """Files of the older checkpoint in place of the newest one's; config.json is made another by a blank."""

    def damage(folder: Path) -> None:
        for file in files:
            shutil.copy(folder.parent / OLDER / file, folder / file)
        if files == ("config.json",):
            with open(folder / "config.json", "a") as config:
                config.write(" ")

    return damage


def hostile(change: Callable[[dict[str, Any]], object]) -> Damage:
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
            if name in entry:  # Muon keeps others than AdamW
                entry[name] = make(entry[name])

    return change


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {  # what it does to a state
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
CASES: list[tuple[str, Damage, *tuple[str, ...]]] = [
    *((f"a flip in {file}", flip(file, seed), "is damaged", NEWEST, OLDER) for seed in range(40) for file in FILES),
    *((f"a cut of {file}", cut(file, seed), "is damaged", OLDER) for seed in range(5) for file in FILES),
    *((f"{file} of another checkpoint", swap(file), "is damaged") for file in FILES),
    *((f"a state with {name}", hostile(change), "state.pt does not fit this run") for name, change in HOSTILE.items()),
    ("the older checkpoint under the newest one's name", swap(*FILES), "it is of step 4, its folder of step 8"),
]
MANY = 45 * len(FILES)  # flips and cuts
SHORT = [*range(len(FILES)), 40 * len(FILES), MANY, *range(MANY + len(FILES), MANY + len(FILES) + 2), len(CASES) - 1]


@pytest.mark.parametrize(("name", "case"), some([(c[0], c[1:]) for c in CASES], SHORT))
def test_refused(name: str, case: tuple[Damage, *tuple[str, ...]], eight_steps: Config) -> None:
    damaged(eight_steps, *case)


HOSTILE_TO_MUON: dict[str, Callable[[dict[str, Any]], object]] = {
    "momentum of one number": moments("momentum_buffer", lambda t: torch.full((1,), 0.125)),
    "momentum that is transposed": moments("momentum_buffer", lambda t: t.t().contiguous()),
    "momentum in bfloat16": moments("momentum_buffer", lambda t: t.bfloat16()),
    "momentum that is not finite": moments("momentum_buffer", lambda t: t * torch.nan),
    "no group of matrices": lambda state: state["optimizer"]["param_groups"].pop(),
    "another step of AdamW's": moments("step", lambda t: t + 1000),
}


@pytest.fixture(scope="module")
def eight_of_muon(eight_steps: Config) -> Config:
    return trained(dataclasses.replace(eight_steps, optimizer="muon", out_dir=f"{eight_steps.out_dir}-muon"))


@pytest.mark.parametrize("name", some([(name,) for name in HOSTILE_TO_MUON], slice(2)))
def test_a_hostile_state_of_muon_is_refused(name: str, eight_of_muon: Config) -> None:
    damaged(eight_of_muon, hostile(HOSTILE_TO_MUON[name]), "state.pt does not fit this run")


def test_the_way_that_the_line_names(eight_steps: Config) -> None:
    """Once the damaged checkpoint is removed, the older one resumes."""
    whole = trained(dataclasses.replace(eight_steps, max_steps=12, out_dir=f"{eight_steps.out_dir}-whole"))
    place = damaged(eight_steps, flip("state.pt", 0), f"{OLDER} is whole: remove")
    shutil.rmtree(place / "checkpoints" / NEWEST)
    assert_same(whole, trained(dataclasses.replace(whole, out_dir=str(place))))


def damaged(config: Config, damage: Damage, *needed: str) -> Path:
    """A copy of the run with its newest checkpoint damaged: train.py refuses it and leaves every file as it was."""
    place = Path(f"{config.out_dir}-damaged")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(config.out_dir, place)
    damage(place / "checkpoints" / NEWEST)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    one_line(trainer(dataclasses.replace(config, max_steps=12, out_dir=str(place))), 2, *needed)
    after = {path: path.read_bytes() for path in before if path.is_file()}
    changed = [path.name for path in before if after.get(path) != before[path] and path.name != ".lock"]
    keep(not changed, f"changed: {changed}")
    return place
