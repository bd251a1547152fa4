from pathlib import Path

import fsspec
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.hub import FETCHED, open_dataset, remote_parts
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
    commit, parts = open_dataset(str(repository), "", tmp_path)
    assert commit == "local"
    assert [part.count for part in parts] == [5, 6, 7, 8]
    assert list(read_documents(parts)) == FLAT


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


@pytest.mark.parametrize("content", ["script", "text", "nothing"])
def test_a_repository_without_parquet_says_what_to_do(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    if content == "script":
        (folder / "repository.py").write_text("import datasets")
    if content == "text":
        (folder / "train.txt").write_text("text")
    with pytest.raises(ValueError, match=r"repository .revision newest. could not be opened: .*choose --repository") as raised:
        open_dataset(str(folder), "", tmp_path)
    assert "\n" not in str(raised.value)


def test_without_network_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable:
        def dataset_info(self, repository: str, revision: str | None) -> None:
            raise RuntimeError(f"no\nroute to {repository}@{revision}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    with pytest.raises(ValueError, match="RuntimeError: no route to someone/owt@v1; check the network"):
        open_dataset("someone/owt", "v1", tmp_path)
