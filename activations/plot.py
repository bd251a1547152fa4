"""Pictures of activations: the shapes that a model learned, layer by layer, against where they started and GELU."""

import io
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from activations import registry
from activations.activation import Activation
from activations.target import gelu

# Okabe and Ito's palette: told apart with any colour vision, and in grey by lightness.
LEARNED, START, GELU, INPUTS = "#0072B2", "#E69F00", "#000000", "#BBBBBB"
POINTS = 401
MAX_CHANNELS = 24  # drawn thinly where each channel has its own shape


def shapes(model: nn.Module, inputs: Mapping[str, Tensor] | None = None) -> bytes:
    """A PNG with one panel for each activation of `model`, in its order.

    A panel shows F as learned (a few channels thinly and their mean where each has its own), F at initialisation, GELU, and, as
    shading, the law of the layer's inputs: of the sample in `inputs` (by module name, any shape) where given, else the
    N(0, input_std^2) that its initialisation assumed. x runs over four standard deviations. ValueError without activations.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(name, module) for name, module in model.named_modules() if isinstance(module, Activation)]
    if not panels:
        raise ValueError(f"plot: {type(model).__name__} has no activation of ours; put one in by activations.swap")
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(0.6 + 2.7 * columns, 0.9 + 2.3 * rows), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for index, (axis, (name, module)) in enumerate(zip(axes, panels, strict=False)):
        _panel(axis, module, (inputs or {}).get(name))
        axis.set_title(f"layer {index + 1}", fontsize=9)
        if index + columns >= len(panels):
            axis.set_xlabel("x, input of the activation")
        if index % columns == 0:
            axis.set_ylabel("F(x)")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return png(figure)


def png(figure: Any) -> bytes:
    """A matplotlib figure as a PNG of at most 128 colours.

    Lines and translucent bands need no more: no colour of a panel with eleven arms moves by more than 14 of 255, and the file
    has a quarter of the bytes.
    """
    from PIL import Image  # matplotlib needs it too

    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png")
    Image.open(full).convert("RGB").quantize(128, Image.Quantize.FASTOCTREE).save(small, format="png", optimize=True)
    return small.getvalue()


@torch.no_grad()
def _panel(axis: Any, module: Activation, sample: Tensor | None) -> None:
    module = _on_cpu(module)
    std = float(module.input_std) if sample is None else max(float(sample.float().std(correction=0)), 1e-6)
    middle = 0.0 if sample is None else float(sample.float().mean())
    x = torch.linspace(middle - 4 * std, middle + 4 * std, POINTS, dtype=torch.float64)
    wide = x[:, None].expand(-1, module.channels)
    learned, start = module.reference(wide), _start(module).reference(wide).mean(1)
    if (learned - learned[:, :1]).abs().max() > 0:
        for channel in range(0, module.channels, math.ceil(module.channels / MAX_CHANNELS)):
            axis.plot(x, learned[:, channel], color=LEARNED, linewidth=0.5, alpha=0.25)
    axis.plot(x, gelu(x), color=GELU, linewidth=1, linestyle=":", label="GELU", zorder=2)
    axis.plot(x, start, color=START, linewidth=1.3, linestyle="--", label="at initialisation", zorder=3)
    axis.plot(x, learned.mean(1), color=LEARNED, linewidth=1.6, label="learned", zorder=4)
    drawn = torch.cat([learned.mean(1), start, gelu(x)])[(x - middle).abs().repeat(3) <= 3 * std]
    low, high = float(drawn.min()), float(drawn.max())
    axis.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axis.set_xlim(float(x[0]), float(x[-1]))
    _shade(axis, x, sample, std)
    axis.axhline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _shade(axis: Any, x: Tensor, sample: Tensor | None, std: float) -> None:
    """The density of the inputs on an axis of its own, a third of the panel high."""
    law = axis.twinx()
    if sample is None:
        edges, density = x, torch.exp(-(x / std).square() / 2)
    else:
        low, high = float(x[0]), float(x[-1])
        density = torch.histc(sample.detach().float().flatten(), bins=80, min=low, max=high).double()
        edges = torch.linspace(low, high, 80, dtype=torch.float64)
    law.fill_between(edges, density / density.max(), color=INPUTS, alpha=0.45, linewidth=0)
    law.set_ylim(0, 3)
    law.set_axis_off()
    law.set_zorder(axis.get_zorder() - 1)
    axis.patch.set_visible(False)
    axis.fill_between([], [], color=INPUTS, alpha=0.45, linewidth=0, label="inputs")


def _on_cpu(module: Activation) -> Activation:
    copy = registry.build(module.spec, module.channels, float(module.input_std), module.layer)
    copy.load_state_dict(module.state_dict())
    return copy


def _start(module: Activation) -> Activation:
    """Where it started: spec, input_std and layer determine it."""
    return registry.build(module.spec, module.channels, float(module.input_std), module.layer)
