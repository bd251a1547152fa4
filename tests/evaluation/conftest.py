"""A small random model and the files of the tasks."""

from pathlib import Path

import pytest
import torch

from config.schema import GPTConfig
from model import GPT
from tests.evaluation import items


@pytest.fixture(scope="session")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the four tasks, a handful of items each."""
    return items.write(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def gpt() -> GPT:
    """Random, over bytes, with weights large enough that it has opinions."""
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=257, bias=True, activation="gelu"), 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
        model.transformer.wte.weight[257:] = 0
    return model.eval()
