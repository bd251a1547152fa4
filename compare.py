"""Which activation gives the lower perplexity, by how much, at what cost: paired runs, intervals, a report.

python compare.py CONFIG.py --activations SPEC... --seeds N [--field value ...]
    trains every SPEC at N seeds, evaluates all on the same tokens, writes report.md, report.html and results.json;
    finished runs in its folder are skipped, so the same command goes on where it stopped
python compare.py report DIR...      the report from finished runs, of compare.py or train.py
python compare.py scaling DIR...     sweeps of several sizes and lengths: the difference against both, and extrapolated
python compare.py eval RUN...        loss of checkpoints on any prepared validation set, zero-shot
python compare.py shapes RUN         a picture of the activations that a run learned
python compare.py depth              how variance travels through deep networks at initialisation
python compare.py coordinates CONFIG.py   whether a learning rate will transfer over widths: muP's coordinate check

compare.py CONFIG.py --help, compare.py report --help and so on list the options of each.
"""

import argparse
import logging
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from activations import plot, registry
from comparison import launch, record, report, results, run
from comparison.document import Table, markdown
from comparison.plan import Job, Sweep, learning_rates, plan, short, step_counts, varied_fields
from comparison.plots import Image
from comparison.scaling import report as scaling_report
from comparison.scaling import study
from comparison.untrained import coordinates, depth
from config.command_line import Once, Parser, load_preset, overrides, whole
from config.schema import field_types
from data import files
from data.lock import locked
from evaluation.documents import measure
from evaluation.request import Request, add_options
from evaluation.subject import load
from runtime import checkpoint
from runtime.dataset import open_dataset


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, 1 where runs failed, 2 and one line for bad input, 128 + signal where it was stopped."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        options = read_options(argv)
        if missing := [name for name in ("scipy", "matplotlib") if not find_spec(name)]:
            raise ValueError(f"{' and '.join(missing)} not installed; type: pip install -r requirements.txt")
        options.argv = argv
        exit_code: int = options.command(options)
        return exit_code
    except ValueError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    except launch.SweepInterruptedError as stopped:
        print(f"compare.py: {stopped}: the runs are saved; the same command goes on from there", file=sys.stderr)
        return stopped.exit_code
    except OSError as error:
        reason = f"{files.reason(error)}; once that is put right, the same command goes on from what is saved"
        print(f"compare.py: {reason}", file=sys.stderr)
        return 1


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command, and those of its subcommands by name."""
    top = Parser(prog="compare.py", description=__doc__)
    subcommands = top.add_subparsers(metavar="CONFIG.py | COMMAND", title="commands", required=True)

    def subcommand(name: str, run: Any, usage: str, summary: str, epilog: str = "") -> Parser:
        parser: Parser = subcommands.add_parser(
            name, usage=f"compare.py {usage}", description=summary, help=summary, epilog=epilog, prog=f"compare.py {name}"
        )
        parser.set_defaults(command=run)
        return parser

    one: dict[str, Any] = {"action": Once}
    number: dict[str, Any] = {"action": Once, "type": whole, "metavar": "N"}
    numbers: dict[str, Any] = {"action": "extend", "nargs": "+", "type": whole, "metavar": "N"}
    many: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}
    folder: dict[str, Any] = {"action": Once, "type": Path, "metavar": "DIR"}
    spec: dict[str, Any] = {"action": Once, "default": "", "metavar": "SPEC"}
    weights: dict[str, Any] = {"action": Once, "default": "best", "metavar": "best|last|STEP", "help": "which weights (best)"}
    # fmt: off
    add = subcommand(
        "sweep", compare, "CONFIG.py --activations SPEC... --seeds N [options] [--field value ...]",
        "train every SPEC at N seeds, measure all alike, report (the word sweep may be left out)",
        "Every field of CONFIG.py can be changed by --field value, for all runs; train.py CONFIG.py --help lists them.\n"
        "Under torchrun each run uses all processes.",
    ).add_argument
    add("preset", type=Path, metavar="CONFIG.py", help="the preset of all runs, such as config/tiny.py")
    add("--activations", **many, metavar="SPEC", help="what is compared, such as gelu hermite:degree=3 swiglu, or gated(SPEC)")
    add("--seeds", **number, default=1, help="runs of each; more than one gives intervals over seeds (1)")
    add("--baseline", **spec, help="what the others are compared with (the first SPEC)")
    add("--vary", **many, metavar="FIELD=A,B", help="every combination with the values of further fields")
    add("--lengths", **one, default="", metavar="N,N",
        help="compare at each of these numbers of steps; with --lr_schedule wsd as branches of one run")
    add("--lr", **many, metavar="RATE", help="each activation at its best of these rates, chosen on every other window")
    add("--lr_seeds", **number, default=0, help="only N seeds run at all of them, the others at the best; 0: all seeds (0)")
    add("--out_dir", **folder, help="runs and report; finished runs there are skipped (runs/compare_CONFIG)")
    add("--reuse", **many, metavar="DIR", help="take over finished runs of this sweep: a run's, a sweep's or a report's folder")
    add("--jobs", **number, default=1, help="N runs at a time, each on its device or its share of the cores (1)")
    add("--launcher", **one, choices=("local", "slurm"), default="local", help="slurm: an array of jobs, by submitit (local)")
    add("--slurm", **many, metavar="KEY=VALUE", help="submitit's parameters, such as timeout_min=60 slurm_partition=gpu")
    add_options(add)
    add("--discard_checkpoints", action="store_true", help="delete each run's weights once it is measured")

    summary = "the report from finished runs, of compare.py or train.py"
    add = subcommand("report", write_report, "report DIR... [options]", summary).add_argument
    add("folders", type=Path, nargs="+", metavar="DIR", help="a run's, a sweep's or a report's folder, or one that holds runs")
    add("--baseline", **spec, help="what the others are compared with (the one of DIR, or the first)")
    add("--vary", **many, metavar="FIELD", help="configuration fields that differ on purpose")
    add("--lr", action="store_true", help="learning rates differ: each activation at its best")
    add("--out_dir", **folder, help="where the report goes (DIR where there is one, else runs/report)")

    summary = "sweeps of several sizes and lengths: the difference against both, and what laws of the loss foretell"
    add = subcommand("scaling", write_scaling, "scaling DIR... [options]", summary).add_argument
    add("folders", type=Path, nargs="+", metavar="DIR", help="folders of sweeps or their reports, each with a results.json")
    add("--baseline", **spec, help="what the others are compared with (the one of the first DIR)")
    add("--parameters", **one, type=positive, default=124e6, metavar="N", help="forecast the difference at this size (124e6)")
    add("--tokens", **one, type=positive, default=2.5e9, metavar="D", help="and after so many training tokens (2.5e9)")
    add("--draws", **number, default=200, help="of the bootstrap over seeds; 0: no intervals (200)")
    add("--out_dir", **folder, default=Path("runs/scaling"), help="where the report goes (runs/scaling)")

    summary = "loss of checkpoints on any prepared validation set, zero-shot (evaluate.py does this, and more)"
    add = subcommand("eval", evaluate, "eval RUN... [options]", summary).add_argument
    add("runs", nargs="+", metavar="RUN", help="folders of runs, of export.py, or of GPT-2")
    add("--data_dir", **folder, help="the prepared data (each run's own)")
    add("--checkpoint", **weights)

    summary = "a picture of the activations that a run learned"
    add = subcommand("shapes", shapes, "shapes RUN [options]", summary).add_argument
    add("run", metavar="RUN", help="its folder; the picture is shapes.png in it")
    add("--checkpoint", **weights)

    summary = "how variance travels through deep networks at initialisation: depth.json and depth.png"
    add = subcommand("depth", measure_depth, "depth --activations SPEC... [options]", summary).add_argument
    add("--activations", **many, required=True, metavar="SPEC", help="what is compared")
    add("--depths", **numbers, help="numbers of layers (4 12 24 48)")
    add("--width", **number, default=256, help="a multiple of 64 (256)")
    add("--seeds", **number, default=3, help="networks of each (3)")
    add("--out_dir", **folder, default=Path("runs/depth"), help="where the two files go (runs/depth)")

    add = subcommand(
        "coordinates", check_coordinates, "coordinates CONFIG.py [options] [--field value ...]",
        "how far a few steps move activations at several widths, with and without muP: coordinates.json and .png",
        "Every field of CONFIG.py can be changed by --field value; small ones are enough: --n_layer 2 --block_size 32.",
    ).add_argument
    add("preset", type=Path, metavar="CONFIG.py", help="the preset of all networks; n_embd is chosen by --widths")
    add("--widths", **numbers, help="n_embd; the least is muP's base (64 128 256 512)")
    add("--steps", **number, default=5, help="optimizer steps (5)")
    add("--seeds", **number, default=2, help="networks of each (2)")
    add("--out_dir", **folder, default=Path("runs/coordinates"), help="where the files go (runs/coordinates)")
    # fmt: on
    return top, subcommands.choices


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options of the command that `argv` names, with `fields`: the words of the configuration. Raises ValueError."""
    top, subcommands = parsers()
    words = ["sweep", *argv] if argv[0].endswith(".py") else list(argv)
    if words[0] not in subcommands:
        top.parse_args(words)
    parser = subcommands[words[0]]
    if words[0] in ("sweep", "coordinates"):
        options, fields = parser.parse_known_args(words[1:])
        options.fields = fields
        parser.refuse_unknown(fields, list(field_types()))
    else:
        options, unknown = parser.parse_known_intermixed_args(words[1:])
        parser.refuse_unknown(unknown)
    return options


