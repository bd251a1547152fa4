"""Fixtures that several test modules share: a small prepared data set and the config of a run of seconds."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from comparison import plots
from config.schema import Config
from tests.runs import small_config, write_shards


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small lose time on threads, and several processes of a test share few cores."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # processes that tests start


@pytest.fixture(scope="session", autouse=True)
def one_place_for_compiled_code() -> None:
    """PyTorch's default: runs of train.py find there what tests have compiled, and leave the user's cache alone."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())


@pytest.fixture(scope="session", autouse=True)
def few_dots() -> None:
    """Pictures of a ninth of the pixels: to pack them takes most of a test's time."""
    plots.DOTS = 200 / 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The scripts' tests first: they start processes and take longest, and what is begun last is waited for by one worker."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(scope="session", autouse=True)
def hangups_are_heard() -> None:
    """Under nohup a hangup is ignored, and the processes that tests start would rightly ignore it as well."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Foreign shards (no meta.json) of the bytes tokenizer: two of training, one of validation, with something to learn."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def small(data_dir: Path, tmp_path: Path) -> Config:
    """The config of a run of seconds, in a folder of the test's own."""
    return small_config(data_dir, tmp_path / "run")
