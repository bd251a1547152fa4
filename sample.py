"""Write text with a trained model: `python sample.py RUN [--prompt TEXT] [--max_new_tokens N] ...`, streamed to the terminal.

RUN is a run's folder, a checkpoint's, a GPT-2 folder or a hub name. Prompts come from --prompt (several may be given), from
the lines of --prompt_file, or, where neither is given and text is piped in, from there. A sample ends at end-of-text.
"""

import argparse
import dataclasses
import io
import math
import os
import select
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import decoding
from config.command_line import Parser
from data.tokenizer import Tokenizer
from evaluation.subject import load as load_subject
from model import GPT
from runtime import memory
from runtime.hardware import move, pick_device, pick_dtype, why_not_compile
from runtime.terminal import close_stdout

NANOGPT = ("--out_dir", "--init_from", "--start")
SILENCE_S = 1.0  # how long a pipe may say nothing before it is taken for no prompt
SEPARATOR = "\n" + "-" * 80 + "\n"


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 after one line on what is wrong. A reader that closes the pipe early has had enough: 0."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal of cp1252 or ASCII cannot show every character
    try:
        _run(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        print(f"sample.py: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        close_stdout()
    except OSError as error:
        print(f"sample.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _run(argv: list[str]) -> None:
    _refuse_nanogpt(argv)
    options = _parser().parse_args(argv)
    _check(options)
    device = pick_device(options.device)
    gpt, words = load(options.run, options.checkpoint, options.tokenizer)
    dtype = pick_dtype(options.dtype, device)
    check_memory(gpt, options.num_samples, device, dtype)
    move(gpt, device, dtype)
    if options.compile:
        if reason := why_not_compile(device):
            raise ValueError(f"--compile cannot work here: {reason}; leave it out")
        decoding.compile_products(gpt)
    prompts = _prompts(options)
    contexts = [encode(gpt, words, prompt) for prompt in prompts]
    for number, (prompt, context) in enumerate(zip(prompts, contexts, strict=True)):
        if number:
            _print(SEPARATOR)
        write(gpt, words, prompt, context.to(device), options)


def load(run: str, which: str, tokenizer_name: str) -> tuple[GPT, Tokenizer]:
    """Model and tokenizer of what `evaluation.subject.load` takes; ids that the tokenizer lacks are never sampled."""
    subject = load_subject(run, which, tokenizer_name)
    gpt, words = subject.model, subject.words(tokenizer_name)
    gpt.config = dataclasses.replace(gpt.config, vocab_size=words.vocab_size)
    return gpt, words


def encode(gpt: GPT, words: Tokenizer, prompt: str) -> torch.Tensor:
    """Ids of a prompt, int64 (T,). An empty one begins as a document does: after an end-of-text."""
    ids = words.encode_prompt(prompt)
    if ids.size > gpt.config.block_size:
        notice = f"a prompt has {ids.size} tokens; the model sees the last {gpt.config.block_size}"
        print(f"sample.py: {notice}", file=sys.stderr)
    return torch.from_numpy(ids.astype("int64")) if ids.size else torch.tensor([words.eot])


def check_memory(gpt: GPT, num_samples: int, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError where the samples' keys and values do not fit."""
    needed, there = memory.cache_bytes(gpt.config, num_samples, dtype), memory.total_bytes(device)
    if needed > there:
        problem = f"--num_samples {num_samples} takes {needed:,} bytes of keys and values, {device} has {there:,}"
        raise ValueError(f"{problem}; type --num_samples {there // (2 * (needed // num_samples))}")


def write(gpt: GPT, words: Tokenizer, prompt: str, context: torch.Tensor, options: argparse.Namespace) -> None:
    """Stream one sample, or print several, computed as one batch, one after another."""
    generator = torch.Generator().manual_seed(options.seed)
    eos = None if options.ignore_eos else words.eot
    batch = context.expand(options.num_samples, -1)
    asked = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "window")}
    stream = gpt.stream(batch, options.max_new_tokens, **asked, generator=generator, eos=eos)
    samples = [Sample(words, context.tolist(), options.stop, options.ignore_eos) for _ in range(options.num_samples)]
    alone = len(samples) == 1
    shown = [prompt] * len(samples)
    if alone:
        _print(prompt)
    for new in stream:
        for index, (sample, token) in enumerate(zip(samples, new.tolist(), strict=True)):
            text = sample.push(token)
            if alone:
                _print(text)
            shown[index] += text
        if all(sample.ended for sample in samples):
            break
    rests = [sample.finish() for sample in samples]
    if alone:
        _print(rests[0] + "\n")
    else:
        _print(SEPARATOR.join(text + rest for text, rest in zip(shown, rests, strict=True)) + "\n")


class Sample:
    """The text of one sample as it comes: to end-of-text, which it shows, or up to a stop text, which it does not.

    What may be the beginning of a stop text is held back until it is known not to be.
    """

    def __init__(self, words: Tokenizer, before: Sequence[int], stops: Sequence[str], ignore_eos: bool) -> None:
        self.words, self.stops, self.ignore_eos, self.ended = words, stops, ignore_eos, False
        self._streamer, self._held = words.streamer(before), ""

    def push(self, token: int) -> str:
        """The text that can be shown now that this token has come."""
        if self.ended:
            return ""
        if token == self.words.eot:
            text = self._show(self._streamer([]) + self.words.eot_text)
            if self.ignore_eos or self.ended:
                return text
            return text + self._end()
        return self._show(self._streamer([token]))

    def finish(self) -> str:
        """What is left."""
        return "" if self.ended else self._show(self._streamer([])) + self._end()

    def _show(self, text: str) -> str:
        held = self._held + text
        found = [held.index(stop) for stop in self.stops if stop in held]
        if found:
            self._held, self.ended = "", True
            return held[: min(found)]
        begun = (n for stop in self.stops for n in range(len(stop) - 1, 0, -1) if held.endswith(stop[:n]))
        keep = len(held) - max(begun, default=0)
        self._held = held[keep:]
        return held[:keep]

    def _end(self) -> str:
        held, self._held, self.ended = self._held, "", True
        return held


def _refuse_nanogpt(argv: Sequence[str]) -> None:
    """ValueError with our spelling for nanoGPT's: --out_dir=RUN --start=TEXT."""
    given = dict(word.partition("=")[::2] for word in argv if word.partition("=")[0] in NANOGPT)
    if not given:
        return
    model = given.get("--out_dir") or {"gpt2": "openai-community/gpt2"}.get(given.get("--init_from", ""), "RUN")
    start = given.get("--start", "")
    prompt = f" --prompt_file {start[5:]}" if start.startswith("FILE:") else f" --prompt {shlex.quote(start)}" if start else ""
    raise ValueError(f"{', '.join(given)} is nanoGPT's spelling; type: python sample.py {model}{prompt}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="sample.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's folder, a checkpoint's, a GPT-2 folder or a hub name")
    add: Any = parser.add_argument
    add("--checkpoint", default="best", metavar="best|last|STEP", help="which checkpoint of the run (default best)")
    add("--prompt", action="append", metavar="TEXT", help="text to go on from; may be given several times")
    add("--prompt_file", default=None, metavar="FILE", help="file with a prompt on each line")
    add("--stop", action="append", default=[], metavar="TEXT", help="end a sample before this text; may be given several times")
    add("--ignore_eos", action="store_true", help="go on past end-of-text")
    window = "past block_size: sliding is exact, halves keeps the last half when the context is full, and is many times as fast"
    add("--window", choices=["sliding", "halves"], default="sliding", help=window)
    add("--max_new_tokens", type=int, default=500, metavar="N", help="tokens to write (default 500)")
    add("--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest token (default 0.8)")
    add("--top_k", type=int, default=200, metavar="K", help="keep the K likeliest tokens; 0 keeps all (default 200)")
    add("--top_p", type=float, default=1.0, metavar="P", help="keep the likeliest tokens up to this probability (default 1)")
    add("--num_samples", type=int, default=1, metavar="N", help="samples, computed as one batch (default 1)")
    add("--seed", type=int, default=1337, metavar="S", help="seed of the sampling (default 1337)")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="what weights and products are in")
    add("--compile", action="store_true", help="compile the matrix products of one sample on a CPU; pays from 1000 tokens")
    add("--tokenizer", default="", metavar="NAME", help="gpt2, bytes or a tokenizer.json, where the folder does not name it")
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
    if "" in options.stop:
        problems.append("--stop is empty")
    if problems:
        raise ValueError("; ".join(problems))


def _prompts(options: argparse.Namespace) -> list[str]:
    if options.prompt is not None:
        # Bytes that the locale cannot read come as surrogates: they are the UTF-8 that was typed.
        return [os.fsencode(prompt).decode("utf-8", errors="replace") for prompt in options.prompt]
    if options.prompt_file is not None:
        path = Path(options.prompt_file)
        if not os.path.isfile(path):  # False too for a name too long
            raise ValueError(f"--prompt_file {options.prompt_file!r} is not a file")
        text = path.read_bytes().decode("utf-8", errors="replace")
        return [line for line in text.split("\n") if line.strip()] or [""]
    if sys.stdin is None or sys.stdin.isatty():
        return [""]
    if _is_silent(sys.stdin.buffer):
        notice = f"standard input said nothing for {SILENCE_S:g} s: no prompt; to give one, type --prompt TEXT"
        print(f"sample.py: {notice}", file=sys.stderr)
        return [""]
    return [sys.stdin.buffer.read().decode("utf-8", errors="replace")]


def _is_silent(file: Any) -> bool:
    """Whether standard input is open and has nothing to read: servers, ssh and cron leave such a pipe behind."""
    if sys.platform == "win32" or not isinstance(file, io.BufferedReader):
        return False
    return not select.select([file], [], [], SILENCE_S)[0]


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
