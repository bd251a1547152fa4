"""The corpora that `data.prepare` knows: which documents, in which order, and which of them are validation."""

import math
import platform
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from data.hub import open_dataset
from data.sources import Part, drop_binaries, find_files, fingerprint, is_text, line_end, open_file, open_text

# Folders that installations leave out (Docker's slim images and Debian drop the tests) or that hold other people's code, so
# that one Python version is one corpus on most machines.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
# Written by the build of this one installation.
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
# Folders of near-duplicates, each in one split. Found by shared runs of three lines: of the pairs of files that share a
# quarter of them (Python 3.11), 1,445 lie in encodings, 5 in the other two, 7 elsewhere.
FAMILIES = ("encodings", "lib2to3", "distutils")
# nanoGPT: datasets' train_test_split with this seed; the second number is its fraction.
NANOGPT_SEED, NANOGPT_FRACTION = 2357, 0.0005
# nanoGPT, data/openwebtext/prepare.py, in its comments and its README.
OPENWEBTEXT = {"documents": 8_013_769, "train_tokens": 9_035_582_198, "val_tokens": 4_434_897}


@dataclass(frozen=True)
class Corpus:
    """Documents in source order, the numbers of those that are validation, and where they come from."""

    parts: Sequence[Part]
    validation: frozenset[int]
    source: str
    revision: str

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)


@dataclass(frozen=True)
class Plan:
    """A corpus before it is opened: what identifies it, cheaply, and how to open it.

    `open` takes a folder for temporary files and the revision that an unfinished preparation began with, if there is one.
    """

    identity: dict[str, str]
    open: Callable[[Path, str], Corpus]


def plan_pystdlib(val_fraction: float) -> Plan:
    """The running Python's standard-library sources, in the order of their paths, without tests; validation by file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py"), key=Path.as_posix) if _is_library(path.relative_to(root))]
    version = f"{platform.python_implementation()} {platform.python_version()}"

    def open_corpus(folder: Path, revision: str) -> Corpus:
        kept = drop_binaries([path for path in files if path.stat().st_size])
        sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in kept}
        validation = choose_files(sizes, val_fraction)
        numbers = frozenset(number for number, name in enumerate(sizes) if name in validation)
        return Corpus([open_text(path) for path in kept], numbers, "standard library", version)

    return Plan({"python": version, "inputs": fingerprint(files)}, open_corpus)


def plan_text(inputs: Sequence[str], val_fraction: float) -> Plan:
    """Files and folders in any form that `data.sources` reads; validation by document, or the end of a single text."""
    files = find_files(inputs)

    def open_corpus(folder: Path, revision: str) -> Corpus:
        if len(files) == 1 and is_text(files[0]):
            size = files[0].stat().st_size
            cut = line_end(files[0], round(size * (1 - val_fraction)))
            if not 0 < cut < size:
                raise ValueError(f"{files[0]} is too short to cut {val_fraction} off for validation; give more text")
            parts = [open_text(files[0], 0, cut), open_text(files[0], cut, size)]
            validation = frozenset(range(parts[0].count, parts[0].count + parts[1].count))
            return Corpus(parts, validation, inputs[0], "local")
        parts = [open_file(path) for path in drop_binaries(files, inputs)]
        return Corpus(parts, choose_documents(parts, val_fraction), " ".join(inputs), "local")

    return Plan({"inputs": fingerprint(files)}, open_corpus)


def plan_openwebtext(inputs: Sequence[str], repository: str, revision: str, val_fraction: float) -> Plan:
    """OpenWebText from the hub, or local files that hold it; nanoGPT's split."""
    if inputs:
        files = find_files(inputs)
        identity = {"inputs": fingerprint(files)}
    else:
        identity = {"repository": repository, "revision": revision}

    def open_corpus(folder: Path, begun: str) -> Corpus:
        if inputs:
            source, commit, parts = " ".join(inputs), "local", [open_file(path) for path in drop_binaries(files, inputs)]
        else:
            source = repository
            commit, parts = open_dataset(repository, begun or revision, folder)
        return Corpus(parts, choose_documents(parts, val_fraction), source, commit)

    return Plan(identity, open_corpus)


def choose_documents(parts: Sequence[Part], fraction: float) -> frozenset[int]:
    """nanoGPT's validation documents: of a permutation of all document numbers the first part, rounded up.

    Equal to datasets' `train_test_split(test_size=fraction, seed=NANOGPT_SEED)`, which needs the count alone.
    """
    count = sum(part.count for part in parts)
    chosen = math.ceil(count * fraction)
    if not 0 < chosen < count:
        raise ValueError(f"{count} documents do not split into {fraction} for validation and a rest; give more documents")
    return frozenset(np.random.default_rng(NANOGPT_SEED).permutation(count)[:chosen].tolist())


def choose_files(sizes: dict[str, int], fraction: float) -> set[str]:
    """Validation files: families in the order of a hash of their names, until the next would pass that share of all bytes.

    A family of more than a quarter of the share stays in training, so that no single one makes the validation set.
    """
    families: dict[str, list[str]] = {}
    for name in sizes:
        top = name.split("/")[0]
        families.setdefault(top if top in FAMILIES else name, []).append(name)
    budget = fraction * sum(sizes.values())
    chosen: set[str] = set()
    taken = 0
    for family in sorted(families, key=lambda family: blake2b(family.encode()).digest()):
        size = sum(sizes[name] for name in families[family])
        if size > budget / 4:
            continue
        if taken + size > budget:
            break
        chosen.update(families[family])
        taken += size
    return chosen


def _is_library(path: Path) -> bool:
    return not SKIPPED_FOLDERS.intersection(path.parts) and not path.parts[0].startswith(SKIPPED_PREFIXES)
