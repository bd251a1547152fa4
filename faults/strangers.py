"""Files made to attack: refused in one line, nothing executed, nothing written elsewhere, memory bounded."""

import dataclasses
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from config.schema import Config
from faults.process import Child, one_line, trainer
from faults.runs import small_config, write_shards
from faults.tally import Tally, expect, keep
from runtime import checkpoint

MEMORY = 1 << 30  # address space beyond the program's own: threads and libraries take some of it, a bomb would take more
VICTIM = "victim"


def run(tally: Tally, folder: Path) -> None:
    """One run is trained; each attack gets a copy of it, or a file that data.prepare is given."""
    data_dir = folder / "data"
    data_dir.mkdir()
    config = dataclasses.replace(small_config(write_shards(data_dir), folder / "run"), max_steps=4, lr_decay_steps=12)
    expect(trainer(config, folder / "run.log").finish() == 0, "the run to attack failed")
    chosen = CHECKPOINTS if tally.full else CHECKPOINTS[::4]
    tally.plan(2 * len(CHECKPOINTS), 2 * len(chosen))
    for name, attack, *needed in chosen:
        for program in ("sample", "train"):
            if program == "sample" and name in FOR_TRAINING:
                tally.planned -= 1
                continue
            with tally.fault(f"{name} for {program}.py"):
                against_checkpoint(folder, config, name, attack, program, needed)
    attacks = INPUTS if tally.full else INPUTS[:1]
    tally.plan(len(INPUTS), len(attacks))
    for name, suffix, make, *needed in attacks:
        with tally.fault(f"{name} for data.prepare"):
            source = folder / f"{name.replace(' ', '_')}{suffix}"
            make(source)
            argv = ["text", "--input", str(source), "--out", str(folder / f"{name}-out"), "--tokenizer", "bytes"]
            child = Child("data.prepare", argv, folder / f"{name}.log", memory_bytes=MEMORY)
            one_line(child, 2, *needed)
    links = LINKS if tally.full else LINKS[:2]
    tally.plan(len(LINKS) + 1, len(links) + 1)
    for link in links:
        with tally.fault(f"{link} is a link in the run's folder"):
            against_link(folder, config, link)
    with tally.fault("a link where data.prepare puts its lock"):
        out, victim = folder / "linked-out", folder / "linked-victim"
        out.mkdir()
        victim.write_text("mine")
        (out / ".lock").symlink_to(victim)
        (folder / "text.txt").write_text("text")
        argv = ["text", "--input", str(folder / "text.txt"), "--out", str(out), "--tokenizer", "bytes"]
        one_line(Child("data.prepare", argv, folder / "linked.log"), 2, "symbolic link")
        keep(victim.read_text() == "mine", "the link's target was written")


Attack = Callable[[Path], object]


def against_checkpoint(folder: Path, config: Config, name: str, attack: Attack, program: str, needed: list[str]) -> None:
    """A program that opens the attacked checkpoint refuses it, executes nothing, and stays in bounded memory."""
    place = folder / f"{name.replace(' ', '_')}-{program}"
    shutil.copytree(config.out_dir, place)
    attacked = place / "checkpoints" / "step_00000004"
    attack(attacked)
    (attacked / checkpoint.SUMS).unlink()  # a stranger would write sums that fit; none do as well
    log = place.with_suffix(".log")
    if program == "sample":
        argv = [str(place), "--prompt", "a", "--max_new_tokens", "4", "--device", "cpu", "--dtype", "float32"]
        child = Child("sample", argv, log, memory_bytes=MEMORY)
    else:
        child = trainer(dataclasses.replace(config, out_dir=str(place), max_steps=8), log, memory_bytes=MEMORY)
    one_line(child, 2, *needed)
    expect(not (place / "checkpoints" / VICTIM).exists(), "the payload was executed")


def against_link(folder: Path, config: Config, link: str) -> None:
    """train.py refuses a run's folder in which a name of its own is a symbolic link; what it points to is untouched."""
    place, target = folder / f"link-{link.replace('/', '-')}", folder / f"target-{link.replace('/', '-')}"
    shutil.copytree(config.out_dir, place)
    if (place / link).exists():
        (place / link).rename(target)
    else:
        target.write_text("mine")
    (place / link).symlink_to(target)
    before = contents(target)
    child = trainer(dataclasses.replace(config, out_dir=str(place), max_steps=8), place.with_suffix(".log"))
    one_line(child, 2, "symbolic link", link)
    keep(contents(target) == before, "what the link points to has changed")


def contents(path: Path) -> dict[str, bytes]:
    """Every file at or below a path."""
    return {str(file): file.read_bytes() for file in [path, *path.rglob("*")] if file.is_file()}


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
    import gzip

    line = b'{"text": ""}\n' * 80_000
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(line)


def deep_json(path: Path) -> None:
    path.write_text(("[" * 100_000 + "\n") * 20)


STATE, WEIGHTS, SETTINGS = "state.pt is not a training state", "model.safetensors is not whole", "config.json"
# name, what it does to a checkpoint's folder, what the line must say
CHECKPOINTS: list[tuple[str, Attack, str] | tuple[str, Attack, str, str]] = [
    ("a pickle that runs code", pickle_in_state, STATE),
    ("a plain pickle", plain_pickle, STATE),
    ("a pickle for weights", pickle_as_weights, WEIGHTS),
    ("a zip bomb", bomb_in_state, STATE),
    ("an absurd header", header_of(1 << 62), WEIGHTS),
    ("a header of 4 GB", header_of(1 << 32), WEIGHTS),
    ("a header that is no JSON", header_of(8, b"[[[[[[[["), WEIGHTS),
    ("a tensor beyond the file", tensor_beyond, WEIGHTS),
    ("names that climb", names_that_climb, "model.safetensors"),
    ("a huge model", config_with(n_layer=10_000, n_embd=1 << 20, n_head=1), "step_00000004"),
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
