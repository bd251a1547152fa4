"""Text to token ids and back: GPT-2's byte-pair encoding, plain bytes, or a `tokenizer.json` of anybody's.

The first two lose nothing: decoding the ids of a text gives the text. End-of-text is a boundary between documents that
`data.prepare` writes; it stands for no bytes, and a text that spells "<|endoftext|>" is ordinary text.
"""

import codecs
import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint16]

END_OF_TEXT = "<|endoftext|>"
FILE = "tokenizer.json"  # what the copy of a tokenizer's file is called, beside shards and in a run's folder
FILE_BYTES = 1 << 26  # Llama 3's, with 128,000 tokens, is 9 MB
MAX_IDS = 1 << 16  # of uint16 tokens
# What models call the end of a text, in the order in which it is looked for in a tokenizer.json.
ENDS = (
    END_OF_TEXT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>", "[SEP]",
)  # fmt: skip
# Scripts, spaces and rare bytes that a tokenizer must give back, or its ids do not add up to the bytes of a text.
PROBE = "The  cat's 12345 été, НАТО 你好 🙂\t\r\n\n \u00a0\u0000\ufb01 e\u0301 <s> "
_RECORDED = re.compile(re.escape(FILE) + "@[0-9a-f]{64}")
NONE = "none"  # ids that somebody else's tokenizer wrote
GPT2_IDS = 50257
# One task for the pool: enough text that handing it over (about 50 us) does not show, small enough to balance.
CHUNK_CHARACTERS = 200_000
# SHA-256 over GPT-2's byte strings in the order of their ids, each after its length as two little-endian bytes. It tells
# GPT-2's encoding from another one however the two files were formatted (transformers writes vocab.json anew).
GPT2_DIGEST = "3b27ee95684e28911415c6bcd8537b0d5b950f05a84053d4e6c63a26990f9617"


def load(name: str, *folders: str | Path) -> "Tokenizer":
    """The tokenizer of that name: `gpt2`, `bytes`, the path of a tokenizer.json, or `tokenizer.json@SHA256`.

    `gpt2` comes from tiktoken, which downloads it once; without a network, the environment variable GPT2_BPE_DIR names a
    folder with `encoder.json` and `vocab.bpe`, or `vocab.json` and `merges.txt` as in a Hugging Face GPT-2 folder.
    The form with a hash is what meta.json and config.json record; the file is looked for in `folders`.
    ValueError: unknown name, no network, a folder that does not hold GPT-2's encoding, a file that is missing or another one.
    """
    if name in LOADERS:
        return LOADERS[name]()
    if name == NONE:
        raise ValueError("tokenizer 'none' has no text; name the one that wrote the ids: --tokenizer gpt2, bytes or FILE")
    path, content = find_file(name, *folders)
    return _from_file(path, content)


def recorded(name: str) -> str:
    """The name that meta.json and config.json hold: the same for gpt2 and bytes, `tokenizer.json@SHA256` for a file."""
    if name in (*LOADERS, NONE) or _RECORDED.fullmatch(name):
        return name
    return _recorded(find_file(name)[1])


def find_file(name: str, *folders: str | Path) -> tuple[Path, bytes]:
    """Path and content of the file that a name means, see `load`; ValueError where there is none, or only another one."""
    if _RECORDED.fullmatch(name):
        places = [Path(folder) / FILE for folder in folders]
    elif name.endswith(".json"):
        places = [Path(name)]
    else:
        raise ValueError(f"tokenizer {name!r} is unknown; choose one of: {', '.join(LOADERS)}, or the path of a {FILE}")
    found = [place for place in places if os.path.isfile(place)]  # False too for a name too long
    if not found:
        where = " nor ".join(map(str, places)) or name
        raise ValueError(f"tokenizer file {where} does not exist; name it: --tokenizer PATH/{FILE}")
    for place in found:
        if place.stat().st_size > FILE_BYTES:
            raise ValueError(f"{place} is {place.stat().st_size:,} bytes, more than {FILE_BYTES:,}; no {FILE} is")
        content = place.read_bytes()
        if not _RECORDED.fullmatch(name) or _recorded(content) == name:
            return place, content
    raise ValueError(f"{found[0]} is not the tokenizer that was used ({name}); name that file: --tokenizer PATH/{FILE}")


def _recorded(content: bytes) -> str:
    return f"{FILE}@{hashlib.sha256(content).hexdigest()}"


