"""The coordinate check of muP: how far a few steps of training move the activations of networks of several widths.

A learning rate transfers over widths where the change of every activation has a size that does not depend on the width (Yang et
al. 2022, arXiv 2203.03466, appendix D.1). Measured: the root mean square of x_t - x_0 over all coordinates, tokens and layers,
on one batch, after t steps on it at a constant learning rate. In a logarithmic picture over the width that is a flat line
with `mup_base_width`, and a rising one without.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from comparison.document import Table
from comparison.plots import Image
from comparison.plots import picture as drawn
from config.schema import Config
from model import GPT, MLP, CausalSelfAttention
from runtime.optim import optimizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
PLACES = ("attention", "inputs of the activation", "MLP", "residual stream", "logits")
KINDS = ("standard", "muP")
VOCABULARY = 256


def measure(config: Config, widths: Sequence[int], steps: int, seeds: int) -> list[Row]:
    """A row for each of KINDS, width, seed and step from 1 on: the change at each of PLACES.

    The base of muP is the smallest width; `config` gives everything else. Tokens are drawn at random: the batch is learned by
    heart. ValueError where a width does not fit the other fields.
    """
    rows = []
    for kind in KINDS:
        for width in widths:
            base = min(widths) if kind == "muP" else 0
            wide = replace(config, n_embd=width, mup_base_width=base, vocab_size=VOCABULARY)
            for seed in range(seeds):
                rows += [{"kind": kind, "width": width, "seed": seed} | row for row in _changes(wide, steps, seed)]
    return rows


def slopes(rows: Sequence[Row], step: int) -> dict[tuple[str, str], float]:
    """(kind, place) -> slope of log change over log width after `step` steps, by least squares over widths and seeds.

    0: the change does not depend on the width; 1: it grows with it. NaN where a change is not finite.
    """
    found = {}
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind and row["step"] == step]
        for place in PLACES:
            x, y = np.log([row["width"] for row in mine]), np.log([row[place] or math.nan for row in mine])
            found[kind, place] = float(np.polyfit(x, y, 1)[0]) if np.isfinite(y).all() else math.nan
    return found


def table(rows: Sequence[Row]) -> Table:
    """The change after the last step at each width (geometric mean over seeds), and its slope over widths."""
    last = max(row["step"] for row in rows)
    widths = sorted({row["width"] for row in rows})
    found = slopes(rows, last)
    lines = [
        (kind, place, *(_mean(rows, kind, place, width, last) for width in widths), f"{found[kind, place]:+.2f}")
        for place in PLACES
        for kind in KINDS
    ]
    return Table(("model", "place", *map(str, widths), "slope"), tuple(lines))


def picture(rows: Sequence[Row]) -> Image:
    """Change over width, both logarithmic: a row for each kind, a column for each place, light to dark with the steps."""
    steps = sorted({row["step"] for row in rows})
    widths = sorted({row["width"] for row in rows})

    def draw(figure: "Figure") -> None:
        from matplotlib import colormaps

        colours = colormaps["cividis"]
        grid = figure.subplots(len(KINDS), len(PLACES), sharex=True, sharey=True, squeeze=False)
        for kind, line in zip(KINDS, grid, strict=True):
            for place, axes in zip(PLACES, line, strict=True):
                for step in steps:
                    values = [float(_mean(rows, kind, place, width, step)) for width in widths]
                    shade = colours(0.9 - 0.9 * steps.index(step) / max(1, len(steps) - 1))
                    axes.plot(widths, values, marker="o", markersize=3, linewidth=1.1, color=shade, label=f"step {step}")
                axes.set(xscale="log", yscale="log")
                axes.set_xticks(widths, [str(width) for width in widths])
                axes.minorticks_off()
                if kind == KINDS[0]:
                    axes.set_title(place)
                else:
                    axes.set_xlabel("width")
            line[0].set_ylabel(f"{kind}: change (RMS)")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(steps), fontsize=8)

    return drawn(draw, 2.1 * len(PLACES), 4.6)


def _mean(rows: Sequence[Row], kind: str, place: str, width: int, step: int) -> str:
    mine = [row[place] for row in rows if (row["kind"], row["width"], row["step"]) == (kind, width, step)]
    return f"{statistics.geometric_mean(mine):.3g}" if all(mine) else "nan"


def _changes(config: Config, steps: int, seed: int) -> list[Row]:
    gpt = GPT(config.gpt(VOCABULARY), seed)
    adam = optimizer(gpt, config, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (config.global_batch_size, config.block_size + 1), generator=generator)
    before, rows = _coordinates(gpt, tokens[:, :-1]), []
    for step in range(1, steps + 1):
        gpt(tokens[:, :-1], tokens[:, 1:]).backward()
        adam.step()  # at the groups' own rates: those of learning_rate
        adam.zero_grad()
        now = _coordinates(gpt, tokens[:, :-1])
        rows.append({"step": step} | {place: _change(before[place], now[place]) for place in PLACES})
    return rows


def _change(before: Sequence[Tensor], now: Sequence[Tensor]) -> float | None:
    change = math.sqrt(statistics.fmean(float((b - a).double().square().mean()) for a, b in zip(before, now, strict=True)))
    return change if math.isfinite(change) else None


@torch.no_grad()
def _coordinates(gpt: GPT, tokens: Tensor) -> dict[str, list[Tensor]]:
    """What comes out at each of PLACES, a tensor a layer."""
    found: dict[str, list[Tensor]] = {place: [] for place in PLACES}
    handles = []

    def note(module: nn.Module, place: str) -> None:
        handles.append(module.register_forward_hook(lambda _, inputs, output: found[place].append(output)))

    for module in gpt.modules():
        if isinstance(module, CausalSelfAttention):
            note(module, "attention")
        if isinstance(module, MLP):
            note(module, "MLP")
            note(module.c_fc if module.c_gate is None else module.c_gate, "inputs of the activation")
    note(gpt.transformer.h[-1], "residual stream")
    found["logits"].append(gpt(tokens))
    for handle in handles:
        handle.remove()
    return found
