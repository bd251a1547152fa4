"""A handful of items of each task, in the files that `--task_data` takes."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

SUBJECTS = ("the cat", "a dog", "her friend", "this boy", "no teacher", "every river", "some girl", "my uncle")
VERBS = ("sees", "finds", "has", "likes")
HEADINGS = (" = Rivers = ", " = Robert Boulter = ", " = Du Fu = ")

BLIMP = [
    {
        "sentence_good": f"{subject.capitalize()} {verb[: len(verb) - number % 2]} the {thing}.",
        "sentence_bad": f"{subject.capitalize()} {verb[: len(verb) - 1 + number % 2]} the {thing}.",
        "UID": uid,
        "pairID": str(number),
    }
    for uid, thing in (("transitive", "old house"), ("wh_island", "small door"))
    for number, (subject, verb) in enumerate(zip(SUBJECTS, 2 * VERBS, strict=True))
]
LAMBADA = [
    {"text": f'{first.capitalize()} {verb} {second}.\n\n"What is it?" asked {second}, and there was {first}'}
    for first, second in pairwise(SUBJECTS)
    for verb in VERBS[:2]
]
HELLASWAG = [
    {
        "ind": number,
        "query": f"Washing a car: {subject.capitalize()} {' and then '.join(VERBS * (1 + number % 3))} the water. {subject}",
        "choices": [f"{verb} {other} again." for verb, other in zip(VERBS, SUBJECTS[number % 5 :], strict=False)],
        "gold": number % 4,
    }
    for number, subject in enumerate(SUBJECTS)
]
WIKITEXT = "\n".join(
    f'{heading}\n \n {" ".join(SUBJECTS)} , 1 @,@ 000 of them . \n \n = = {verb} = = \n \n {subject} {verb} it , " so " . '
    for heading, verb, subject in zip(HEADINGS, VERBS, SUBJECTS, strict=False)
)


def write(folder: Path) -> Path:
    """The four files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("blimp.jsonl", BLIMP), ("lambada_test.jsonl", LAMBADA), ("hellaswag_val.jsonl", HELLASWAG)):
        write_rows(folder / name, rows)
    (folder / "wiki.test.raw").write_text(f" \n{WIKITEXT}\n")
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
