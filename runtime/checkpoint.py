"""Checkpoints: out_dir/checkpoints/step_XXXXXXXX/{model.safetensors,state.pt,config.json}, and `best`, which names one of them.

A checkpoint folder is written under a temporary name, fsynced and renamed, so each one that carries its name is whole.
Weights are safetensors under GPT-2's names, the rest loads with `weights_only=True`: a stranger's checkpoint runs no code.
"""

import re
import shutil
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from config.foreign import read_object, read_tensors
from config.schema import FIXED_FIELDS, Config, from_dict
from model import GPT
from runtime.files import remove, write_atomically, write_json, write_text

_WRITTEN = ("checkpoints", "metrics.jsonl", "config.json", "run.json", ".lock")
_NAME = re.compile(r"step_(\d{8,})")


def save(out_dir: Path, step: int, model: GPT, state: dict[str, Any], config: Config, is_best: bool) -> Path:
    """Write the checkpoint of `step`; with `is_best` it becomes the one that `best` names. Then old ones are removed.

    `config` is the resolved one: it names the tokenizer and the vocabulary. OSError leaves all older checkpoints as they were.
    """
    root = out_dir / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)

    def write(folder: Path) -> None:
        folder.mkdir()
        try:
            save_file(model.gpt2_state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
            torch.save(state, folder / "state.pt")
        except (SafetensorError, RuntimeError) as error:  # what the two libraries make of an OSError
            free = shutil.disk_usage(root).free
            told = str(error).splitlines()[0]
            raise OSError(
                f"the checkpoint of step {step} cannot be written ({told}); {free:,} bytes are free in {root}"
            ) from error
        write_json(folder / "config.json", asdict(config))

    folder = root / f"step_{step:08d}"
    write_atomically(folder, write)
    if is_best:
        mark_best(folder)
    for old in checkpoints(out_dir)[: -config.keep_checkpoints]:
        if old.name != _best_name(out_dir):
            remove(old)
    return folder


def mark_best(folder: Path) -> None:
    """Make `best` name this checkpoint."""
    write_text(folder.parent / "best", folder.name + "\n")


def checkpoints(out_dir: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first. Temporary ones and links do not count."""
    folders = [
        path for path in (out_dir / "checkpoints").glob("step_*") if _NAME.fullmatch(path.name) and not path.is_symlink()
    ]
    return sorted((path for path in folders if path.is_dir()), key=lambda path: int(path.name[5:]))


def sweep(out_dir: Path) -> None:
    """Remove what a killed process left half-written."""
    for leftover in [*out_dir.glob(".*.tmp"), *(out_dir / "checkpoints").glob(".*.tmp")]:
        remove(leftover)


def find(run: str | Path, which: str = "best") -> Path:
    """The checkpoint folder that `which` (best, last or a step) means in a run's folder; a checkpoint folder is itself.

    Raises ValueError that says which there are.
    """
    run = Path(run)
    if (run / "state.pt").is_file():
        return run
    there = checkpoints(run)
    if not there:
        raise ValueError(
            f"{str(run)!r} holds no checkpoint; give the folder of a run, such as runs/tiny_hermite (make train makes it)"
        )
    if which == "best":
        return next((path for path in there if path.name == _best_name(run)), there[-1])
    if which == "last":
        return there[-1]
    for path in there:
        if which.isdecimal() and int(path.name[5:]) == int(which[:9]):
            return path
    steps = ", ".join(str(int(path.name[5:])) for path in there)
    raise ValueError(f"checkpoint {which!r} of {run}: give best, last or one of the steps {steps}")


def read_config(folder: Path) -> Config:
    """The `Config` in a run's or checkpoint's config.json, validated as the data it is. Raises ValueError."""
    path = folder / "config.json"
    return from_dict(read_object(path), str(path))


def load_weights(model: GPT, folder: Path) -> None:
    """Load a checkpoint's weights into `model`. Raises ValueError where they are damaged or do not fit."""
    path = folder / "model.safetensors"
    model.load_gpt2_state_dict(read_tensors(path, model.config), str(path))


def load_state(folder: Path) -> dict[str, Any]:
    """Optimizer, scaler and progress of a checkpoint, on the CPU. Raises ValueError for a file that is damaged or runs code."""
    path = folder / "state.pt"
    if not zipfile.is_zipfile(path) or _unpacked_bytes(path) > path.stat().st_size:
        raise ValueError(f"{path} is not a training state of this project; use another checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything; every one of them is reported, none is passed over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a training state of this project ({reason}); use another checkpoint") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a training state of this project; use another checkpoint")
    return state


def load_model(run: str | Path, which: str = "best") -> tuple[GPT, Config]:
    """The model of a run's checkpoint, on the CPU in evaluation mode, with the run's `Config`. Raises ValueError."""
    folder = find(run, which)
    config = read_config(folder)
    path = folder / "model.safetensors"
    tensors = read_tensors(path, config.gpt(config.vocab_size))
    model = GPT(config.gpt(config.vocab_size))
    model.load_gpt2_state_dict(tensors, str(path))
    return model.eval(), config


def check_resumable(config: Config, earlier: Config, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Fields that changed since `earlier`, the checkpoint's, as {name: (was, is)}.

    Raises ValueError naming those that a run cannot change on its way.
    """
    differing = [name for name in FIXED_FIELDS if getattr(config, name) != getattr(earlier, name)]
    if differing:
        told = ", ".join(f"{name} was {getattr(earlier, name)!r} and is {getattr(config, name)!r}" for name in differing)
        raise ValueError(f"cannot resume {folder}: {told}; give the former values, or another out_dir")
    was, now = asdict(earlier), asdict(config)
    return {name: (was[name], now[name]) for name in now if was[name] != now[name]}


def refuse_links(out_dir: Path) -> None:
    """Raises ValueError where a name that a run writes in its folder is a symbolic link: it would write elsewhere."""
    ours = [*(out_dir / name for name in _WRITTEN), out_dir / "checkpoints" / "best"]
    if links := [str(path) for path in ours if path.is_symlink()]:
        raise ValueError(
            f"{links[0]} is a symbolic link; a run writes only inside its folder: remove it, or link the folder itself"
        )


def _unpacked_bytes(path: Path) -> int:
    """What a zip archive says it unpacks to; torch.save packs nothing, so that more than its size is an attack."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a training state of this project ({error}); use another checkpoint") from None


def _best_name(out_dir: Path) -> str:
    path = out_dir / "checkpoints" / "best"
    return path.read_text(encoding="utf-8").strip() if path.is_file() and not path.is_symlink() else ""
