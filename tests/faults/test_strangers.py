"""Files made to attack: refused in one line, nothing executed, nothing written elsewhere, memory bounded."""

import dataclasses
import gzip
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from config.schema import Config
from runtime import checkpoint
from tests.faults.forms import some
from tests.processes import Child, one_line, trainer
from tests.runs import keep

pytestmark = pytest.mark.fault
MEMORY = 1 << 30  # address space beyond the program's own: threads and libraries take some of it, a bomb would take more
VICTIM = "victim"
Attack = Callable[[Path], object]


class Payload:
    """Unpickled, it creates a file beside the attacked checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.victim = str(folder.parent / VICTIM)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.victim,)


def pickle_in_state(folder: Path) -> None:
    torch.save({"optimizer": Payload(folder)}, folder / "state.pt")


def plain_pickle(folder: Path) -> None:
    (folder / "state.pt").write_bytes(pickle.dumps(Payload(folder)))


def pickle_as_weights(folder: Path) -> None:
    torch.save({"transformer.wte.weight": Payload(folder)}, folder / "model.safetensors")


def bomb_in_state(folder: Path) -> None:
    """Eight gigabytes of zeros, deflated."""
    with zipfile.ZipFile(folder / "state.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as file:
            block = bytes(1 << 24)
            for _ in range(64):
                file.write(block)
        archive.writestr("archive/version", "3\n")


def header_of(size: int, text: bytes = b"{}") -> Attack:
    """A safetensors file whose header says that it is so long."""
    return lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + text)


def tensor_beyond(folder: Path) -> None:
    """A tensor that lies beyond the file."""
    text = json.dumps({"transformer.wte.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def names_that_climb(folder: Path) -> None:
    """Tensors that are named like files elsewhere."""
    text = json.dumps({"../../victim": {"dtype": "F32", "shape": [20_000], "data_offsets": [0, 80_000]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(80_000))


def config_with(**changes: object) -> Attack:
    """config.json with other values."""

    def attack(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return attack


def sparse(name: str, size: int) -> Attack:
    """A file of zeros that takes no room on the disk."""

    def attack(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            file.truncate(size)

    return attack


def broken_rows(folder: Path) -> None:
    (folder.parents[1] / "metrics.jsonl").write_text('{"step": 1}\n[1, 2]\n')


def broken_record(folder: Path) -> None:
    (folder.parents[1] / "run.json").write_text("[" * 100_000)


def zstd_bomb(path: Path) -> None:
    """One line of eight gigabytes of spaces, packed."""
    from pyarrow import CompressedOutputStream, OSFile

    with OSFile(str(path), "wb") as file, CompressedOutputStream(file, "zstd") as packed:
        for _ in range(512):
            packed.write(b" " * (1 << 24))


def many_lines(path: Path) -> None:
    """300 megabytes of empty documents, packed a thousand times by gzip."""
    line = b'{"text": ""}\n' * 80_000
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(line)


def deep_json(path: Path) -> None:
    path.write_text(("[" * 100_000 + "\n") * 20)


STATE, WEIGHTS, SETTINGS = "state.pt is not a training state", "model.safetensors is not whole", "config.json"
# name, what it does to a checkpoint's folder, what the line must say
CHECKPOINTS: list[tuple[str, Attack, *tuple[str, ...]]] = [
    ("a pickle that runs code", pickle_in_state, STATE),
    ("a plain pickle", plain_pickle, STATE),
    ("a pickle for weights", pickle_as_weights, WEIGHTS),
    ("a zip bomb", bomb_in_state, STATE),
    ("an absurd header", header_of(1 << 62), WEIGHTS),
    ("a header of 4 GB", header_of(1 << 32), WEIGHTS),
    ("a header that is no JSON", header_of(8, b"[[[[[[[["), WEIGHTS),
    ("a tensor beyond the file", tensor_beyond, WEIGHTS),
    ("names that climb", names_that_climb, "model.safetensors"),
    ("a huge model", config_with(n_layer=10_000, n_embd=1 << 20, n_head=1), "step_00000008"),
    ("an unknown field", config_with(__class__="os.system"), SETTINGS, "unknown field '__class__'"),
    ("code for an activation", config_with(activation="__import__('os').mkdir('victim')"), SETTINGS),
    ("a config of a terabyte", sparse("config.json", 1 << 40), SETTINGS),
    ("weights of a terabyte", sparse("model.safetensors", 1 << 40), WEIGHTS),
    ("a state of a terabyte", sparse("state.pt", 1 << 40), STATE),
    ("rows that are none", broken_rows, "metrics.jsonl: line 2 is no row"),
    ("a record that is none", broken_record, "run.json is not JSON"),
]
FOR_TRAINING = {
    "a pickle that runs code", "a plain pickle", "a zip bomb", "a state of a terabyte", "rows that are none",
    "a record that is none",
}  # fmt: skip
INPUTS: list[tuple[str, str, Attack, str]] = [
    ("a zstd bomb", ".jsonl.zst", zstd_bomb, "longer than"),
    ("a gzip bomb of lines", ".jsonl.gz", many_lines, "times its size"),
    ("deep JSON", ".jsonl", deep_json, "is not JSON"),
]
LINKS = ("checkpoints", "metrics.jsonl", ".lock", "config.json", "run.json", "checkpoints/best")
ATTACKS = [
    (f"{name} for {program}", program, *case)
    for name, *case in CHECKPOINTS
    for program in ("train", "sample")
    if program == "train" or name not in FOR_TRAINING
]


@pytest.mark.parametrize(("name", "case"), some([(c[0], c[1:]) for c in ATTACKS], slice(0, None, 4)))
def test_a_checkpoint(name: str, case: tuple[str, Attack, *tuple[str, ...]], eight_steps: Config, tmp_path: Path) -> None:
    """A program that opens the attacked checkpoint refuses it, executes nothing, and stays in bounded memory."""
    program, attack, *needed = case
    place = shutil.copytree(eight_steps.out_dir, tmp_path / "run")
    shutil.rmtree(place / "checkpoints" / "step_00000004")
    attacked = place / "checkpoints" / "step_00000008"
    attack(attacked)
    (attacked / checkpoint.SUMS).unlink()  # a stranger would write sums that fit; none do as well
    if program == "sample":
        argv = [str(place), "--prompt", "a", "--max_new_tokens", "4", "--device", "cpu", "--dtype", "float32"]
        child = Child("sample", argv, tmp_path / "log", memory_bytes=MEMORY)
    else:
        child = trainer(dataclasses.replace(eight_steps, out_dir=str(place), max_steps=12), memory_bytes=MEMORY)
    one_line(child, 2, *needed)
    assert not (place / "checkpoints" / VICTIM).exists(), "the payload was executed"


@pytest.mark.parametrize(("name", "suffix", "make", "needed"), some(INPUTS, slice(1)))
def test_an_input_of_a_preparation(name: str, suffix: str, make: Attack, needed: str, tmp_path: Path) -> None:
    source = tmp_path / f"text{suffix}"
    make(source)
    argv = ["text", "--input", str(source), "--out", str(tmp_path / "out"), "--tokenizer", "bytes"]
    one_line(Child("data.prepare", argv, tmp_path / "log", memory_bytes=MEMORY), 2, needed)
    source.unlink()


@pytest.mark.parametrize("link", some([(link,) for link in LINKS], slice(2)))
def test_a_link_in_a_run_s_folder(link: str, eight_steps: Config, tmp_path: Path) -> None:
    """train.py refuses a run's folder in which a name of its own is a symbolic link; what it points to is untouched."""
    place, target = shutil.copytree(eight_steps.out_dir, tmp_path / "run"), tmp_path / "target"
    if (place / link).exists():
        (place / link).rename(target)
    else:
        target.write_text("mine")
    (place / link).symlink_to(target)
    before = contents(target)
    one_line(trainer(dataclasses.replace(eight_steps, out_dir=str(place), max_steps=12)), 2, "symbolic link", link)
    keep(contents(target) == before, "what the link points to has changed")


def test_a_link_where_a_preparation_puts_its_lock(tmp_path: Path) -> None:
    out, victim, source = tmp_path / "out", tmp_path / "victim", tmp_path / "text.txt"
    out.mkdir()
    victim.write_text("mine")
    (out / ".lock").symlink_to(victim)
    source.write_text("text")
    argv = ["text", "--input", str(source), "--out", str(out), "--tokenizer", "bytes"]
    one_line(Child("data.prepare", argv, tmp_path / "log"), 2, "symbolic link")
    keep(victim.read_text() == "mine", "the link's target was written")


def contents(path: Path) -> dict[str, bytes]:
    """Every file at or below a path."""
    return {str(file): file.read_bytes() for file in [path, *path.rglob("*")] if file.is_file()}
