"""What makes generation fast and changes no token: activations prepared once, and a compiled matrix-vector product."""

import copy
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from activations import Activation

M = TypeVar("M", bound=nn.Module)
Matvec = Callable[[Tensor, Tensor], Tensor]  # (out, in), (in,) -> (out,)


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
