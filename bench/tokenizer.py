"""Throughput of `data.prepare` against raw tiktoken with the same number of threads.

    python -m bench.tokenizer [--megabytes N] [--repeats N] [--json PATH]

Both sides get the same documents of OpenWebText's mean size (about 5 kB) in memory. tiktoken only tokenizes
(`encode_ordinary_batch`); ours also hashes, writes, fsyncs and describes the shards. Not named after what it measures,
tokenize: a module of that name beside a script hides the standard library's.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from data.corpora import Corpus, Plan, plan_pystdlib
from data.files import write_json
from data.part import Part
from data.prepare import write_corpus
from data.sources import read_documents
from data.tokenizer import gpt2_encoding

DOCUMENT_CHARACTERS = 5000
SETTINGS = {"tokenizer": "gpt2", "shard_tokens": 100_000_000}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Throughput of data.prepare against raw tiktoken.")
    parser.add_argument("--megabytes", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    documents = make_documents(arguments.megabytes * 1_000_000)
    threads = sorted({1, os.cpu_count() or 1})
    rows = [measure(documents, count, arguments.repeats) for count in threads]
    print(f"{'threads':>7} {'tiktoken MB/s':>14} {'prepare MB/s':>13} {'ratio':>6}")
    for row in rows:
        print(f"{row['threads']:7.0f} {row['tiktoken_mb_per_s']:14.1f} {row['prepare_mb_per_s']:13.1f} {row['ratio']:6.2f}")
    if arguments.json:
        machine = {"platform": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
        write_json(arguments.json, {"machine": machine, "documents": len(documents), "rows": rows})
    return 0


def measure(documents: list[str], threads: int, repeats: int) -> dict[str, float]:
    """Medians of interleaved runs; the ratio is the median of the pairs' ratios."""
    encoding = gpt2_encoding(os.environ.get("GPT2_BPE_DIR", ""))
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    prepare(documents, threads)  # builds the tokenizer
    raw, ours = [], []
    for _ in range(repeats):
        raw.append(seconds(lambda: encoding.encode_ordinary_batch(documents, num_threads=threads)))
        ours.append(seconds(lambda: prepare(documents, threads)))
    return {
        "threads": threads,
        "tiktoken_mb_per_s": megabytes / statistics.median(raw),
        "prepare_mb_per_s": megabytes / statistics.median(ours),
        "ratio": statistics.median(a / b for a, b in zip(raw, ours, strict=True)),
    }


def make_documents(size: int) -> list[str]:
    """Pieces of the standard library's sources, repeated up to that many bytes."""
    text = "".join(filter(None, read_documents(plan_pystdlib(0.02).open(Path(), "").parts)))
    pieces = [text[at : at + DOCUMENT_CHARACTERS] for at in range(0, len(text), DOCUMENT_CHARACTERS)]
    return list(islice((piece for _ in range(size // len(text) + 1) for piece in pieces), size // DOCUMENT_CHARACTERS))


def prepare(documents: list[str], threads: int) -> None:
    validation = frozenset(range(0, len(documents), 2000))
    corpus = Corpus([Part(len(documents), lambda start: iter(documents[start:]))], validation, "memory", "local")
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Plan({}, lambda _, __: corpus), SETTINGS, Path(folder), threads, "gpt2")


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
