"""A state.pt from anybody is checked against the model before the optimizer sees any of it."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from config.schema import Config
from runtime import checkpoint
from runtime.progress import Progress
from runtime.run import Run
from runtime.setup import restore, set_up
from runtime.state import load_scaler, read_progress
from tests.runs import small_config, train_here

State = dict[str, Any]


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoint of step 4."""
    config = small_config(data_dir, tmp_path_factory.mktemp("trained") / "run")
    return Path(train_here(config, max_steps=4, lr_decay_steps=12).out_dir) / "checkpoints" / "step_00000004"


@pytest.fixture
def fresh(small: Config) -> Iterator[Run]:
    run = set_up(small)
    with run.resources:
        yield run


@pytest.fixture(scope="module")
def muon_trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a run with Muon."""
    config = small_config(data_dir, tmp_path_factory.mktemp("muon") / "run")
    return Path(train_here(config, max_steps=4, lr_decay_steps=12, optimizer="muon").out_dir) / "checkpoints" / "step_00000004"


def moment(state: State, name: str = "exp_avg", index: int = 1) -> torch.Tensor:
    tensor: torch.Tensor = state["optimizer"]["state"][index][name]
    return tensor


def put(name: str, make: Callable[[torch.Tensor], object], index: int = 1) -> Callable[[State], object]:
    """Change one entry of a parameter's state."""

    def change(state: State) -> None:
        state["optimizer"]["state"][index][name] = make(moment(state, name, index))

    return change


def every_step(value: float) -> Callable[[State], object]:
    def change(state: State) -> None:
        for entry in state["optimizer"]["state"].values():
            entry["step"] = torch.tensor(value)

    return change


def nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[3] = torch.nan
    return tensor


