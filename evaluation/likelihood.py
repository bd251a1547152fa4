"""Log-probabilities of given continuations: what multiple-choice tasks and perplexities of texts are computed from."""

from collections.abc import Iterator, Sequence

import torch

import decoding
from model import GPT
from runtime.hardware import move

Ids = Sequence[int]

BATCH_TOKENS = 1 << 14  # of one forward pass, padding included
LOGITS = 1 << 25  # logits at a time: 128 MiB in float32


def windows(context: Ids, continuation: Ids, block_size: int) -> Iterator[tuple[list[int], int]]:
    """(tokens, number of targets): the targets are the last tokens, and a model is fed all tokens but the last.

    A continuation of at most `block_size` tokens is one window, with as much of the context before it as fits. A longer one
    is cut, as lm_eval cuts texts: windows of `block_size` targets, the first with one token of context before it, the last
    one reaching back. Every token of the continuation is a target once. Raises ValueError where one of the two is empty.
    """
    if not len(context) or not len(continuation):
        raise ValueError("a log-probability needs a context and a continuation of at least one token each")
    whole = [*context, *continuation]
    first, end = len(context), len(whole)
    if end - first <= block_size:
        yield whole[max(0, end - block_size - 1) :], end - first
        return
    while first < end:
        last = min(first + block_size, end)
        yield whole[last - block_size - 1 : last], last - first
        first = last


@torch.inference_mode()
def log_likelihoods(
    model: GPT, pairs: Sequence[tuple[Ids, Ids]], device: torch.device, batch_tokens: int = BATCH_TOKENS
) -> list[tuple[float, bool]]:
    """For each (context, continuation): log p(continuation | context) in nats, and whether each token of it is the likeliest.

    The sum over tokens t of the continuation of log softmax(logits)_t, in the weights' precision, summed in float64. Windows
    of like length share a forward pass; they are padded on the right, which a causal model does not see. The result does not
    depend on the batches beyond rounding. Raises ValueError as `windows` does.
    """
    from tqdm import tqdm

    size = model.config.block_size
    found = [(index, *window) for index, pair in enumerate(pairs) for window in windows(*pair, size)]
    found.sort(key=lambda one: len(one[1]), reverse=True)  # the longest first: what does not fit in memory shows at once
    move(model, device)
    model = decoding.frozen(model)
    sums, likeliest = [0.0] * len(pairs), [True] * len(pairs)
    with tqdm(total=len(found), desc="scoring", unit="window", disable=None, leave=False) as bar:
        first = 0
        while first < len(found):
            batch = found[first : first + max(1, batch_tokens // len(found[first][1]))]
            for (index, *_), (nats, right) in zip(batch, _batch(model, [one[1:] for one in batch], device), strict=True):
                sums[index] += nats
                likeliest[index] &= right
            first += len(batch)
            bar.update(len(batch))
    return list(zip(sums, likeliest, strict=True))


def _batch(model: GPT, batch: Sequence[tuple[list[int], int]], device: torch.device) -> list[tuple[float, bool]]:
    """For each window the sum of its targets' log-probabilities, and whether all of them are the likeliest."""
    longest = max(len(tokens) for tokens, _ in batch)
    padded = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, _ in batch], device=device)  # (B, T + 1)
    ends = torch.tensor([len(tokens) for tokens, _ in batch], device=device)[:, None]
    counts = [count for _, count in batch]
    places = torch.arange(1, longest, device=device)  # of targets
    wanted = (places < ends) & (places >= ends - torch.tensor(counts, device=device)[:, None])  # (B, T)
    hidden = model.transformer(padded[:, :-1])[wanted]  # (N, C), row by row
    nats, right = [], []
    step = max(1, LOGITS // model.config.vocab_size)
    for part, answers in zip(hidden.split(step), padded[:, 1:][wanted].split(step), strict=True):
        scores = model.logits(part).float()  # (n, V)
        own = scores.gather(1, answers[:, None])[:, 0]
        nats.append((own - scores.logsumexp(1)).cpu().double())
        right.append((scores.argmax(1) == answers).cpu())
    sums = [float(part.sum()) for part in torch.cat(nats).split(counts)]
    return list(zip(sums, [bool(part.all()) for part in torch.cat(right).split(counts)], strict=True))
