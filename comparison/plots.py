"""The pictures of a report, each as PNG bytes: here the curves through training and through depth."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import activations
from comparison import intervals
from comparison.arm import Arm
from comparison.canvas import BETTER, WORSE, png, styles, time_colour, wrapped
from comparison.record import Record
from comparison.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CROWD = 12  # arms; more of them are drawn in a row of panels for each family
_LAYERS = 6  # at most so many columns of panels: first, last and evenly between


def figures(summary: Summary) -> dict[str, bytes]:
    """File stem -> PNG of every picture that the runs have data for."""
    drawn = {
        "loss": _loss(summary),
        "differences": intervals.forest(summary),
        "degrees": intervals.degrees(summary),
        "shapes": _shapes(summary),
        "gains": _gains(summary),
    }
    return {name: picture for name, picture in drawn.items() if picture}


def _loss(summary: Summary) -> bytes:
    """Validation loss against tokens, and training loss less the baseline's; bands are minimum to maximum over seeds."""
    groups = _groups(summary)
    crowded = len(groups) > 1

    def draw(figure: "Figure") -> None:
        grid = figure.subplots(len(groups), 2, squeeze=False, sharey="col")
        for arms, (left, right) in zip(groups, grid, strict=True):
            _draw_losses(summary, arms, left, right)
            handles, labels = left.get_legend_handles_labels()
            if crowded:
                right.legend(handles, labels, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
            else:
                figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=8)
        for column in grid.T:
            _limit_to_later_part(column)
        grid[0, 0].set_title("Validation loss")
        grid[0, 1].set_title("Training loss minus the baseline's, same batches")
        for axes in grid[-1]:
            axes.set_xlabel("training tokens")

    if crowded:
        return png(draw, 12.0, 0.6 + 2.6 * len(groups))
    return png(draw, 10.5, 4.0 + 0.2 * -(-len(summary.arms) // 3))


def _groups(summary: Summary) -> list[list[Arm]]:
    """The arms of each row of panels: all in one while they are few, else those of one family, small families together."""
    if len(summary.arms) <= _CROWD:
        return [list(summary.arms)]
    families: dict[str, list[Arm]] = {}
    for arm in summary.arms:
        families.setdefault(arm.family, []).append(arm)
    large = {family for family, arms in families.items() if len(arms) > 2}
    bases = [arm for arm in summary.arms if arm.activation == summary.baseline]
    others = [arm for arm in summary.arms if arm.family not in large and arm not in bases]
    rows = [[arm for arm in families[family] if arm not in bases] for family in large]
    rows = sorted((row for row in [others, *rows] if row), key=lambda row: summary.arms.index(row[0]))
    return [[*bases, *row] for row in rows] or [bases]


def _draw_losses(summary: Summary, arms: Sequence[Arm], left: "Axes", right: "Axes") -> None:
    from matplotlib.ticker import EngFormatter

    style = styles(arm.label for arm in arms)
    for arm in arms:
        curves = [np.array(record.evaluations["val_loss"]) for record in arm.records]
        if len({len(curve) for curve in curves}) == 1:
            _band(left, arm.records[0].tokens_curve(), np.array(curves), arm.label, style[arm.label])
        contrast = summary.contrast(arm)
        reference = next((other for other in summary.arms if contrast and other.label == contrast.reference), None)
        if contrast and reference:
            pairs = [(_of_seed(arm, seed), _of_seed(reference, seed)) for seed in contrast.seeds]
            if all(a.training["step"] == b.training["step"] for a, b in pairs) and pairs[0][0].training["step"]:
                tokens = np.array(pairs[0][0].training["step"]) * pairs[0][0].tokens_per_step
                difference = [np.subtract(a.training["train_loss"], b.training["train_loss"]) for a, b in pairs]
                _band(right, tokens, np.array([_smooth(row) for row in difference]), arm.label, style[arm.label])
    right.axhline(0, color="black", linewidth=0.8)
    left.set_ylabel("nats per token")
    for axes in (left, right):
        axes.xaxis.set_major_formatter(EngFormatter())


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
            axes.plot(x, table[step], color=time_colour(i, len(steps)), linewidth=1.3, label=f"step {step}")

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
            ("second_moment", "E[F²] / E[x²]", BETTER, "-"),
            ("slope", "E[F'²]", WORSE, "--"),
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
            line[0].set_ylabel(f"{wrapped(arm.label)}\n{ylabel}", fontsize=8)
        for layer, axes in zip(layers, grid[0], strict=True):
            axes.set_title(f"layer {_layer_number(layer)}", fontsize=9)
        for axes in grid[-1]:
            axes.set_xlabel(xlabel)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=8)

    return png(draw, 1.2 + 2.0 * len(layers), 0.9 + 1.7 * len(rows))


def depth(rows: Sequence[dict[str, Any]]) -> bytes:
    """Second moments against layer at the largest depth of `comparison.depth` rows, logarithmic, a line a spec and seed."""
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

    return png(draw, 8.5, 1.2 + 2.6 * len(networks) + 0.12 * len(specs))


def _band(axes: "Axes", x: np.ndarray, curves: np.ndarray, label: str, style: dict[str, Any]) -> None:
    axes.plot(x, curves.mean(0), label=label, linewidth=1.4, **style)
    if len(curves) > 1:
        axes.fill_between(x, curves.min(0), curves.max(0), color=style["color"], alpha=0.15, linewidth=0)


def _limit_to_later_part(panels: Sequence["Axes"]) -> None:
    """Scale to what the lines do after the first third: the first steps would squeeze everything else into one line."""
    lines = [np.asarray(line.get_ydata(), dtype=np.float64) for axes in panels for line in axes.lines]
    values = np.concatenate([line[len(line) // 3 :] for line in lines])
    margin = 0.15 * float(np.ptp(values)) + 1e-4
    for axes in panels:
        axes.set_ylim(float(values.min()) - margin, float(values.max()) + margin)


def _smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    """Running mean; at the ends over what there is."""
    kernel = np.ones(min(width, len(values)))
    smoothed: np.ndarray = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    return smoothed


def _of_seed(arm: Arm, seed: int) -> Record:
    return next(record for record in arm.records if record.seed == seed)


def _some(layers: list[str]) -> list[str]:
    if len(layers) <= _LAYERS:
        return layers
    return [layers[i] for i in np.linspace(0, len(layers) - 1, _LAYERS).round().astype(int)]


def _layer_number(name: str) -> int:
    """The block's number in a name such as transformer.h.3.mlp.act."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), 0)