class Tokenizer:
    """Ids are uint16, below `vocab_size`; `eot` is end-of-text, which is no bytes, and `eot_text` how people write it.

    `pieces[i]` are the bytes of id i. They are None for a tokenizer whose ids do not add up to the bytes of a text (one that
    normalises, adds a space, or knows no rare characters); such a one decodes by `to_text`. `content` is its file.
    """

    def __init__(
        self,
        name: str,
        vocab_size: int,
        eot: int,
        encode: Callable[[str], Ids],
        pieces: Sequence[bytes] | None,
        to_text: Callable[[list[int]], str] | None = None,
        eot_text: str = END_OF_TEXT,
        content: bytes = b"",
    ) -> None:
        assert (pieces is None) != (to_text is None), "pieces or a decoder"
        assert pieces is None or (len(pieces) == vocab_size and pieces[eot] == b""), "end-of-text stands for no bytes"
        self.name, self.vocab_size, self.eot, self.eot_text, self.content = name, vocab_size, eot, eot_text, content
        self._encode, self._pieces, self._to_text = encode, pieces, to_text

    def encode(self, text: str) -> Ids:
        """Ids of a text, without end-of-text. Lone surrogates, which UTF-8 cannot hold, become U+FFFD."""
        return self._encode(well_formed(text))

    def encode_prompt(self, text: str) -> Ids:
        """Ids of what a person typed: there `eot_text` (and "<|endoftext|>") is end-of-text itself."""
        parts = re.split("|".join(map(re.escape, {self.eot_text, END_OF_TEXT})), text)
        ids = [self.encode(parts[0])]
        for part in parts[1:]:
            ids += [np.array([self.eot], dtype=np.uint16), self.encode(part)]
        return np.concatenate(ids)

    def encode_batch(self, texts: Iterable[str], num_threads: int = 1) -> Iterator[Ids]:
        """Ids of each text in the order given, computed by threads, with a bounded number of texts in memory.

        tiktoken works outside Python's lock, so threads run side by side; a whole list and an endless stream do alike.
        """
        with ThreadPoolExecutor(num_threads) as pool:
            running: deque[Future[list[Ids]]] = deque()
            for chunk in chunks(texts, CHUNK_CHARACTERS):
                running.append(pool.submit(self._encode_all, chunk))
                if len(running) > 2 * num_threads:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()

    def _encode_all(self, texts: Sequence[str]) -> list[Ids]:
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: Iterable[int] | npt.NDArray[Any]) -> bytes:
        """Bytes of ids; ValueError for an id outside the vocabulary."""
        values = np.asarray(list(ids) if not isinstance(ids, np.ndarray) else ids, dtype=np.int64).ravel()
        beyond = values[(values < 0) | (values >= self.vocab_size)]
        if beyond.size:
            raise ValueError(
                f"token id {beyond[0]} is not in the vocabulary of {self.name}: ids are 0 to {self.vocab_size - 1}"
            )
        if self._pieces is None:
            assert self._to_text is not None
            return self._to_text([i for i in values.tolist() if i != self.eot]).encode()
        return b"".join([self._pieces[i] for i in values.tolist()])

    def decode(self, ids: Iterable[int] | npt.NDArray[Any]) -> str:
        """Text of ids; bytes that are no UTF-8 (a character cut in two) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """Bytes that each id stands for, shape (vocab_size,), or None: they turn nats per token into bits per byte."""
        return None if self._pieces is None else np.array([len(piece) for piece in self._pieces], dtype=np.int64)

    def streamer(self, before: Sequence[int] = ()) -> Callable[[Sequence[int]], str]:
        """A function that takes new ids and returns the text that they complete; of no ids at all, what is left over.

        A character may be spread over several ids: its first bytes are held back. Where ids have no bytes of their own, the
        text of the last ids and the new ones is compared with that of the last ids alone, which begin with `before`.
        """
        if self._pieces is not None:
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
            return lambda ids: decoder.decode(self.decode_bytes(ids), final=not ids)
        context, waiting = list(before)[-8:], list[int]()

        def push(ids: Sequence[int]) -> str:
            waiting.extend(ids)
            text, known = self.decode(context + waiting), self.decode(context)
            if ids and text.endswith("\ufffd"):
                return ""
            context[:] = (context + waiting)[-8:]
            waiting.clear()
            return text[len(known) :]

        return push


def well_formed(text: str) -> str:
    """The text with lone surrogates (JSON can carry them) replaced, as tiktoken does it."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def chunks(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Consecutive texts in lists that end once they hold that many characters."""
    chunk: list[str] = []
    held = 0
    for text in texts:
        chunk.append(text)
        held += len(text) + 64  # about what an empty one takes: millions of them must not make one chunk
        if held >= characters:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


@cache
def _bytes() -> Tokenizer:
    return Tokenizer(
        "bytes",
        257,
        256,
        lambda text: np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint16),
        [bytes([value]) for value in range(256)] + [b""],
    )


def _gpt2() -> Tokenizer:
    return _gpt2_from(os.environ.get("GPT2_BPE_DIR", ""))


@cache
def _gpt2_from(folder: str) -> Tokenizer:
    encoding = gpt2_encoding(folder)
    pieces = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab - 1)]
    return Tokenizer(
        "gpt2",
        GPT2_IDS,
        GPT2_IDS - 1,
        lambda text: encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16),
        [*pieces, b""],
    )


