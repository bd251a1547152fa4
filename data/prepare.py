"""Raw text to token shards: `python -m data.prepare {openwebtext,pystdlib,text} [options]`, or `... verify DIR`.

Documents are tokenized by threads and written in source order, each followed by end-of-text, in bounded memory. A run that
stopped goes on where it was when the same command is given again; a finished folder is left as it is.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import tee
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from data import tokenizer as tokenizers
from data.corpora import NANOGPT_FRACTION, OPENWEBTEXT, Corpus, Plan, plan_openwebtext, plan_pystdlib, plan_text
from data.lock import locked
from data.shards import META, Meta, Tokens, open_split, read_meta, verify, write_bytes, write_meta
from data.sources import read_documents
from data.tokenizer import Tokenizer
from data.writer import ShardWriter

PROGRESS = "progress.json"
CHECKPOINT_TOKENS = 20_000_000  # what an interruption loses at most: seconds of work
SPLITS = ("train", "val")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line. Returns 0; after one line on stderr 2 for bad input, 130 when interrupted."""
    try:
        arguments = parse(argv)
        for line in verify(arguments.folder) if arguments.command == "verify" else prepare_dataset(arguments):
            print(line, flush=True)
    except ValueError as error:
        print(f"prepare: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        print(f"prepare: {error.strerror or error}{place}; once that is put right, the same command goes on", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"prepare: {error.name} is not installed; type: pip install {error.name}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def prepare_dataset(arguments: argparse.Namespace) -> Iterator[str]:
    """Prepares what the command line asks for, unless it is there already; yields the lines to print."""
    plan = make_plan(arguments)
    out = Path(arguments.out or Path("data") / arguments.command)
    settings = {
        "dataset": arguments.command,
        "tokenizer": tokenizers.recorded(arguments.tokenizer),
        "val_fraction": arguments.val_fraction,
        "shard_tokens": arguments.shard_tokens,
        **plan.identity,
    }
    meta = find_finished(out, settings)
    if meta is not None:
        yield f"{out} is prepared already, with these settings"
    else:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            meta = find_finished(out, settings) or write_corpus(plan, settings, out, arguments.workers, arguments.tokenizer)
        yield f"{out} is prepared"
    for split in SPLITS:
        counts = f"{meta.documents[split]:,} documents, {meta.bytes[split]:,} bytes, {meta.tokens[split]:,} tokens"
        yield f"{split:5} {counts} ({meta.tokenizer})"
    yield f"corpus sha256 {meta.corpus_sha256}: losses compare only where it is equal"
    if meta.expected:
        yield f"warning: published totals are {meta.expected}, these differ; losses may not compare with published ones"


def write_corpus(plan: Plan, settings: dict[str, Any], out: Path, workers: int, tokenizer_name: str) -> Meta:
    """Writes a corpus's shards and `meta.json` into a folder, going on from what an interrupted run left there."""
    tokenizer = tokenizers.load(tokenizer_name)
    begun = find_unfinished(out, settings)
    corpus = plan.open(out, begun.revision if begun else "")
    begun = begun or start(corpus, tokenizer, settings)
    write_meta(out, begun, PROGRESS)
    if tokenizer.content:
        write_bytes(out / tokenizers.FILE, tokenizer.content)
    writers = {split: ShardWriter(out, split, settings["shard_tokens"], begun.shards, begun.tokens[split]) for split in SPLITS}
    try:
        meta = begun
        for meta in write_documents(corpus, tokenizer, writers, begun, workers):
            write_meta(out, meta, PROGRESS)
        for writer in writers.values():
            writer.close()
    finally:
        for writer in writers.values():
            writer.abandon()
    written = {**writers["train"].shards, **writers["val"].shards}
    sums = Tokens([out / name for name in written]).checksums() if written else {}
    meta = replace(meta, shards=written, checksums=sums, expected=unexpected_totals(meta))
    write_meta(out, meta)
    (out / PROGRESS).unlink()
    return meta


def write_documents(
    corpus: Corpus, tokenizer: Tokenizer, writers: dict[str, ShardWriter], begun: Meta, workers: int
) -> Iterator[Meta]:
    """Tokenizes and writes the documents that are left; yields what is safely on disk, now and then and at the end."""
    documents, sizes, offsets = dict(begun.documents), dict(begun.bytes), list(begun.val_document_offsets)
    digest = bytes.fromhex(begun.corpus_sha256)
    done = first = sum(documents.values())
    unsaved = 0

    def on_disk() -> Meta:
        for writer in writers.values():
            writer.sync()
        return replace(
            begun,
            documents=dict(documents),
            bytes=dict(sizes),
            tokens={split: writer.tokens for split, writer in writers.items()},
            val_document_offsets=list(offsets),
            shards={**writers["train"].shards, **writers["val"].shards},
            corpus_sha256=digest.hex(),
        )

    texts, ahead = tee(read_documents(corpus.parts, first))
    encoded = zip(texts, tokenizer.encode_batch(ahead, workers), strict=True)
    for text, ids in tqdm(encoded, initial=first, total=corpus.count, unit=" documents", disable=None, leave=False):
        split = "val" if done in corpus.validation else "train"
        if split == "val":
            offsets.append(writers[split].tokens)
        writers[split].write(np.append(ids, np.uint16(tokenizer.eot)))
        content = text.encode("utf-8")
        # A chain of hashes, and not one over everything, since its state is its value: it goes on after an interruption.
        digest = hashlib.sha256(digest + split.encode() + hashlib.sha256(content).digest()).digest()
        documents[split] += 1
        sizes[split] += len(content)
        done += 1
        unsaved += ids.size
        if unsaved >= CHECKPOINT_TOKENS:
            unsaved = 0
            yield on_disk()
    yield on_disk()


def find_finished(out: Path, settings: dict[str, Any]) -> Meta | None:
    """The description of a folder that is prepared; ValueError where it was with other settings or its shards are gone."""
    meta = read_meta(out)
    if meta is not None:
        require_equal(out, meta.settings, settings)
        for split in SPLITS:
            open_split(out, split)
    return meta


def find_unfinished(out: Path, settings: dict[str, Any]) -> Meta | None:
    """How far an interrupted run of the same settings came; ValueError for other settings or someone else's shards."""
    meta = read_meta(out, PROGRESS)
    if meta is not None:
        require_equal(out, meta.settings, settings)
    elif any(out.glob("*.bin")):
        raise ValueError(f"{out} holds shards without {META}; choose another --out, or delete the folder")
    return meta


def require_equal(out: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    names = [name for name in asked if there.get(name) != asked[name]]
    if names:
        differences = ", ".join(f"{name} {there.get(name)!r} (now {asked[name]!r})" for name in names)
        raise ValueError(f"{out} was prepared with other settings: {differences}; choose another --out, or delete the folder")


def start(corpus: Corpus, tokenizer: Tokenizer, settings: dict[str, Any]) -> Meta:
    """The description of a folder in which nothing is written yet."""
    zeros = dict.fromkeys(SPLITS, 0)
    return Meta(
        tokenizer=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        tokens=zeros,
        bytes=zeros,
        documents=zeros,
        val_document_offsets=[],
        source=corpus.source,
        revision=corpus.revision,
        corpus_sha256=hashlib.sha256().hexdigest(),
        shards={},
        settings=settings,
    )


def unexpected_totals(meta: Meta) -> dict[str, int]:
    """OpenWebText's published totals, where they were to be met and were not."""
    found = {"documents": sum(meta.documents.values()), **{f"{split}_tokens": meta.tokens[split] for split in SPLITS}}
    comparable = (
        meta.settings.get("repository") and meta.tokenizer == "gpt2" and meta.settings["val_fraction"] == NANOGPT_FRACTION
    )
    return OPENWEBTEXT if comparable and found != OPENWEBTEXT else {}


def make_plan(arguments: argparse.Namespace) -> Plan:
    if arguments.command == "pystdlib":
        return plan_pystdlib(arguments.val_fraction)
    if arguments.command == "text":
        return plan_text(arguments.input, arguments.val_fraction)
    return plan_openwebtext(arguments.input, arguments.repository, arguments.revision, arguments.val_fraction)


class Parser(argparse.ArgumentParser):
    """Reports a bad command line as everything else that is bad: as a ValueError of one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; type: python -m data.prepare --help")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m data.prepare", description="Raw text to token shards.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{openwebtext,pystdlib,text,verify}")

    def add(name: str, tokenizer: str, val_fraction: float, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.add_argument("--out", help=f"folder for the shards (data/{name})")
        command.add_argument("--tokenizer", default=tokenizer, help="gpt2, bytes or FILE/tokenizer.json (%(default)s)")
        command.add_argument("--val_fraction", type=_fraction, default=val_fraction, help="share for validation (%(default)s)")
        command.add_argument("--shard_tokens", type=_count(2**31 - 1), default=100_000_000, help="tokens a shard (%(default)s)")
        command.add_argument("--workers", type=_count(1024), default=os.cpu_count() or 1, help="threads (%(default)s)")
        return command

    openwebtext = add("openwebtext", "gpt2", NANOGPT_FRACTION, "OpenWebText, split as nanoGPT splits it")
    openwebtext.add_argument("--input", nargs="+", default=[], metavar="PATH", help="local files instead of the hub")
    openwebtext.add_argument("--repository", default="Skylion007/openwebtext", help="on the hub (%(default)s)")
    openwebtext.add_argument("--revision", default="", help="branch, tag or commit (the newest)")
    add("pystdlib", "bytes", 0.02, "the sources of the running Python's standard library")
    text = add("text", "gpt2", 0.1, "any files or folders: text, jsonl (.gz, .zst), parquet, arrow")
    text.add_argument("--input", nargs="+", required=True, metavar="PATH", help="files or folders")
    commands.add_parser("verify", help="check a prepared folder", allow_abbrev=False).add_argument("folder", metavar="DIR")
    return parser.parse_args(argv)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _count(largest: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        value = int(text)
        if not 1 <= value <= largest:
            raise argparse.ArgumentTypeError(f"{text} is not between 1 and {largest}")
        return value

    return count


if __name__ == "__main__":
    sys.exit(main())
