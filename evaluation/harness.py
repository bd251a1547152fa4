"""Tasks by EleutherAI's lm-evaluation-harness (lm_eval): its definitions of tasks and metrics, over models of this project.

Import this where tasks are scored, and not at the top of a file: lm_eval is optional, and its import takes seconds.
"""

import contextlib
import difflib
import hashlib
import io
import json
import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import datasets
import lm_eval.tasks
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import bits_per_byte, mean, perplexity, weighted_perplexity
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from data.files import reason
from data.tokenizer import Tokenizer
from evaluation import task_files
from evaluation.likelihood import log_likelihoods
from evaluation.scores import Kind, Metric, Scores
from model import GPT
from runtime.hardware import move

# Our names, and lm_eval's where they differ. Other names are lm_eval's own; to find one takes it ten seconds.
NAMES = {"blimp": "blimp", "lambada": "lambada_openai", "hellaswag": "hellaswag", "wikitext": "wikitext"}
FEWSHOT_SEED = 1234  # lm_eval's
_KINDS: dict[Any, Kind] = {mean: "mean", perplexity: "perplexity", weighted_perplexity: "perplexity", bits_per_byte: "bits"}
_TASKS = Path(lm_eval.tasks.__file__).parent
_ROOT = Path(__file__).parents[1]
_GENERATED = 256  # tokens, where a task sets no limit


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A GPT as lm_eval asks it. Texts become ids, and contexts and continuations are cut, as in lm_eval's own hf backend.

    A document begins after end-of-text, and so does a continuation without a context. A continuation longer than the model's
    block_size, which the hf backend refuses, is scored in windows (`likelihood.windows`).
    """

    def __init__(self, model: GPT, words: Tokenizer, device: torch.device) -> None:
        super().__init__()
        self.model, self.words, self._device = model, words, device

    @property
    def eot_token_id(self) -> int:
        """End-of-text."""
        return self.words.eot

    @property
    def max_length(self) -> int:
        """Tokens that the model sees."""
        return self.model.config.block_size

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text; no tokenizer of this project adds one."""
        ids: list[int] = self.words.encode(string).tolist()
        return ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """lm_eval's, but a continuation keeps a token where a tokenizer merges all of it with the end of the context."""
        before, after = super()._encode_pair(context, continuation)
        if after:
            return before, after
        whole = self.tok_encode(context + continuation)
        same = next((i for i, pair in enumerate(zip(whole, before, strict=False)) if pair[0] != pair[1]), len(whole) - 1)
        return whole[:same] or [self.eot_token_id], whole[same:]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log p(continuation | context), whether greedy decoding gives it) of each request."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        return log_likelihoods(self.model, [(context, answer) for _, context, answer in requests], self._device)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """log p(text) of each request, every token a target once."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        scored = log_likelihoods(self.model, [([self.eot_token_id], ids) for ids in texts if ids], self._device)
        found = iter(scored)
        return [next(found)[0] if ids else 0.0 for ids in texts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The likeliest text after each context, up to a stop text, end-of-text, or the task's number of tokens."""
        move(self.model, self._device)
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        if settings.get("do_sample"):
            raise ValueError("a task that samples is not supported; choose one that takes the likeliest text")
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else until
        limit = int(settings.get("max_gen_toks", _GENERATED))
        ids = (self.tok_encode(context) or [self.eot_token_id])[-max(1, self.max_length - limit) :]
        made: list[int] = []
        for new in self.model.stream(torch.tensor([ids], device=self._device), limit, temperature=0.0, eos=self.eot_token_id):
            if int(new) == self.eot_token_id:
                break
            made.append(int(new))
            if any(stop in self.words.decode(made) for stop in stops):
                break
        text = self.words.decode(made)
        return text[: min([text.index(stop) for stop in stops if stop in text], default=len(text))]


@dataclass
class Prepared:
    """A task whose items are turned into requests, once for all models."""

    name: str
    source: str
    every: int
    available: int
    by_size: bool
    """Whether the task's value weighs its sets by their numbers of items; else they count alike."""
    tasks: dict[str, Task]
    items: dict[str, list[list[Instance]]]
    """lm_eval's name of a set -> for each item its requests."""

    @property
    def harness(self) -> str:
        """The version of lm_eval."""
        return f"lm_eval {version('lm_eval')}"

    @cached_property
    def sha256(self) -> str:
        """Over the texts of all requests."""
        digest = hashlib.sha256()
        for name, items in self.items.items():
            for item in items:
                digest.update(json.dumps([name, item[0].doc_id, [request.args for request in item]], default=str).encode())
        return digest.hexdigest()


def prepare(name: str, folder: Path | None = None, limit: int = 0) -> Prepared:
    """A task by our name or lm_eval's, its items from the files of `folder`, else from the hub. Raises ValueError.

    A `limit` above 0 takes every k-th item of each set, with the smallest k that leaves at most so many (but one a set).
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of defaults that its own tasks take
    with _the_library_evaluate():
        if folder is None:
            loaded, source = _from_hub(name), "hub"
        else:
            loaded, source = _from_files(name, folder)
    tasks: dict[str, Task] = loaded["tasks"]
    counts = {one: len(task.eval_docs) for one, task in tasks.items()}
    every = _every(list(counts.values()), limit)
    items = {}
    for one, task in tasks.items():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar a set
            task.build_all_requests(samples=range(0, counts[one], every), rank=0, world_size=1)
        items[one] = _by_item(task)
    by_size = any(metric.weight_by_size for group in loaded["groups"].values() for metric in group.aggregate_metric_list or [])
    return Prepared(name, source, every, sum(counts.values()), by_size, tasks, items)


def score(prepared: Prepared, model: GPT, words: Tokenizer, device: torch.device) -> Scores:
    """What a model scores in a task. Raises ValueError where its log-probabilities are not finite."""
    asked = HarnessModel(model, words, device)
    requests: dict[str, list[Instance]] = {}
    for request in (request for items in prepared.items.values() for item in items for request in item):
        requests.setdefault(request.request_type, []).append(request)
    for kind, some in requests.items():
        for request, answer in zip(some, getattr(asked, kind)(some), strict=True):
            likelihood = answer[0] if isinstance(answer, tuple) else answer
            if isinstance(likelihood, float) and not math.isfinite(likelihood):  # lm_eval takes a NaN for the right choice
                raise ValueError(f"task {prepared.name}: a log-probability is {likelihood}; the model's weights are no use")
            request.resps = [answer] * request.repeats
            request.filtered_resps = {}
    values = {one: _values(task, prepared.items[one]) for one, task in prepared.tasks.items()}
    sizes = {one: len(items) for one, items in prepared.items.items()}
    names = list(dict.fromkeys(name for of_set in values.values() for name in of_set))
    metrics, by_set = {}, {}
    for name in names:
        having = {one: of_set[name] for one, of_set in values.items() if name in of_set}
        by_set[name] = {one: metric.value for one, metric in having.items()}
        metrics[name] = _joined(by_set[name], sizes if prepared.by_size else {}, list(having.values()))
    return Scores(
        prepared.name,
        prepared.harness,
        prepared.source,
        prepared.every,
        prepared.available,
        prepared.sha256,
        sizes,
        metrics,
        by_set if len(sizes) > 1 else {},
    )


def _values(task: Task, items: list[list[Instance]]) -> dict[str, Metric]:
    """Metrics of one of lm_eval's tasks whose requests are answered; metric,filter where it has several filters."""
    task.apply_filters()
    found: dict[str, list[Any]] = {}
    for key in items[0][0].filtered_resps:
        ending = "" if key == "none" else f",{key}"
        for item in items:
            results = task.process_results(item[0].doc, [request.filtered_resps[key] for request in item])
            for name, value in results.items():
                found.setdefault(name + ending, []).append(value)
    metrics = {}
    for name, values in found.items():
        aggregate = task.aggregation()[name.partition(",")[0]]
        kind: Kind | Literal[""] = _KINDS.get(aggregate, "")
        pairs = [value if isinstance(value, tuple) else (value, 1) for value in values] if kind else []
        weights = tuple(float(weight) for _, weight in pairs)
        scores = tuple(float(score) for score, _ in pairs)
        metrics[name] = Metric(float(aggregate(values)), kind, scores, weights if set(weights) - {1.0} else ())
    return metrics


def _joined(values: dict[str, float], sizes: dict[str, int], parts: list[Metric]) -> Metric:
    """The metric of a whole task; `sizes` weighs its sets, empty: they count alike."""
    weights = [sizes.get(name, 1) for name in values]
    value = sum(value * weight for value, weight in zip(values.values(), weights, strict=True)) / sum(weights)
    kinds = {part.kind for part in parts}
    if len(parts) == 1 or kinds != {"mean"}:
        return parts[0] if len(parts) == 1 else Metric(value)
    unequal = not sizes and len({len(part.scores) for part in parts}) > 1
    shares = tuple(1 / len(part.scores) for part in parts for _ in part.scores) if unequal else ()
    return Metric(value, "mean", tuple(score for part in parts for score in part.scores), shares)


def _from_files(name: str, folder: Path) -> tuple[Any, str]:
    sets, source = task_files.read(name, folder)
    manager = TaskManager(include_path=[_folder(name)], include_defaults=False)
    if unknown := sets.keys() - set(manager.all_subtasks):
        raise ValueError(f"{source.split()[0]} has items of {min(unknown)}, which lm_eval does not know; leave them out")
    split = task_files.FILES[name].split

    def member(task: str, items: list[task_files.Item]) -> dict[str, Any]:
        return {"task": task, "custom_dataset": lambda **_: {split: datasets.Dataset.from_list(items)}, "process_docs": None}

    members = [member(task, items) | _NO_OTHER_SPLIT[split] for task, items in sets.items()]
    return manager.load({"group": f"{name} of a file", "task": members}), source


_NO_OTHER_SPLIT: dict[str, dict[str, None]] = {
    "train": {},
    "validation": {"training_split": None},
    "test": {"training_split": None, "validation_split": None},
}


def _from_hub(name: str) -> Any:
    known = name in NAMES
    manager = TaskManager(include_path=[_folder(name)], include_defaults=False) if known else TaskManager()
    if not known and name not in manager.all_tasks:
        nearest = difflib.get_close_matches(name, [*NAMES, *manager.all_tasks], n=1)
        hint = f", did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(
            f"task {name!r} is not one of lm_eval's{hint}; there are {', '.join(NAMES)} and those of lm_eval ls tasks"
        )
    try:
        return manager.load(NAMES.get(name, name))
    except OSError as error:  # the hub's errors are OSErrors too
        why = reason(error).splitlines()[0]
        raise ValueError(f"task {name}: its data cannot be had from the hub ({why}); give a folder: --task_data DIR") from None


def _folder(name: str) -> Path:
    """Where lm_eval defines one of NAMES."""
    return _TASKS / name


def _every(counts: list[int], limit: int) -> int:
    """The smallest k by which every k-th item of each set leaves at most `limit`; where none does, one a set."""
    every = 1
    while limit and sum(-(-count // every) for count in counts) > limit and every < max(counts):
        every += 1
    return every


def _by_item(task: Task) -> list[list[Instance]]:
    items: dict[int, list[Instance]] = {}
    for request in task.instances:
        items.setdefault(request.doc_id, []).append(request)
    return [sorted(some, key=lambda request: request.idx) for some in items.values()]


@contextlib.contextmanager
def _the_library_evaluate() -> Iterator[None]:
    """Some metrics of lm_eval import a library called `evaluate`, and this checkout has a script of that name."""
    ours, path = sys.modules.pop("evaluate", None), list(sys.path)
    sys.path[:] = [place for place in path if Path(place or ".").resolve() != _ROOT]
    try:
        yield
    finally:
        sys.path[:] = path
        if ours is not None:
            sys.modules["evaluate"] = ours
