"""Checkpoints: out_dir/checkpoints/step_XXXXXXXX/{model.safetensors,state.pt,config.json}, and `best`, which names one of them.

A checkpoint folder is written under a temporary name, fsynced and renamed, so each one that carries its name was whole.
SHA256SUMS in it, which `sha256sum -c` reads too, tells what a disk or a copy damaged later.
Weights are safetensors under GPT-2's names, the rest loads with `weights_only=True`: a stranger's checkpoint runs no code.
"""

import logging
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

import activations
from config.foreign import read_object, read_tensors
from config.schema import Config, GPTConfig, from_dict, names
from data import files
from data.files import remove, write_atomically, write_json, write_text
from data.shards import file_sha256
from data.tokenizer import FILE as TOKENIZER
from model import GPT
from runtime import sharding

FILES = ("model.safetensors", "state.pt", "config.json")
SUMS = "SHA256SUMS"

_WRITTEN = ("checkpoints", "metrics.jsonl", "config.json", "run.json", ".lock", "wandb", "tensorboard", "evaluation")
_NAME = re.compile(r"step_(\d{8,})")
_SUMS_BYTES = 1 << 12

logger = logging.getLogger("train")


def save(out_dir: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], config: Config, is_best: bool) -> Path:
    """Write the checkpoint of `step`; with `is_best` it becomes the one that `best` names. Then old ones are removed.

    `weights` is a model's `gpt2_state_dict`.
    `config` is the resolved one: it names the tokenizer and the vocabulary. OSError leaves all older checkpoints as they were.
    A whole checkpoint of that step stays as it is: the run went on from it, so it holds the same weights.
    """
    root = out_dir / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)

    def write(folder: Path) -> None:
        folder.mkdir()
        try:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            torch.save(state, folder / "state.pt")
        except (SafetensorError, RuntimeError) as error:  # what the two libraries make of an OSError
            free = shutil.disk_usage(root).free
            why = str(error).splitlines()[0]
            raise OSError(
                f"the checkpoint of step {step} cannot be written ({why}); {free:,} bytes are free in {root}"
            ) from error
        write_json(folder / "config.json", asdict(config))
        if config.tokenizer.startswith(TOKENIZER) and (out_dir / TOKENIZER).is_file():
            shutil.copyfile(out_dir / TOKENIZER, folder / TOKENIZER)  # config.json holds its SHA-256
        write_text(folder / SUMS, "".join(f"{file_sha256(folder / name)}  {name}\n" for name in FILES))

    folder = root / f"step_{step:08d}"
    if not is_whole(folder):
        remove(folder)
        write_atomically(folder, write)
    if is_best:
        mark_best(folder)
    for old in checkpoints(out_dir)[: -config.keep_checkpoints]:
        if old.name != _best_name(out_dir) and step_of(old) not in config.kept_steps:
            remove(old)
    return folder


def verify(folder: Path, names: Sequence[str] = FILES) -> bool:
    """Compare those files of a checkpoint with its SHA256SUMS; False where there is none, as in older checkpoints.

    Raises ValueError that names the first damaged file and the other checkpoints of the run that are whole.
    """
    if problem := _damage(folder, names):
        others = [path for path in _folders(folder.parent) if path.name != folder.name and is_whole(path)]
        advice = f"{folder.parent} holds no other one that is whole: copy it again, or begin in another folder"
        if others:
            whole = ", ".join(path.name for path in others)
            advice = (
                f"{whole} {'is' if len(others) == 1 else 'are'} whole: remove {folder} to go on from the newest of the others"
            )
        raise ValueError(f"{problem}; {advice}")
    return (folder / SUMS).is_file()


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint has all its files, each with the SHA-256 noted when it was written.

    Without SHA256SUMS (older checkpoints) the files have to be there; what is in them is not known.
    """
    return _damage(folder, FILES) == ""


def _damage(folder: Path, names: Sequence[str]) -> str:
    """What is wrong with those files of a checkpoint; "" where nothing is."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        return f"{folder / missing[0]} is missing"
    path = folder / SUMS
    if not path.is_file():
        return ""
    if path.stat().st_size > _SUMS_BYTES:
        return f"{path} is damaged"
    *lines, rest = path.read_bytes().decode("utf-8", "replace").split("\n")
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if rest or sums.keys() != set(FILES):
        return f"{path} is damaged"
    wrong = [name for name in names if file_sha256(folder / name) != sums[name]]
    return f"{folder / wrong[0]} is damaged: its SHA-256 is not the one in {SUMS}" if wrong else ""


def mark_best(folder: Path) -> None:
    """Make `best` name this checkpoint."""
    write_text(folder.parent / "best", folder.name + "\n")


