"""How variance travels through depth at initialisation: the stability that unit gain promises, without training anything.

Two networks. `stack`: x -> F(W x), W Gaussian of variance 1/width, without normalisation or residual: the papers' argument
(arXiv 2502.01247). E F^2 = s^2 and E F'^2 = 1 make variance 1 a fixed point of both directions. **The rule**: a wide layer maps
the variance q to V(q) = E F(sqrt(q) z)^2, whose slope at 1 is E F'^2 + E[F F'']; deviations (finite width, the law's tails)
shrink where that lies between -1 and 1, at unit gain where -2 < E[F F''] < 0, and grow with depth otherwise. `rule` computes
it. `gpt`: our pre-norm GPT, whose residual stream adds up instead.

Forward is E h^2 after layer l over E h^2 before the first; backward is E (dL/dh)^2 at layer l over that after the last, L the
product of the output with Gaussian noise. Where they are not finite they are None.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import activations
from activations import registry
from comparison.document import Table
from comparison.plots import Image, styles
from comparison.plots import picture as drawn
from config.schema import GPTConfig
from model import GPT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
NETWORKS = ("stack", "gpt")
TOKENS, BATCH = 64, 4


def measure(specs: Sequence[str], depths: Sequence[int], width: int, seeds: int) -> list[Row]:
    """A row for each network, spec, depth and seed: `forward` and `backward`, depth + 1 numbers each, from input to output."""
    return [
        {"network": network, "activation": spec, "depth": depth, "seed": seed, "width": width}
        | _second_moments(*_network(network, spec, depth, width, seed))
        for network in NETWORKS
        for spec in specs
        for depth in depths
        for seed in range(seeds)
    ]


def table(rows: Sequence[Row]) -> Table:
    """What is left of the second moments after all layers, in both directions: geometric mean over seeds (least to most).

    And what the rule says of the stack: E F^2, E F'^2 and E[F F''] of the activation for N(0, 1) inputs.
    """
    lines = []
    rules = {spec: tuple(f"{value:.3g}" for value in rule(spec)) for spec in {row["activation"] for row in rows}}
    for key in dict.fromkeys((row["network"], row["activation"], row["depth"]) for row in rows):
        members = [row for row in rows if (row["network"], row["activation"], row["depth"]) == key]
        ends = (_ends([row["forward"][-1] for row in members]), _ends([row["backward"][0] for row in members]))
        lines.append((*map(str, key), *ends, *(rules[key[1]] if key[0] == "stack" else ("", "", ""))))
    return Table(("network", "activation", "depth", "forward", "backward", "E F^2", "E F'^2", "E[F F'']"), tuple(lines))


def rule(spec: str) -> tuple[float, float, float]:
    """E F^2, E F'^2 and E[F F''] under N(0, 1), F'' with its impulses at kinks: the last is V'(1) - E F'^2.

    Variance 1 is a fixed point where E F^2 = 1. It attracts where -1 < E F'^2 + E[F F''] < 1, and gradients keep their size on
    the way back where E F'^2 = 1.
    """
    act = activations.build(spec, registry.parse(spec)[1].get("groups", 1))
    h = 1e-3
    wider, narrower = (activations.gains(act, math.sqrt(1 + step))[0] for step in (h, -h))
    second, slope = activations.gains(act, 1.0)
    return second, slope, (wider - narrower) / (2 * h) - slope


def _ends(ends: Sequence[float | None]) -> str:
    finite = [end for end in ends if end]
    if len(finite) < len(ends):
        return f"overflow in {len(ends) - len(finite)} of {len(ends)}"
    return f"{statistics.geometric_mean(finite):.3g} ({min(finite):.3g} to {max(finite):.3g})"


def _network(network: str, spec: str, depth: int, width: int, seed: int) -> tuple[list[nn.Module], Tensor]:
    """The layers and their input (BATCH, TOKENS, width)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, TOKENS, width, generator=generator)
    if network == "stack":
        return [_Layer(width, spec, generator) for _ in range(depth)], x
    config = GPTConfig(n_layer=depth, n_head=max(1, width // 64), n_embd=width, block_size=TOKENS, vocab_size=256)
    gpt = GPT(replace(config, activation=spec), seed)
    return list(gpt.transformer.h), x * 0.02 * math.sqrt(2)  # what token and position embeddings of GPT-2's init add up to


def _second_moments(layers: Sequence[nn.Module], x: Tensor) -> dict[str, list[float | None]]:
    hidden = [x.requires_grad_()]
    for layer in layers:
        hidden.append(layer(hidden[-1]))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(hidden[-1], hidden, noise)
    forward, backward = ([float(t.detach().double().square().mean()) for t in tensors] for tensors in (hidden, gradients))
    return {"forward": [_ratio(h, forward[0]) for h in forward], "backward": [_ratio(g, backward[-1]) for g in backward]}


def _ratio(a: float, b: float) -> float | None:
    return a / b if math.isfinite(a) and math.isfinite(b) else None


class _Layer(nn.Module):
    """F(W x)."""

    def __init__(self, width: int, spec: str, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, generator=generator) / math.sqrt(width))
        self.act = activations.build(spec, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x @ self.weight.T)
        return y


def picture(rows: Sequence[Row]) -> Image:
    """Second moments against layer at the largest depth of `measure`'s rows, logarithmic, a line a spec and seed."""
    deepest = [row for row in rows if row["depth"] == max(row["depth"] for row in rows)]
    specs = list(dict.fromkeys(row["activation"] for row in deepest))
    networks = list(dict.fromkeys(row["network"] for row in deepest))

    def draw(figure: "Figure") -> None:
        grid = figure.subplots(len(networks), 2, squeeze=False)
        for network, pair in zip(networks, grid, strict=True):
            for axes, direction in zip(pair, ("forward", "backward"), strict=True):
                for spec, style in styles(specs).items():
                    curves = [row[direction] for row in deepest if (row["network"], row["activation"]) == (network, spec)]
                    for seed, curve in enumerate(curves):
                        values = [math.nan if value is None else value for value in curve]
                        axes.plot(values, label=None if seed else spec, linewidth=1.1, **style)
                axes.set(yscale="log", xlabel="layer", title=f"{network}, {direction}")
                low, high = axes.get_ylim()
                axes.set_ylim(max(low, 1e-12), min(high, 1e12))
            pair[0].set_ylabel("second moment, relative")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)

    return drawn(draw, 8.5, 1.2 + 2.6 * len(networks) + 0.12 * len(specs))
