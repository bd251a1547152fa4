"""A dataset of the Hugging Face hub. Parquet files are on this disk one at a time, the next on its way; others all of them.

`datasets` says which files a split is. It would convert the whole of OpenWebText into a cache of 54 GB before the first
document comes out, so the files are read here.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from data.columnar import open_parquet
from data.part import Part
from data.sources import open_file

FETCHED = ".fetched"


@dataclass(frozen=True)
class Opened:
    """The commit that was opened, the documents of the split, and those of the dataset's own validation split, if wanted."""

    commit: str
    parts: list[Part]
    validation: list[Part]
    files: int


def open_dataset(
    repository: str,
    revision: str,
    folder: Path,
    config: str = "",
    split: str = "train",
    field: str = "",
    own_validation: bool = False,
) -> Opened:
    """The files of a dataset's split at a revision ('': the newest), in order.

    repository is a hub name, or a local folder in the form of one. Files are fetched into `folder`.
    ValueError: no network, no such repository, revision, config or split, or one that still is a script.
    """
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi

    try:
        local = Path(repository).is_dir()
        commit = "local" if local else str(HfApi().dataset_info(repository, revision=revision or None).sha)
        builder = load_dataset_builder(repository, name=config or None, revision=None if local else commit)
        files = {str(name): [str(url) for url in urls] for name, urls in (builder.config.data_files or {}).items()}
        if split not in files:
            raise ValueError(f"there is no split {split!r}, but {', '.join(files) or 'none at all'}")
        validation = files.get("validation", []) if own_validation and split == "train" else []
        opened = [_parts(urls, folder / FETCHED / name, field) for name, urls in (("a", files[split]), ("b", validation))]
        return Opened(commit, opened[0], opened[1], len(files[split]))
    except Exception as error:  # httpx's, the hub's, datasets' and fsspec's errors share no other class
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"dataset {repository} (revision {revision or 'newest'}) could not be opened: {type(error).__name__}: {reason}; "
            "check the network, --repo, --config, --split, --text_field and --revision, or give files: "
            "python -m data.prepare text --input PATH..."
        ) from error


def _parts(urls: Sequence[str], folder: Path, field: str) -> list[Part]:
    """The documents behind URLs: parquet files as they are needed, files that must be read to be counted all at once."""
    if not urls:
        return []
    if all(url.endswith(".parquet") for url in urls):
        return remote_parts(urls, folder, field)
    here = [Path(url) if Path(url).is_file() else _download(url, folder, f"{number:06d}-") for number, url in enumerate(urls)]
    return [open_file(path, field) for path in here]


def remote_parts(urls: Sequence[str], folder: Path, field: str = "") -> list[Part]:
    """The parts behind fsspec URLs of parquet files. Row counts come from the files' footers, read side by side."""
    from fsspec.core import url_to_fs

    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    pool = ThreadPoolExecutor(1, thread_name_prefix="fetch")

    def open_footer(url: str) -> Part:
        system, path = url_to_fs(url)
        return open_parquet(url, partial(system.open, path), field)

    @cache
    def fetch(index: int) -> Future[Path]:
        return pool.submit(_download, urls[index], folder)

    def read(index: int, start: int) -> Iterator[str | None]:
        path = fetch(index).result()
        if index + 1 < len(urls):
            fetch(index + 1)
        yield from open_parquet(urls[index], lambda: path.open("rb"), field).read(start)
        path.unlink()
        if index + 1 == len(urls):
            pool.shutdown()
            folder.rmdir()

    with ThreadPoolExecutor(16) as footers:
        parts = list(footers.map(open_footer, urls))
    return [Part(part.count, partial(read, index), part.field) for index, part in enumerate(parts)]


def _download(url: str, folder: Path, prefix: str = "") -> Path:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    target = folder / (prefix + Path(path).name)
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        arriving = target.with_name(target.name + ".arriving")
        system.get_file(path, str(arriving))
        os.replace(arriving, target)  # an interrupted preparation keeps what is whole
    return target
