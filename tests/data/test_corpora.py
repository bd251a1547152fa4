from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.corpora import (
    FAMILIES,
    NANOGPT_FRACTION,
    NANOGPT_SEED,
    OPENWEBTEXT,
    choose_documents,
    choose_files,
    plan_hub,
    plan_openwebtext,
    plan_pystdlib,
    plan_text,
)
from data.part import Part
from data.sources import read_documents


def nothing(start: int) -> object:
    return iter(())


def test_the_validation_documents_are_nanogpts() -> None:
    from datasets import Dataset

    count = 12_345
    split = Dataset.from_dict({"number": range(count)}).train_test_split(
        test_size=NANOGPT_FRACTION, seed=NANOGPT_SEED, shuffle=True
    )
    chosen = choose_documents([Part(count - 45, nothing), Part(45, nothing)], NANOGPT_FRACTION)
    assert chosen == set(split["test"]["number"])


def test_openwebtext_has_4007_of_them() -> None:
    chosen = choose_documents([Part(OPENWEBTEXT["documents"], nothing)], NANOGPT_FRACTION)
    assert len(chosen) == 4007
    assert min(chosen) >= 0
    assert max(chosen) < OPENWEBTEXT["documents"]


def test_too_few_documents_to_split_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 documents do not split into 0.1"):
        choose_documents([Part(1, nothing)], 0.1)


@given(sizes=st.lists(st.integers(1, 5000), min_size=50, max_size=200), fraction=st.floats(0.05, 0.5))
@settings(deadline=None)
def test_chosen_files_are_nearly_the_share_and_never_more(sizes: list[int], fraction: float) -> None:
    named = {f"module_{i}.py": size for i, size in enumerate(sizes)}
    chosen = choose_files(named, fraction)
    budget = fraction * sum(sizes)
    taken = sum(named[name] for name in chosen)
    assert taken <= budget
    small = sum(size for size in sizes if size <= budget / 4)
    assert taken >= min(0.75 * budget, small) - 1
    assert choose_files(dict(reversed(named.items())), fraction) == chosen


def test_a_family_stays_together() -> None:
    sizes = {f"{FAMILIES[0]}/cp{i}.py": 10 for i in range(20)} | {f"module_{i}.py": 100 for i in range(200)}
    for share in np.linspace(0.01, 0.9, 40):
        inside = {name in choose_files(sizes, share) for name in sizes if name.startswith(FAMILIES[0])}
        assert len(inside) == 1


def test_the_standard_library_is_deterministic_and_without_tests(tmp_path: Path) -> None:
    corpus = plan_pystdlib(0.02).open(tmp_path, "")
    texts = list(read_documents(corpus.parts))
    held = sum(len(texts[number].encode()) for number in corpus.validation)
    total = sum(len(text.encode()) for text in texts)
    assert len(texts) == corpus.count
    assert min(map(len, texts)) > 0
    assert 0.015 * total < held <= 0.02 * total
    assert corpus.validation == plan_pystdlib(0.02).open(tmp_path, "").validation
    import json

    import test.support

    assert Path(json.__file__).read_text("utf-8") in texts
    assert Path(test.support.__file__).read_text("utf-8") not in texts


def test_of_a_single_text_the_end_is_validation(tmp_path: Path) -> None:
    path = tmp_path / "input.txt"
    path.write_text("".join(f"line {i}\n" for i in range(1000)))
    corpus = plan_text([str(path)], 0.1).open(tmp_path, "")
    train, held = read_documents(corpus.parts)
    assert corpus.validation == range(1, 2)
    assert train + held == path.read_text()
    assert train.endswith("\n")
    assert len(held) == pytest.approx(0.1 * path.stat().st_size, abs=10)


@pytest.mark.parametrize("content", ["", "a"])
def test_a_text_too_short_to_cut_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text(content)
    with pytest.raises(ValueError, match="too short to cut"):
        plan_text([str(tmp_path / "input.txt")], 0.1).open(tmp_path, "")


def test_a_plan_is_identified_by_its_inputs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = plan_text([str(path)], 0.1).identity
    path.write_text("other")
    assert plan_text([str(path)], 0.1).identity != first
    hub = plan_openwebtext([], "someone/openwebtext", "main", 0.1)
    assert hub.identity == {"repository": "someone/openwebtext", "revision": "main"}
    assert plan_hub("a/b", "", None, "config", "train", "body").identity != plan_hub("a/b", "", None).identity


def test_validation_files_of_ones_own_are_all_of_validation(tmp_path: Path) -> None:
    for name, count in (("train.txt", 50), ("valid.txt", 5), ("test.txt", 5)):
        (tmp_path / name).write_text("".join(f"{name} {i}\n" for i in range(count)))
    train, valid = str(tmp_path / "train.txt"), str(tmp_path / "valid.txt")
    for inputs in ([train], [train, valid]):
        corpus = plan_text(inputs, 0.1, [valid]).open(tmp_path, "")
        texts = list(read_documents(corpus.parts))
        assert texts == [Path(train).read_text(), Path(valid).read_text()]
        assert [number in corpus.validation for number in (0, 1)] == [False, True]
    with pytest.raises(ValueError, match=r"valid.txt, held out by name, beside train.txt; type: --input"):
        plan_text([train, valid], 0.1)
    with pytest.raises(ValueError, match=r"test.txt, held out by name"):
        plan_text([str(tmp_path)], 0.1, [valid])
    with pytest.raises(ValueError, match="name the same files"):
        plan_text([valid], 0.1, [valid])


def test_end_of_text_markers_are_cut_at_or_spoken_of(tmp_path: Path) -> None:
    path = tmp_path / "TinyStories.txt"
    stories = [f"Once upon a time {i}." for i in range(20)]
    path.write_text("\n<|endoftext|>\n".join(stories))
    with pytest.raises(ValueError, match=r"type --separator '<\|endoftext\|>' to end documents there, or --separator ''"):
        plan_text([str(path)], 0.1)
    corpus = plan_text([str(path)], 0.1, separator="<|endoftext|>").open(tmp_path, "")
    assert list(read_documents(corpus.parts)) == stories
    assert sum(number in corpus.validation for number in range(20)) == 2
    assert plan_text([str(path)], 0.1, separator="").open(tmp_path, "").count == 2
    (tmp_path / "rows.jsonl").write_text('{"text": "<|endoftext|>"}\n')
    with pytest.raises(ValueError, match="--separator cuts texts"):
        plan_text([str(tmp_path / "rows.jsonl")], 0.1, separator="x")
