"""Sums of log-probabilities: those of one sequence at a time, however they are batched and cut."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.likelihood import log_likelihoods, windows
from model import GPT

CPU = torch.device("cpu")


def one_by_one(gpt: GPT, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Of a pair that fits into the model, without batches."""
    whole = torch.tensor([*context, *continuation])
    with torch.no_grad():
        scores = gpt(whole[None, :-1])[0, len(context) - 1 :].double().log_softmax(-1)
    targets = torch.tensor(continuation)
    return float(scores.gather(1, targets[:, None]).sum()), bool((scores.argmax(1) == targets).all())


def test_batches_of_unequal_lengths_change_nothing(gpt: GPT) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [(1, 1), (1, 40), (63, 1), (5, 5), (30, 20), (2, 61), (7, 3)] * 2
    draws = [torch.randint(0, 257, (a + b,), generator=generator).tolist() for a, b in lengths]
    pairs = [(ids[:a], ids[a:]) for ids, (a, _) in zip(draws, lengths, strict=True)]
    likeliest = int(gpt(torch.tensor([[3, 4]]))[0, -1].argmax())
    pairs.append(([3, 4], [likeliest]))
    expected = [one_by_one(gpt, *pair) for pair in pairs]
    for batch_tokens in (1, 100, 1 << 14):
        found = log_likelihoods(gpt, pairs, CPU, batch_tokens)
        assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert expected[-1][1]
    assert not expected[0][1]


def test_a_context_that_is_too_long_loses_its_beginning(gpt: GPT) -> None:
    ids = torch.randint(0, 257, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    found = log_likelihoods(gpt, [(ids[:190], ids[190:])], CPU)[0][0]
    assert found == pytest.approx(one_by_one(gpt, ids[135:190], ids[190:])[0], abs=1e-4)  # 64 tokens are fed
    assert abs(found - one_by_one(gpt, ids[150:190], ids[190:])[0]) > 1e-3


def test_a_long_text_is_the_sum_of_its_windows(gpt: GPT) -> None:
    ids = torch.randint(0, 257, (150,), generator=torch.Generator().manual_seed(2)).tolist()
    found = log_likelihoods(gpt, [([256], ids)], CPU)[0][0]
    parts = (([256], ids[:64]), (ids[63:64], ids[64:128]), (ids[85:128], ids[128:]))  # the last one reaches back
    assert found == pytest.approx(sum(one_by_one(gpt, *part)[0] for part in parts), abs=1e-3)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 12))
def test_every_target_is_in_one_window(context: int, continuation: int, size: int) -> None:
    ids = list(range(context + continuation))
    found = list(windows(ids[:context], ids[context:], size))
    assert [token for tokens, count in found for token in tokens[-count:]] == ids[context:]
    assert all(len(tokens) <= size + 1 and count < len(tokens) for tokens, count in found)
    assert all(b - a == 1 for tokens, _ in found for a, b in pairwise(tokens))
    assert len(found) == -(-continuation // size)


@given(st.integers(1, 60), st.integers(1, 12))
def test_windows_are_those_of_lm_eval(length: int, size: int) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="lm_eval is not installed: pip install lm_eval")
    ids = list(range(length))
    theirs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(ids, 99, size, 1))
    expected = [([*context, *continuation], len(continuation)) for context, continuation in theirs]
    assert list(windows([99], ids, size)) == expected


def test_nothing_has_no_probability() -> None:
    for pair in (([], [1]), ([1], [])):
        with pytest.raises(ValueError, match="at least one token"):
            list(windows(*pair, 8))
