"""A stranger's JSON and weights are read as data, and bounded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from config import foreign
from config.schema import GPTConfig

TINY = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=10)


def test_an_object_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert foreign.read_object(path) == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_object_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json (is not JSON|holds no object)"):
        foreign.read_object(path)


def test_what_is_huge_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file
    with pytest.raises(ValueError, match=r"a\.json is 1,099,511,627,776 bytes"):
        foreign.read_object(path)


def test_a_config_larger_than_its_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(TINY.matrix_parameters)}, path)
    assert foreign.read_tensors(path, TINY)["a"].numel() == 14 * 8 + 12 * 64
    huge = GPTConfig(n_layer=10_000, n_head=1, n_embd=1 << 20, block_size=4, vocab_size=10)
    with pytest.raises(ValueError, match=r"holds 880 numbers, its config\.json asks for 131,9"):
        foreign.read_tensors(path, huge)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="is not whole"):
        foreign.read_tensors(path, TINY)
