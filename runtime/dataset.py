"""The prepared data of a run: its tokens, what writes and measures them, and what it is called in a comparison."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from config.schema import Config
from data import shards, tokenizer
from data.batches import EvaluationWindows
from data.shards import Meta, Tokens

logger = logging.getLogger("train")


@dataclass(frozen=True)
class Dataset:
    """Both splits of a prepared folder."""

    train: Tokens
    validation: EvaluationWindows
    tokenizer: str
    vocab_size: int
    byte_lengths: npt.NDArray[np.int64] | None
    """Bytes of text a token id stands for; None where the tokenizer's files are not there."""
    corpus: str
    """SHA-256 of the corpus, or of the shards where nothing is known of it: losses compare only where it is equal."""
    fingerprint: str
    """Of the training shards: a resume refuses others."""
    checksums: dict[str, list[int]]
    """Of all their tokens, to say which of them changed; empty where tokens were not checked."""


def open_dataset(config: Config, check_tokens: bool) -> Dataset:
    """Open `data_dir` as the config says. Raises ValueError for what is missing, damaged or in disagreement.

    With `check_tokens` every token is read (by one process) and compared with the vocabulary: a damaged one would end the run
    in an embedding's IndexError days later, or on a GPU in an assertion that names nothing.
    """
    folder = config.data_dir
    if not Path(folder).is_dir():
        raise ValueError(f"data_dir {folder!r} does not exist; type: python -m data.prepare pystdlib --out {folder}")
    meta = shards.read_meta(folder)
    name = tokenizer_of(config, meta)
    known = meta.vocab_size if meta else config.vocab_size or tokenizer.load(name).vocab_size
    vocab_size = config.vocab_size or known
    if vocab_size < known:
        raise ValueError(f"vocab_size={vocab_size} is below the {known} ids of {folder}; type --vocab_size 0")
    train, val = (shards.open_split(folder, split) for split in ("train", "val"))
    lengths = byte_lengths(name)
    if meta and lengths is not None and meta.vocab_size != len(lengths):
        raise ValueError(
            f"{folder}/{shards.META}: vocab_size is {meta.vocab_size}, that of its tokenizer {name!r} {len(lengths)}; "
            f"{shards.AGAIN}"
        )
    if check_tokens:
        for tokens in (train, val):
            tokens.check_vocabulary(vocab_size)
    return Dataset(
        train=train,
        validation=EvaluationWindows(val, config.block_size, config.eval_tokens),
        tokenizer=name,
        vocab_size=vocab_size,
        byte_lengths=lengths,
        corpus=meta.corpus_sha256 if meta else train.fingerprint(),
        fingerprint=train.fingerprint(),
        checksums=train.checksums() if check_tokens else {},
    )


def tokenizer_of(config: Config, meta: Meta | None) -> str:
    """The tokenizer that wrote the shards. Raises ValueError where neither config nor meta.json names it, or they disagree."""
    name = config.tokenizer or (meta.tokenizer if meta else "")
    if not name:
        raise ValueError(f"{config.data_dir} has no meta.json; name the tokenizer of its shards: --tokenizer gpt2 or bytes")
    if meta and name != meta.tokenizer:
        raise ValueError(
            f"tokenizer={name!r}, but {config.data_dir} was written with {meta.tokenizer!r}; leave --tokenizer out"
        )
    return name


def byte_lengths(name: str) -> npt.NDArray[np.int64] | None:
    """Bytes a token id; None, and said so, where the tokenizer's files cannot be had: only bits per byte need them.

    Whether they can is known by asking for them alone: the first time tiktoken downloads them.
    """
    try:
        return tokenizer.load(name).byte_lengths()
    except ValueError as error:
        logger.info("no bits per byte: %s", error)
        return None
