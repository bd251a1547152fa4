"""Writing text with a model: the loop over tokens, the draw of one, and what makes it fast and changes no token.

Fast are activations that are prepared once, and a compiled matrix-vector product.
"""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from activations import Activation

M = TypeVar("M", bound=nn.Module)
Matvec = Callable[[Tensor, Tensor], Tensor]  # (out, in), (in,) -> (out,)


def stream(
    gpt: Any,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    eos: int | None = None,
    window: Literal["sliding", "halves"] = "sliding",
) -> Iterator[Tensor]:
    """Yield one new token a sequence, (B,), at a time, after `tokens` (B, T), by a model.GPT.

    Tokens are drawn on the CPU by `generator`; temperature 0 takes the likeliest.
    Past block_size the context is its last block_size tokens. Learned positions then shift with every token, which makes
    cached keys stale: the cache is rebuilt, and a token costs what it costs without a cache. With `window` halves a full cache
    is rebuilt from its last half, once every block_size / 2 tokens: a token then sees between a half and all of block_size
    tokens, so the text may be another one.
    A sequence that has drawn `eos` gives nothing but `eos` from then on; when all have, the iteration ends.
    """
    size, cache = gpt.config.block_size, None
    ended = torch.zeros(len(tokens), dtype=torch.bool)
    for _ in range(max_new_tokens):
        anew = cache is None or cache.length >= size
        kept = size if cache is None or window == "sliding" else max(1, size // 2)
        new = tokens[:, -kept if anew else -1 :]
        if anew and use_cache:
            cache = gpt.empty_cache(tokens)
        logits = gpt.logits(gpt.transformer(new, cache)[:, -1]).float()  # (B, V)
        chosen = sample(logits, temperature, top_k, top_p, generator)
        if eos is not None:
            chosen = torch.where(ended, eos, chosen)
            ended |= chosen == eos
        chosen = chosen.to(tokens.device)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        yield chosen
        if ended.all():
            return


def sample(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None) -> Tensor:
    """One token id a row, (B,), of `logits` (B, V), on the CPU.

    `top_k` > 0 keeps the k likeliest; `top_p` < 1 keeps the smallest set of likeliest tokens with at least that probability.
    """
    if temperature == 0:
        return logits.argmax(-1).cpu()
    # softmax knows no shift: subtracting the maximum first keeps a small temperature from making inf - inf.
    logits = (logits - logits.amax(-1, keepdim=True)).cpu() / temperature
    if top_k:
        kth = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p < 1:
        ordered, order = logits.softmax(-1).sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the mass of all likelier tokens already suffices
        outside[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


class Frozen(nn.Module):
    """An activation whose parameters will not change, (..., channels) -> (..., channels), without gradients."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.function = activation.frozen()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def frozen(model: M) -> M:
    """The model with its activations frozen: a copy of the module tree that shares every parameter.

    The model itself comes back where no activation has anything to prepare.
    """
    children = {name: child and (_frozen_activation(child) or frozen(child)) for name, child in model._modules.items()}
    if all(child is model._modules[name] for name, child in children.items()):
        return model
    twin = copy.copy(model)
    twin._modules = children
    return twin


def _frozen_activation(module: nn.Module) -> nn.Module | None:
    if not isinstance(module, Activation):
        return None
    prepared = Frozen(module)
    return module if prepared.function is module else prepared


def compile_products(model: nn.Module) -> None:
    """From now on compute a token that is generated alone (one sequence, on a CPU) by a compiled matrix-vector product.

    Such a token costs one reading of all weights. Libraries read them with one core, in bfloat16 at a third of its
    bandwidth. The compiled sum uses all of both (LOG.md). The first token waits seconds for the compiler.
    Every module of the model that has a `product` (F.linear by default) gets the new one.
    """
    # Weights have static shapes in spite of `dynamic`: a GPT-2 needs five kernels in all.
    product = partial(linear, compiled_matvec())
    for module in model.modules():
        if hasattr(module, "product"):
            module.product = product  # type: ignore[assignment]


def compiled_matvec() -> Matvec:
    """`matvec`, compiled."""
    return torch.compile(matvec, dynamic=True)


def linear(matvec: Matvec, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, (..., in) -> (..., out), by `matvec` where x is a single row."""
    if x.numel() != weight.size(1):
        return F.linear(x, weight, bias)
    y = matvec(weight, x.flatten()).view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def matvec(weight: Tensor, x: Tensor) -> Tensor:
    """W x, (out, in) and (in,) -> (out,), summed in float32; only a compiler keeps the products out of memory."""
    return (weight.float() * x.float()).sum(-1).to(x.dtype)