def gpt2_encoding(folder: str) -> Any:
    """tiktoken's Encoding for GPT-2, downloaded or ('' is none) from the files of a folder; see `load` for the errors."""
    if find_spec("tiktoken") is None:
        raise ValueError("tokenizer gpt2 needs tiktoken; type: pip install tiktoken   (or choose the tokenizer bytes)")
    encoding = _read_encoding(Path(folder)) if folder else _download_encoding()
    pieces = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab - 1)]
    digest = hashlib.sha256(b"".join(len(piece).to_bytes(2, "little") + piece for piece in pieces)).hexdigest()
    if digest != GPT2_DIGEST:
        raise ValueError(f"{folder or 'tiktoken'} does not hold GPT-2's encoding; point GPT2_BPE_DIR at a GPT-2 folder")
    return encoding


def _download_encoding() -> Any:
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    except OSError as error:  # requests' errors are OSErrors
        raise ValueError(
            f"tokenizer gpt2 could not be downloaded ({type(error).__name__}); set GPT2_BPE_DIR to a folder with "
            "encoder.json and vocab.bpe (or vocab.json and merges.txt), or choose the tokenizer bytes"
        ) from error


def _read_encoding(folder: Path) -> Any:
    from tiktoken import Encoding
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    for vocabulary, merges in ((folder / "encoder.json", folder / "vocab.bpe"), (folder / "vocab.json", folder / "merges.txt")):
        if vocabulary.is_file() and merges.is_file():
            break
    else:
        raise ValueError(
            f"GPT2_BPE_DIR={folder} holds neither encoder.json and vocab.bpe nor vocab.json and merges.txt; "
            "point it at a GPT-2 folder"
        )
    try:
        # tiktoken caches files by their path alone; the hash of the present content keeps it from serving an older file.
        ranks = data_gym_to_mergeable_bpe_ranks(
            str(merges),
            str(vocabulary),
            vocab_bpe_hash=hashlib.sha256(merges.read_bytes()).hexdigest(),
            encoder_json_hash=hashlib.sha256(vocabulary.read_bytes()).hexdigest(),
        )
    except (ValueError, KeyError, AttributeError, AssertionError) as error:
        raise ValueError(f"GPT2_BPE_DIR={folder} is unreadable ({error!r}); copy GPT-2's two files again") from error
    special = {END_OF_TEXT: len(ranks)}
    return Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def _from_file(path: Path, content: bytes) -> Tokenizer:
    """The tokenizer of a tokenizer.json's content, whose padding, truncation and dropout are left out."""
    if find_spec("tokenizers") is None:
        raise ValueError(f"tokenizer {path} needs the tokenizers library; type: pip install tokenizers")
    from tokenizers import Tokenizer as Library

    try:
        spec = json.loads(content)
        spec["truncation"] = spec["padding"] = None
        spec["model"].pop("dropout", None)
        library = Library.from_str(json.dumps(spec))
    except Exception as error:  # the library raises Exception itself
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a {FILE} of the tokenizers library ({reason}); give one that is") from None
    library.encode_special_tokens = True  # a text that spells a special token is ordinary text
    table = {int(number): str(token) for token, number in library.get_vocab(with_added_tokens=True).items()}
    vocab_size = max(table, default=0) + 1
    if vocab_size > MAX_IDS:
        raise ValueError(f"{path} has {vocab_size:,} ids, shards of uint16 hold {MAX_IDS:,}; train a smaller tokenizer")
    added = {int(number): str(token.content) for number, token in library.get_added_tokens_decoder().items()}
    ends = [number for end in ENDS for number, token in added.items() if token == end]
    if not ends:
        raise ValueError(f"{path} has no end-of-text token; add one of {', '.join(ENDS)} as a special token")
    pieces = _file_pieces(library, spec, table, added, ends[0])
    return Tokenizer(
        _recorded(content),
        vocab_size,
        ends[0],
        lambda text: np.array(library.encode(text, add_special_tokens=False).ids, dtype=np.uint16),
        pieces,
        None if pieces else lambda ids: str(library.decode(ids, skip_special_tokens=False)),
        added[ends[0]],
        content,
    )


def _file_pieces(library: Any, spec: Any, table: dict[int, str], added: dict[int, str], eot: int) -> list[bytes] | None:
    """Bytes of each id of a byte-level tokenizer; None for any other, and for one that does not give back PROBE."""
    if spec.get("normalizer") or (spec.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's table: these bytes are their own character
    characters = {chr(byte): byte for byte in shown}
    characters |= {chr(256 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in shown)}
    pieces = [b""] * (max(table) + 1)
    for number, token in table.items():
        if number == eot:
            continue
        if number not in added and not characters.keys() >= set(token):
            return None
        pieces[number] = token.encode() if number in added else bytes(characters[character] for character in token)
    ids = library.encode(PROBE, add_special_tokens=False).ids
    whole = {bytes([byte]) for byte in range(256)} <= set(pieces) and b"".join(pieces[i] for i in ids) == PROBE.encode()
    return pieces if whole else None


LOADERS: dict[str, Callable[[], Tokenizer]] = {"gpt2": _gpt2, "bytes": _bytes}
