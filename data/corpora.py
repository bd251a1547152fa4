"""The corpora that `data.prepare` knows: which documents, in which order, and which of them are validation."""

import math
import platform
import sysconfig
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from data.hub import open_dataset
from data.inputs import TEXTS, Selection, fingerprint, is_utf8, refuse_held_out, select
from data.part import Part
from data.sources import cut_text, holds_marker, is_text, open_file, open_text
from data.tokenizer import END_OF_TEXT
from data.unpack import inner_suffix

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
HUB_FRACTION = 0.001  # of a dataset without a validation split: FineWeb's 10 billion tokens give 10 million
# nanoGPT, data/openwebtext/prepare.py, in its comments and its README.
OPENWEBTEXT = {"documents": 8_013_769, "train_tokens": 9_035_582_198, "val_tokens": 4_434_897}


@dataclass(frozen=True)
class Corpus:
    """Documents in source order, the numbers of those that are validation, and where they come from."""

    parts: Sequence[Part]
    validation: Container[int]
    source: str
    revision: str
    notes: tuple[str, ...] = ()
    """What was read, what was left out, and where the validation set comes from, for people."""

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)


@dataclass(frozen=True)
class Plan:
    """A corpus before it is opened: what identifies it, cheaply, and how to open it.

    `open` takes a folder for temporary files and the revision that an unfinished preparation began with, if there is one.
    """

    identity: dict[str, Any]
    open: Callable[[Path, str], Corpus]


def plan_pystdlib(val_fraction: float) -> Plan:
    """The running Python's standard-library sources, in the order of their paths, without tests; validation by file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py"), key=Path.as_posix) if _is_library(path.relative_to(root))]
    version = f"{platform.python_implementation()} {platform.python_version()}"

    def open_corpus(folder: Path, revision: str) -> Corpus:
        kept = [path for path in files if path.stat().st_size and is_utf8(path)]
        sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in kept}
        validation = choose_files(sizes, val_fraction)
        numbers = frozenset(number for number, name in enumerate(sizes) if name in validation)
        notes = (f"read {len(kept)} files of {root}", f"validation: whole files, {100 * val_fraction:.3g} % of the bytes")
        return Corpus([open_text(path) for path in kept], numbers, "standard library", version, notes)

    return Plan({"python": version, "inputs": fingerprint(files)}, open_corpus)


def plan_text(
    inputs: Sequence[str],
    val_fraction: float,
    val_inputs: Sequence[str] = (),
    field: str = "",
    separator: str | None = None,
) -> Plan:
    """Files and folders in any form that `data.sources` reads.

    Validation is what `val_inputs` hold, or a share of the documents, or the end of a single text.
    """
    chosen, held = select(inputs), select(val_inputs, "--val_input") if val_inputs else Selection()
    apart = {path.resolve() for path in held.files}
    chosen.files = [path for path in chosen.files if path.resolve() not in apart]
    chosen.held_out = [path for path in chosen.held_out if path.resolve() not in apart]
    if not chosen.files:
        raise ValueError("--input and --val_input name the same files; give two sets")
    refuse_held_out(chosen)
    texts = [path for path in [*chosen.files, *held.files] if is_text(path)]
    _check_separator(texts, separator)
    identity = {"inputs": fingerprint(chosen.files)}
    identity |= {"val_inputs": fingerprint(held.files)} if val_inputs else {}
    identity |= {name: value for name, value in (("text_field", field), ("separator", separator)) if value}

    def open_corpus(folder: Path, revision: str) -> Corpus:
        source, notes = " ".join(inputs), [*chosen.notes, *held.notes]
        if len(chosen.files) == 1 and texts and not val_inputs and not separator:
            both = cut_text(chosen.files[0], val_fraction)
            numbers = range(both[0].count, both[0].count + both[1].count)
            notes += [f"read {chosen.files[0]}", f"validation: the last {100 * val_fraction:.3g} % of the text"]
            return Corpus(both, numbers, source, "local", tuple(notes))
        parts, apart = ([open_file(path, field, separator) for path in files] for files in (chosen.files, held.files))
        notes.append(_said("read", chosen.files, parts))
        if val_inputs:
            first = sum(part.count for part in parts)
            numbers = range(first, first + sum(part.count for part in apart))
            notes.append(_said("validation:", held.files, apart))
            return Corpus([*parts, *apart], numbers, source, "local", tuple(notes))
        notes.append(f"validation: {100 * val_fraction:.3g} % of the documents, drawn by number")
        return Corpus(parts, choose_documents(parts, val_fraction), source, "local", tuple(notes))

    return Plan(identity, open_corpus)


def plan_openwebtext(inputs: Sequence[str], repository: str, revision: str, val_fraction: float) -> Plan:
    """OpenWebText from the hub, or local files that hold it; nanoGPT's split."""
    return plan_text(inputs, val_fraction) if inputs else plan_hub(repository, revision, val_fraction)


def plan_hub(
    repository: str, revision: str, val_fraction: float | None, config: str = "", split: str = "", field: str = ""
) -> Plan:
    """A text dataset of the hub, or a local folder in the form of one.

    Validation is a share of the documents; where none is asked for, the dataset's own validation split, if it has one.
    """
    fraction = val_fraction or HUB_FRACTION
    options = {"config": config, "split": split, "text_field": field}
    identity = {"repository": repository, "revision": revision} | {name: value for name, value in options.items() if value}

    def open_corpus(folder: Path, begun: str) -> Corpus:
        opened = open_dataset(repository, begun or revision, folder, config, split or "train", field, val_fraction is None)
        said = f"read {opened.files} files of {repository}{', ' + config if config else ''}, split {split or 'train'}"
        notes = [said + _fields(opened.parts), f"validation: {100 * fraction:.3g} % of the documents, drawn by number"]
        if not opened.validation:
            numbers = choose_documents(opened.parts, fraction)
            return Corpus(opened.parts, numbers, repository, opened.commit, tuple(notes))
        first = sum(part.count for part in opened.parts)
        notes[1] = "validation: the dataset's own validation split"
        held = range(first, first + sum(part.count for part in opened.validation))
        return Corpus([*opened.parts, *opened.validation], held, repository, opened.commit, tuple(notes))

    return Plan(identity, open_corpus)


def _check_separator(texts: Sequence[Path], separator: str | None) -> None:
    """ValueError for a separator without a text to cut, and for a text with end-of-text markers that nothing is said of."""
    if separator and not texts:
        raise ValueError("--separator cuts texts, and the input holds rows, each of them a document; leave it out")
    if separator is None and (marked := next((path for path in texts if not _is_code(path) and holds_marker(path)), None)):
        raise ValueError(
            f"{marked} holds {END_OF_TEXT}, which would be trained on as text; type --separator '{END_OF_TEXT}' to end "
            "documents there, or --separator '' to keep it"
        )


def _is_code(path: Path) -> bool:
    return inner_suffix(path) not in TEXTS


def _said(what: str, files: Sequence[Path], parts: Sequence[Part]) -> str:
    names = files[0].name if len(files) == 1 else f"{len(files)} files, {files[0].name} to {files[-1].name}"
    return f"{what} {names}{_fields(parts)}"


def _fields(parts: Sequence[Part]) -> str:
    names = sorted({part.field for part in parts if part.field})
    return f", field {', '.join(map(repr, names))}" if names else ""


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
