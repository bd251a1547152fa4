"""Tasks by lm_eval: what its own hf backend gives for the same weights, item by item."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data import tokenizer
from model import GPT
from pretrained import tokenizers
from tests.evaluation import items

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install lm_eval")

CPU = torch.device("cpu")
WORDS = tokenizer.load("bytes")


@pytest.fixture(scope="module")
def theirs(gpt: GPT, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same weights as transformers' GPT2LMHeadModel behind lm_eval's hf backend."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("gpt2")
    gpt.save_pretrained(folder)
    tokenizers.write(folder, WORDS, gpt.config.block_size)
    backend = HFLM(pretrained=str(folder), device="cpu", batch_size=4)
    assert type(backend.model).__name__ == "GPT2LMHeadModel"
    return backend


@pytest.mark.parametrize("task", ["blimp", "lambada", "hellaswag", "wikitext"])
def test_the_hf_backend_of_lm_eval_gives_the_same(task: str, gpt: GPT, theirs: Any, task_data: Path) -> None:
    from lm_eval import evaluator

    from evaluation import harness

    prepared = harness.prepare(task, task_data)
    scores = harness.score(prepared, gpt, WORDS, CPU)
    expected = evaluator.evaluate(theirs, {"tasks": harness.prepare(task, task_data).tasks}, bootstrap_iters=0)
    assert expected is not None
    assert scores.items == scores.available == sum(len(some) for some in expected["samples"].values())
    answers = 0
    for name, samples in expected["samples"].items():
        first = sum(list(scores.sets.values())[: list(scores.sets).index(name)])
        for index, (sample, requests) in enumerate(zip(samples, prepared.items[name], strict=True)):
            for request, (answer,) in zip(requests, sample["resps"], strict=True):
                ours = request.resps[0]
                answers += 1
                if isinstance(ours, tuple):
                    assert ours[1] == answer[1]
                    ours, answer = ours[0], answer[0]
                assert ours == pytest.approx(float(answer), rel=1e-5, abs=1e-4)
            for metric, found in scores.metrics.items():
                given = sample[metric]
                given, weight = given if isinstance(given, tuple) else (given, 1)
                assert found.scores[first + index] == pytest.approx(given, rel=1e-5, abs=1e-4)
                assert (found.weights[first + index] if found.weights else 1) == weight
        for metric in scores.metrics:
            value = scores.by_set[metric][name] if scores.by_set else scores.metrics[metric].value
            assert value == pytest.approx(expected["results"][name][f"{metric},none"], rel=1e-4)
    assert answers >= 3
    values = {name: metric.value for name, metric in scores.metrics.items()}
    if task == "blimp":
        assert values["acc"] == pytest.approx(sum(scores.by_set["acc"].values()) / 2)
        assert 0 < values["acc"] < 1, "the model prefers some good sentences, and some bad ones"
    if task == "wikitext":
        assert values.keys() == {"word_perplexity", "byte_perplexity", "bits_per_byte"}
        assert len(items.WIKITEXT) > 3 * gpt.config.block_size, "a page takes several windows"


def test_generated_text_is_that_of_the_hf_backend(gpt: GPT, theirs: Any) -> None:
    from lm_eval.api.instance import Instance

    from evaluation import harness

    settings = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    requests = [Instance("generate_until", {}, (text, dict(settings)), 0) for text in ("The cat", "a dog sees " * 9)]
    ours = harness.HarnessModel(gpt, WORDS, CPU).generate_until(requests)
    assert ours == theirs.generate_until(requests, disable_tqdm=True)
    stop = ours[0][4:6]
    cut = Instance("generate_until", {}, ("The cat", settings | {"until": [stop]}), 0)
    assert harness.HarnessModel(gpt, WORDS, CPU).generate_until([cut]) == [ours[0][: ours[0].index(stop)]]


def test_a_limit_takes_every_kth_item_of_each_set(gpt: GPT, task_data: Path) -> None:
    from evaluation import harness

    everything = harness.score(harness.prepare("blimp", task_data), gpt, WORDS, CPU)
    for limit, every, per_set in ((16, 1, 8), (15, 2, 4), (7, 3, 3), (6, 3, 3), (5, 4, 2), (1, 8, 1)):
        scores = harness.score(harness.prepare("blimp", task_data, limit), gpt, WORDS, CPU)
        assert (scores.every, scores.sets) == (every, dict.fromkeys(everything.sets, per_set))
        mine = everything.metrics["acc"].scores
        assert scores.metrics["acc"].scores == mine[:8:every] + mine[8::every]
        assert (scores.items_sha256 == everything.items_sha256) == (limit == 16)
        assert scores.available == 16


def test_what_cannot_be_scored_is_one_line(gpt: GPT, task_data: Path, tmp_path: Path) -> None:
    import copy

    from evaluation import harness

    broken = copy.deepcopy(gpt)
    with torch.no_grad():
        broken.transformer.wte.weight[5] = torch.nan
    with pytest.raises(ValueError, match="task lambada: a log-probability is nan"):
        harness.score(harness.prepare("lambada", task_data), broken, WORDS, CPU)
    items.write_rows(tmp_path / "blimp.jsonl", [items.BLIMP[0] | {"UID": "nobody"}])
    with pytest.raises(ValueError, match=r"blimp\.jsonl has items of blimp_nobody, which lm_eval does not know"):
        harness.prepare("blimp", tmp_path)


def test_metrics_find_the_library_that_is_called_as_our_script() -> None:
    import evaluate as ours
    from evaluation import harness

    assert Path(str(ours.__file__)).parent == harness._ROOT
    with harness._the_library_evaluate():
        import evaluate as theirs

        assert hasattr(theirs, "load")
    assert sys.modules["evaluate"] is ours
