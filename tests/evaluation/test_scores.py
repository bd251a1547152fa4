"""Scores survive JSON, and a stranger's are refused in one line."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from evaluation.scores import Metric, Scores, from_json, to_json

SCORES = Scores(
    task="blimp",
    harness="lm_eval 0.4.13",
    source="blimp.jsonl sha256 00",
    every=2,
    available=7,
    items_sha256="ab",
    sets={"blimp_a": 3, "blimp_b": 1},
    metrics={
        "acc": Metric(0.75, "mean", (1.0, 0.0, 1.0, 1.0)),
        "perplexity": Metric(9.5, "perplexity", (-1.5, -2.25, -3.0, -0.125), (4.0, 5.0, 6.0, 7.0)),
        "rouge": Metric(0.5),
    },
    by_set={"acc": {"blimp_a": 2 / 3, "blimp_b": 1.0}},
)


def test_json_and_back() -> None:
    written = json.loads(json.dumps(to_json(SCORES)))
    assert written["metrics"]["acc"]["scores"] == "1011"
    assert from_json(written, "here") == SCORES
    assert SCORES.items == 4
    assert SCORES.metrics["acc"].error == pytest.approx(math.sqrt(0.25 / 4))
    assert SCORES.metrics["perplexity"].error is None


@pytest.mark.parametrize(
    "change",
    [
        {"sets": {"blimp_a": 4}, "metrics": {"acc": {"value": 1, "kind": "mean", "scores": "101", "weights": []}}},
        {"metrics": {"acc": {"value": 1, "kind": "mean", "scores": "1021", "weights": []}}},
        {"metrics": {"acc": {"value": 1, "kind": "median", "scores": "1011", "weights": []}}},
        {"metrics": {"acc": {"value": math.nan, "kind": "mean", "scores": "1011", "weights": []}}},
        {"metrics": {"acc": {"value": 1, "kind": "mean", "scores": "1011", "weights": [1, 1, 1, 0]}}},
        {"metrics": {"acc": {"value": 1, "kind": "mean", "scores": "1011", "weights": [1]}}},
        {"sets": {}},
        {"every": 0},
        {"task": 3},
        {"extra": 1},
    ],
)
def test_other_things_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^here: not the scores of a task"):
        from_json(to_json(SCORES) | change, "here")
    with pytest.raises(ValueError, match=r"^here: not the scores of a task"):
        from_json([], "here")


def test_other_scores_keep_seven_digits() -> None:
    scores = replace(SCORES, sets={"a": 1}, metrics={"perplexity": Metric(2.0, "perplexity", (-123.456789012,))}, by_set={})
    assert to_json(scores)["metrics"]["perplexity"]["scores"] == [-123.4568]
