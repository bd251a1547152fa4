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

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import train
from config.schema import Config, field_types
from runtime.run import Run
from tests.faults.forms import some
from tests.processes import Child, ends, one_line, trained
from tests.runs import PRESET, ROOT, arguments, in_processes

pytestmark = pytest.mark.fault
# These would reach the network, leave the folder, write nothing, train for long, or end in what other tests look at.
NOT_FOR_REAL = {"wandb", "eval_only", "init_from", "out_dir", "max_steps", "device", "compile", "dtype", "learning_rate"}
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
    "layer_norm_epsilon": ("1e-5", "1e-06"), "init_from": ("",),
    "compile_cache": ("auto", ""), "profile_steps": ("0", "1"),
    "mup_base_width": ("0", "16"), "mup_base_heads": ("0",), "lr_decay_fraction": ("0.2",), "checkpoint_steps": ("", "1,3"),
    "branch_from": ("",),
    "wandb_project": ("p", "--p", "模型"), "wandb_group": ("", "g"), "tensorboard": ("False",), "wandb_run_name": ("", "a b"),
}  # fmt: skip


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("examples", some([(40,), (1000,)], slice(1)))
def test_search(base: Config, folder: Path, examples: int, record_property: Callable[[str, object], None]) -> None:
    """No command line is answered badly; the search runs in a process of its own."""
    report = folder / "report.json"
    in_processes(search, (examples, [PRESET, *arguments(base)], str(report), str(folder / "found")), 1)
    found = json.loads(report.read_text())
    record_property("faults", found["refused"] + found["accepted"])
    record_property("note", f"search: {found['refused']} command lines refused, {found['accepted']} accepted")
    assert not found["failures"]
    assert found["refused"]
    assert found["accepted"]


def search(_: int, examples: int, argv: list[str], report: str, out: str) -> None:
    """Give train.py mutations of argv, its training call a stub, and write what came of them."""
    counts = {"refused": 0, "accepted": 0}
    failures: list[str] = []
    configs: list[Config] = []

    def stub(run: Run) -> int:
        configs.append(run.config)
        return 0

    train.train = train.evaluate_only = stub

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(mutations())
    def attempt(changes: list[tuple[str, str]]) -> None:
        configs.clear()
        mutated = merged([*argv, *(word for name, value in changes for word in (f"--{name}", value))], out)
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            code, trouble = outcome(mutated)
        problem = trouble or judged(code, told.getvalue(), configs, mutated)
        counts["refused" if code == 2 else "accepted"] += 1
        if problem:
            failures.append(f"{changes!r}: {problem}"[:800])

    attempt()
    Path(report).write_text(json.dumps(counts | {"failures": failures[:20]}))


def outcome(argv: list[str]) -> tuple[int, str]:
    """(exit code, "" or what escaped)."""
    try:
        return train.main(argv), ""
    except SystemExit as error:
        return (error.code if isinstance(error.code, int) else 1), ""
    except Exception as error:  # whatever it is, it is what the search is looking for
        return 1, f"{type(error).__name__} escaped: {error}"


def mutations() -> Any:
    """One to four fields, known and unknown, with values of every kind."""
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


PLAN = tuple(f"{name:8}" for name in ("model", "data", "work", "device", "run"))  # no other line has such a column


def beside_plan(told: str) -> list[str]:
    """The lines of stderr but for those in which train.py says what it will do: what is wrong with tokens shows after them."""
    return [line for line in told.strip().splitlines() if not line.startswith(PLAN)]


def judged(code: int, told: str, configs: list[Config], argv: list[str]) -> str:
    """What is wrong with an answer; "" where nothing is."""
    lines = [line for line in told.splitlines() if line.startswith("train.py: ")]
    if code == 2:
        return "" if len(lines) == 1 and len(beside_plan(told)) <= 3 else f"not one line: {told[:500]!r}"
    if code != 0:
        return f"exit code {code}: {told[-500:]!r}"
    if not configs:
        return "exit code 0 without a run"
    written = dataclasses.asdict(configs[0])
    if not configs[0].eval_only and json.loads((Path(configs[0].out_dir) / "config.json").read_text()) != written:
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


def real_cases() -> list[tuple[int, list[tuple[str, str]]]]:
    """What test_for_real tries: every second one of values that fit."""
    generator = random.Random(0)
    names = sorted(set(field_types()) - NOT_FOR_REAL)
    usable = [value for value in VALUES if "\0" not in value and "\udcff" not in value]  # what a shell can pass on
    fitting = [(name, value) for name, value in good() if name not in NOT_FOR_REAL]
    return [
        (n, generator.sample(fitting, 4) if n % 2 else [(generator.choice(names), generator.choice(usable))]) for n in range(25)
    ]


@pytest.mark.long
@pytest.mark.parametrize(("number", "changes"), real_cases())
def test_for_real(base: Config, tmp_path: Path, number: int, changes: list[tuple[str, str]]) -> None:
    """The same kind of command lines as processes that users start."""
    given = [word for name, value in changes for word in (f"--{name}", value)]
    argv = merged([PRESET, *arguments(base), *given], str(tmp_path / "real"))
    command = [sys.executable, str(ROOT / "train.py"), *argv]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert "Traceback" not in done.stderr, done.stderr[-600:]
    assert done.returncode in (0, 2), done.stderr[-500:]
    if done.returncode == 0:
        told = ignored(argv, json.loads((tmp_path / "real" / "config.json").read_text()))
        assert not told
    else:
        lines = done.stderr.strip().splitlines()
        assert lines[-1].startswith("train.py: "), f"no line of ours: {lines[-1:]}"
        assert len(beside_plan(done.stderr)) <= 3, done.stderr[-500:]


