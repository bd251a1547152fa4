"""The pictures of a report, each as PNG bytes. matplotlib is imported where it draws, and needs no display.

Colours are Okabe and Ito's, which the colour-blind tell apart; beyond seven arms the line style tells them apart too.
Time runs from light to dark along cividis, which is uniform for every kind of colour vision.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import activations
from comparison.record import Record
from comparison.statistics import percent
from comparison.summary import Arm, Contrast, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")  # without yellow: unreadable on white
LINES = ("-", "--", ":", "-.")
_LAYERS = 6  # at most so many columns of panels: first, last and evenly between
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def figures(summary: Summary) -> dict[str, bytes]:
    """File stem -> PNG of every picture that the runs have data for."""
    drawn = {
        "loss": _loss(summary),
        "differences": _forest(summary),
        "shapes": _shapes(summary),
        "gains": _gains(summary),
    }
    return {name: picture for name, picture in drawn.items() if picture}


def _loss(summary: Summary) -> bytes | None:
    """Validation loss against tokens, and its paired difference to the baseline; bands are minimum to maximum over seeds."""
    from matplotlib.ticker import EngFormatter

    styles = _styles(summary.arms)

    def draw(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2)
        for arm in summary.arms:
            curves = [np.array(record.evaluations["val_loss"]) for record in arm.records]
            if len({len(curve) for curve in curves}) == 1:
                _band(left, arm.records[0].tokens_curve(), np.array(curves), arm.label, styles[arm.label])
            contrast = summary.contrast(arm)
            reference = next((other for other in summary.arms if contrast and other.label == contrast.reference), None)
            if contrast and reference:
                pairs = [(_of_seed(arm, seed), _of_seed(reference, seed)) for seed in contrast.seeds]
                if all(a.training["step"] == b.training["step"] for a, b in pairs) and pairs[0][0].training["step"]:
                    tokens = np.array(pairs[0][0].training["step"]) * pairs[0][0].tokens_per_step
                    difference = [np.subtract(a.training["train_loss"], b.training["train_loss"]) for a, b in pairs]
                    _band(right, tokens, np.array([_smooth(row) for row in difference]), arm.label, styles[arm.label])
        right.axhline(0, color="black", linewidth=0.8)
        _limit_to_later_part(left)
        _limit_to_later_part(right)
        for axes in (left, right):
            axes.xaxis.set_major_formatter(EngFormatter())
        left.set(xlabel="training tokens", ylabel="validation loss (nats per token)", title="Validation loss")
        right.set(
            xlabel="training tokens",
            ylabel="difference (nats per token)",
            title="Training loss minus the baseline's, same batches",
        )
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=8)

    return _png(draw, 10.5, 4.0 + 0.2 * -(-len(summary.arms) // 3))


def _forest(summary: Summary) -> bytes | None:
    """Paired differences in perplexity with their intervals, one row a contrast; small marks are single seeds."""
    contrasts = summary.contrasts
    if not contrasts:
        return None

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for row, contrast in enumerate(contrasts):
            interval, alone = (
                (contrast.interval, False)
                if contrast.interval.low is not None
                else (contrast.documents or contrast.interval, True)
            )
            centre = percent(contrast.interval.mean)
            certain = interval.holds_zero is False
            colour = OKABE_ITO[0] if not certain else OKABE_ITO[6] if interval.mean < 0 else OKABE_ITO[4]
            axes.plot(
                [percent(d) for d in contrast.differences], [row] * len(contrast.differences), "|", color="0.55", markersize=9
            )
            if interval.low is not None and interval.high is not None:
                axes.plot(
                    [percent(interval.low), percent(interval.high)],
                    [row, row],
                    "--" if alone else "-",
                    color=colour,
                    linewidth=2,
                )
            axes.plot(
                centre, row, "s" if certain else "o", color=colour, markerfacecolor=colour if certain else "white", markersize=7
            )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(contrasts)), [_forest_label(contrast) for contrast in contrasts])
        axes.set_ylim(len(contrasts) - 0.5, -0.5)
        axes.set_xlabel("change of validation perplexity, percent (negative is better)")
        axes.grid(visible=False, axis="y")

    longest = max(len(line) for contrast in contrasts for line in _forest_label(contrast).split("\n"))
    return _png(draw, 5.5 + 0.075 * longest, 1.1 + 0.42 * len(contrasts))


def _shapes(summary: Summary) -> bytes | None:
    """The activation of each layer through training, one row an arm, light is early, dark is late; dashed: GELU."""
    shown = [(arm, next((r for r in arm.records if r.shapes), None)) for arm in summary.arms]
    rows = [(arm, record) for arm, record in shown if record and any(len(table) > 2 for table in record.shapes.values())]
    if not rows:
        return None
    gelu = activations.build("gelu", 1)

    def panel(axes: "Axes", arm: Arm, record: Record, layer: str) -> None:
        table = record.shapes[layer]
        x = np.array(table["x"])
        axes.plot(x, gelu(torch.from_numpy(x)[:, None])[:, 0], "--", color="0.5", linewidth=1, label="GELU")
        steps = sorted((name for name in table if name != "x"), key=int)
        for i, step in enumerate(steps):
            axes.plot(x, table[step], color=_time(i, len(steps)), linewidth=1.3, label=f"step {step}")

    return _grid(rows, lambda record: record.shapes, panel, "x", "F(x)")


def _gains(summary: Summary) -> bytes | None:
    """Measured gains of each layer through training, one row an arm; 1 keeps the variance forward and backward."""
    shown = [(arm, next((r for r in arm.records if r.gains), None)) for arm in summary.arms]
    rows = [(arm, record) for arm, record in shown if record]
    if not rows:
        return None

    def panel(axes: "Axes", arm: Arm, record: Record, layer: str) -> None:
        table = record.gains[layer]
        for column, label, colour, line in (
            ("second_moment", "E[F²] / E[x²]", OKABE_ITO[6], "-"),
            ("slope", "E[F'²]", OKABE_ITO[4], "--"),
        ):
            axes.plot(table["step"], table[column], line, color=colour, label=label, linewidth=1.3)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_ylim(bottom=0)

    return _grid(rows, lambda record: record.gains, panel, "step", "gain")


def _grid(
    rows: Sequence[tuple[Arm, Record]],
    tables: Callable[[Record], dict[str, Any]],
    panel: Callable[["Axes", Arm, Record, str], None],
    xlabel: str,
    ylabel: str,
) -> bytes:
    """Panels: one row an arm (its first measured seed), one column a layer."""
    layers = _some(sorted(tables(rows[0][1]), key=_layer_number))

    def draw(figure: "Figure") -> None:
        grid = figure.subplots(len(rows), len(layers), squeeze=False)
        for (arm, record), line in zip(rows, grid, strict=True):
            for layer, axes in zip(layers, line, strict=True):
                if layer in tables(record):
                    panel(axes, arm, record, layer)
            line[0].set_ylabel(f"{_wrapped(arm.label)}\n{ylabel}", fontsize=8)
        for layer, axes in zip(layers, grid[0], strict=True):
            axes.set_title(f"layer {_layer_number(layer)}", fontsize=9)
        for axes in grid[-1]:
            axes.set_xlabel(xlabel)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=8)

    return _png(draw, 1.2 + 2.0 * len(layers), 0.9 + 1.7 * len(rows))


def depth(rows: Sequence[dict[str, Any]]) -> bytes:
    """Second moments against layer at the largest depth of `comparison.depth` rows, logarithmic, a line a spec and seed."""
    deepest = [row for row in rows if row["depth"] == max(row["depth"] for row in rows)]
    specs = list(dict.fromkeys(row["activation"] for row in deepest))
    networks = list(dict.fromkeys(row["network"] for row in deepest))

    def draw(figure: "Figure") -> None:
        grid = figure.subplots(len(networks), 2, squeeze=False)
        for network, pair in zip(networks, grid, strict=True):
            for axes, direction in zip(pair, ("forward", "backward"), strict=True):
                for index, spec in enumerate(specs):
                    style = {
                        "color": OKABE_ITO[index % len(OKABE_ITO)],
                        "linestyle": LINES[index // len(OKABE_ITO) % len(LINES)],
                    }
                    curves = [row[direction] for row in deepest if (row["network"], row["activation"]) == (network, spec)]
                    for seed, curve in enumerate(curves):
                        values = [math.nan if value is None else value for value in curve]
                        axes.plot(values, label=None if seed else spec, linewidth=1.1, **style)
                axes.set(yscale="log", xlabel="layer", title=f"{network}, {direction}")
                low, high = axes.get_ylim()
                axes.set_ylim(max(low, 1e-12), min(high, 1e12))
            pair[0].set_ylabel("second moment, relative")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)

    return _png(draw, 8.5, 1.2 + 2.6 * len(networks) + 0.12 * len(specs))


def _png(draw: Callable[["Figure"], None], width: float, height: float) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _styles(arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    return {
        arm.label: {"color": OKABE_ITO[i % len(OKABE_ITO)], "linestyle": LINES[i // len(OKABE_ITO) % len(LINES)]}
        for i, arm in enumerate(arms)
    }


def _band(axes: "Axes", x: np.ndarray, curves: np.ndarray, label: str, style: dict[str, Any]) -> None:
    axes.plot(x, curves.mean(0), label=label, linewidth=1.4, **style)
    if len(curves) > 1:
        axes.fill_between(x, curves.min(0), curves.max(0), color=style["color"], alpha=0.15, linewidth=0)


def _limit_to_later_part(axes: "Axes") -> None:
    """Scale to what the lines do after the first third: the first steps would squeeze everything else into one line."""
    lines = [np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines]
    values = np.concatenate([line[len(line) // 3 :] for line in lines])
    margin = 0.15 * float(np.ptp(values)) + 1e-4
    axes.set_ylim(float(values.min()) - margin, float(values.max()) + margin)


def _smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Running mean; at the ends over what there is."""
    kernel = np.ones(min(width, len(values)))
    smoothed: np.ndarray = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    return smoothed


def _forest_label(contrast: Contrast) -> str:
    return f"{contrast.arm}\nagainst {contrast.reference}"


def _of_seed(arm: Arm, seed: int) -> Record:
    return next(record for record in arm.records if record.seed == seed)


def _some(layers: list[str]) -> list[str]:
    if len(layers) <= _LAYERS:
        return layers
    return [layers[i] for i in np.linspace(0, len(layers) - 1, _LAYERS).round().astype(int)]


def _layer_number(name: str) -> int:
    """The block's number in a name such as transformer.h.3.mlp.act."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), 0)


def _time(i: int, count: int) -> Any:
    """Light to dark."""
    import matplotlib

    return matplotlib.colormaps["cividis"](0.85 * (1 - i / max(1, count - 1)))


def _wrapped(label: str, width: int = 22) -> str:
    """The label in lines of at most `width` characters where it can be cut: before a space or after a comma."""
    lines = [""]
    for part in label.replace(",", ",\v").replace(" ", "\v ").split("\v"):
        fits = len(lines[-1]) + len(part) <= width
        lines[-1:] = [lines[-1] + part] if fits else [lines[-1], part.lstrip()]
    return "\n".join(lines)