def compare(options: argparse.Namespace) -> int:
    """`CONFIG.py --activations ...`: train, measure, report."""
    sweep = plan_sweep(options)
    request = Request(tuple(options.tasks), options.task_data, options.task_limit)
    check_writable(sweep.out_dir)
    logs = sweep.out_dir / "logs"
    launcher = choose_launcher(options, logs)
    if launch.join_torchrun() > 0:
        launch.follow(logs)
        launch.dismiss()
        return 0
    try:
        with locked(sweep.out_dir):  # two sweeps that rewrite one results.json would lose each other's records
            reused = results.gather([Path(folder) for folder in options.reuse]).records
            request.check()
            summary, failures = run.run(sweep, launcher, not options.discard_checkpoints, reused, request)
    finally:
        launch.dismiss()
    if summary is None:
        print(f"compare.py: no run finished; {logs} has what they said", file=sys.stderr)
        return 1
    print((sweep.out_dir / "report.md").read_text(encoding="utf-8").split("\n## ")[0])
    print(f"The report lies in {sweep.out_dir / 'report.html'}")
    return 1 if failures else 0


def plan_sweep(options: argparse.Namespace) -> Sweep:
    """The sweep that a command line describes. Raises ValueError."""
    return plan(
        options.preset,
        options.activations,
        options.seeds,
        overrides(options.fields),
        options.out_dir,
        options.baseline,
        varied_fields(options.vary),
        learning_rates(options.lr),
        options.lr_seeds,
        shlex.join(["python", "compare.py", *options.argv]),
        step_counts(options.lengths),
    )