LONG = "9" * 5000
SAMPLING = (("temperature", "1e400"), ("temperature", "nan"), ("top_k", LONG), ("num_samples", "9999999"), ("seed", "-1"))
SHARDING = (("val_fraction", "nan"), ("val_fraction", "2"), ("shard_tokens", "0"), ("shard_tokens", LONG), ("workers", "-1"))
SWEEPS = (
    ("no_such", "--seeds", "1", "no_such"), ("--seeds", "-3", "seeds"), ("--seeds", LONG, "seeds"),
    ("--seeds", "1", "--n_layers", "3", "did you mean --n_layer?"), ("--seeds", "1", "--out_dir", "/proc/x", "cannot be made"),
    ("--seeds", "1", "--lr", "nan", "lr"), ("--seeds", "1", "--vary", "n_layer", "has no values"),
    ("--seeds", "1", "--jobs", "0", "jobs"),
)  # fmt: skip


def cases_of(folder: Path, data: str) -> dict[str, list[tuple[Any, ...]]]:
    """program -> (arguments, exit code, what the line must say)."""
    model, texts = str(folder / "dünn 模型"), str(folder / "texts.jsonl")
    short = ["--max_new_tokens", "5", "--device", "cpu"]
    tiny = [PRESET, "--data_dir", data, "--tokenizer", "bytes"]
    prepare = ["text", "--tokenizer", "bytes", "--input"]
    return {
        "sample": [
            ([model, *short, "--prompt_file", str(folder / "binary")], 0),
            ([model, *short, "--prompt", "日本語 🙂 \udcff"], 0),
            ([model, *short, "--prompt", ""], 0),
            ([model, *short, "--prompt_file", str(folder / "none")], 2, "is not a file"),
            ([model, *short, "--prompt_file", str(folder)], 2, "is not a file"),
            *(([model, *short, f"--{name}", value], 2, name) for name, value in SAMPLING),
            ([model, *short, "--checkpoint", "../../etc"], 2, "give best, last or one of the steps"),
            ([model, *short, "--checkpoint", LONG], 2, "give best, last or one of the steps"),
            ([model, *short, "--device", "cuda:99"], 2, "cuda:99"),
            ([model, *short, "--device", "toaster"], 2, "toaster"),
            ([str(folder / "none"), *short, "--prompt", "a"], 2, "none"),
            ([str(folder / "a file"), *short, "--prompt", "a"], 2, "a file"),
            ([str(folder), *short, "--prompt", "a"], 2, "neither a run nor a GPT-2 folder"),
            (["", *short, "--prompt", "a"], 2, ""),
            ([], 2, "RUN"),
        ],
        "compare": [
            *(([*tiny, "--activations", "gelu", *words], 2, needed) for *words, needed in SWEEPS),
            ([*tiny, "--activations", "--seeds", "1"], 2, "activations"),
            (["report", str(folder / "none")], 2, "none"),
            (["report", str(folder / "a file")], 2, "a file"),
            (["report", str(folder)], 0),  # of the one run in it
            (["eval", str(folder)], 2, "neither a run nor a GPT-2 folder"),
            (["eval", model, "--data_dir", str(folder / "none")], 2, "none"),
            (["eval", model, "--checkpoint", "77"], 2, "give best, last or one of the steps"),
            (["shapes", str(folder / "none")], 2, "holds no checkpoint"),
            (["no such command"], 2, "invalid choice"),
        ],
        "data.prepare": [
            ([*prepare, texts, "--out", str(folder / "øut 数据")], 0),
            ([*prepare, str(folder / "none"), "--out", str(folder / "o1")], 2, "does not exist"),
            ([*prepare, str(folder / "binary"), "--out", str(folder / "o2")], 2, "is not UTF-8"),
            ([*prepare, texts, "--out", "/proc/x"], 2, "/proc/x"),
            ([*prepare, texts, "--out", str(folder / "a file")], 2, "a file"),
            *(([*prepare, texts, "--out", str(folder / "o3"), f"--{name}", value], 2, name) for name, value in SHARDING),
            ([*prepare, texts, "--out", "x" * 5000], 2, "File name too long"),
            ([*prepare, texts, "--out", "a\0b"], 2, "null"),
            (["text", "--tokenizer", "klingon", "--input", texts, "--out", str(folder / "o4")], 2, "klingon"),
            (["verify", str(folder / "none")], 2, "is no folder"),
            (["verify", str(folder)], 2, "holds no"),
            (["frobnicate"], 2, "frobnicate"),
            ([], 2, ""),
        ],
    }  # fmt: skip


PROGRAMS = [(program, place) for program, cases in cases_of(Path(), "").items() for place in range(len(cases))]


@pytest.fixture(scope="module")
def texts(base: Config, folder: Path) -> Path:
    """A folder with a run in a folder of another script, and inputs that are no text."""
    trained(dataclasses.replace(base, max_steps=2, out_dir=str(folder / "dünn 模型")))
    (folder / "binary").write_bytes(bytes(range(256)) * 20)
    (folder / "texts.jsonl").write_text("".join(f'{{"text": "tëxt {i} \\ud83d"}}\n' for i in range(30)))
    (folder / "a file").write_text("x")
    return folder


@pytest.mark.parametrize(("program", "place"), some(PROGRAMS, slice(0, None, 9)))
def test_the_other_programs(texts: Path, base: Config, program: str, place: int) -> None:
    """Binary prompts, huge numbers, missing folders, names in other scripts: exit code 0, or 2 and one line that says it."""
    argv, code, *needed = cases_of(texts, base.data_dir)[program][place]
    child = Child(program, argv, texts / "log", environment={"HF_HUB_OFFLINE": "1"})
    one_line(child, code, *needed) if code else ends(child)
