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
from faults import programs
from faults.process import PRESET, trainer
from faults.runs import ROOT, arguments, small_config, write_shards
from faults.tally import Tally, expect
from runtime.run import Run

EXAMPLES, REAL = (1000, 40), (25, 0)
# These would reach the network, leave the folder, train for long, or end in what numbers.py and compile tests look at.
NOT_FOR_REAL = {"wandb", "init_from", "out_dir", "max_steps", "device", "compile", "dtype", "learning_rate"}
VALUES = (
    "0", "1", "2", "-1", "3.5", "1e999", "-1e-320", "nan", "inf", "99999999999999999999999", "9" * 30, "1_000", "٣", "True",
    "true", "", " ", "\0", "\n", "é", "\udcff", "🙂" * 50, "gelu", "hermite:degree=3", "hermite:degree=99999", "tpgu:degree=",
    ":", "a=b", "gpt2", "bytes", "unit", "auto", "never", "must", "stop", "skip", "cpu", "cuda:7", "mps", "float16", "float64",
    "--seed", "../..", "/dev/null", "/proc/self/mem", "/", "None", "[]", "{}", "$(touch victim)", "'; import os", "x" * 5000,
)  # fmt: skip

# Values that fit the small config, and each other but for resume=never and must: a run that is accepted has to have them.
GOOD = {
    "activation": ("gelu", "relu_squared", "hermite", "hermite:degree=5,per=channel", "fourier:degree=3", "tpgu", "xielu"),
    "n_layer": ("1", "3"), "n_head": ("1", "2", "4"), "n_embd": ("16", "32", "64"), "block_size": ("8", "16", "33"),
    "vocab_size": ("0", "257", "300"), "dropout": ("0", "0.1", "5e-1"), "preactivation_std": ("1", "1.0"),
    "tokenizer": ("bytes",), "global_batch_size": ("12", "24", "36"), "micro_batch_size": ("1", "2", "3", "6", "12"),
    "max_steps": ("0", "1", "99999"), "log_interval": ("1", "7"), "eval_interval": ("1", "50"), "eval_tokens": ("0", "64"),
    "checkpoint_interval": ("1", "9"), "keep_checkpoints": ("1", "3"), "learning_rate": ("0.01", "1e-2", "5"),
    "min_lr": ("0", "1e-5"), "warmup_steps": ("0", "5"), "lr_decay_steps": ("0", "5", "500"), "weight_decay": ("0", "0.3"),
    "beta1": ("0", "0.95"), "beta2": ("0.5", "0.999"), "grad_clip": ("0", "0.25"), "activation_lr_scale": ("0", "1", "10"),
    "seed": ("0", "7", "2147483647"), "device": ("cpu", "auto"), "telemetry_interval": ("0", "4"), "timeout_s": ("1", "30.5"),
    "init_from": ("",), "wandb_project": ("p", "--p", "模型"), "wandb_run_name": ("", "a b"),
}  # fmt: skip


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
    programs.answer(tally, folder, config)


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
    wild = st.lists(st.tuples(names, values), min_size=1, max_size=4)
    sound = st.lists(st.sampled_from(good()), min_size=1, max_size=8)
    return st.one_of(wild, sound, st.builds(lambda some, one: [*some, one], sound, st.tuples(names, values)))


def good() -> list[tuple[str, str]]:
    """Every field with every value that fits the small config."""
    found = [(name, value) for name, values in GOOD.items() for value in values]
    for name, kind in field_types().items():
        if name not in GOOD:
            found += [(name, str(value)) for value in ((True, False) if kind is bool else getattr(kind, "__args__", ()))]
    return found


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
    written = json.loads((Path(configs[0].out_dir) / "config.json").read_text())
    if written != dataclasses.asdict(configs[0]):
        return "config.json is not the run's configuration"
    return ignored(argv, written)


def ignored(argv: list[str], written: dict[str, Any]) -> str:
    """The first field of a command line that is not what config.json says; "" where there is none."""
    pairs = zip(argv[1::2], argv[2::2], strict=True)
    told = (f"{name} {text!r} became {written[name[2:]]!r}" for name, text in pairs if not arrived(name[2:], text, written))
    return next(told, "")


def arrived(name: str, text: str, written: dict[str, Any]) -> bool:
    """Whether a field's text is what config.json says; what the data tell stands there for `0` and nothing."""
    kind, value = field_types()[name], written[name]
    if (name, text) in (("vocab_size", "0"), ("tokenizer", "")):
        return value in (257, "bytes")
    if name == "activation":  # written out with its defaults: the family and all that was given are in it
        (family, given), (written_family, has) = (spec.partition(":")[::2] for spec in (text, value))
        return bool(family == written_family and set(filter(None, given.split(","))) <= set(has.split(",")))
    if kind is bool:
        return str(value) == text
    if kind in (int, float):
        given = kind(text)
        return bool(given == value or (math.isnan(given) and math.isnan(value)))
    return bool(value == text)


def for_real(tally: Tally, folder: Path, config: Config) -> None:
    """The same kind of command lines as processes that users start: every second one of values that fit."""
    generator = random.Random(0)
    names = sorted(set(field_types()) - NOT_FOR_REAL)
    usable = [value for value in VALUES if "\0" not in value and "\udcff" not in value]  # what a shell can pass on
    fitting = [(name, value) for name, value in good() if name not in NOT_FOR_REAL]
    for number in range(tally.plan(*REAL)):
        if not tally.has_time:
            return
        changes = generator.sample(fitting, 4) if number % 2 else [(generator.choice(names), generator.choice(usable))]
        with tally.fault(f"python train.py ... {str(changes)[:80]}"):
            given = [word for name, value in changes for word in (f"--{name}", value)]
            argv = merged([PRESET, *arguments(config), *given], str(folder / f"real-{number}"))
            command = [sys.executable, str(ROOT / "train.py"), *argv]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, check=False)
            expect("Traceback" not in done.stderr, f"a traceback: {done.stderr[-600:]}")
            expect(done.returncode in (0, 2), f"exit code {done.returncode}: {done.stderr[-500:]}")
            if done.returncode == 0:
                accepted = json.loads((folder / f"real-{number}" / "config.json").read_text())
                expect(not (told := ignored(argv, accepted)), told)
                continue
            lines = done.stderr.strip().splitlines()
            expect(lines[-1].startswith("train.py: "), f"no line of ours: {lines[-1:]}")
            expect(len(lines) <= 3, f"{len(lines)} lines: {done.stderr[-500:]}")
