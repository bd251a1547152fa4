"""What is wrong with prepared data is said before the first step, by file and position."""

import dataclasses
from pathlib import Path

import pytest

from config.schema import Config
from data.shards import Meta, write_meta
from runtime.dataset import open_dataset


@pytest.fixture
def copy(small: Config, data_dir: Path, tmp_path: Path) -> Config:
    """A config over a copy of the shards that a test may damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in data_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return dataclasses.replace(small, data_dir=str(folder))


def test_foreign_shards_work_when_the_tokenizer_is_named(small: Config) -> None:
    dataset = open_dataset(small, check_tokens=True)
    assert (dataset.tokenizer, dataset.vocab_size, len(dataset.train)) == ("bytes", 257, 9001)
    assert dataset.validation.num_targets == 1233
    assert int(dataset.byte_lengths.sum()) == 256
    with pytest.raises(ValueError, match=r"has no meta\.json; name the tokenizer of its shards: --tokenizer gpt2, bytes"):
        open_dataset(dataclasses.replace(small, tokenizer=""), check_tokens=True)


def test_tokens_beyond_the_vocabulary_are_found(copy: Config) -> None:
    shard = Path(copy.data_dir) / "train_000001.bin"
    data = bytearray(shard.read_bytes())
    data[1024 + 2 * 77 : 1024 + 2 * 77 + 2] = (5000).to_bytes(2, "little")
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"train_000001\.bin: token 77 is 5000, beyond the vocabulary of 257"):
        open_dataset(copy, check_tokens=True)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-10], r"train_000000\.bin"),
        (lambda data: bytes(4) + data[4:], r"train_000000\.bin.*magic"),
        (lambda data: data[:4] + (9).to_bytes(4, "little") + data[8:], r"train_000000\.bin.*version"),
        (lambda data: b"", r"train_000000\.bin"),
    ],
)
def test_damaged_shards_are_named(copy: Config, damage: object, told: str) -> None:
    shard = Path(copy.data_dir) / "train_000000.bin"
    shard.write_bytes(damage(shard.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=told):
        open_dataset(copy, check_tokens=True)


def test_what_is_missing_is_named_with_the_command_that_makes_it(copy: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"type: python -m data\.prepare text --input FILES --out"):
        open_dataset(dataclasses.replace(copy, data_dir=str(tmp_path / "no")), check_tokens=True)
    (Path(copy.data_dir) / "val_000000.bin").unlink()
    with pytest.raises(ValueError, match=r"holds no \*val\*\.bin"):
        open_dataset(copy, check_tokens=True)


def test_a_vocabulary_too_small_is_refused(small: Config) -> None:
    with pytest.raises(ValueError, match="vocab_size=100 is below the 257 ids"):
        open_dataset(dataclasses.replace(small, vocab_size=100), check_tokens=True)


def test_missing_bpe_files_cost_bits_per_byte_and_nothing_else(
    copy: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GPT2_BPE_DIR", str(tmp_path))  # a folder without them
    dataset = open_dataset(dataclasses.replace(copy, tokenizer="gpt2", vocab_size=50257), check_tokens=True)
    assert dataset.byte_lengths is None


def test_a_vocabulary_that_is_not_the_tokenizer_s_is_refused(copy: Config) -> None:
    counts = {"train": 9001, "val": 1234}
    names = {path.name: "" for path in Path(copy.data_dir).iterdir()}
    meta = Meta("bytes", 300, counts, counts, counts, [], "", "", "", names)
    write_meta(copy.data_dir, meta)
    with pytest.raises(ValueError, match=r"meta\.json: vocab_size is 300, that of its tokenizer 'bytes' 257"):
        open_dataset(copy, check_tokens=True)


def test_ids_without_text_train_and_have_no_bits_per_byte(copy: Config) -> None:
    config = dataclasses.replace(copy, tokenizer="none")
    with pytest.raises(ValueError, match=r"the number of ids must be given; the largest in .* is \d+: type --vocab_size \d+"):
        open_dataset(config, check_tokens=True)
    dataset = open_dataset(dataclasses.replace(config, vocab_size=1500), check_tokens=True)
    assert (dataset.tokenizer, dataset.vocab_size, dataset.byte_lengths) == ("none", 1500, None)


def test_a_named_tokenizer_has_all_its_ids_and_no_more(copy: Config) -> None:
    """Bits per byte were invented, or an IndexError, where the vocabulary was not the tokenizer's."""
    with pytest.raises(ValueError, match="vocab_size=1500 is below the 50257 ids"):
        open_dataset(dataclasses.replace(copy, tokenizer="gpt2", vocab_size=1500), check_tokens=True)
    shard = Path(copy.data_dir) / "train_000000.bin"
    data = bytearray(shard.read_bytes())
    data[1024:1026] = (1100).to_bytes(2, "little")
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="token 0 is 1100, beyond the vocabulary of 257"):
        open_dataset(dataclasses.replace(copy, vocab_size=1500), check_tokens=True)


@pytest.mark.parametrize(("name", "command"), [("openwebtext", "openwebtext"), ("mine", "text --input FILES")])
def test_missing_data_are_never_to_be_made_of_another_corpus(small: Config, tmp_path: Path, name: str, command: str) -> None:
    with pytest.raises(ValueError, match=rf"type: python -m data\.prepare {command} --out .*{name}"):
        open_dataset(dataclasses.replace(small, data_dir=str(tmp_path / name)), check_tokens=True)


def test_a_pickle_beside_foreign_shards_is_named_and_left_shut(copy: Config) -> None:
    (Path(copy.data_dir) / "meta.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"its meta\.pkl is never opened.*name the tokenizer"):
        open_dataset(dataclasses.replace(copy, tokenizer=""), check_tokens=True)
