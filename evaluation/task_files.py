"""Tasks whose items lie in files of a folder: no hub is asked, and the definitions stay lm_eval's."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data import rows, unpack
from data.shards import file_sha256

Item = dict[str, Any]


class TaskFile(NamedTuple):
    """A task: its file, what its items are for lm_eval, and from which split lm_eval takes them."""

    file: str
    read: Callable[[Path], Iterator[tuple[str, Item]]]
    """(name of lm_eval's task, item) of each, in the order of the file."""
    split: str


def read(task: str, folder: Path) -> tuple[dict[str, list[Item]], str]:
    """The items of `task` by the names of lm_eval's tasks, and the file with its SHA-256. Raises ValueError."""
    known = FILES.get(task)
    if known is None:
        raise ValueError(f"task {task!r} is not read from files; with --task_data there are {', '.join(FILES)}")
    names = [known.file + suffix for suffix in ("", *unpack.SUFFIXES)]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        packed = ", ".join(unpack.SUFFIXES)
        raise ValueError(f"--task_data {folder} has no {known.file}, plain or packed ({packed}), which task {task} needs")
    sets: dict[str, list[Item]] = {}
    for name, item in known.read(path):
        sets.setdefault(name, []).append(item)
    if not sets:
        raise ValueError(f"{path} holds no item")
    return sets, f"{path.name} sha256 {file_sha256(path)}"


def _blimp(path: Path) -> Iterator[tuple[str, Item]]:
    for where, row in rows.objects(path):
        item = _fields(path, where, row, sentence_good=str, sentence_bad=str, UID=str)
        yield f"blimp_{item['UID']}", item


def _lambada(path: Path) -> Iterator[tuple[str, Item]]:
    for where, row in rows.objects(path):
        yield "lambada_openai", _fields(path, where, row, text=str)


def _hellaswag(path: Path) -> Iterator[tuple[str, Item]]:
    for where, row in rows.objects(path):
        item = _fields(path, where, row, query=str, choices=list, gold=int)
        if not all(isinstance(choice, str) for choice in item["choices"]) or not 0 <= item["gold"] < len(item["choices"]):
            raise ValueError(f"{path}: {where} has no 'choices' of text, of which 'gold' is the number of one; repair it")
        yield "hellaswag", item | {"label": str(item["gold"])}


def _wikitext(path: Path) -> Iterator[tuple[str, Item]]:
    """Pages, as EleutherAI/wikitext_document_level cuts them: each from one top heading, " = Title = ", to the next.

    The test set of WikiText-2 gives 62 of them, and 5.3474 bytes a word, as in published word and byte perplexities.
    """
    page: list[str] = []
    text = b"".join(unpack.lines(path)).decode("utf-8")
    for line in text.split("\n"):
        if _TOP_HEADING.fullmatch(line.strip()):
            if any(map(str.strip, page)):
                yield "wikitext", {"page": "\n".join(page)}
            page = []
        page.append(line)
    if any(map(str.strip, page)):
        yield "wikitext", {"page": "\n".join(page)}


_TOP_HEADING = re.compile(r"= (?!= ).*(?<! =) =")


def _fields(path: Path, where: str, row: dict[str, Any], **kinds: type) -> Item:
    """Those fields of a row alone. Raises ValueError where one is missing, or something else than `kinds` says."""
    for name, kind in kinds.items():
        if type(row.get(name)) is not kind:
            expected = {str: "text", int: "an integer", list: "a list"}[kind]
            raise ValueError(f"{path}: {where} has no field {name!r} with {expected}; give the file in its published form")
    return {name: row[name] for name in kinds}


FILES = {
    "blimp": TaskFile("blimp.jsonl", _blimp, "train"),
    "lambada": TaskFile("lambada_test.jsonl", _lambada, "test"),
    "hellaswag": TaskFile("hellaswag_val.jsonl", _hellaswag, "validation"),
    "wikitext": TaskFile("wiki.test.raw", _wikitext, "test"),
}
