"""What each trick of activations/engine.py and of the families buys: the same module with it and with it switched off.

    python -m bench.tricks [--tricks NAME ...] [--shape N ...] [--rounds N] [--threads N] [--json PATH]

On a CPU, forward and backward, coefficients included, interleaved; `ratio` is the time with the trick over that without.
`saved` counts bytes kept for the backward pass, over x's: a trick may buy memory and no time.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

import activations
from activations import engine, fourier
from bench import harness
from bench.harness import Row
from runtime.hardware import retain_memory


class Trick(NamedTuple):
    """Where a trick is switched off: `attribute` of `place` is `off` then."""

    place: object
    attribute: str
    off: object
    spec: str
    dtype: torch.dtype = torch.float32
    compiled: bool = False


TRICKS = {
    "blocks": Trick(engine, "BLOCK", 1 << 62, "hermite:degree=3"),
    "table": Trick(engine, "TABLE_PAYS_FROM", 1 << 62, "tropical:degree=6", torch.bfloat16),
    "sums in the loop of dx": Trick(engine, "FUSED_SUMS", 0, "hermite:degree=3", compiled=True),
    "no more than eight": Trick(engine, "FUSED_SUMS", 1 << 62, "fourier:degree=5", compiled=True),
    "tiles": Trick(engine, "TILE", 1, "tpgu:degree=5", compiled=True),
    "cosine by polynomial": Trick(fourier, "_as_polynomial", lambda z: False, "fourier:degree=5", compiled=True),
    "another bound": Trick(fourier, "LARGEST_IN_GRADIENTS", fourier.LARGEST_INPUT, "fourier:degree=5", compiled=True),
}


def main(argv: list[str] | None = None) -> int:
    """Print a line for each trick and write the JSON."""
    parser = argparse.ArgumentParser(description="Times of activations with a trick and without it.")
    parser.add_argument("--tricks", nargs="+", default=list(TRICKS), choices=TRICKS)
    parser.add_argument("--shape", type=int, nargs="+", default=[8, 1024, 3072])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="CPU threads; fewer than the cores where other programs run")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    retain_memory()
    rows = [measure(name, options.shape, options.rounds) for name in options.tricks]
    for row in rows:
        print(
            f"{row['trick']:24} {row['activation']:18} {row['ms']:8.2f} ms, without {row['ms_without']:8.2f}, ratio "
            f"{row['ratio']:.2f}; saved {row['saved']:.2f}, without {row['saved_without']:.2f}"
        )
    if options.json:
        harness.save(options.json, rows, torch.device("cpu"))
    return 0


def measure(name: str, shape: list[int], rounds: int) -> Row:
    """Median milliseconds of both ways, taken in turns, and the bytes that they save over x's."""
    trick = TRICKS[name]
    with_it, without = _contender(trick, shape, True), _contender(trick, shape, False)
    saved = [_saved(call) / (torch.Size(shape).numel() * trick.dtype.itemsize) for call in (with_it, without)]
    times = harness.interleaved({"with": with_it, "without": without}, rounds, torch.device("cpu"))
    ms, ms_without = (1e3 * statistics.median(times[key]) for key in ("with", "without"))
    ratio = statistics.median(a / b for a, b in zip(times["with"], times["without"], strict=True))
    row: Row = {"trick": name, "activation": trick.spec, "shape": shape, "dtype": str(trick.dtype), "compiled": trick.compiled}
    return row | {"ms": ms, "ms_without": ms_without, "ratio": ratio, "saved": saved[0], "saved_without": saved[1]}


def _contender(trick: Trick, shape: list[int], used: bool) -> Callable[[], object]:
    """One forward and backward pass. What is compiled is so at the first call, and keeps the trick as it was then."""
    module = activations.build(trick.spec, shape[-1], 0.55)
    if trick.compiled:
        module.compile(fullgraph=True, dynamic=False)
    x = (0.55 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(trick.dtype).requires_grad_()
    dy = torch.ones(shape, dtype=trick.dtype)
    value = getattr(trick.place, trick.attribute) if used else trick.off

    def call() -> None:
        with mock.patch.object(trick.place, trick.attribute, value):
            torch.autograd.grad(module(x), [x, *module.parameters()], dy)

    return call


def _saved(call: Callable[[], object]) -> int:
    """Bytes of the storages that a call keeps for its backward pass."""
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    call()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        call()
    return sum(kept.values())


if __name__ == "__main__":
    sys.exit(main())
