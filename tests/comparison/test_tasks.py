"""Tasks in a comparison: paired by item and seed, taken once, and told in the report."""

import dataclasses
import json
import logging
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compare
import evaluate
from comparison import report, results
from comparison.judge import summarise, task_results
from comparison.plan import Settings
from comparison.record import Record, from_json, read, to_json
from comparison.results import Results
from comparison.statistics import crossed, paired_t
from config.schema import Config
from evaluation.scores import Metric, Scores
from tests.evaluation import items
from tests.runs import ROOT, arguments

needs_lm_eval = pytest.mark.skipif(not find_spec("lm_eval"), reason="lm_eval is not installed: pip install lm_eval")


def scored(record: Record, right: Any, nats: Any = None, **changes: Any) -> Record:
    """The record with scores in two tasks: whether each item is right, and nats of three pages of 10, 20 and 30 words."""
    right = tuple(map(float, right))
    acc = Metric(float(np.mean(right)), "mean", right)
    common: dict[str, Any] = {"harness": "lm_eval 1", "every": 1, "items_sha256": "i"} | changes
    blimp = Scores("blimp", source="b", available=len(right), sets={"s": len(right)}, metrics={"acc": acc}, by_set={}, **common)
    found = {"blimp": blimp}
    if nats is not None:
        words = (10.0, 20.0, 30.0)
        pages = tuple(-float(value) for value in nats)
        metrics = {
            "word_perplexity": Metric(math.exp(sum(nats) / 60), "perplexity", pages, words),
            "bits_per_byte": Metric(sum(nats) / 60 / math.log(2), "bits", pages, words),
        }
        found["wikitext"] = Scores("wikitext", source="w", available=3, sets={"w": 3}, metrics=metrics, by_set={}, **common)
    return dataclasses.replace(record, tasks=found)


def records(make_run: Any) -> tuple[Record, ...]:
    """Two arms of three seeds; relu is right more often, and worse in nats."""
    generator = np.random.default_rng(0)
    found = []
    for seed in (1, 2, 3):
        right = generator.random(400) < 0.5
        more = right | (generator.random(400) < 0.2)
        pages = np.array([30.0, 50.0, 80.0]) + generator.random(3)
        found.append(scored(read(make_run("gelu", seed, 1.5 + seed / 100)), right, pages))
        found.append(scored(read(make_run("relu", seed, 1.5)), more, pages * 1.1))
    return tuple(found)


def test_differences_are_paired_by_item_and_seed(make_run: Any) -> None:
    found = records(make_run)
    judged = task_results(summarise(Results(Settings(), found)))
    named = {(one.task, one.metric, one.arm): one for one in judged}
    assert len(named) == len(judged) == 6
    base, other = named["blimp", "acc", "gelu"], named["blimp", "acc", "relu"]
    assert (base.verdict, other.verdict) == ("baseline", "better")
    gelus, relus = ([r for r in found if r.activation.startswith(name)] for name in ("gelu", "relu"))
    matrix = np.array(
        [np.subtract(r.tasks["blimp"].metrics["acc"].scores, g.tasks["blimp"].metrics["acc"].scores)
         for g, r in zip(gelus, relus, strict=True)]
    )  # fmt: skip
    assert other.difference == crossed(matrix, np.ones(400))
    assert other.difference is not None
    assert other.difference.mean == pytest.approx(other.value - base.value)
    assert other.difference.mean == pytest.approx(paired_t(matrix.mean(1), np.zeros(3)).mean)
    words, its = named["wikitext", "word_perplexity", "relu"], named["wikitext", "word_perplexity", "gelu"]
    assert words.difference is not None
    assert words.difference.mean == pytest.approx(math.log(words.value / its.value))
    assert words.verdict == "worse"
    bits = named["wikitext", "bits_per_byte", "relu"]
    assert bits.difference is not None
    assert bits.difference.mean == pytest.approx(bits.value - named["wikitext", "bits_per_byte", "gelu"].value)


def test_an_interval_of_equals_holds_zero_as_often_as_it_says(make_run: Any) -> None:
    """Two arms of one accuracy; single seeds, so that the interval is over items."""
    generator = np.random.default_rng(1)
    base = [read(make_run(name, 1, 1.5)) for name in ("gelu", "relu")]
    held = 0
    for _ in range(100):
        drawn = tuple(scored(record, generator.random(200) < 0.7) for record in base)
        difference = task_results(summarise(Results(Settings(), drawn)))[1].difference
        held += difference is not None and bool(difference.holds_zero)
    assert 88 <= held <= 100


