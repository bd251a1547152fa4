"""Measure trained models: `python evaluate.py RUN... [--data_dir DIR...] [--tasks NAME...] [--task_data DIR]`.

RUN is a run's folder, a checkpoint's, a folder of export.py, a GPT-2 folder or a hub name.
--data_dir gives loss, perplexity and bits per byte on prepared validation sets. Without it and without --tasks the set is the
run's own. --tasks scores tasks by lm_eval, whose definitions and numbers others report: blimp, lambada, hellaswag, wikitext,
or any other name of lm_eval. Their items come from the hub, or from --task_data: a folder with blimp.jsonl,
lambada_test.jsonl, hellaswag_val.jsonl and wiki.test.raw, plain or packed (.zst, .gz, .bz2, .xz).

Tables are printed. A run keeps each result, every item's score included, in RUN/evaluation/step_XXXXXXXX/NAME.json.
"""

import argparse
import dataclasses
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison.document import Table, markdown
from comparison.plan import short
from config.command_line import Once, Parser
from data.files import reason, write_text
from evaluation import documents, scores, store
from evaluation.documents import Loss
from evaluation.request import Request, add_options
from evaluation.scores import Scores
from evaluation.subject import Subject, load
from runtime.hardware import pick_device
from runtime.terminal import close_stdout

_UNKNOWN = "–"


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0; 2 after one line on what is wrong with the input, 1 where a disk fails."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options = read_options(sys.argv[1:] if argv is None else argv)
        prepared = options.request.prepare()
        found = [_evaluate(name, options, prepared) for name in options.runs]
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_text(options.out, "[\n" + ",\n".join(store.lines(one.to_json()) for one in found) + "]\n")
        for path in (path for one in found for path in one.files):
            print(f"evaluate.py: wrote {path}", file=sys.stderr)
        print(markdown(tables(found)), end="", flush=True)
    except ValueError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        close_stdout()
        return 0
    except OSError as error:
        print(f"evaluate.py: {reason(error)}", file=sys.stderr)
        return 1
    return 0


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line. Raises ValueError."""
    parser = Parser(prog="evaluate.py", description=__doc__)
    add: Any = parser.add_argument
    many: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}
    folder: dict[str, Any] = {"action": Once, "type": Path, "default": None}
    # fmt: off
    add("runs", nargs="+", metavar="RUN", help="what is measured")
    add("--data_dir", **many, type=Path, metavar="DIR", help="prepared data (a run's own, where no --tasks are given)")
    add_options(add)
    add("--checkpoint", action=Once, default="best", metavar="best|last|STEP", help="which weights of a run (best)")
    add("--tokenizer", action=Once, default="", metavar="NAME", help="gpt2, bytes or a tokenizer.json, if a folder names none")
    add("--device", action=Once, default="", metavar="D", help="auto, cpu, cuda, cuda:N or mps (the run's)")
    add("--out", **folder, metavar="FILE", help="all results in one JSON file too")
    # fmt: on
    options, unknown = parser.parse_known_intermixed_args(argv)
    parser.refuse_unknown(unknown)
    options.request = Request(tuple(options.tasks), options.task_data, options.task_limit)
    folders = [folder.resolve().name for folder in options.data_dir]
    if twice := [name for name in folders if folders.count(name) > 1]:
        raise ValueError(f"two of --data_dir are called {twice[0]}, as their results would be; measure them one after another")
    return options


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What was found of one model."""

    subject: Subject
    losses: tuple[Loss, ...]
    tasks: tuple[Scores, ...]
    files: tuple[Path, ...]
    """Where it was kept."""

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "model": self.subject.name,
            "step": self.subject.step,
            "weights_sha256": self.subject.weights_sha256,
            "activation": self.subject.config.activation,
            "losses": [loss.to_json() for loss in self.losses],
            "tasks": [scores.to_json(task) for task in self.tasks],
        }


def _evaluate(name: str, options: argparse.Namespace, prepared: Sequence[Any]) -> Evaluated:
    subject = load(name, options.checkpoint, options.tokenizer)
    config = dataclasses.replace(subject.config, device=options.device or subject.config.device)
    folders = options.data_dir
    if not folders and not prepared:
        if subject.checkpoint is None:
            raise ValueError(f"{name} is no run and has no data of its own; give --data_dir DIR or --tasks NAME")
        folders = [Path(config.data_dir)]
    losses, tasks, files = [], [], []
    for folder in folders:
        losses.append(documents.measure(subject.model, config, folder))
        files.append(store.save(subject, f"loss_{folder.resolve().name}", losses[-1].to_json()))
    for task in prepared:
        from evaluation import harness

        tasks.append(harness.score(task, subject.model, subject.words(options.tokenizer), pick_device(config.device)))
        files.append(store.save(subject, task.name, scores.to_json(tasks[-1])))
    return Evaluated(subject, tuple(losses), tuple(tasks), tuple(path for path in files if path))


def tables(found: Sequence[Evaluated]) -> list[Table]:
    """One of losses and one of tasks, where there are any."""
    losses = [
        (
            *(one.subject.label, short(one.subject.config.activation), Path(loss.data_dir).name, f"{loss.targets:,}"),
            *(f"{loss.nats:.4f}", f"{loss.perplexity:.3f}", f"{loss.bits_per_byte:.4f}" if loss.bits_per_byte else _UNKNOWN),
        )
        for one in found
        for loss in one.losses
    ]
    tasks = [
        (
            *(one.subject.label, short(one.subject.config.activation), task.task, name),
            *(f"{task.items:,} of {task.available:,}", f"{metric.value:.4f}"),
            _UNKNOWN if metric.error is None else f"{metric.error:.4f}",
        )
        for one in found
        for task in one.tasks
        for name, metric in task.metrics.items()
        if math.isfinite(metric.value)
    ]
    of_losses = ("model", "activation", "data", "targets", "loss", "perplexity", "bits per byte")
    of_tasks = ("model", "activation", "task", "metric", "items", "value", "standard error")
    made = [(of_losses, losses, 3), (of_tasks, tasks, 4)]
    return [Table(header, tuple(rows), words) for header, rows, words in made if rows]


if __name__ == "__main__":
    sys.exit(main())
