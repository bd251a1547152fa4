"""Items from files: what lm_eval's tasks need, and one line for a file that is not as published."""

import bz2
from pathlib import Path
from typing import Any

import pytest

from evaluation import task_files
from tests.evaluation import items


def test_items_are_those_of_the_files(task_data: Path) -> None:
    sets, source = task_files.read("blimp", task_data)
    assert {name: len(some) for name, some in sets.items()} == {"blimp_transitive": 8, "blimp_wh_island": 8}
    assert sets["blimp_transitive"][0]["sentence_bad"] == "The cat see the old house."
    assert source.startswith("blimp.jsonl sha256 ")
    assert task_files.read("lambada", task_data)[0]["lambada_openai"] == [{"text": row["text"]} for row in items.LAMBADA]
    assert task_files.read("hellaswag", task_data)[0]["hellaswag"][6]["label"] == "2"


def test_wikitext_is_cut_at_its_top_headings(task_data: Path) -> None:
    pages = [item["page"] for item in task_files.read("wikitext", task_data)[0]["wikitext"]]
    assert [page.split("\n")[0] for page in pages] == list(items.HEADINGS)
    assert all(page.count("= =") == 2 for page in pages), "second headings stay inside"
    assert "\n".join(pages) == f"{items.WIKITEXT}\n"


def test_a_packed_file_is_the_same(task_data: Path, tmp_path: Path) -> None:
    (tmp_path / "wiki.test.raw.bz2").write_bytes(bz2.compress((task_data / "wiki.test.raw").read_bytes()))
    sets, source = task_files.read("wikitext", tmp_path)
    assert sets == task_files.read("wikitext", task_data)[0]
    assert source.startswith("wiki.test.raw.bz2 ")


@pytest.mark.parametrize(
    ("task", "rows", "told"),
    [
        ("blimp", [items.BLIMP[0], {"sentence_good": "a", "UID": "x"}], "line 2 has no field 'sentence_bad' with text"),
        ("lambada", [{"text": 3}], "line 1 has no field 'text' with text"),
        ("hellaswag", [items.HELLASWAG[0] | {"gold": 4}], "line 1 has no 'choices' of text"),
        ("hellaswag", [items.HELLASWAG[0] | {"choices": ["a", 1]}], "line 1 has no 'choices' of text"),
        ("hellaswag", [items.HELLASWAG[0] | {"gold": True}], "no field 'gold' with an integer"),
        ("lambada", [], "holds no item"),
    ],
)
def test_a_bad_file_is_named(task: str, rows: list[Any], told: str, tmp_path: Path) -> None:
    items.write_rows(tmp_path / task_files.FILES[task].file, rows)
    with pytest.raises(ValueError, match=told):
        task_files.read(task, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no blimp\.jsonl, plain or packed .*zst"):
        task_files.read("blimp", tmp_path)
    with pytest.raises(ValueError, match="'arc_easy' is not read from files"):
        task_files.read("arc_easy", tmp_path)
