"""Write text with a trained model: `python sample.py RUN [--prompt TEXT] [--max_new_tokens N] ...`, streamed to the terminal.

RUN is a run's folder, a checkpoint's, a GPT-2 folder or a hub name. The prompt comes from --prompt, from --prompt_file,
or, where neither is given and input is piped in, from there.
"""

import argparse
import codecs
import math
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch

from data import tokenizer
from data.tokenizer import Tokenizer
from model import GPT
from pretrained.folder import locate
from pretrained.tokenizers import recognize
from runtime import checkpoint, memory
from runtime.hardware import pick_device, pick_dtype, why_not_compile


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 after one line on what is wrong."""
    try:
        options = _parser().parse_args(argv)
        _check(options)
        device = pick_device(options.device)
        gpt, words = load(options.run, options.checkpoint, options.tokenizer)
        dtype = pick_dtype(options.dtype, device)
        check_memory(gpt, options.num_samples, device, dtype)
        gpt.to(device, dtype)
        if options.compile:
            if reason := why_not_compile(device):
                raise ValueError(f"--compile cannot work here: {reason}; leave it out")
            gpt.compile_decoding()
        prompt = words.encode(_prompt(options))
        if prompt.size and int(prompt.max()) >= gpt.config.vocab_size:
            raise ValueError(
                f"tokenizer {words.name!r} has ids beyond the model's {gpt.config.vocab_size}; name the right --tokenizer"
            )
        # Without a prompt the text begins as a document does: after an end-of-text.
        context = torch.from_numpy(prompt.astype("int64")) if prompt.size else torch.tensor([words.eot])
        write(gpt, words, context.to(device), options)
    except ValueError as error:
        print(f"sample.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def load(run: str, which: str, tokenizer_name: str) -> tuple[GPT, Tokenizer]:
    """Model and tokenizer of a run's folder, a checkpoint's, a GPT-2 folder or a hub name. Raises ValueError."""
    folder = Path(run)
    if (folder / "checkpoints").is_dir() or (folder / "state.pt").is_file():
        gpt, config = checkpoint.load_model(folder, which)
        return gpt, tokenizer.load(tokenizer_name or config.tokenizer)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{run!r} is neither a run nor a GPT-2 folder; give one such as runs/tiny_hermite (make train makes it)"
        )
    folder = locate(run)
    gpt = GPT.from_pretrained(folder).eval()
    return gpt, tokenizer.load(tokenizer_name or recognize(folder, gpt.config.vocab_size))


def check_memory(gpt: GPT, num_samples: int, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError where the samples' keys and values do not fit."""
    needed, there = memory.cache_bytes(gpt.config, num_samples, dtype), memory.total_bytes(device)
    if needed > there:
        told = f"--num_samples {num_samples} takes {needed:,} bytes of keys and values, {device} has {there:,}"
        raise ValueError(f"{told}; type --num_samples {there // (2 * (needed // num_samples))}")


def write(gpt: GPT, words: Tokenizer, context: torch.Tensor, options: argparse.Namespace) -> None:
    """Stream one sample, or print several, computed as one batch, one after another."""
    generator = torch.Generator().manual_seed(options.seed)
    batch = context.expand(options.num_samples, -1)
    stream = gpt.stream(batch, options.max_new_tokens, options.temperature, options.top_k, options.top_p, generator)
    _print(words.decode(context.tolist()) if context.tolist() != [words.eot] else "")
    if options.num_samples == 1:
        # A character may be spread over several tokens: the decoder holds its first bytes back.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for new in stream:
            _print(decoder.decode(words.decode_bytes(new.tolist())))
        _print(decoder.decode(b"", final=True) + "\n")
        return
    tokens = torch.stack(list(stream), dim=1)  # (num_samples, max_new_tokens)
    for index, row in enumerate(tokens.tolist()):
        if index:
            _print("\n" + "-" * 80 + "\n" + words.decode(context.tolist()))
        _print(words.decode(row))
    _print("\n")


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ValueErrors: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists what is allowed")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sample.py", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, a checkpoint's, a GPT-2 folder or a hub name")
    add: Any = parser.add_argument
    add("--checkpoint", default="best", metavar="best|last|STEP", help="which checkpoint of the run (default best)")
    add("--prompt", default=None, metavar="TEXT", help="text to go on from")
    add("--prompt_file", default=None, metavar="FILE", help="file that holds the prompt")
    add("--max_new_tokens", type=int, default=500, metavar="N", help="tokens to write (default 500)")
    add("--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest token (default 0.8)")
    add("--top_k", type=int, default=200, metavar="K", help="keep the K likeliest tokens; 0 keeps all (default 200)")
    add("--top_p", type=float, default=1.0, metavar="P", help="keep the likeliest tokens up to this probability (default 1)")
    add("--num_samples", type=int, default=1, metavar="N", help="samples, computed as one batch (default 1)")
    add("--seed", type=int, default=1337, metavar="S", help="seed of the sampling (default 1337)")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="what weights and products are in")
    add("--compile", action="store_true", help="compile the matrix products of one sample on a CPU; pays from 1000 tokens")
    add("--tokenizer", default="", choices=["", "gpt2", "bytes"], help="needed only where the folder does not name it")
    return parser


def _check(options: argparse.Namespace) -> None:
    problems = []
    for name, least, most in (
        ("max_new_tokens", 0, 10**9),
        ("temperature", 0, 1e6),
        ("top_k", 0, 10**9),
        ("num_samples", 1, 10**6),
        ("seed", 0, 2**63 - 1),
    ):
        value = getattr(options, name)
        if not (math.isfinite(value) and least <= value <= most):
            problems.append(f"--{name} {value} is outside {least} to {most}")
    if not 0 < options.top_p <= 1:
        problems.append(f"--top_p {options.top_p} is outside (0, 1]")
    if options.prompt is not None and options.prompt_file is not None:
        problems.append("--prompt and --prompt_file are both given")
    if problems:
        raise ValueError("; ".join(problems))


def _prompt(options: argparse.Namespace) -> str:
    if options.prompt is not None:
        return str(options.prompt)
    if options.prompt_file is not None:
        path = Path(options.prompt_file)
        if not path.is_file():
            raise ValueError(f"--prompt_file {options.prompt_file!r} is not a file")
        return path.read_bytes().decode("utf-8", errors="replace")
    return "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read().decode("utf-8", errors="replace")


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
