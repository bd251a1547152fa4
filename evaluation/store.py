"""Where a run keeps what was evaluated: RUN/evaluation/step_XXXXXXXX/NAME.json. Nothing else of the run changes."""

import json
from pathlib import Path
from typing import Any

from config.foreign import read_object
from data.files import write_text
from evaluation.subject import Subject
from runtime import checkpoint

FOLDER = "evaluation"


def place(subject: Subject) -> Path | None:
    """The folder of a checkpoint's evaluations; None for a model that is no run's: its folder may be anybody's."""
    found = subject.checkpoint
    return found.parent.parent / FOLDER / found.name if found else None


def save(subject: Subject, name: str, found: dict[str, Any]) -> Path | None:
    """Atomically write `found` of a run's checkpoint as NAME.json, with the weights that it is of; None where it is no run's.

    Raises ValueError where the run's folder holds a link in its place.
    """
    folder = place(subject)
    if folder is None:
        return None
    checkpoint.refuse_links(folder.parent.parent)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace('/', '_')}.json"
    write_text(path, lines({"step": subject.step, "weights_sha256": subject.weights_sha256} | found))
    return path


def tasks(run: Path, step: int, weights_sha256: str) -> dict[str, Any]:
    """Task -> its JSON, of a run's checkpoint; what was found of other weights is left out. Raises ValueError."""
    found = {}
    for path in sorted((run / FOLDER / f"step_{step:08d}").glob("*.json")):
        values = read_object(path)
        if "task" in values and weights_sha256 and values.pop("weights_sha256", None) == weights_sha256:
            values.pop("step", None)
            found[str(values["task"])] = values
    return found


def lines(values: dict[str, Any]) -> str:
    """JSON with a line a field: what a person looks for stands at its beginning, and thousands of scores in one line."""
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()) + "\n}\n"
