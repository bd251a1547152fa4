"""Which activation gives the lower perplexity, by how much, at what cost: paired runs, intervals, a report.

python compare.py CONFIG.py --activations SPEC... --seeds N [--field value ...]
    trains every SPEC at N seeds, evaluates all on the same tokens, writes report.md, report.html and results.json
    --baseline SPEC          what the others are compared with; the first SPEC otherwise
    --vary FIELD=A,B ...     every combination with the values of further fields
    --lr RATE ...            each activation at its best of these learning rates, chosen on every other validation window
    --lr_seeds K             only K seeds run at all of them, the others at the best; 0: all seeds
    --out_dir DIR            runs and report; runs/compare_CONFIG otherwise. Finished runs there are skipped
    --reuse DIR ...          take over runs of this sweep that are finished there (a run's, a sweep's or a report's folder)
    --jobs N                 N runs at a time, each on its device or its share of the cores
    --launcher slurm         an array of jobs through submitit; --slurm KEY=VALUE ... are submitit's parameters
    --discard_checkpoints    delete each run's weights once it is measured
    under torchrun each run uses all processes
python compare.py report DIR... [--baseline SPEC] [--vary FIELD ...] [--lr] [--out_dir DIR]
    the report from finished runs, of compare.py or train.py
python compare.py eval RUN... [--data_dir DIR] [--checkpoint best|last|STEP]
    loss of checkpoints on any prepared validation set, zero-shot
python compare.py shapes RUN [--checkpoint best|last|STEP]
    a picture of the activations that a run learned
python compare.py depth --activations SPEC... [--depths 4 12 24 48] [--width 256] [--seeds N] [--out_dir DIR]
    how variance travels through deep networks at initialisation: depth.json and depth.png
"""

import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from activations import plot, registry
from comparison import depth, launch, measure, plots, report, results, runner, slurm
from comparison.document import Table, markdown
from comparison.options import Options, read_options
from comparison.record import part_of
from comparison.sweep import Job, Sweep, plan
from config.command_line import overrides
from data.lock import locked
from runtime import checkpoint, files
from runtime.dataset import open_dataset


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, 1 where runs failed, 2 and one line for bad input, 128 + signal where it was stopped."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    try:
        if argv[0] not in COMMANDS and not argv[0].endswith(".py"):
            raise ValueError(f"{argv[0]!r} is neither a preset, such as config/tiny.py, nor {', '.join(COMMANDS)}")
        if missing := [name for name in ("scipy", "matplotlib") if not find_spec(name)]:
            raise ValueError(f"{' and '.join(missing)} not installed; type: pip install -r requirements.txt")
        return COMMANDS.get(argv[0], compare)(argv)
    except ValueError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    except launch.SweepInterruptedError as stopped:
        print(f"compare.py: {stopped}: the runs are saved; the same command goes on from there", file=sys.stderr)
        return stopped.exit_code
    except OSError as error:
        told = f"{files.reason(error)}; once that is put right, the same command goes on from what is saved"
        print(f"compare.py: {told}", file=sys.stderr)
        return 1


def compare(argv: list[str]) -> int:
    """`CONFIG.py --activations ...`: train, measure, report."""
    options, rest = read_options(argv[1:], SWEEP_OPTIONS, more=True)
    sweep = plan_sweep(Path(argv[0]), options, rest, shlex.join(["python", "compare.py", *argv]))
    check_writable(sweep.out_dir)
    logs = sweep.out_dir / "logs"
    jobs = options.number("jobs", 1)
    launcher = choose_launcher(options, jobs, logs)
    if launch.join_torchrun() > 0:
        launch.follow(logs)
        launch.dismiss()
        return 0
    try:
        with locked(sweep.out_dir):  # two sweeps that rewrite one results.json would lose each other's records
            reused = results.gather([Path(folder) for folder in options.words("reuse")]).records
            summary, failures = runner.run(sweep, launcher, "discard_checkpoints" not in options, reused)
    finally:
        launch.dismiss()
    if summary is None:
        print(f"compare.py: no run finished; {logs} has what they said", file=sys.stderr)
        return 1
    print((sweep.out_dir / "report.md").read_text(encoding="utf-8").split("\n## ")[0])
    print(f"The report lies in {sweep.out_dir / 'report.html'}")
    return 1 if failures else 0


def plan_sweep(preset: Path, options: Options, rest: list[str], command: str) -> Sweep:
    """The sweep that a command line describes. Raises ValueError."""
    varied = {}
    for item in options.words("vary"):
        name, equals, values = item.partition("=")
        if not equals:
            raise ValueError(f"--vary {item!r} has no values; type --vary {name}=A,B")
        varied[name] = tuple(overrides([f"--{name}", value])[name] for value in values.split(","))
    return plan(
        preset,
        options.words("activations"),
        options.number("seeds", 1),
        overrides(rest),
        Path(options.word("out_dir")) if "out_dir" in options else None,
        options.word("baseline"),
        varied,
        options.rates("lr"),
        options.number("lr_seeds", 0),
        command,
    )


def with_data(launcher: launch.Launcher) -> launch.Launcher:
    """A launcher that first raises ValueError where data of the jobs are not there: a job each would say the same."""

    def run_jobs(jobs: Sequence[Job], done: launch.Done, tick: launch.Tick) -> None:
        for config in {job.config.data_dir: job.config for job in jobs}.values():
            open_dataset(config, check_tokens=False)
        launcher(jobs, done, tick)

    return run_jobs


