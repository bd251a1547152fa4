"""Tokens a second of generation: ours with the cache, with compiled decoding, without a cache, `transformers`' generate, and
ours with the cache and learnable activations.

    python -m bench.generate [--device D] [--activations SPEC ...] [--dtypes T ...] [--new_tokens N]
        [--json PATH] [--against OLD.json]

One sequence, random weights, the same ones for all, greedy. A token's cost is sampled at several context lengths and
integrated over `new_tokens`; reading the prompt is not counted. The contenders take turns token by token (ours inside the
callback of `transformers`, whose clock stands meanwhile), so that a busy machine is equally busy for all. The ceiling is
what a large matrix-vector product reads a second: every token reads every weight once.
"""

import argparse
import copy
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import activations
from activations import registry
from bench import harness
from bench.harness import Row
from config.schema import GPTConfig
from decoding import Matvec, compile_products, compiled_matvec
from model import GPT
from runtime.hardware import pick_device, pick_dtype, why_not_compile

CONTEXTS = 5  # lengths at which a token's cost is sampled, from 1 to new_tokens
RECOMPUTED_TOKENS = 2  # at each of them: without a cache a token takes seconds


def main(argv: list[str] | None = None) -> int:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description="Tokens a second of generation.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--activations", nargs="*", default=harness.LEARNABLE, metavar="SPEC", help="compared with gelu")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=["float32", "bfloat16", "float16"],
        help="default: float32 and, where the device computes in one, the 16-bit type that train.py chooses",
    )
    parser.add_argument("--new_tokens", type=int, default=512)
    parser.add_argument("--shape", type=int, nargs=4, default=[12, 12, 768, 1024], metavar="N", help="layers heads width block")
    parser.add_argument("--tokens", type=int, default=8, help="tokens timed at each context length")
    parser.add_argument("--threads", type=int, help="CPU threads; fewer than the cores where other programs run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--against", type=Path, metavar="OLD.json", help="show what changed since that file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    n_layer, n_head, n_embd, block_size = options.shape
    if options.new_tokens + options.tokens + 1 > block_size:
        parser.error(f"--new_tokens {options.new_tokens} and the sampled tokens do not fit block size {block_size}")
    config = GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size, vocab_size=50257)
    device = pick_device(options.device)
    named = [pick_dtype(name, device) for name in options.dtypes or ("float32", "auto")]
    specs = [registry.check(spec) for spec in options.activations]
    rows = []
    for dtype in dict.fromkeys(named):
        rows += measure(config, specs, device, dtype, options.new_tokens, options.tokens)
    show(rows)
    if options.json:
        harness.save(options.json, rows, device)
    if options.against:
        print("\n".join(harness.compare(options.against, rows, ("dtype", "contender"), "tokens_per_second")))
    return 0


def measure(
    config: GPTConfig,
    specs: list[str],
    device: torch.device,
    dtype: torch.dtype,
    new_tokens: int,
    tokens: int,
    compiles: bool = True,
) -> list[Row]:
    """A row for each contender; those with a learnable activation are named after it. `compiles`: compiled decoding too."""
    torch._dynamo.reset()  # one code object may have eight graphs only
    gpt = GPT(config).eval().to(device, dtype)
    contenders = {"cached": gpt}
    if compiles and device.type == "cpu" and not why_not_compile(device):
        contenders["compiled"] = copy.deepcopy(gpt)
        compile_products(contenders["compiled"])
    contenders |= {spec: with_activation(gpt, spec) for spec in specs}
    theirs = transformers_model(gpt, dtype)
    contexts = [1 + round(i * (new_tokens - 1) / (CONTEXTS - 1)) for i in range(CONTEXTS)]
    milliseconds: dict[str, list[float]] = {}
    time_tokens(gpt, contenders, theirs, 2, 2)  # compiles
    for context in contexts:
        for name, samples in time_tokens(gpt, contenders, theirs, context, tokens).items():
            milliseconds.setdefault(name, []).append(1e3 * statistics.median(samples))
    past_block_size = time_tokens(gpt, {}, None, config.block_size, 2)["recomputed"]
    halves = halves_seconds(gpt, tokens)

    read = sum(p.numel() * p.element_size() for p in gpt.parameters()) - gpt.transformer.wpe.weight.nbytes
    matvec = compiled_matvec() if "compiled" in contenders else torch.mv
    bandwidth = reading_bandwidth(matvec, device, dtype)
    # Contexts lie equally far apart: the trapezoidal rule is the mean of the panels' means.
    mean = {name: statistics.fmean((a + b) / 2 for a, b in itertools.pairwise(ms)) for name, ms in milliseconds.items()}
    return [
        {
            "dtype": str(dtype).removeprefix("torch."),
            "contender": name,
            "tokens_per_second": 1e3 / mean[name],
            "against_recomputed": mean["recomputed"] / mean[name],
            "against_gelu": mean["cached"] / mean[name] if name in specs else None,
            "against_transformers": mean["transformers"] / mean[name] if "transformers" in mean else None,
            "share_of_ceiling": read / bandwidth / (1e-3 * mean[name]),
            "ceiling_tokens_per_second": bandwidth / read,
            "ceiling_bytes_per_second": bandwidth,
            "contexts": contexts,
            "milliseconds_at_contexts": samples,
            "past_block_size_tokens_per_second": 1 / statistics.median(past_block_size),
            "halves_tokens_per_second": 1 / halves,
        }
        for name, samples in milliseconds.items()
    ]


