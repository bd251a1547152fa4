"""A dataset of the Hugging Face hub, read from its parquet files, one file on this disk at a time and the next on its way.

`datasets` would convert the whole of OpenWebText into a cache of 54 GB before the first document comes out.
"""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

from data.sources import Part, open_parquet

FETCHED = ".fetched"


def open_dataset(repository: str, revision: str, folder: Path) -> tuple[str, list[Part]]:
    """The commit that a revision ('': the newest) stands for, and the parts of the dataset's train split in order.

    repository is a hub name, or a local folder in the form of one. Files are fetched into `folder` and removed once read.
    ValueError: no network, no such repository or revision, or one that still is a script, says what to do.
    """
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi

    try:
        local = Path(repository).is_dir()
        commit = "local" if local else str(HfApi().dataset_info(repository, revision=revision or None).sha)
        files = load_dataset_builder(repository, revision=None if local else commit).config.data_files or {}
        urls = [str(url) for url in files.get("train", [])]
        if not urls or not all(url.endswith(".parquet") for url in urls):
            raise ValueError(f"its train split is {len(urls)} files, not all of them parquet")
        return commit, remote_parts(urls, folder / FETCHED)
    except Exception as error:  # httpx's, the hub's, datasets' and fsspec's errors share no other class
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"dataset {repository} (revision {revision or 'newest'}) could not be opened: {type(error).__name__}: {reason}; "
            "check the network, choose --repository and --revision with parquet files, or give your own: --input PATH..."
        ) from error


def remote_parts(urls: Sequence[str], folder: Path) -> list[Part]:
    """The parts behind fsspec URLs of parquet files. Row counts come from the files' footers, read side by side."""
    from fsspec.core import url_to_fs

    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    pool = ThreadPoolExecutor(1, thread_name_prefix="fetch")

    def open_footer(url: str) -> Part:
        system, path = url_to_fs(url)
        return open_parquet(url, partial(system.open, path))

    @cache
    def fetch(index: int) -> Future[Path]:
        return pool.submit(_download, urls[index], folder)

    def read(index: int, start: int) -> Iterator[str]:
        path = fetch(index).result()
        if index + 1 < len(urls):
            fetch(index + 1)
        yield from open_parquet(urls[index], lambda: path.open("rb")).read(start)
        path.unlink()
        if index + 1 == len(urls):
            pool.shutdown()
            folder.rmdir()

    with ThreadPoolExecutor(16) as footers:
        counts = [part.count for part in footers.map(open_footer, urls)]
    return [Part(count, partial(read, index)) for index, count in enumerate(counts)]


def _download(url: str, folder: Path) -> Path:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    target = folder / Path(path).name
    folder.mkdir(parents=True, exist_ok=True)
    system.get_file(path, str(target))
    return target
