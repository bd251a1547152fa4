"""Random command lines: exit code 0, with every field where it belongs, or 2 and one line; never a traceback.

The search is hypothesis's, in processes of their own whose training call is a stub; some of its findings are run for real.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import train
from config.schema import Config, field_types
from faults.process import PRESET, Child, one_line, trainer
from faults.runs import ROOT, arguments, small_config, write_shards
from faults.tally import Tally, expect
from runtime.run import Run

EXAMPLES, REAL = (1000, 40), (25, 0)
VALUES = (
    "0", "1", "2", "-1", "3.5", "1e999", "-1e-320", "nan", "inf", "99999999999999999999999", "9" * 30, "1_000", "٣", "True",
    "true", "", " ", "\0", "\n", "é", "\udcff", "🙂" * 50, "gelu", "hermite:degree=3", "hermite:degree=99999", "tpgu:degree=",
    ":", "a=b", "gpt2", "bytes", "unit", "auto", "never", "must", "stop", "skip", "cpu", "cuda:7", "mps", "float16", "float64",
    "--seed", "../..", "/dev/null", "/proc/self/mem", "/", "None", "[]", "{}", "$(touch victim)", "'; import os", "x" * 5000,
)  # fmt: skip


def run(tally: Tally, folder: Path) -> None:
    """train.py by search and for real; then the other programs' own bad inputs."""
    data_dir = folder / "data"
    data_dir.mkdir()
    config = small_config(write_shards(data_dir), folder / "run")
    wanted = tally.plan(*EXAMPLES)
    report = folder / "report.json"
    child = trainer(config, folder / "search.log", Search(wanted, str(report), str(folder / "found")))
    with tally.judge("search", 0):
        expect(child.finish(1800) == 0, f"the search ended badly: {child.said[-1500:]}")
        found = json.loads(report.read_text())
        tally.inject(found["examples"])
        tally.notes.append(
            f"search: {found['examples']} command lines, {found['refused']} refused, {found['accepted']} accepted"
        )
        for failure in found["failures"]:
            with tally.judge("a mutation", 1):
                expect(False, failure)
    for_real(tally, folder, config)
    others(tally, folder, config)


