"""Tokenizer files as transformers has them: told apart, so that no text is decoded with another vocabulary, and written."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from config.foreign import JSON_BYTES, read_object
from data.files import write_bytes, write_json, write_text
from data.tokenizer import END_OF_TEXT, FILE, GPT2_DIGEST, GPT2_IDS, Tokenizer

_OTHERS = ("vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "bpe.codes")


def recognize(folder: Path, vocab_size: int) -> str:
    """What `data.tokenizer.load` is to be given for a folder's tokenizer: gpt2, bytes, or the path of its tokenizer.json.

    A folder without tokenizer files is taken for GPT-2's where the model has exactly its 50,257 ids. Raises ValueError.
    """
    way_out = f"name the one that wrote the model's training data: --tokenizer gpt2, bytes or PATH/{FILE}"
    if (folder / FILE).is_file():
        return _name(_ids_of_tokenizer_json(folder / FILE)) or str(folder / FILE)
    if (folder / "vocab.json").is_file():
        extra = folder / "added_tokens.json"
        ids = read_object(folder / "vocab.json") | (read_object(extra) if extra.is_file() else {})
        if not (name := _name(ids)):
            raise ValueError(f"{folder / 'vocab.json'} holds {len(ids)} ids that are not GPT-2's, and no {FILE}; {way_out}")
        return name
    if other := next((name for name in _OTHERS if (folder / name).is_file()), None):
        raise ValueError(f"{folder / other} is a tokenizer that this project does not read; {way_out}")
    if vocab_size != GPT2_IDS:
        raise ValueError(f"{folder} has no tokenizer, and {vocab_size} ids are not GPT-2's {GPT2_IDS}; {way_out}")
    return "gpt2"


def write(folder: Path, words: Tokenizer, block_size: int) -> None:
    """Write tokenizer.json and tokenizer_config.json of `words`, which AutoTokenizer loads; gpt2 and bytes as byte-level BPE.

    The ids of a text are ours. The text "<|endoftext|>" is ordinary text here, and the end-of-text token for transformers.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": words.eot_text, "eos_token": words.eot_text,
        "model_max_length": block_size, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", settings)
    if words.content:  # it came from such a file
        write_bytes(folder / FILE, _without_chance(words.content))
        return
    letters = byte_letters()
    pieces = [words.decode_bytes([index]) for index in range(words.eot)]
    spelled = ["".join(letters[byte] for byte in piece) for piece in pieces]
    merges = merges_of(pieces)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": bool(merges)}
    end = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": words.eot, "content": END_OF_TEXT} | end],
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": False, "byte_fallback": False,
            "vocab": {piece: index for index, piece in enumerate(spelled)} | {END_OF_TEXT: words.eot},
            "merges": [[spelled[left], spelled[right]] for left, right in merges],
        },
    }  # fmt: skip
    write_text(folder / FILE, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _without_chance(content: bytes) -> bytes:
    """A tokenizer.json as `data.tokenizer` uses it: without dropout, by which transformers would draw other ids each time,
    and without truncation and padding. One that has none of them stays as it is."""
    spec = json.loads(content)
    if not (spec.get("truncation") or spec.get("padding") or spec["model"].get("dropout")):
        return content
    without = spec | {"truncation": None, "padding": None, "model": spec["model"] | {"dropout": None}}
    return (json.dumps(without, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "surrogatepass")


def byte_letters() -> list[str]:
    """The letter that stands for each byte in GPT-2's files: itself where it prints, else the next one from U+0100 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    codes = {byte: byte for byte in printing} | {byte: 256 + number for number, byte in enumerate(others)}
    return [chr(codes[byte]) for byte in range(256)]


def merges_of(pieces: list[bytes]) -> list[tuple[int, int]]:
    """The pairs of ids that byte-pair encoding merges, in the order of their ranks.

    An id is its piece's rank: a piece is what its own bytes merge to under all earlier merges, in two parts.
    """
    rank = {piece: index for index, piece in enumerate(pieces)}
    merges = []
    for index, piece in enumerate(pieces):
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while len(parts) > 2:
            ranks = [rank.get(left + right, index) for left, right in pairwise(parts)]
            at = ranks.index(min(ranks))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((rank[parts[0]], rank[parts[1]]))
    return merges


def _ids_of_tokenizer_json(path: Path) -> dict[str, Any]:
    """The ids by their text; empty where the file is no byte-pair encoding, or too large for one of this project's."""
    if path.stat().st_size > JSON_BYTES:
        return {}
    content = read_object(path)
    model, added = content.get("model"), content.get("added_tokens") or []
    vocab = model.get("vocab") if isinstance(model, dict) and model.get("type") == "BPE" else None
    if not isinstance(vocab, dict) or not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        return {}
    return vocab | {str(token.get("content")): token.get("id") for token in added}


def _name(ids: dict[str, Any]) -> str:
    """gpt2, bytes, or nothing."""
    by_id = {index: word for word, index in ids.items() if type(index) is int}
    if sorted(by_id) != list(range(len(ids))) or not ids or by_id[len(ids) - 1] != END_OF_TEXT:
        return ""
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    words = [by_id[index] for index in range(len(ids) - 1)]
    if not all(letter in byte_of for word in words for letter in word):
        return ""
    pieces = [bytes(byte_of[letter] for letter in word) for word in words]
    if pieces == [bytes([byte]) for byte in range(256)]:
        return "bytes"
    digest = hashlib.sha256(b"".join(len(piece).to_bytes(2, "little") + piece for piece in pieces)).hexdigest()
    return "gpt2" if digest == GPT2_DIGEST else ""