def test_sets_of_unequal_size_count_alike(make_run: Any) -> None:
    pair = [read(make_run(name, 1, 1.5)) for name in ("gelu", "relu")]
    metrics = [Metric(value, "mean", scores, (1.0, 0.25, 0.25, 0.25, 0.25)) for value, scores in
               ((0.625, (1.0, 1.0, 0.0, 0.0, 0.0)), (0.5, (0.0, 1.0, 1.0, 1.0, 1.0)))]  # fmt: skip
    common: dict[str, Any] = {"harness": "h", "source": "s", "every": 1, "available": 5, "items_sha256": "i", "by_set": {}}
    both = tuple(
        dataclasses.replace(one, tasks={"blimp": Scores("blimp", sets={"a": 1, "b": 4}, metrics={"acc": metric}, **common)})
        for one, metric in zip(pair, metrics, strict=True)
    )
    difference = task_results(summarise(Results(Settings(), both)))[1].difference
    assert difference is not None
    assert difference.mean == pytest.approx(0.5 - 0.625)


def test_scores_of_other_items_are_not_paired(make_run: Any) -> None:
    found = records(make_run)
    for changes in ({"items_sha256": "j"}, {"harness": "lm_eval 2"}):
        others = tuple(
            dataclasses.replace(one, tasks={name: dataclasses.replace(of, **changes) for name, of in one.tasks.items()})
            if one.activation.startswith("relu")
            else one
            for one in found
        )
        judged = task_results(summarise(Results(Settings(), others)))
        assert all(one.difference is None for one in judged)
        assert {one.verdict for one in judged} == {"baseline", "not compared"}


def test_the_report_tells_them_and_the_record_keeps_them(make_run: Any, tmp_path: Path) -> None:
    found = records(make_run)
    report.write(tmp_path, Results(Settings(), found))
    text = (tmp_path / "report.md").read_text()
    section = text.split("## Tasks")[1].split("\n## ")[0]
    assert "| blimp | gelu | baseline | acc | 0." in section
    assert "| blimp | relu | better | acc | 0." in section
    assert "| wikitext | relu | worse | word_perplexity |" in section
    assert "blimp: all 400 of 400 items (b, lm_eval 1)" in section
    assert (tmp_path / "tasks.csv").read_text().startswith("task,activation,verdict,metric,value")
    again = results.load(tmp_path / "results.json")
    assert [record.tasks for record in again.records][1]["blimp"] == found[1].tasks["blimp"]
    values = json.loads((tmp_path / "summary.json").read_text())
    assert values["tasks"][1]["verdict"] == "better"
    report.write(tmp_path / "again", again)
    assert (tmp_path / "again" / "report.md").read_text().split("## Tasks")[1].split("\n## ")[0] == section
    wrong = to_json(found[0])
    wrong["tasks"]["blimp"]["metrics"]["acc"]["scores"] = "01"
    with pytest.raises(ValueError, match="task blimp: not the scores of a task"):
        from_json(wrong, "here")


def test_without_scores_there_is_no_section(make_run: Any) -> None:
    assert (
        report._of_tasks(summarise(Results(Settings(), tuple(read(make_run(name, 1, 1.5)) for name in ("gelu", "relu"))))) == []
    )


@needs_lm_eval
def test_a_sweep_scores_its_runs_once(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    caplog.set_level(logging.INFO)
    out, folder = tmp_path / "sweep", items.write(tmp_path / "items")
    config = dataclasses.replace(small, activation="gelu", out_dir="", max_steps=2, eval_interval=2)
    asked = ["--tasks", "blimp", "wikitext", "--task_data", str(folder), "--task_limit", "8"]
    argv = [str(ROOT / "config" / "tiny.py"), "--activations", "gelu", "relu", "--out_dir", str(out), *arguments(config)]
    assert compare.main([*argv, *asked]) == 0
    text = (out / "report.md").read_text()
    assert "blimp: one item in 2 of each set, 8 of 16 items (blimp.jsonl sha256" in text
    assert "[2/2] relu-seed=1337: blimp acc" in caplog.text
    first = results.load(out / "results.json").records
    run = Path(first[0].config["out_dir"])
    assert evaluate.main([str(run), *asked, "--checkpoint", "last"]) == 0
    shown = capsys.readouterr().out
    assert f"{first[0].tasks['blimp'].metrics['acc'].value:.4f}" in shown
    assert read(run).tasks == first[0].tasks, "a report takes what evaluate.py found"
    caplog.clear()
    assert compare.main([*argv, *asked, "--discard_checkpoints"]) == 0
    assert "blimp acc" not in caplog.text
    assert not (run / "checkpoints").exists()
    assert compare.main([*argv, *asked[:-2]]) == 0
    assert "the weights are gone" in caplog.text
    assert results.load(out / "results.json").records[0].tasks == first[0].tasks
    capsys.readouterr()
    assert compare.main([*argv, "--tasks", "lambada", "--task_data", str(tmp_path)]) == 2
    assert "has no lambada_test.jsonl" in capsys.readouterr().err
