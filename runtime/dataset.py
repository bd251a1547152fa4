"""The prepared data of a run: its tokens, what writes and measures them, and what it is called in a comparison."""

import hashlib
import logging
from dataclasses import dataclass, replace
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
    """As config.json records it: gpt2, bytes, none or tokenizer.json@SHA256."""
    tokenizer_file: bytes
    """Content of the tokenizer.json, for the run's folder; empty for the other tokenizers."""
    vocab_size: int
    """Ids of the model's table."""
    num_ids: int
    """Ids that the tokens may have; at most vocab_size."""
    byte_lengths: npt.NDArray[np.int64] | None
    """Bytes of text a token id stands for; None where that is not known."""
    corpus: str
    """SHA-256 of the corpus, or of the shards where nothing is known of it: losses compare only where it is equal."""
    fingerprint: str
    """Of the training shards: a resume refuses others."""
    checksums: dict[str, list[int]]
    """Of all their tokens, to say which of them changed; empty where tokens were not checked."""

    def checked(self) -> "Dataset":
        """The same, with checksums, after a look at every token.

        Raises ValueError for a token beyond the vocabulary: it would end the run in an embedding's IndexError days later, or
        on a GPU in an assertion that names nothing.
        """
        for tokens in (self.train, self.validation.tokens):
            tokens.check_vocabulary(self.num_ids)
        return replace(self, checksums=self.train.checksums())

    def contents(self) -> dict[str, str]:
        """What all processes of a run must have alike, in words: a hash of all tokens of each shard, and what measures them."""
        sums = self.checksums | self.validation.tokens.checksums()
        hashes = {f"tokens of {name}": hashlib.sha256(repr(crcs).encode()).hexdigest()[:16] for name, crcs in sums.items()}
        shards_of = {
            f"{split} shards": ", ".join(p.name for p in tokens.paths)
            for split, tokens in (("training", self.train), ("validation", self.validation.tokens))
        }
        known = "unknown" if self.byte_lengths is None else hashlib.sha256(self.byte_lengths.tobytes()).hexdigest()[:16]
        return shards_of | hashes | {"corpus": self.corpus, "bytes of each token": known}


def open_dataset(config: Config, check_tokens: bool) -> Dataset:
    """Open `data_dir` as the config says. Raises ValueError for what is missing, damaged or in disagreement.

    With `check_tokens` every token is read: `Dataset.checked`.
    """
    folder = config.data_dir
    if not Path(folder).is_dir():
        raise ValueError(f"data_dir {folder!r} does not exist; {shards.prepare_hint(folder)}")
    meta = shards.read_meta(folder)
    train, val = (shards.open_split(folder, split) for split in ("train", "val"))
    name = tokenizer_of(config, meta)
    known = meta.vocab_size if meta else _foreign_ids(config, name, train, val)
    vocab_size = config.vocab_size or known
    if vocab_size < known:
        raise ValueError(
            f"vocab_size={vocab_size} is below the {known} ids of {folder} (tokenizer {name}); type --vocab_size 0"
            + ("" if meta else ", or --tokenizer none where another tokenizer wrote them")
        )
    places = (folder, config.out_dir)
    lengths = byte_lengths(name, *places)
    if meta and lengths is not None and meta.vocab_size != len(lengths):
        raise ValueError(
            f"{folder}/{shards.META}: vocab_size is {meta.vocab_size}, that of its tokenizer {name!r} {len(lengths)}; "
            f"{shards.AGAIN}"
        )
    dataset = Dataset(
        train=train,
        validation=EvaluationWindows(val, config.block_size, config.eval_tokens),
        tokenizer=name,
        tokenizer_file=tokenizer.find_file(config.tokenizer or name, *places)[1] if tokenizer.FILE in name else b"",
        vocab_size=vocab_size,
        num_ids=known,
        byte_lengths=lengths,
        corpus=meta.corpus_sha256 if meta else train.fingerprint(),
        fingerprint=train.fingerprint(),
        checksums={},
    )
    return dataset.checked() if check_tokens else dataset


def tokenizer_of(config: Config, meta: Meta | None) -> str:
    """The tokenizer that wrote the shards, as config.json records it.

    Raises ValueError where neither config nor meta.json names it, or where they disagree.
    """
    if not config.tokenizer and meta is None:
        named = "--tokenizer gpt2, bytes, PATH/tokenizer.json, or none where nothing but ids is known"
        pickled = "; its meta.pkl is never opened, since a pickle can run code"
        there = (Path(config.data_dir) / "meta.pkl").is_file()
        raise ValueError(
            f"{config.data_dir} has no meta.json{pickled if there else ''}; name the tokenizer of its shards: {named}"
        )
    name = tokenizer.recorded(config.tokenizer) if config.tokenizer else ""
    if meta and name and name != meta.tokenizer:
        raise ValueError(
            f"tokenizer={name!r}, but {config.data_dir} was written with {meta.tokenizer!r}; leave --tokenizer out"
        )
    return name or (meta.tokenizer if meta else "")


def byte_lengths(name: str, *folders: str | Path) -> npt.NDArray[np.int64] | None:
    """Bytes of text for each token id. None, with a line in the log, where they are not known: only bits per byte need them.

    The only check is to try: the first time tiktoken downloads its files. `folders` are where a tokenizer.json may be.
    """
    if name == tokenizer.NONE:
        return None
    try:
        lengths = tokenizer.load(name, *folders).byte_lengths()
    except ValueError as error:
        logger.info("no bits per byte: %s", error)
        return None
    if lengths is None:
        logger.info("no bits per byte: %s does not keep every byte of a text", name)
    return lengths


def _foreign_ids(config: Config, name: str, *splits: Tokens) -> int:
    """How many ids the tokenizer of shards without meta.json has. Raises ValueError where only the user can know."""
    if name == "gpt2":
        return tokenizer.GPT2_IDS  # without a download
    if name != tokenizer.NONE:
        return tokenizer.load(config.tokenizer, config.data_dir, config.out_dir).vocab_size
    if not config.vocab_size:
        largest = max(tokens.largest() for tokens in splits)
        raise ValueError(
            f"with --tokenizer none the number of ids must be given; the largest in {config.data_dir} is {largest}: "
            f"type --vocab_size {largest + 1}, or what its tokenizer has"
        )
    return config.vocab_size