def choose_launcher(options: Options, jobs: int, logs: Path) -> launch.Launcher:
    """How runs are started. Raises ValueError for ways that exclude each other."""
    name = options.word("launcher") or "local"
    if name not in ("local", "slurm"):
        raise ValueError(f"--launcher {name!r} is not local or slurm")
    if jobs < 1:
        raise ValueError(f"--jobs {jobs} is no number of jobs; give at least 1")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if jobs > 1 or name == "slurm":
            raise ValueError("under torchrun each run uses all processes; leave out --jobs and --launcher")
        return with_data(launch.all_processes(logs))
    if name == "slurm":
        return slurm.array(jobs, logs, slurm.parameters(options.words("slurm")))
    return with_data(launch.side_by_side(jobs, logs))


def write_report(argv: list[str]) -> int:
    """`report DIR...`"""
    options, folders = read_options(argv[1:], {"baseline": 1, "vary": None, "lr": 0, "out_dir": 1})
    if not folders:
        raise ValueError("report of what? type compare.py report DIR...")
    found = results.gather([Path(folder) for folder in folders])
    out_dir = Path(options.word("out_dir") or (folders[0] if len(folders) == 1 else "runs/report"))
    check_writable(out_dir)
    varied = tuple(dict.fromkeys([*found.settings.varied, *options.words("vary")]))
    rates = (
        tuple(sorted({record.config["learning_rate"] for record in found.records})) if "lr" in options else found.settings.rates
    )
    settings = replace(found.settings, baseline=options.word("baseline") or found.settings.baseline, varied=varied, rates=rates)
    with locked(out_dir):  # a sweep that is running there rewrites results.json too
        report.write(out_dir, replace(found, settings=settings))
    print(f"The report lies in {out_dir / 'report.html'}")
    return 0


def evaluate(argv: list[str]) -> int:
    """`eval RUN...`: the checkpoints' loss on a validation set."""
    options, runs = read_options(argv[1:], {"data_dir": 1, "checkpoint": 1})
    if not runs:
        raise ValueError("eval of what? type compare.py eval RUN... [--data_dir DIR]")
    rows = []
    for run in runs:
        model, config = checkpoint.load_model(run, options.word("checkpoint") or "best")
        documents = measure.by_document(model, config, Path(options.word("data_dir") or config.data_dir))
        loss, bits = part_of(documents)
        numbers = (f"{sum(documents['targets']):,.0f}", f"{loss:.4f}", f"{math.exp(loss):.3f}", f"{bits:.4f}" if bits else "-")
        rows.append((run, config.activation, *numbers))
    print(markdown([Table(("run", "activation", "targets", "loss", "perplexity", "bits per byte"), tuple(rows))]), end="")
    return 0


def shapes(argv: list[str]) -> int:
    """`shapes RUN`: draw what the activations have become."""
    options, runs = read_options(argv[1:], {"checkpoint": 1})
    if len(runs) != 1:
        raise ValueError("shapes of which run? type compare.py shapes RUN")
    model, config = checkpoint.load_model(runs[0], options.word("checkpoint") or "best")
    has_data = Path(config.data_dir).is_dir()
    path = Path(runs[0]) / "shapes.png"
    files.write_bytes(path, plot.shapes(model, measure.sample_inputs(model, config) if has_data else None))
    shaded = f"its inputs in {config.data_dir}" if has_data else f"the law its init assumed ({config.data_dir} is not there)"
    print(f"{path}: one panel a layer, shaded by {shaded}")
    return 0


def travel(argv: list[str]) -> int:
    """`depth --activations SPEC...`: second moments through the layers of untrained networks."""
    known: dict[str, int | None] = {"activations": None, "depths": None, "width": 1, "seeds": 1, "out_dir": 1}
    options, rest = read_options(argv[1:], known)
    specs = [registry.check(spec) for spec in options.words("activations")]
    if rest or not specs:
        raise ValueError(
            f"depth takes no {rest[0]!r}" if rest else "depth of what? type compare.py depth --activations SPEC..."
        )
    depths = options.words("depths") or ["4", "12", "24", "48"]
    if wrong := [word for word in depths if not word.isdecimal() or not 1 <= len(word) <= 3 or not int(word)]:
        raise ValueError(f"--depths {wrong[0]!r} is not a number of layers from 1 to 999")
    width, seeds = options.number("width", 256), options.number("seeds", 3)
    if width % 64 or not 64 <= width <= 4096 or not 1 <= seeds <= 100:
        raise ValueError(f"--width {width} --seeds {seeds}: allowed are multiples of 64 up to 4096, and 1 to 100 seeds")
    out_dir = Path(options.word("out_dir") or "runs/depth")
    check_writable(out_dir)
    rows = depth.measure(specs, [int(word) for word in depths], width, seeds)
    files.write_json(out_dir / "depth.json", {"command": shlex.join(["python", "compare.py", *argv]), "rows": rows})
    files.write_bytes(out_dir / "depth.png", plots.depth(rows))
    print(markdown([depth.table(rows)]), end="")
    print(f"The picture lies in {out_dir / 'depth.png'}")
    return 0


def check_writable(out_dir: Path) -> None:
    """Make the folder. Raises ValueError where that cannot be, before hours of training show it."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out_dir {str(out_dir)!r} cannot be made ({error.strerror}); give another --out_dir") from None
    if not os.access(out_dir, os.W_OK):
        raise ValueError(f"out_dir {str(out_dir)!r} cannot be written to; give another --out_dir")


COMMANDS: Mapping[str, Callable[[list[str]], int]] = {
    "report": write_report,
    "eval": evaluate,
    "shapes": shapes,
    "depth": travel,
}
# Name -> how many words follow it: None for any number of them, at least one.
SWEEP_OPTIONS = {
    "activations": None, "seeds": 1, "baseline": 1, "vary": None, "lr": None, "lr_seeds": 1, "out_dir": 1, "jobs": 1,
    "launcher": 1, "slurm": None, "discard_checkpoints": 0, "reuse": None,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