def with_data(launcher: launch.Launcher) -> launch.Launcher:
    """A launcher that first raises ValueError where data of the jobs are not there: a job each would say the same."""

    def run_jobs(jobs: Sequence[Job], done: launch.Done, tick: launch.Tick) -> None:
        for config in {job.config.data_dir: job.config for job in jobs}.values():
            open_dataset(config, check_tokens=False)
        launcher(jobs, done, tick)

    return run_jobs


def choose_launcher(options: argparse.Namespace, logs: Path) -> launch.Launcher:
    """How runs are started. Raises ValueError for ways that exclude each other."""
    if options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs} is no number of jobs; give at least 1")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if options.jobs > 1 or options.launcher == "slurm":
            raise ValueError("under torchrun each run uses all processes; leave out --jobs and --launcher")
        return with_data(launch.all_processes(logs))
    if options.launcher == "slurm":
        return launch.slurm_array(options.jobs, logs, launch.slurm_parameters(options.slurm))
    return with_data(launch.side_by_side(options.jobs, logs))


def write_report(options: argparse.Namespace) -> int:
    """`report DIR...`"""
    found = results.gather(options.folders)
    out_dir = options.out_dir or (options.folders[0] if len(options.folders) == 1 else Path("runs/report"))
    check_writable(out_dir)
    settings = replace(
        found.settings,
        baseline=options.baseline or found.settings.baseline,
        varied=tuple(dict.fromkeys([*found.settings.varied, *options.vary])),
    )
    if options.lr:
        settings = replace(settings, rates=tuple(sorted({record.config["learning_rate"] for record in found.records})))
    with locked(out_dir):  # a sweep that is running there rewrites results.json too
        report.write(out_dir, replace(found, settings=settings))
    print(f"The report lies in {out_dir / 'report.html'}")
    return 0


def write_scaling(options: argparse.Namespace) -> int:
    """`scaling DIR...`"""
    if not 0 <= options.draws <= 100_000:
        raise ValueError(f"--draws {options.draws} is no number of draws; allowed are 0 to 100000")
    found, runs = study.study(options.folders, options.baseline, (options.parameters, options.tokens), options.draws)
    check_writable(options.out_dir)
    scaling_report.write(options.out_dir, found, runs, shlex.join(["python", "compare.py", *options.argv]))
    print((options.out_dir / "scaling.md").read_text(encoding="utf-8").split("\n![")[0])
    print(f"The report lies in {options.out_dir / 'scaling.html'}")
    return 0


