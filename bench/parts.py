"""Two parts of the step that model.py writes out: what each way of writing them takes, forward and backward, in bfloat16.

    python -m bench.parts [--device D] [--rounds N] [--json PATH] [--against OLD.json]

attention: PyTorch's fused kernel, and the products written out, compiled as the block compiles them. loss: cross-entropy of the
tied head, plain; by chunks of `CHUNK` rows, each computed again in the backward; and by `F.linear_cross_entropy`, where torch
has it, with `options=` (2.13 chunks only with them, and leaves the compiled graph). Memory: the peak over what was held before.
"""

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import model
from bench import harness
from bench.harness import Row
from bench.step import peak_memory, reset_peak_memory
from runtime.hardware import pick_device, retain_memory

CHUNK = 512
Shapes = dict[str, dict[str, tuple[int, ...]]]
SHAPES: Shapes = {
    "attention": {"6 x 384": (16, 6, 256, 64), "124M, block 512": (4, 12, 512, 64), "124M": (2, 12, 1024, 64)},  # B, H, T, D
    "loss": {"6 x 384, bytes": (4096, 384, 256), "124M": (2048, 768, 50304)},  # tokens, width, vocabulary
}
SMALL: Shapes = {"attention": {"small": (1, 2, 16, 8)}, "loss": {"small": (1024, 16, 64)}}

Step = Callable[[], object]


def main(argv: list[str] | None = None) -> int:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description="Parts of the training step, each written in several ways.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="tiny shapes, for a test")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--against", type=Path, metavar="OLD.json", help="show what changed since that file")
    options = parser.parse_args(argv)
    device = pick_device(options.device)
    retain_memory()
    rows = []
    for part, shapes in (SMALL if options.small else SHAPES).items():
        for name, shape in shapes.items():
            rows += measure(part, name, shape, device, options.rounds)
    for row in rows:
        label = f"{row['part']}, {row['case']}"
        print(f"{label:28} {row['way']:22} {row['ms']:9.2f} ms  {row['against_first']:6.2f}  {row['peak_bytes'] / 1e6:8.0f} MB")
    if options.json:
        harness.save(options.json, rows, device)
    if options.against:
        print("\n".join(harness.compare(options.against, rows, ("part", "case", "way"), "ms")))
    return 0


def measure(part: str, case: str, shape: tuple[int, ...], device: torch.device, rounds: int) -> list[Row]:
    """A row for each way of writing one part at one shape; `against_first` is the ratio to the first way."""
    torch._dynamo.reset()
    ways = WAYS[part](shape, device)
    seconds = harness.interleaved(ways, rounds, device)
    first = next(iter(ways))
    return [
        {
            "part": part,
            "case": case,
            "way": way,
            "ms": 1e3 * statistics.median(seconds[way]),
            "against_first": harness.ratio(seconds[way], seconds[first]),
            "peak_bytes": peak(part, shape, way, device),
        }
        for way in ways
    ]


def peak(part: str, shape: tuple[int, ...], way: str, device: torch.device) -> int:
    """Bytes that one call takes beyond its inputs, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_peak, args=(there, part, shape, way, device), daemon=True)
    process.start()
    there.close()
    held: int = here.recv()
    process.join()
    return held


def _peak(pipe: Connection, part: str, shape: tuple[int, ...], way: str, device: torch.device) -> None:
    call = WAYS[part](shape, device)[way]
    call()  # compiles
    reset_peak_memory(device)
    before = peak_memory(device)
    call()
    pipe.send(peak_memory(device) - before)


def attention_ways(shape: tuple[int, ...], device: torch.device) -> dict[str, Step]:
    """Forward and backward of causal attention (B, H, T, D)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, dy = (torch.randn(shape, generator=generator).to(device, torch.bfloat16) for _ in range(4))
    leaves = [t.requires_grad_() for t in (q, k, v)]

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return model.written_out_attention(q, k, v, dropout=0.0, scale=q.size(-1) ** -0.5)

    def step(f: Callable[..., Tensor]) -> Step:
        return lambda: torch.autograd.grad(f(q, k, v), leaves, dy)

    return {way.__name__: step(torch.compile(way, dynamic=False)) for way in (fused, written_out)}


def loss_ways(shape: tuple[int, ...], device: torch.device) -> dict[str, Step]:
    """Forward and backward of the loss over (tokens, width, vocabulary)."""
    tokens, width, vocabulary = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).to(device).requires_grad_()
    weight = (0.02 * torch.randn(vocabulary, width, generator=generator)).to(device).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator).to(device)

    def plain(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight).float(), targets)

    def total(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight).float(), targets, reduction="sum")

    def chunks(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        pairs = zip(x.split(CHUNK), targets.split(CHUNK), strict=True)
        return torch.stack([checkpoint(total, u, weight, t, use_reentrant=False) for u, t in pairs]).sum() / len(targets)

    def step(f: Callable[..., Tensor]) -> Step:
        def call() -> object:
            with torch.autocast(device.type, torch.bfloat16):
                loss = f(x, weight, targets)
            return torch.autograd.grad(loss, [x, weight])

        return call

    ways = {"plain": step(torch.compile(plain, dynamic=False)), "chunks": step(torch.compile(chunks, dynamic=False))}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        chunked = torch.nn.LinearCrossEntropyOptions()
        ways["linear_cross_entropy"] = step(lambda x, w, t: F.linear_cross_entropy(x, w, t, options=chunked))
    return ways


WAYS = {"attention": attention_ways, "loss": loss_ways}


if __name__ == "__main__":
    sys.exit(main())