def time_tokens(gpt: GPT, contenders: dict[str, GPT], theirs: Any, context: int, tokens: int) -> dict[str, list[float]]:
    """Seconds of each of `tokens` tokens behind `context` tokens, for every contender; `recomputed` takes RECOMPUTED_TOKENS."""
    tokens_in = prompt(gpt.config, context, gpt.transformer.wte.weight.device)
    streams = {name: model.stream(tokens_in, tokens + 1, temperature=0) for name, model in contenders.items()}
    streams["recomputed"] = gpt.stream(tokens_in, tokens + 1, temperature=0, use_cache=False)
    for stream in streams.values():
        next(stream)  # reads the prompt
    seconds: dict[str, list[float]] = {name: [] for name in streams}

    def turn() -> None:
        for name, stream in streams.items():
            if name == "recomputed" and len(seconds[name]) == RECOMPUTED_TOKENS:
                continue
            started = time.perf_counter()
            next(stream).tolist()
            seconds[name].append(time.perf_counter() - started)

    if theirs is None:
        for _ in range(tokens):
            turn()
    else:
        clock = Clock(turn)
        theirs.generate(
            tokens_in,
            attention_mask=torch.ones_like(tokens_in),
            max_new_tokens=tokens + 1,
            min_new_tokens=tokens + 1,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
        )
        seconds["transformers"] = clock.seconds
    return seconds


def halves_seconds(gpt: GPT, tokens: int) -> float:
    """Seconds a token past block_size with window="halves": one rebuild, then cached tokens from a half to the whole block."""
    size = gpt.config.block_size
    device = gpt.transformer.wte.weight.device
    ends = (prompt(gpt.config, length, device) for length in (size, size - tokens - 2))
    rebuilding, filling = (gpt.stream(end, tokens + 2, temperature=0, window="halves") for end in ends)
    next(rebuilding), next(filling)  # read the prompt
    started = time.perf_counter()
    next(rebuilding).tolist()
    rebuild = time.perf_counter() - started
    cached = []
    for _ in range(tokens):  # behind a half, and near the whole block, in turns
        for stream in (rebuilding, filling):
            started = time.perf_counter()
            next(stream).tolist()
            cached.append(time.perf_counter() - started)
    return (rebuild + (size // 2 - 1) * statistics.fmean(cached)) / (size // 2)


class Clock:
    """A `transformers` streamer that times every token but the first, and lets the others have a turn after each."""

    def __init__(self, turn: Callable[[], None]) -> None:
        self._turn = turn
        self._started: float | None = None
        self.seconds: list[float] = []

    def put(self, tokens: Tensor) -> None:
        """The prompt (1, T) comes first, then each new token (1,)."""
        if tokens.dim() == 1:
            if self._started is not None:
                self.seconds.append(time.perf_counter() - self._started)
                self._turn()
            self._started = time.perf_counter()

    def end(self) -> None:
        """Part of a streamer; nothing is left to do."""


def with_activation(gpt: GPT, spec: str) -> GPT:
    """The same model, sharing its weights, with another activation in place of GELU."""
    other = copy.deepcopy(gpt, memo={id(parameter): parameter for parameter in gpt.parameters()})
    activations.swap(other, torch.nn.GELU, spec)
    return other


def transformers_model(gpt: GPT, dtype: torch.dtype) -> Any:
    """The same weights in `transformers`, or None where it is not installed."""
    if not find_spec("transformers"):
        return None
    from transformers import GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        gpt.save_pretrained(folder)
        return GPT2LMHeadModel.from_pretrained(folder, dtype=dtype).eval().to(gpt.transformer.wte.weight.device)


def reading_bandwidth(matvec: Matvec, device: torch.device, dtype: torch.dtype) -> float:
    """Bytes a second at which a matrix-vector product reads a matrix that no cache holds."""
    matrix, x = torch.ones(1 << 16, 1 << 11, device=device, dtype=dtype), torch.ones(1 << 11, device=device, dtype=dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(12):
            started = time.perf_counter()
            float(matvec(matrix, x)[0])  # waits for the device
            seconds.append(time.perf_counter() - started)
    return matrix.nbytes / statistics.median(seconds[2:])


def prompt(config: GPTConfig, length: int, device: torch.device) -> Tensor:
    """Random tokens (1, length)."""
    return torch.randint(0, config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0)).to(device)


def show(rows: list[Row]) -> None:
    """The table."""
    heads = f"{'dtype':9} {'contender':18} {'tokens/s':>8} {'/gelu':>6} {'/recomputed':>11} {'/transformers':>13}"
    print(f"{heads} {'of ceiling':>10}   ms a token at")
    for row in rows:
        gelu, theirs = ("-" if row[key] is None else f"{row[key]:.2f}" for key in ("against_gelu", "against_transformers"))
        at = " ".join(f"{c}:{ms:.1f}" for c, ms in zip(row["contexts"], row["milliseconds_at_contexts"], strict=True))
        print(
            f"{row['dtype']:9} {row['contender'].partition(',')[0]:18} {row['tokens_per_second']:8.1f} {gelu:>6} "
            f"{row['against_recomputed']:11.2f} {theirs:>13} {row['share_of_ceiling']:10.2f}   {at}"
        )
    for dtype, row in {row["dtype"]: row for row in rows}.items():
        speed, most, past = (
            row[f"{name}_per_second"] for name in ("ceiling_bytes", "ceiling_tokens", "past_block_size_tokens")
        )
        print(
            f"{dtype}: weights are read at {speed / 1e9:.1f} GB/s, {most:.1f} tokens/s; past block_size {past:.2f} tokens/s, "
            f"{row['halves_tokens_per_second']:.2f} with halves"
        )


if __name__ == "__main__":
    sys.exit(main())
