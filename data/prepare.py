"""Raw text to token shards: `python -m data.prepare {openwebtext,pystdlib,text,hub} [options]`, or `... verify DIR`.

Documents are tokenized by threads and written in source order, each followed by end-of-text, in bounded memory. A run that
stopped goes on where it was when the same command is given again; a finished folder is left as it is.
"""

import argparse
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import tee
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from data import tokenizer as tokenizers
from data.corpora import (
    HUB_FRACTION,
    NANOGPT_FRACTION,
    OPENWEBTEXT,
    Corpus,
    Plan,
    plan_hub,
    plan_openwebtext,
    plan_pystdlib,
    plan_text,
)
from data.files import sweep, write_bytes
from data.hub import FETCHED
from data.lock import locked
from data.shards import META, Meta, Tokens, open_split, read_meta, verify, write_meta
from data.sources import read_documents
from data.tokenizer import Tokenizer
from data.writer import ShardWriter

PROGRESS = "progress.json"
CHECKPOINT_TOKENS = 20_000_000  # what an interruption loses at most: seconds of work
SPLITS = ("train", "val")
HASHED = {"inputs", "val_inputs"}  # settings that are hashes of the input files
DEFAULT_FRACTIONS = {"openwebtext": NANOGPT_FRACTION, "pystdlib": 0.02, "text": 0.1}  # hub: the dataset's own split


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
        "val_fraction": arguments.val_fraction or DEFAULT_FRACTIONS.get(arguments.command),
        "shard_tokens": arguments.shard_tokens,
        **plan.identity,
    }
    meta = find_finished(out, settings)
    if meta is not None:
        yield f"{out} is prepared already, with these settings"
    else:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            sweep(out)
            meta = find_finished(out, settings) or write_corpus(plan, settings, out, arguments.workers, arguments.tokenizer)
        yield f"{out} is prepared"
    yield from meta.notes
    for split in SPLITS:
        counts = f"{meta.documents[split]:,} documents, {meta.bytes[split]:,} bytes, {meta.tokens[split]:,} tokens"
        shards = sum(name.startswith(split) for name in meta.shards)
        yield f"{split:5} {counts} ({meta.tokenizer}), {shards} shard{'s' * (shards != 1)}"
    if meta.skipped:
        yield f"rows or files without text, left out: {meta.skipped:,}"
    yield f"corpus sha256 {meta.corpus_sha256}: losses compare only where it is equal"
    if meta.expected:
        yield f"warning: published totals are {meta.expected}, these differ; losses may not compare with published ones"
    yield f"next: python train.py config/{'gpt2' if meta.tokenizer == 'gpt2' else 'tiny'}.py --data_dir {out}"


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
    shutil.rmtree(out / FETCHED, ignore_errors=True)
    return meta


def write_documents(
    corpus: Corpus, tokenizer: Tokenizer, writers: dict[str, ShardWriter], begun: Meta, workers: int
) -> Iterator[Meta]:
    """Tokenizes and writes the documents that are left; yields what is safely on disk, now and then and at the end."""
    documents, sizes, offsets = dict(begun.documents), dict(begun.bytes), list(begun.val_document_offsets)
    skipped = begun.skipped
    digest = bytes.fromhex(begun.corpus_sha256)
    done = first = sum(documents.values()) + skipped
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
            skipped=skipped,
            shards={**writers["train"].shards, **writers["val"].shards},
            corpus_sha256=digest.hex(),
        )

    texts, ahead = tee(read_documents(corpus.parts, first))
    encoded = zip(texts, tokenizer.encode_batch((text or "" for text in ahead), workers), strict=True)
    for text, ids in tqdm(encoded, initial=first, total=corpus.count, unit=" documents", disable=None, leave=False):
        split = "val" if done in corpus.validation else "train"
        done += 1
        if not text:
            skipped += 1
            continue
        if split == "val":
            offsets.append(writers[split].tokens)
        writers[split].write(np.append(ids, np.uint16(tokenizer.eot)))
        content = text.encode("utf-8")
        # A chain of hashes, and not one over everything, since its state is its value: it goes on after an interruption.
        digest = hashlib.sha256(digest + split.encode() + hashlib.sha256(content).digest()).digest()
        documents[split] += 1
        sizes[split] += len(content)
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
        changed = {name for name in {**meta.settings, **settings} if meta.settings.get(name) != settings.get(name)}
        if changed and changed <= HASHED:
            logging.getLogger(__name__).warning("the input files have changed since %s was begun; starting again", out)
            return None
        require_equal(out, meta.settings, settings)
    elif any(out.glob("*.bin")):
        raise ValueError(f"{out} holds shards without {META}; choose another --out, or delete the folder")
    return meta


