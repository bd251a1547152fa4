"""A checkpoint's state.pt, checked against the model and the config before any of it is loaded.

The file may be anybody's. The fused AdamW kernel trusts the shapes and strides of its moments, and writes beyond them where
they are wrong. What is kept for a parameter is said by its optimizer (`optim.remembers`). Options of the groups come from the
config alone, never from the file.
"""

import dataclasses
import math
import re
from typing import Any

import torch
from torch import Tensor

from runtime import sharding
from runtime.optim import remembers
from runtime.progress import Progress

_LARGEST_SCALE = 2.0**127  # of a gradient scaler, in float32


def read_progress(saved: Any, step: int | None) -> Progress:
    """The `Progress` in a state.pt; `step` is the one that its folder's name states, if it does. Raises ValueError."""
    kinds = {field.name: field.type for field in dataclasses.fields(Progress)}
    if not isinstance(saved, dict) or not saved.keys() <= kinds.keys() or not {"step", "data_hash"} <= saved.keys():
        raise ValueError(f"its progress is no table with the fields {', '.join(kinds)}")
    if wrong := [name for name, value in saved.items() if type(value) is not kinds[name]]:
        raise ValueError(f"{wrong[0]}={saved[wrong[0]]!r} is no {kinds[wrong[0]].__name__}")  # type: ignore[union-attr]
    progress = Progress(**saved)
    if step is not None and progress.step != step:
        raise ValueError(f"it is of step {progress.step}, its folder of step {step}")
    whole = re.fullmatch("(?:[0-9a-f]{32})?", progress.data_hash) and progress.best_loss >= 0
    in_range = 0 <= progress.skipped_steps <= progress.step and -1 <= progress.best_step <= progress.step
    if not whole or not in_range or not 0 <= progress.elapsed_s < math.inf:
        raise ValueError(f"its progress holds what no run has: {progress}")
    return progress


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Any, updates: range) -> None:
    """Load the moments of a state.pt into a fresh optimizer; how many updates they have seen is in `updates`.

    Every parameter that is trained has finite, contiguous moments of its own shape and type: AdamW's two and a float32 `step`,
    or Muon's one; before the first update no parameter has any. The tensors are copied: those of a file may share memory.
    Raises ValueError that names the first parameter that does not fit.
    """
    own = optimizer.state_dict()["param_groups"]
    parameters = [(parameter, remembers(group)) for group in optimizer.param_groups for parameter in group["params"]]
    if (
        not isinstance(saved, dict)
        or not isinstance(saved.get("state"), dict)
        or not isinstance(saved.get("param_groups"), list)
    ):
        raise ValueError("its optimizer has no state and param_groups")
    groups = [group.get("params") if isinstance(group, dict) else None for group in saved["param_groups"]]
    if groups != [group["params"] for group in own]:
        raise ValueError("its optimizer's groups are not those of this model")
    state = saved["state"]
    trained = {index for index, (parameter, _) in enumerate(parameters) if parameter.requires_grad}
    if state.keys() != trained and not (0 in updates and not state):
        raise ValueError(f"its optimizer holds moments of {len(state)} parameters, the model trains {len(trained)}")
    if any(type(index) is not int for index in state):
        raise ValueError("its optimizer numbers parameters by something else than integers")
    counts = [_check_moments(index, state[index], *parameters[index]) for index in state]
    seen = {count for count in counts if count is not None}
    if len(seen) > 1 or not seen <= set(updates):
        raise ValueError(f"its optimizer has made {sorted(seen)} updates, the run {updates.start} to {updates.stop - 1}")
    copies = {
        index: {name: sharding.like(tensor, parameters[index][0]) for name, tensor in entry.items()}
        for index, entry in state.items()
    }
    optimizer.load_state_dict({"state": copies, "param_groups": own})


def load_scaler(scaler: torch.amp.GradScaler, saved: Any) -> None:
    """Load the scale of a state.pt; its rules come from the scaler. A run that goes on in float16 begins with a fresh one.

    Raises ValueError for a scale that no run has.
    """
    if not scaler.is_enabled() or saved == {}:
        return
    own = scaler.state_dict()
    if not isinstance(saved, dict) or saved.keys() != own.keys():
        raise ValueError(f"its scaler has not the fields {', '.join(own)}")
    scale, tracker = saved["scale"], saved["_growth_tracker"]
    if type(scale) is not float or not 0 < scale <= _LARGEST_SCALE:
        raise ValueError(f"its scaler's scale is {scale!r}")
    if type(tracker) is not int or not 0 <= tracker < own["growth_interval"]:
        raise ValueError(f"its scaler's growth tracker is {tracker!r}")
    scaler.load_state_dict(own | {"scale": scale, "_growth_tracker": tracker})


def _check_moments(index: int, entry: Any, parameter: Tensor, moments: tuple[str, ...]) -> int | None:
    """How many updates a parameter's entry has seen; None where it does not count them, as Muon's.

    Raises ValueError where the entry does not fit the parameter.
    """
    fields = ("step", *moments) if "exp_avg" in moments else moments
    if not isinstance(entry, dict) or entry.keys() != {*fields}:
        raise ValueError(f"its optimizer's entry {index} has not the fields {', '.join(fields)}")
    if wrong := [name for name, value in entry.items() if type(value) is not Tensor]:
        raise ValueError(f"{wrong[0]} of parameter {index} is no tensor")
    for name, tensor in entry.items():
        shape, dtype = (torch.Size(), torch.float32) if name == "step" else (parameter.shape, parameter.dtype)
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{name} of parameter {index} is no dense tensor in memory")
        if tensor.shape != shape or tensor.dtype is not dtype:
            difference = f"{tuple(tensor.shape)} {tensor.dtype}, not {tuple(shape)} {dtype}"
            raise ValueError(f"{name} of parameter {index} is {difference}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} of parameter {index} is not contiguous")
    # A squared gradient may overflow without clipping; the update is then zero, and the run goes on.
    if not entry[moments[0]].isfinite().all() or not all((entry[name] >= 0).all() for name in moments[1:]):
        raise ValueError(f"the moments of parameter {index} are not finite, or a square is negative")
    if "step" not in fields:
        return None
    step = float(entry["step"])
    if not step.is_integer():
        raise ValueError(f"step of parameter {index} is {step}")
    return int(step)