def checkpoints(out_dir: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first. Temporary ones and links do not count."""
    return _folders(out_dir / "checkpoints")


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint folder's name; None where it has another name."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found else None


def _folders(root: Path) -> list[Path]:
    folders = [path for path in root.glob("step_*") if _NAME.fullmatch(path.name) and not path.is_symlink()]
    return sorted((path for path in folders if path.is_dir()), key=lambda path: int(path.name[5:]))


def sweep(out_dir: Path) -> None:
    """Remove what a killed process left half-written."""
    files.sweep(out_dir)
    files.sweep(out_dir / "checkpoints")


def find(run: str | Path, which: str = "best") -> Path:
    """The checkpoint folder that `which` (best, last or a step) means in a run's folder; a checkpoint folder is itself.

    Raises ValueError that says which there are.
    """
    run = Path(run)
    if (run / "state.pt").is_file():
        return run
    there = checkpoints(run)
    if not there and (run / "run.json").is_file():
        raise ValueError(
            f"{str(run)!r} holds no checkpoint yet: a run writes one every checkpoint_interval steps and at its end; wait for "
            "it, or go on with it by the command that started it"
        )
    if not there:
        raise ValueError(
            f"{str(run)!r} holds no checkpoint; give the folder of a run, such as runs/tiny_hermite (make train makes it)"
        )
    if which == "best":
        name = _best_name(run)
        if name and all(path.name != name for path in there):
            logger.warning("%s names %s, which is not there; taking %s", run / "checkpoints" / "best", name, there[-1].name)
        return next((path for path in there if path.name == name), there[-1])
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
    config = from_dict(read_object(path), str(path))
    refuse_code(config, folder.parent.parent if step_of(folder) is not None else folder)
    return config


def refuse_code(config: Config, out_dir: Path) -> None:
    """Raises ValueError where the activation is a class in a file inside the run's folder: a run brings no code along."""
    for file in activations.registry.files_of(config.activation):
        if Path(file).resolve().is_relative_to(out_dir.resolve()):
            raise ValueError(
                f"activation {file} lies in the run's folder {out_dir}, and no code is run from there; put the file elsewhere, "
                "and name it by that path"
            )


def load_weights(model: GPT, folder: Path, put: Callable[[Tensor, Tensor], object]) -> None:
    """Load a checkpoint's weights into `model` by put(own tensor, value). Raises ValueError for damaged or unfitting ones.

    The file is mapped: a process that puts a part of each tensor into its model does not hold the others.
    """
    path = folder / "model.safetensors"
    model.load_gpt2_state_dict(_read(path, model.config), str(path), put)


def _read(path: Path, config: GPTConfig) -> dict[str, Tensor]:
    """A run's weights are float32: other ones would be rounded without a word."""
    tensors = read_tensors(path, config)
    if wrong := [name for name, tensor in tensors.items() if tensor.dtype != torch.float32]:
        raise ValueError(f"{path}: {wrong[0]} is {tensors[wrong[0]].dtype}, not {torch.float32}; use another checkpoint")
    return tensors


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
    folder, config = _checked(run, which)
    path = folder / "model.safetensors"
    tensors = _read(path, config.gpt(config.vocab_size))  # before the model: a stranger's config may ask for any size
    model = GPT(config.gpt(config.vocab_size))
    model.load_gpt2_state_dict(tensors, str(path), sharding.put)
    return model.eval(), config


def read_weights(run: str | Path, which: str = "best") -> tuple[GPTConfig, dict[str, Tensor]]:
    """What such a model is made of, and its weights as the file has them, mapped. Raises ValueError."""
    folder, config = _checked(run, which)
    of_model = config.gpt(config.vocab_size)
    return of_model, _read(folder / "model.safetensors", of_model)


def _checked(run: str | Path, which: str) -> tuple[Path, Config]:
    """The folder of a checkpoint whose weights are undamaged, and its config."""
    folder = find(run, which)
    if not verify(folder, ("model.safetensors", "config.json")):
        say_unchecked(folder)
    return folder, read_config(folder)


def say_unchecked(folder: Path) -> None:
    """Say that a checkpoint is taken on trust."""
    logger.warning("%s has no %s: it is older than they are, and its files are unchecked", folder, SUMS)


def check_resumable(config: Config, earlier: Config, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Fields that changed since `earlier`, the checkpoint's, as {name: (was, is)}.

    Raises ValueError naming those that a run cannot change on its way, and what to type. Where `folder` is a run's own and
    no checkpoint's, as its rows came before its first checkpoint, the run begins again, and the same holds.
    """
    former, given = earlier.values(resume="fixed"), config.values(resume="fixed")
    if differing := [name for name in given if given[name] != former[name]]:
        former, given = (values | {"branch_from": c.branch_from} for values, c in ((former, earlier), (given, config)))
        changes = ", ".join(f"{name} was {former[name]!r} and is {given[name]!r}" for name in differing)
        if "lr_decay_steps" in differing and not config.lr_decay_steps:
            changes += " (left out, it is max_steps)"
        back = " ".join(f"--{name} {shlex.quote(str(former[name]))}" for name in differing)
        another = "another run: --out_dir ANOTHER"
        if step_of(folder) is None:
            raise ValueError(
                f"{folder} holds another run's rows: {changes}; type {back} to begin that run again, or start {another}"
            )
        if not set(differing) & set(names(model="shape")):
            another = f"another run from its weights: --init_from {folder.parent.parent} --out_dir ANOTHER"
        raise ValueError(f"cannot resume {folder}: {changes}; to go on type {back}, or start {another}")
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