def require_equal(out: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    names = [name for name in {**there, **asked} if there.get(name) != asked.get(name)]
    if names:
        differences = ", ".join(
            "the input files have changed"
            if name.endswith("inputs")
            else f"{name} {there.get(name)!r} (now {asked.get(name)!r})"
            for name in names
        )
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
        notes=list(corpus.notes),
    )


def unexpected_totals(meta: Meta) -> dict[str, int]:
    """OpenWebText's published totals, where they were to be met and were not."""
    found = {"documents": sum(meta.documents.values()), **{f"{split}_tokens": meta.tokens[split] for split in SPLITS}}
    comparable = (
        meta.settings.get("dataset") == "openwebtext"
        and meta.settings.get("repository")
        and meta.tokenizer == "gpt2"
        and meta.settings["val_fraction"] == NANOGPT_FRACTION
    )
    return OPENWEBTEXT if comparable and found != OPENWEBTEXT else {}


def make_plan(arguments: argparse.Namespace) -> Plan:
    if arguments.command == "hub":
        names = (arguments.config, arguments.split, arguments.text_field)
        return plan_hub(arguments.repository, arguments.revision, arguments.val_fraction, *names)
    fraction = arguments.val_fraction or DEFAULT_FRACTIONS[arguments.command]
    if arguments.command == "pystdlib":
        return plan_pystdlib(fraction)
    if arguments.command == "text":
        if arguments.val_input and arguments.val_fraction:
            raise ValueError("--val_input and --val_fraction both say what is validation; give one of them")
        separator = arguments.separator and arguments.separator.replace("\\n", "\n").replace("\\t", "\t")
        return plan_text(arguments.input, fraction, arguments.val_input, arguments.text_field, separator)
    return plan_openwebtext(arguments.input, arguments.repository, arguments.revision, fraction)


class Parser(argparse.ArgumentParser):
    """Reports a bad command line as everything else that is bad: as a ValueError of one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; type: python -m data.prepare --help")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m data.prepare", description="Raw text to token shards.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{openwebtext,pystdlib,text,hub,verify}")

    def add(name: str, tokenizer: str, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.add_argument("--out", help=f"folder for the shards (data/{name})")
        command.add_argument("--tokenizer", default=tokenizer, help="gpt2, bytes or FILE/tokenizer.json (%(default)s)")
        share = f"share for validation ({DEFAULT_FRACTIONS.get(name) or f'its own validation split, else {HUB_FRACTION}'})"
        command.add_argument("--val_fraction", type=_fraction, default=None, help=share)
        command.add_argument("--shard_tokens", type=_count(2**31 - 1), default=100_000_000, help="tokens a shard (%(default)s)")
        command.add_argument("--workers", type=_count(1024), default=os.cpu_count() or 1, help="threads (%(default)s)")
        return command

    openwebtext = add("openwebtext", "gpt2", "OpenWebText, split as nanoGPT splits it")
    openwebtext.add_argument("--input", nargs="+", default=[], metavar="PATH", help="local files instead of the hub")
    openwebtext.add_argument(
        "--repo", "--repository", dest="repository", default="Skylion007/openwebtext", help="on the hub (%(default)s)"
    )
    openwebtext.add_argument("--revision", default="", help="branch, tag or commit (the newest)")
    add("pystdlib", "bytes", "the sources of the running Python's standard library")
    text = add("text", "gpt2", "files or folders: text, json, jsonl, csv, tsv (each .gz, .bz2, .xz, .zst too), parquet, arrow")
    text.add_argument("--input", nargs="+", required=True, metavar="PATH", help="files or folders")
    text.add_argument("--val_input", nargs="+", default=[], metavar="PATH", help="files or folders for validation")
    text.add_argument("--text_field", default="", metavar="F", help="column or field of the text ('text', or the only one)")
    text.add_argument("--separator", metavar="S", help="what ends a document in text files, as <|endoftext|> or \\n\\n")
    hub = add("hub", "gpt2", "a text dataset of the Hugging Face hub")
    hub.add_argument("--repo", dest="repository", required=True, metavar="R", help="as HuggingFaceFW/fineweb, or a folder")
    hub.add_argument("--config", default="", metavar="C", help="configuration, as sample-10BT")
    hub.add_argument("--split", default="", metavar="S", help="split to train on (train)")
    hub.add_argument("--text_field", default="", metavar="F", help="column or field of the text ('text', or the only one)")
    hub.add_argument("--revision", default="", metavar="V", help="branch, tag or commit (the newest)")
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