HOSTILE: dict[str, tuple[Callable[[State], object], str]] = {
    "a moment of one number": (put("exp_avg", lambda t: torch.ones(1)), r"exp_avg of parameter 1 is \(1,\)"),
    "a moment of another shape": (put("exp_avg_sq", lambda t: t.reshape(-1)), "exp_avg_sq of parameter 1 is"),
    "a moment of stride 0": (put("exp_avg", lambda t: torch.ones(1).expand(t.shape)), "not contiguous"),
    "a transposed moment": (put("exp_avg", lambda t: t.t().contiguous().t()), "not contiguous"),
    "a moment in float64": (put("exp_avg", lambda t: t.double()), "float64, not"),
    "a moment in bfloat16": (put("exp_avg_sq", lambda t: t.bfloat16()), "bfloat16, not"),
    "a sparse moment": (put("exp_avg", lambda t: t.to_sparse()), "no dense tensor"),
    "a moment on no device": (put("exp_avg", lambda t: t.to("meta")), "no dense tensor"),
    "a moment that is a list": (put("exp_avg", lambda t: t.tolist()), "is no tensor"),
    "a moment that is NaN": (put("exp_avg", nan), "not finite"),
    "an infinite moment": (put("exp_avg", lambda t: t + torch.inf), "not finite"),
    "a square that is NaN": (put("exp_avg_sq", nan), "not finite"),
    "a negative square": (put("exp_avg_sq", lambda t: -t - 1), "negative"),
    "a field more": (lambda s: s["optimizer"]["state"][0].update(max_exp_avg_sq=torch.ones(1)), "has not the fields"),
    "a field less": (lambda s: s["optimizer"]["state"][0].pop("exp_avg"), "has not the fields"),
    "a parameter less": (lambda s: s["optimizer"]["state"].pop(3), "holds moments of"),
    "a parameter more": (lambda s: s["optimizer"]["state"].update({999: {}}), "holds moments of"),
    "no parameter": (lambda s: s["optimizer"]["state"].clear(), "holds moments of 0"),
    "a parameter in another group": (lambda s: s["optimizer"]["param_groups"][0]["params"].pop(), "not those of this model"),
    "a group less": (lambda s: s["optimizer"]["param_groups"].pop(), "not those of this model"),
    "groups that are none": (lambda s: s["optimizer"].update(param_groups=[1, 2, 3]), "not those of this model"),
    "an optimizer that is none": (lambda s: s.update(optimizer=[]), "has no state"),
    "another step": (every_step(400.0), r"made \[400\] updates"),
    "a step before the first": (every_step(-1.0), r"made \[-1\] updates"),
    "half a step": (put("step", lambda t: t + 0.5), "step of parameter 1 is 4.5"),
    "a step that is NaN": (put("step", lambda t: t * torch.nan), "step of parameter 1 is nan"),
    "one step apart": (put("step", lambda t: t - 1), r"made \[3, 4\] updates"),
    "a step of two numbers": (put("step", lambda t: torch.ones(2)), r"step of parameter 1 is \(2,\)"),
    "progress of another step": (lambda s: s["progress"].update(step=5), "it is of step 5, its folder of step 4"),
    "progress of no step": (lambda s: s["progress"].pop("step"), "no table with the fields"),
    "progress with a field more": (lambda s: s["progress"].update(evil=1), "no table with the fields"),
    "progress that is none": (lambda s: s.update(progress=3), "no table with the fields"),
    "a step that is a word": (lambda s: s["progress"].update(step="4"), "step='4' is no int"),
    "a best loss that is NaN": (lambda s: s["progress"].update(best_loss=float("nan")), "what no run has"),
    "a best loss that none is below": (lambda s: s["progress"].update(best_loss=-1.0), "what no run has"),
    "a best step ahead": (lambda s: s["progress"].update(best_step=9), "what no run has"),
    "more steps skipped than made": (lambda s: s["progress"].update(skipped_steps=5), "what no run has"),
    "time that runs back": (lambda s: s["progress"].update(elapsed_s=-1.0), "what no run has"),
    "a hash that is none": (lambda s: s["progress"].update(data_hash="x"), "what no run has"),
    "no scaler": (lambda s: s.pop("scaler"), "it has no scaler"),
    "checksums that are none": (
        lambda s: s.update(data_checksums=dict.fromkeys(s["data_checksums"], 3)),
        "object is not iterable",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_run_wrote_is_refused_before_the_optimizer_sees_it(
    trained: Path, fresh: Run, tmp_path: Path, name: str
) -> None:
    change, told = HOSTILE[name]
    state = checkpoint.load_state(trained)
    change(state)
    folder = tmp_path / "step_00000004"
    folder.mkdir()
    torch.save(state, folder / "state.pt")
    with pytest.raises(ValueError, match=rf"(?s)state\.pt does not fit this run \(.*{told}"):
        restore(fresh, folder)
    assert not fresh.optimizer.state
    assert fresh.progress == Progress()


def matrix(name: str, make: Callable[[torch.Tensor], object]) -> Callable[[State], object]:
    """Change the entry of the last parameter, a matrix of Muon's."""
    return lambda state: put(name, make, index=max(state["optimizer"]["state"]))(state)


def as_adamw(state: State) -> None:
    """AdamW's moments where Muon keeps its own."""
    last = max(state["optimizer"]["state"])
    buffer = state["optimizer"]["state"][last]["momentum_buffer"]
    state["optimizer"]["state"][last] = {"step": torch.tensor(4.0), "exp_avg": buffer, "exp_avg_sq": buffer.square()}


HOSTILE_OF_MUON: dict[str, tuple[Callable[[State], object], str]] = {
    "momentum of another shape": (matrix("momentum_buffer", lambda t: t.t().contiguous()), "momentum_buffer of parameter"),
    "momentum in bfloat16": (matrix("momentum_buffer", lambda t: t.bfloat16()), "bfloat16, not"),
    "momentum of stride 0": (matrix("momentum_buffer", lambda t: torch.ones(1).expand(t.shape)), "not contiguous"),
    "momentum that is NaN": (matrix("momentum_buffer", nan), "not finite"),
    "momentum that is a list": (matrix("momentum_buffer", lambda t: t.tolist()), "is no tensor"),
    "moments of AdamW": (as_adamw, "has not the fields momentum_buffer"),
    "no momentum": (
        lambda s: s["optimizer"]["state"][max(s["optimizer"]["state"])].clear(),
        "has not the fields momentum_buffer",
    ),
    "another step": (
        lambda s: [e.update(step=torch.tensor(9.0)) for e in s["optimizer"]["state"].values() if "step" in e],
        r"made \[9\] updates",
    ),
    "no group of matrices": (lambda s: s["optimizer"]["param_groups"].pop(), "not those of this model"),
}


@pytest.mark.parametrize("name", HOSTILE_OF_MUON)
def test_a_hostile_state_of_muon_is_refused(muon_trained: Path, small: Config, tmp_path: Path, name: str) -> None:
    change, told = HOSTILE_OF_MUON[name]
    run = set_up(dataclasses.replace(small, optimizer="muon"))
    with run.resources:
        state = checkpoint.load_state(muon_trained)
        change(state)
        folder = tmp_path / "step_00000004"
        folder.mkdir()
        torch.save(state, folder / "state.pt")
        with pytest.raises(ValueError, match=rf"(?s)state\.pt does not fit this run \(.*{told}"):
            restore(run, folder)
        assert not run.optimizer.state
        assert run.progress == Progress()


def test_one_optimizer_s_state_is_not_the_other_s(trained: Path, muon_trained: Path, small: Config) -> None:
    for folder, optimizer in ((trained, "muon"), (muon_trained, "adamw")):
        run = set_up(dataclasses.replace(small, optimizer=optimizer))
        with run.resources, pytest.raises(ValueError, match="not those of this model"):
            restore(run, folder)
    with pytest.raises(
        ValueError, match=r"cannot resume .*: optimizer was 'muon' and is 'adamw'; to go on type --optimizer muon"
    ):
        set_up(dataclasses.replace(small, out_dir=str(muon_trained.parent.parent), lr_decay_steps=12))


def test_the_groups_options_are_the_config_s(trained: Path, fresh: Run, tmp_path: Path) -> None:
    state = checkpoint.load_state(trained)
    for group in state["optimizer"]["param_groups"]:
        group |= {
            "weight_decay": 9.0,
            "maximize": True,
            "betas": (0.0, 0.0),
            "eps": 1.0,
            "amsgrad": True,
            "fused": False,
            "lr": 7.0,
        }
    before = fresh.optimizer.state_dict()["param_groups"]
    folder = tmp_path / "step_00000004"
    folder.mkdir()
    torch.save(state, folder / "state.pt")
    restore(fresh, folder)
    assert fresh.optimizer.state_dict()["param_groups"] == before
    assert fresh.progress.step == 4


def test_moments_that_share_memory_in_the_file_do_not_in_the_optimizer(trained: Path, fresh: Run, tmp_path: Path) -> None:
    state = checkpoint.load_state(trained)
    entry = state["optimizer"]["state"][1]
    entry["exp_avg"] = entry["exp_avg_sq"]
    folder = tmp_path / "step_00000004"
    folder.mkdir()
    torch.save(state, folder / "state.pt")
    restore(fresh, folder)
    held = [tensor.data_ptr() for entry in fresh.optimizer.state.values() for tensor in entry.values()]
    assert len(set(held)) == len(held)


def scaler_state(**changes: object) -> dict[str, object]:
    return torch.amp.GradScaler("cpu").state_dict() | changes


@pytest.mark.parametrize(
    "saved",
    [
        scaler_state(scale=0.0), scaler_state(scale=float("nan")), scaler_state(scale=float("inf")), scaler_state(scale=-1.0),
        scaler_state(scale="1"), scaler_state(_growth_tracker=-1), scaler_state(_growth_tracker=2000), scaler_state(more=1), [],
    ],
)  # fmt: skip
def test_a_scale_that_no_run_has_is_refused(saved: object) -> None:
    with pytest.raises(ValueError, match="its scaler"):
        load_scaler(torch.amp.GradScaler("cpu"), saved)


def test_the_scaler_s_rules_are_its_own_and_a_run_may_change_to_float16() -> None:
    scaler = torch.amp.GradScaler("cpu")
    load_scaler(scaler, scaler_state(scale=8.0, _growth_tracker=3, growth_factor=1e9, backoff_factor=2.0))
    assert scaler.state_dict() == scaler_state(scale=8.0, _growth_tracker=3)
    fresh = torch.amp.GradScaler("cpu")
    load_scaler(fresh, {})
    assert fresh.get_scale() == 65536
    load_scaler(torch.amp.GradScaler("cpu", enabled=False), scaler_state())


def test_progress_comes_back(trained: Path) -> None:
    saved = checkpoint.load_state(trained)["progress"]
    assert dataclasses.asdict(read_progress(saved, 4)) == saved
    assert read_progress({"step": 3, "data_hash": ""}, None) == Progress(step=3)
