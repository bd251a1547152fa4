"""Text to token ids and back: GPT-2's byte-pair encoding, or plain bytes.

Both lose nothing: decoding the ids of a text gives the text. End-of-text is a boundary between documents that
`data.prepare` writes; it stands for no bytes, and a text that spells "<|endoftext|>" is ordinary text.
"""

import hashlib
import os
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
# One task for the pool: enough text that handing it over (about 50 us) does not show, small enough to balance.
CHUNK_CHARACTERS = 200_000
# SHA-256 over GPT-2's byte strings in the order of their ids, each after its length as two little-endian bytes. It tells
# GPT-2's encoding from another one however the two files were formatted (transformers writes vocab.json anew).
GPT2_DIGEST = "3b27ee95684e28911415c6bcd8537b0d5b950f05a84053d4e6c63a26990f9617"


def load(name: str) -> "Tokenizer":
    """The tokenizer of that name, built once a process.

    `gpt2` comes from tiktoken, which downloads it once; without a network, the environment variable GPT2_BPE_DIR names a
    folder with `encoder.json` and `vocab.bpe`, or `vocab.json` and `merges.txt` as in a Hugging Face GPT-2 folder.
    ValueError: unknown name, no network, or a folder that does not hold GPT-2's encoding.
    """
    if name not in LOADERS:
        raise ValueError(f"tokenizer {name!r} is unknown; choose one of: {', '.join(LOADERS)}")
    return LOADERS[name]()


class Tokenizer:
    """Ids are uint16; `pieces[i]` are the bytes of id i, and the last id is end-of-text, which has none."""

    def __init__(self, name: str, pieces: Sequence[bytes], encode: Callable[[str], Ids]) -> None:
        assert pieces[-1] == b"", "end-of-text is the last id and stands for no bytes"
        self.name = name
        self.vocab_size = len(pieces)
        self.eot = len(pieces) - 1
        self._pieces = pieces
        self._encode = encode

    def encode(self, text: str) -> Ids:
        """Ids of a text, without end-of-text. Lone surrogates, which UTF-8 cannot hold, become U+FFFD."""
        return self._encode(well_formed(text))

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
            raise ValueError(f"token id {beyond[0]} is not in the vocabulary of {self.name}: ids are 0 to {self.eot}")
        return b"".join([self._pieces[i] for i in values.tolist()])

    def decode(self, ids: Iterable[int] | npt.NDArray[Any]) -> str:
        """Text of ids; bytes that are no UTF-8 (a character cut in two) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """Bytes that each id stands for, shape (vocab_size,); they turn nats per token into bits per byte."""
        return np.array([len(piece) for piece in self._pieces], dtype=np.int64)


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
        [bytes([value]) for value in range(256)] + [b""],
        lambda text: np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint16),
    )


def _gpt2() -> Tokenizer:
    return _gpt2_from(os.environ.get("GPT2_BPE_DIR", ""))


@cache
def _gpt2_from(folder: str) -> Tokenizer:
    encoding = gpt2_encoding(folder)
    pieces = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab - 1)]
    return Tokenizer(
        "gpt2",
        [*pieces, b""],
        lambda text: encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16),
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


LOADERS: dict[str, Callable[[], Tokenizer]] = {"gpt2": _gpt2, "bytes": _bytes}
