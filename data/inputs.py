"""Which files of the inputs are documents, and which belong to training or validation: told by their names, and said."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data import rows, unpack
from data.part import readable
from data.sources import COLUMNAR, find_bad_byte
from data.unpack import inner_suffix

ROWS = (*COLUMNAR, *rows.SUFFIXES)
TEXTS = (".txt", ".text", ".raw", ".tokens")
# Archives and forms of data that are not read: to pass over them would train on what lies beside them.
UNREAD = (
    ".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", ".lz4", ".lzma", ".br", ".avro", ".orc", ".feather",
    ".tfrecord", ".tfrecords", ".h5", ".hdf5", ".npy", ".npz", ".pkl", ".pickle", ".xlsx", ".sqlite", ".db", ".lmdb", ".mdb",
    ".bin", ".idx",
)  # fmt: skip
# Beside data files these are about the data.
CARDS = {"readme", "license", "licence", "copying", "notice", "citation", "changelog", "authors", "contributing", "datasheet"}
CARD_FILES = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
HELD_OUT = {"val", "valid", "validation", "dev", "eval", "test", "heldout"}


@dataclass
class Selection:
    """The files to read, in order, and what is to be said of the others."""

    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    held_out: list[Path] = field(default_factory=list)
    """Those of `files` whose names say that they are for validation or tests."""


def select(inputs: Iterable[str | Path], option: str = "--input") -> Selection:
    """The files named, and the documents in the folders named, sorted in each; hidden ones and links inside are skipped.

    ValueError: nothing there, or data in a folder that would be passed over.
    """
    chosen = Selection()
    for given in map(Path, inputs):
        if given.is_dir():
            kept = _from_folder(given, chosen.notes)
            chosen.held_out += [path for path in kept if _is_held_out(path, path.relative_to(given))]
        elif given.is_file():
            if unreadable := _unreadable(given):
                raise ValueError(f"{option} {given} is {unreadable}, which is not read; unpack or convert it")
            kept = [given]
            chosen.held_out += [path for path in kept if _is_held_out(path, Path(path.name))]
        else:
            raise ValueError(f"{option} {given} does not exist; give files or folders")
        chosen.files += kept
    if not chosen.files:
        raise ValueError(f"{option} {' '.join(map(str, inputs))} holds no file; give files or folders")
    return chosen


def refuse_held_out(chosen: Selection) -> None:
    """ValueError, with what to type, where files named as validation or test sets would be mixed with others."""
    others = [path for path in chosen.files if path not in set(chosen.held_out)]
    if not chosen.held_out or not others:
        return
    validation = [path for path in chosen.held_out if "test" not in _words(path.name)] or chosen.held_out
    raise ValueError(
        f"--input holds {_listed(chosen.held_out)}, held out by name, beside {_listed(others)}; "
        f"type: --input {_typed(others)} --val_input {_typed(validation)}"
    )


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of names, sizes and times of change: tells whether the inputs are still those of an earlier run."""
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def is_utf8(path: Path) -> bool:
    """Whether a file, unpacked, is UTF-8 text."""
    with readable(str(path)):
        return find_bad_byte(path) is None


def _from_folder(folder: Path, notes: list[str]) -> list[Path]:
    """The documents in a folder. Of a folder that holds rows only they count, of one with texts all but what is about them."""
    inside = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    shown = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    files = sorted(shown, key=Path.as_posix)
    about = [path for path in files if path.name.split(".")[0].lower() in CARDS or path.name in CARD_FILES]
    data = [path for path in files if path not in set(about)]
    if unread := [path for path in data if _unreadable(path)]:
        problem = f"{folder} holds {_listed(unread)}, which would be passed over"
        raise ValueError(f"{problem}; unpack or convert them, or name the files to read: --input FILE...")
    row_files = [path for path in data if inner_suffix(path) in ROWS]
    texts = [path for path in data if _is_text_file(path)]
    if row_files and texts:
        problem = f"{folder} holds rows ({_listed(row_files)}) and texts ({_listed(texts)})"
        raise ValueError(f"{problem}; name the files to read: --input FILE...")
    if row_files:
        kept = row_files
    elif texts:
        kept = [path for path in data if path in set(texts) or is_utf8(path)]
    else:
        kept = [path for path in files if is_utf8(path)]
    if left := [path for path in files if path not in set(kept)]:
        notes.append(f"left out of {folder}, as no data: {_listed(left)}")
    return kept


def _is_text_file(path: Path) -> bool:
    """Whether a name promises text that was collected, not source code or notes."""
    suffix = inner_suffix(path)
    return suffix in TEXTS or (path.suffix.lower() in unpack.SUFFIXES and suffix not in ROWS)


def _unreadable(path: Path) -> str:
    """What a file that is not read is; empty for all others."""
    if inner_suffix(path) in UNREAD:
        return f"a {inner_suffix(path)} file"
    return ""


def _is_held_out(path: Path, shown: Path) -> bool:
    """Whether a file of data is named as a validation or test set. A program called test.py is not."""
    words = _words(shown.as_posix())
    return (inner_suffix(path) in ROWS or _is_text_file(path)) and bool(words & HELD_OUT) and "train" not in words


def _words(name: str) -> set[str]:
    return set(re.findall("[a-z]+", name.lower()))


def _listed(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:3])
    return names + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _typed(paths: Sequence[Path]) -> str:
    return " ".join(map(str, paths)) if len(paths) <= 4 else f"{paths[0]} ... ({len(paths)} files)"