@dataclasses.dataclass(frozen=True)
class Search:
    """In the child: replaces train.main by the search for a command line that it answers badly."""

    examples: int
    report: str
    out: str

    def __call__(self) -> None:
        whole = train.main

        def main(argv: list[str] | None = None) -> int:
            return self.search(whole, argv or [])

        train.main = main

    def search(self, main: Callable[[list[str]], int], argv: list[str]) -> int:
        """Try mutations of argv and write what came of them. Exit code 0: it came to its end."""
        from hypothesis import HealthCheck, Phase, given, settings

        counts = {"examples": 0, "refused": 0, "accepted": 0}
        failures: list[str] = []
        configs: list[Config] = []

        def stub(run: Run) -> int:
            configs.append(run.config)
            return 0

        train.train = stub

        @settings(
            max_examples=self.examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(mutations())
        def attempt(changes: list[tuple[str, str]]) -> None:
            configs.clear()
            mutated = [*argv, *(word for name, value in changes for word in (f"--{name}", value))]
            mutated = merged(mutated, self.out)
            told = io.StringIO()
            with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
                code, trouble = outcome(main, mutated)
            counts["examples"] += 1
            problem = trouble or judged(code, told.getvalue(), configs, mutated)
            counts["refused" if code == 2 else "accepted"] += 1
            if problem:
                failures.append(f"{changes!r}: {problem}"[:800])

        attempt()
        Path(self.report).write_text(json.dumps(counts | {"failures": failures[:20]}))
        return 0


def outcome(main: Callable[[list[str]], int], argv: list[str]) -> tuple[int, str]:
    """(exit code, "" or what escaped)."""
    try:
        return main(argv), ""
    except SystemExit as error:
        return (error.code if isinstance(error.code, int) else 1), ""
    except Exception as error:  # whatever it is, it is what the search is looking for
        return 1, f"{type(error).__name__} escaped: {error}"


def mutations() -> Any:
    """One to four fields, known and unknown, with values of every kind."""
    from hypothesis import strategies as st

    names = st.one_of(st.sampled_from(sorted(field_types())), st.sampled_from(["n_layers", "lr", "", "=", "help me"]))
    numbers = st.one_of(st.integers(-5, 50), st.integers(), st.floats()).map(str)
    choices = [value for kind in field_types().values() for value in getattr(kind, "__args__", ())]
    values = st.one_of(st.sampled_from(VALUES), numbers, st.sampled_from(sorted(set(choices))), st.text(max_size=20))
    return st.lists(st.tuples(names, values), min_size=1, max_size=4)


def merged(argv: list[str], out: str) -> list[str]:
    """The command line without the fields that stand twice: the later ones count. It writes below `out` alone."""
    pairs = dict(zip(argv[1::2], argv[2::2], strict=True))
    if not pairs["--out_dir"].startswith("/proc") and pairs["--out_dir"] != "/dev/null":
        pairs["--out_dir"] = out
    if pairs.get("--init_from") and not os.path.isabs(pairs["--init_from"]):
        pairs.pop("--init_from")  # a name on the hub: nothing is downloaded here
    pairs.pop("--wandb", None)
    return [argv[0], *(word for pair in pairs.items() for word in pair)]


def judged(code: int, told: str, configs: list[Config], argv: list[str]) -> str:
    """What is wrong with an answer; "" where nothing is."""
    lines = [line for line in told.splitlines() if line.startswith("train.py: ")]
    if code == 2:
        return "" if len(lines) == 1 and len(told.strip().splitlines()) <= 3 else f"not one line: {told[:500]!r}"
    if code != 0:
        return f"exit code {code}: {told[-500:]!r}"
    if not configs:
        return "exit code 0 without a run"
    kinds = field_types()
    for name, text in zip(argv[1::2], argv[2::2], strict=True):
        value = getattr(configs[0], name[2:])
        if not arrived(kinds[name[2:]], text, value) and name not in ("--tokenizer", "--vocab_size", "--activation"):
            return f"{name} {text!r} became {value!r}"
    return ""


def arrived(kind: Any, text: str, value: Any) -> bool:
    """Whether a field's text is what the configuration holds."""
    if kind is bool:
        return str(value) == text
    if kind in (int, float):
        given = kind(text)
        return bool(given == value or (math.isnan(given) and math.isnan(value)))
    return bool(value == text)


def for_real(tally: Tally, folder: Path, config: Config) -> None:
    """The same kind of command lines as processes that users start."""
    generator = random.Random(0)
    names = sorted(set(field_types()) - {"wandb", "init_from", "out_dir", "max_steps", "device"})
    usable = [value for value in VALUES if "\0" not in value and "\udcff" not in value]  # what a shell can pass on
    for number in range(tally.plan(*REAL)):
        if not tally.has_time:
            return
        name, value = generator.choice(names), generator.choice(usable)
        with tally.fault(f"python train.py ... --{name} {value[:40]!r}"):
            argv = merged([PRESET, *arguments(config), f"--{name}", value], str(folder / f"real-{number}"))
            done = subprocess.run(
                [sys.executable, str(ROOT / "train.py"), *argv],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=300,
                check=False,
            )
            expect("Traceback" not in done.stderr, f"a traceback: {done.stderr[-600:]}")
            expect(done.returncode in (0, 2), f"exit code {done.returncode}: {done.stderr[-500:]}")
            lines = done.stderr.strip().splitlines()
            expect(done.returncode == 0 or lines[-1].startswith("train.py: "), f"no line of ours: {lines[-1:]}")
            expect(done.returncode == 0 or len(lines) <= 3, f"{len(lines)} lines: {done.stderr[-500:]}")


def others(tally: Tally, folder: Path, config: Config) -> None:
    """Binary prompts, huge numbers, missing and read-only folders, names in other scripts, for the other programs."""
    child = trainer(dataclasses.replace(config, max_steps=2, out_dir=str(folder / "dünn 模型")), folder / "unicode.log")
    expect(child.finish() == 0, f"a run in a folder of another script: {child.said[-500:]}")
    (folder / "binary").write_bytes(bytes(range(256)) * 20)
    (folder / "texts.jsonl").write_text("".join(f'{{"text": "tëxt {i} \\ud83d"}}\n' for i in range(30)))
    (folder / "a file").write_text("x")
    cases = [(program, *case) for program, found in cases_of(folder).items() for case in found]
    for number, (program, argv, code, *needed) in enumerate(cases if tally.full else cases[::9]):
        tally.plan(1, 1)
        with tally.fault(f"{program} {' '.join(argv)[:100]!r}"):
            child = Child(program, argv, folder / f"other-{number}.log", environment={"HF_HUB_OFFLINE": "1"})
            if code:
                one_line(child, code, *needed)
            else:
                expect(child.finish() == 0 and "Traceback" not in child.said, child.said[-600:])


def cases_of(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """program -> (arguments, exit code, what the line must say)."""
    model, texts = str(folder / "dünn 模型"), str(folder / "texts.jsonl")
    short = ["--max_new_tokens", "5", "--device", "cpu"]
    tiny = [PRESET, "--data_dir", str(folder / "data"), "--tokenizer", "bytes"]
    prepare = ["text", "--tokenizer", "bytes", "--input"]
    return {
        "sample": [
            ([model, *short, "--prompt_file", str(folder / "binary")], 0),
            ([model, *short, "--prompt", "日本語 🙂 \udcff"], 0),
            ([model, *short, "--prompt", ""], 0),
            ([model, *short, "--prompt_file", str(folder / "none")], 2, "is not a file"),
            ([model, *short, "--prompt_file", str(folder)], 2, "is not a file"),
            ([model, *short, "--temperature", "1e400"], 2, "temperature"),
            ([model, *short, "--temperature", "nan"], 2, "temperature"),
            ([model, *short, "--top_k", "9" * 5000], 2, "top_k"),
            ([model, *short, "--num_samples", "9999999"], 2, "num_samples"),
            ([model, *short, "--seed", "-1"], 2, "seed"),
            ([model, *short, "--checkpoint", "../../etc"], 2, "give best, last or one of the steps"),
            ([model, *short, "--checkpoint", "9" * 5000], 2, "give best, last or one of the steps"),
            ([model, *short, "--device", "cuda:99"], 2, "cuda:99"),
            ([model, *short, "--device", "toaster"], 2, "toaster"),
            ([str(folder / "none"), *short, "--prompt", "a"], 2, "none"),
            ([str(folder / "a file"), *short, "--prompt", "a"], 2, "a file"),
            ([str(folder), *short, "--prompt", "a"], 2, "neither a run nor a GPT-2 folder"),
            (["", *short, "--prompt", "a"], 2, ""),
            ([], 2, "RUN"),
        ],
        "compare": [
            ([*tiny, "--activations", "gelu", "no_such", "--seeds", "1"], 2, "no_such"),
            ([*tiny, "--activations", "gelu", "--seeds", "-3"], 2, "seeds"),
            ([*tiny, "--activations", "gelu", "--seeds", "9" * 5000], 2, "seeds"),
            ([*tiny, "--activations", "--seeds", "1"], 2, "activations"),
            ([*tiny, "--activations", "gelu", "--seeds", "1", "--n_layers", "3"], 2, "did you mean 'n_layer'"),
            ([*tiny, "--activations", "gelu", "--seeds", "1", "--out_dir", "/proc/x"], 2, "cannot be made"),
            ([*tiny, "--activations", "gelu", "--seeds", "1", "--lr", "nan"], 2, "lr"),
            ([*tiny, "--activations", "gelu", "--seeds", "1", "--vary", "n_layer"], 2, "has no values"),
            ([*tiny, "--activations", "gelu", "--seeds", "1", "--jobs", "0"], 2, "jobs"),
            (["report", str(folder / "none")], 2, "none"),
            (["report", str(folder)], 2, ""),
            (["eval", str(folder)], 2, "holds no checkpoint"),
            (["eval", model, "--data_dir", str(folder / "none")], 2, "none"),
            (["eval", model, "--checkpoint", "77"], 2, "give best, last or one of the steps"),
            (["shapes", str(folder / "none")], 2, "holds no checkpoint"),
            (["no such command"], 2, "neither a preset"),
        ],
        "data.prepare": [
            ([*prepare, texts, "--out", str(folder / "øut 数据")], 0),
            ([*prepare, str(folder / "none"), "--out", str(folder / "o1")], 2, "does not exist"),
            ([*prepare, str(folder / "binary"), "--out", str(folder / "o2")], 2, "is not UTF-8"),
            ([*prepare, texts, "--out", "/proc/x"], 2, "/proc/x"),
            ([*prepare, texts, "--out", str(folder / "a file")], 2, "a file"),
            ([*prepare, texts, "--out", str(folder / "o3"), "--val_fraction", "nan"], 2, "val_fraction"),
            ([*prepare, texts, "--out", str(folder / "o3"), "--val_fraction", "2"], 2, "val_fraction"),
            ([*prepare, texts, "--out", str(folder / "o3"), "--shard_tokens", "0"], 2, "shard_tokens"),
            ([*prepare, texts, "--out", str(folder / "o3"), "--shard_tokens", "9" * 5000], 2, "shard_tokens"),
            ([*prepare, texts, "--out", str(folder / "o3"), "--workers", "-1"], 2, "workers"),
            ([*prepare, texts, "--out", "x" * 5000], 2, "File name too long"),
            ([*prepare, texts, "--out", "a\0b"], 2, "null"),
            (["text", "--tokenizer", "klingon", "--input", texts, "--out", str(folder / "o4")], 2, "klingon"),
            (["verify", str(folder / "none")], 2, "is no folder"),
            (["verify", str(folder)], 2, "holds no"),
            (["frobnicate"], 2, "frobnicate"),
            ([], 2, ""),
        ],
    }  # fmt: skip
