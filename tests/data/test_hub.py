import json
from pathlib import Path

import fsspec
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import hub, prepare
from data.hub import FETCHED, open_dataset, remote_parts
from data.shards import open_split, read_meta
from data.sources import read_documents

TEXTS = [[f"file {file} document {row}" for row in range(5 + file)] for file in range(4)]
FLAT = [text for texts in TEXTS for text in texts]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A local folder in the form of the hub's converted repository."""
    folder = tmp_path / "openwebtext" / "plain_text"
    folder.mkdir(parents=True)
    for number, texts in enumerate(TEXTS):
        pq.write_table(pa.table({"text": texts}), folder / f"train-{number:05d}-of-00004.parquet")
    return folder.parent


def test_the_train_split_comes_in_the_order_of_its_files(repository: Path, tmp_path: Path) -> None:
    opened = open_dataset(str(repository), "", tmp_path)
    assert (opened.commit, opened.validation, opened.files) == ("local", [], 4)
    assert [part.count for part in opened.parts] == [5, 6, 7, 8]
    assert list(read_documents(opened.parts)) == FLAT


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "csv"])
def test_a_dataset_of_each_form_is_what_datasets_reads(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import load_dataset

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = tmp_path / "stories"
    repository.mkdir()
    for split, count in (("train-00000-of-00002", 30), ("train-00001-of-00002", 4), ("validation", 6), ("test", 5)):
        table = pa.table({"body": [f"{split} {i}, é" for i in range(count)], "url": ["u"] * count})
        path = repository / f"{split}.{kind}"
        if kind == "parquet":
            pq.write_table(table, path)
        elif kind == "csv":
            path.write_text("body,url\n" + "".join(f'"{text}",u\n' for text in table["body"].to_pylist()))
        else:
            lines = [json.dumps(row) for row in table.to_pylist()]
            path.write_text("[" + ",".join(lines) + "]" if kind == "json" else "\n".join(lines))
    (repository / "README.md").write_text("# A card\n")
    theirs = load_dataset(str(repository), cache_dir=str(tmp_path / "cache"))
    argv = ["hub", "--repo", str(repository), "--tokenizer", "bytes", "--text_field", "body"]
    assert prepare.main([*argv, "--out", str(tmp_path / "out")]) == 0
    meta = read_meta(tmp_path / "out")
    assert meta is not None
    assert meta.documents == {"train": 34, "val": 6}
    for split, name in (("train", "train"), ("val", "validation")):
        tokens = open_split(tmp_path / "out", split)
        assert bytes(tokens.read(0, len(tokens)).clip(0, 255).astype("u1")) == b"".join(
            text.encode() + b"\xff" for text in theirs[name]["body"]
        )
    assert prepare.main([*argv, "--out", str(tmp_path / "cut"), "--val_fraction", "0.5"]) == 0
    assert prepare.main([*argv, "--out", str(tmp_path / "test"), "--split", "test", "--val_fraction", "0.2"]) == 0
    cut, test = read_meta(tmp_path / "cut"), read_meta(tmp_path / "test")
    assert cut is not None
    assert test is not None
    assert (cut.documents, test.documents) == ({"train": 17, "val": 17}, {"train": 4, "val": 1})
    assert not list((tmp_path / "out").glob(".fetched*"))


def test_a_split_config_or_field_that_is_not_there_is_one_line(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["hub", "--repo", str(repository), "--tokenizer", "bytes", "--out", str(tmp_path / "out")]
    for more, told in (
        (["--split", "dev"], "there is no split 'dev', but train"),
        (["--config", "none"], "could not be opened"),
        (["--text_field", "body"], "has no field 'body'; it has text"),
    ):
        assert prepare.main([*argv, *more]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1


def test_remote_files_that_must_be_counted_are_fetched_once(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(2):
        memory.pipe(f"/c4/{number}/a.jsonl", "".join(f'{{"text": "{number} {i}"}}\n' for i in range(3)).encode())
    urls = [f"memory://c4/{number}/a.jsonl" for number in range(2)]
    parts = hub._parts(urls, tmp_path / "there", "")
    assert list(read_documents(parts)) == ["0 0", "0 1", "0 2", "1 0", "1 1", "1 2"]
    memory.rm("/c4", recursive=True)
    assert list(read_documents(hub._parts(urls, tmp_path / "there", ""), 4)) == ["1 1", "1 2"]


@pytest.mark.parametrize("start", [0, 4, 5, 12, 25])
def test_remote_files_are_here_one_ahead_and_go_when_read(start: int, repository: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    urls = []
    for path in sorted(repository.rglob("*.parquet")):
        memory.pipe(f"/owt/{path.name}", path.read_bytes())
        urls.append(f"memory://owt/{path.name}")
    folder = tmp_path / FETCHED
    folder.mkdir()
    (folder / "left by a killed run.parquet").write_text("")
    held = 0
    documents = []
    for document in read_documents(remote_parts(urls, folder), start):
        documents.append(document)
        held = max(held, len(list(folder.iterdir())))
    assert documents == FLAT[start:]
    assert 1 <= held <= 2
    assert not folder.exists()


@pytest.mark.parametrize("content", ["script", "nothing"])
def test_a_repository_without_data_says_what_to_do(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    if content == "script":
        (folder / "repository.py").write_text("import datasets")
    with pytest.raises(
        ValueError, match=r"repository .revision newest. could not be opened: .*check the network, --repo"
    ) as raised:
        open_dataset(str(folder), "", tmp_path)
    assert "\n" not in str(raised.value)


def test_without_network_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable:
        def dataset_info(self, repository: str, revision: str | None) -> None:
            raise RuntimeError(f"no\nroute to {repository}@{revision}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    with pytest.raises(ValueError, match="RuntimeError: no route to someone/owt@v1; check the network"):
        open_dataset("someone/owt", "v1", tmp_path)