def positive(word: str) -> float:
    """A number above 0. Raises argparse.ArgumentTypeError."""
    try:
        number = float(word)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{word[:40]!r} is not a number above 0")
    return number


def evaluate(options: argparse.Namespace) -> int:
    """`eval RUN...`: the checkpoints' loss on a validation set."""
    lines = []
    for name in options.runs:
        subject = load(name, options.checkpoint)
        if options.data_dir is None and subject.checkpoint is None:
            raise ValueError(f"{name} is no run and has no data of its own; give --data_dir DIR")
        loss = measure(subject.model, subject.config, options.data_dir or Path(subject.config.data_dir))
        bits = f"{loss.bits_per_byte:.4f}" if loss.bits_per_byte else "-"
        numbers = (f"{loss.targets:,}", f"{loss.nats:.4f}", f"{loss.perplexity:.3f}", bits)
        lines.append((name, short(subject.config.activation), *numbers))
    print(markdown([Table(("run", "activation", "targets", "loss", "perplexity", "bits per byte"), tuple(lines))]), end="")
    return 0


def shapes(options: argparse.Namespace) -> int:
    """`shapes RUN`: draw what the activations have become."""
    model, config = checkpoint.load_model(options.run, options.checkpoint)
    has_data = Path(config.data_dir).is_dir()
    path = Path(options.run) / "shapes.png"
    files.write_bytes(path, plot.shapes(model, record.sample_inputs(model, config) if has_data else None))
    shaded = f"its inputs in {config.data_dir}" if has_data else f"the law its init assumed ({config.data_dir} is not there)"
    print(f"{path}: one panel a layer, shaded by {shaded}")
    return 0


def measure_depth(options: argparse.Namespace) -> int:
    """`depth --activations SPEC...`: second moments through the layers of untrained networks."""
    specs = [registry.check(spec) for spec in options.activations]
    depths = options.depths or [4, 12, 24, 48]
    if wrong := [number for number in depths if not 1 <= number <= 999]:
        raise ValueError(f"--depths {wrong[0]} is not a number of layers from 1 to 999")
    if options.width % 64 or not 64 <= options.width <= 4096 or not 1 <= options.seeds <= 100:
        given = f"--width {options.width} --seeds {options.seeds}"
        raise ValueError(f"{given}: allowed are multiples of 64 up to 4096, and 1 to 100 seeds")
    check_writable(options.out_dir)
    networks = depth.measure(specs, depths, options.width, options.seeds)
    show(options, "depth", networks, depth.picture(networks), depth.table(networks))
    return 0


def check_coordinates(options: argparse.Namespace) -> int:
    """`coordinates CONFIG.py`: how a few steps move activations, over widths."""
    fields = overrides(options.fields)
    if chosen := sorted({"n_embd", "mup_base_width"} & fields.keys()):
        raise ValueError(f"--{chosen[0]} is chosen here: give --widths, of which the least is muP's base")
    widths = sorted(set(options.widths or [64, 128, 256, 512]))
    if len(widths) < 2 or not 1 <= options.steps <= 100 or not 1 <= options.seeds <= 100:
        given = f"--widths {' '.join(map(str, widths))} --steps {options.steps} --seeds {options.seeds}"
        raise ValueError(f"{given}: allowed are at least two widths, 1 to 100 steps and 1 to 100 seeds")
    config = replace(load_preset(options.preset), **fields)
    check_writable(options.out_dir)
    rows = coordinates.measure(config, widths, options.steps, options.seeds)
    show(options, "coordinates", rows, coordinates.picture(rows), coordinates.table(rows))
    return 0


def show(options: argparse.Namespace, name: str, rows: list[dict[str, Any]], picture: Image, table: Table) -> None:
    """What was measured: NAME.json, .png and .svg in out_dir, and the table on stdout."""
    command = shlex.join(["python", "compare.py", *options.argv])
    files.write_json(options.out_dir / f"{name}.json", {"command": command, "rows": rows}, by_line="rows")
    files.write_bytes(options.out_dir / f"{name}.png", picture.png)
    files.write_bytes(options.out_dir / f"{name}.svg", picture.svg)
    print(markdown([table]), end="")
    print(f"The picture lies in {options.out_dir / f'{name}.png'}")


def check_writable(out_dir: Path) -> None:
    """Make the folder. Raises ValueError where that cannot be, before hours of training show it."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out_dir {str(out_dir)!r} cannot be made ({error.strerror}); give another --out_dir") from None
    if not os.access(out_dir, os.W_OK):
        raise ValueError(f"out_dir {str(out_dir)!r} cannot be written to; give another --out_dir")


if __name__ == "__main__":
    sys.exit(main())
