"""The pictures of a report, each as PNG and as SVG: curves through training, differences with their intervals, learned shapes.

Colours are Okabe and Ito's, which the colour-blind tell apart; beyond seven arms the line style tells them apart too. Time runs
from light to dark along cividis, which is uniform for every kind of colour vision. matplotlib needs no display here.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

import activations
from activations import plot, registry
from comparison.axes import divided, logarithmic
from comparison.judge import Arm, Contrast, Summary
from comparison.plan import short
from comparison.record import Record
from comparison.statistics import percent, perplexity
from config.arm import split
from config.schema import field_types

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Table = dict[str, list[float]]  # column -> values, of one layer
DOTS = 200.0  # an inch, of a PNG
_CROWD = 12  # arms; more of them are drawn in a row of panels for each family
_DENSE = 0.15  # of the highest density: within about two deviations of a normal law
_LAYERS = 6  # at most so many columns of panels: first, last and evenly between
_TICKS = (-50, -20, -10, -5, 0, 5, 10, 20, 50, 100, 200, 500)
_CHANGE = "change of validation perplexity, percent"
OKABE_ITO = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")  # without yellow: unreadable on white
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
BETTER, WORSE, UNCERTAIN = OKABE_ITO[6], OKABE_ITO[4], OKABE_ITO[0]
_ROWS = 10
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "comparison",  # the same bytes for the same runs
}


@dataclass(frozen=True)
class Image:
    """One picture, for a screen and for a paper."""

    png: bytes
    """`DOTS` an inch."""
    svg: bytes
    """The same figure as vectors, letters too."""


def picture(draw: Callable[["Figure"], None], width: float, height: float) -> Image:
    """The figure that `draw` fills, `width` by `height` inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=DOTS, layout="constrained")
        draw(figure)
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        return Image(plot.png(figure), svg.getvalue())


def styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Label -> colour and line style, all different up to 28 labels."""
    return {
        label: {"color": OKABE_ITO[i % len(OKABE_ITO)], "linestyle": LINES[i // len(OKABE_ITO) % len(LINES)]}
        for i, label in enumerate(labels)
    }


def time_colour(i: int, count: int) -> Any:
    """Light to dark."""
    import matplotlib

    return matplotlib.colormaps["cividis"](0.85 * (1 - i / max(1, count - 1)))


def wrapped(label: str, width: int = 22) -> str:
    """The label in lines of at most `width` characters where it can be cut: before a space or after a comma."""
    lines = [""]
    for part in label.replace(",", ",\v").replace(" ", "\v ").split("\v"):
        fits = len(lines[-1]) + len(part) <= width
        lines[-1:] = [lines[-1] + part] if fits else [lines[-1], part.lstrip()]
    return "\n".join(lines)


def figures(summary: Summary) -> dict[str, Image]:
    """File stem -> every picture that the runs have data for."""
    drawn = {
        "loss": _loss(summary),
        "differences": forest(summary),
        "degrees": degrees(summary),
        "cost": _cost(summary),
        "rates": _rates(summary),
        "shapes": _shapes(summary),
        "coefficients": _coefficients(summary),
        "gains": _gains(summary),
    }
    return {name: picture for name, picture in drawn.items() if picture}


def _loss(summary: Summary) -> Image:
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
        return picture(draw, 12.0, 0.6 + 2.6 * len(groups))
    return picture(draw, 10.5, 4.0 + 0.2 * -(-len(summary.arms) // 3))


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
        contrast, reference = summary.contrast(arm), summary.reference(arm)
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


def _cost(summary: Summary) -> Image | None:
    """Validation loss against FLOPs and against step time, and the final perplexity against the time of a step."""
    from matplotlib.ticker import EngFormatter

    style = styles(arm.label for arm in summary.arms)

    def draw(figure: "Figure") -> None:
        flops, seconds, quality = figure.subplots(1, 3)
        for arm in summary.arms:
            first, step_time = arm.records[0], arm.mean("ms_per_step")
            curves = [np.array(record.evaluations["val_loss"]) for record in arm.records]
            if len({len(curve) for curve in curves}) == 1 and len(curves[0]) > 1:
                tokens = first.tokens_curve()
                _band(flops, tokens * first.flops_per_token, np.array(curves), arm.label, style[arm.label])
                if step_time:
                    _band(seconds, tokens / first.tokens_per_step * step_time / 1000, np.array(curves), "", style[arm.label])
            if step_time:
                point = {"color": style[arm.label]["color"], "marker": MARKERS[summary.arms.index(arm) // len(OKABE_ITO) % 4]}
                lowest, highest = perplexity(min(arm.losses)), perplexity(max(arm.losses))
                # Of equal losses the mean may round to beyond them, and matplotlib refuses a bar below zero.
                ends = [[max(0.0, arm.perplexity - lowest)], [max(0.0, highest - arm.perplexity)]]
                quality.errorbar(step_time, arm.perplexity, ends, label=arm.label, markersize=5, linewidth=1, **point)
        flops.set(title="Loss against FLOPs", xlabel="training FLOPs", ylabel="validation loss, nats per token")
        seconds.set(title="Loss against step time", xlabel="steps times median step time, s")
        quality.set(title="Quality against cost", xlabel="ms per step", ylabel="validation perplexity")
        curves_of = [axes for axes in (flops, seconds) if axes.lines]
        if curves_of:
            _limit_to_later_part(curves_of)
        for axes in (flops, seconds):
            axes.xaxis.set_major_formatter(EngFormatter())
        handles, labels = max((axes.get_legend_handles_labels() for axes in (flops, quality)), key=lambda found: len(found[1]))
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)

    if not any(arm.mean("ms_per_step") for arm in summary.arms):
        return None
    return picture(draw, 11.0, 3.8 + 0.2 * -(-len(summary.arms) // 3))


def _rates(summary: Summary) -> Image | None:
    """The loss that chose each arm's learning rate against the rates; the chosen one is filled."""
    swept = [arm for arm in summary.arms if arm.loss_by_rate]
    if not swept:
        return None
    style = styles(arm.label for arm in summary.arms)

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for arm in swept:
            rates, losses = list(arm.loss_by_rate), list(arm.loss_by_rate.values())
            axes.plot(rates, losses, marker="o", markersize=5, markerfacecolor="white", label=arm.label, **style[arm.label])
            axes.plot(arm.rate, arm.loss_by_rate[arm.rate], "o", markersize=5, color=style[arm.label]["color"])
        ticks = sorted({rate for arm in swept for rate in arm.loss_by_rate})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
        axes.minorticks_off()
        axes.set(xlabel="learning rate", ylabel="loss on every other window,\nnats per token")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)

    return picture(draw, 6.0, 3.6 + 0.1 * len(swept))


def _shapes(summary: Summary) -> Image | None:
    """The activation of each layer through training over the density of its inputs, one row an arm; dashed: GELU."""
    gelu = activations.build("gelu", 1)

    def panel(axes: "Axes", table: Table) -> None:
        x = np.array(table["x"])
        # Runs before 2026-11-27 know of the inputs' law its deviation alone: x reaches three of them.
        density = np.array(table.get("density") or np.exp(-((3 * x / x.max()) ** 2) / 2))
        axes.plot(x, gelu(torch.from_numpy(x)[:, None])[:, 0], "--", color="0.5", linewidth=1, label="GELU")
        steps = sorted((name for name in table if name not in ("x", "density")), key=int)
        for i, step in enumerate(steps):
            axes.plot(x, table[step], color=time_colour(i, len(steps)), linewidth=1.3, label=f"step {step}")
        # Where inputs are: a polynomial's tails, which few inputs reach, would flatten what all the others pass through.
        dense = np.concatenate([np.array(line.get_ydata())[density > _DENSE] for line in axes.lines])
        margin = 0.1 * float(np.ptp(dense)) + 1e-6
        low, high = float(dense.min()) - margin, float(dense.max()) + margin
        axes.fill_between(x, low, low + density * (high - low), color="0.9", linewidth=0, zorder=0, label="inputs")
        axes.set_ylim(low, high)

    return _grid(summary, "shapes", panel, "x", "F(x)")


def _coefficients(summary: Summary) -> Image | None:
    """The coefficients of each layer through training, one row an arm; light is the first one, dark the last."""

    def panel(axes: "Axes", table: Table) -> None:
        names = [name for name in table if name != "step"]
        for i, name in enumerate(names):
            colour = time_colour(i, len(names))
            axes.plot(table["step"], np.subtract(table[name], table[name][0]), color=colour, linewidth=1.2)

    return _grid(summary, "coefficients", panel, "step", "change")


def _gains(summary: Summary) -> Image | None:
    """Measured gains of each layer through training, one row an arm; 1 keeps the variance forward and backward."""

    def panel(axes: "Axes", table: Table) -> None:
        for column, label, colour, line in (
            ("second_moment", "E[F²] / E[x²]", BETTER, "-"),
            ("slope", "E[F'²]", WORSE, "--"),
        ):
            axes.plot(table["step"], table[column], line, color=colour, label=label, linewidth=1.3)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_ylim(bottom=0)

    return _grid(summary, "gains", panel, "step", "gain")


def _grid(
    summary: Summary,
    what: Literal["shapes", "coefficients", "gains"],
    panel: Callable[["Axes", Table], None],
    xlabel: str,
    ylabel: str,
) -> Image | None:
    """Panels of a record's tables: one row an arm (its first measured seed), one column a layer. None where nobody has any.

    More than _ROWS arms fit on no page.
    """
    tables: dict[str, dict[str, Table]] = {}
    for arm in summary.arms:
        measured: dict[str, Table] = next((found for record in arm.records if (found := getattr(record, what))), {})
        if measured and (what != "shapes" or any(len(table) > 2 for table in measured.values())):  # x and one step are none
            tables[arm.label] = measured
    rows = dict(list(tables.items())[:_ROWS])
    if not rows:
        return None
    layers = _some(sorted(next(iter(rows.values())), key=_layer_number))

    def draw(figure: "Figure") -> None:
        grid = figure.subplots(len(rows), len(layers), squeeze=False)
        for (label, of_layer), line in zip(rows.items(), grid, strict=True):
            for layer, axes in zip(layers, line, strict=True):
                if layer in of_layer:
                    panel(axes, of_layer[layer])
            line[0].set_ylabel(f"{wrapped(label)}\n{ylabel}", fontsize=8)
        for layer, axes in zip(layers, grid[0], strict=True):
            axes.set_title(f"layer {_layer_number(layer)}", fontsize=9)
        for axes in grid[-1]:
            axes.set_xlabel(xlabel)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        if labels:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(7, len(labels)), fontsize=8)

    return picture(draw, 1.2 + 2.0 * len(layers), 0.9 + 1.7 * len(rows))


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
    """Counted from 1: 4 in a name such as transformer.h.3.mlp.act."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), 0) + 1


def forest(summary: Summary) -> Image | None:
    """Paired differences in perplexity with their intervals, a row a contrast, a block a reference; marks are single seeds."""
    blocks: dict[str, list[Contrast]] = {}
    for contrast in summary.contrasts:
        blocks.setdefault(_heading(contrast), []).append(contrast)
    if not blocks:
        return None
    rows: list[Contrast | str] = []
    for heading, contrasts in blocks.items():
        rows += [heading, *contrasts]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.axvline(0, color="black", linewidth=0.8)
        for row, content in enumerate(rows):
            if isinstance(content, Contrast):
                _draw_interval(axes, row, content)
        axes.set_yticks(range(len(rows)), [content if isinstance(content, str) else content.arm for content in rows])
        for tick, content in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if isinstance(content, str) else "normal")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(f"{_CHANGE} (negative is better)")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)

    longest = max(len(row) if isinstance(row, str) else len(row.arm) for row in rows)
    return picture(draw, 5.5 + 0.075 * longest, 1.0 + 0.27 * len(rows))


def _heading(contrast: Contrast) -> str:
    """What the rows of a block are compared with."""
    of_fields = contrast.about != "activation" and contrast.about.partition(",")[0] in field_types()
    return f"against the first {contrast.about}" if of_fields else f"against {contrast.reference}"


def _draw_interval(axes: "Axes", row: int, contrast: Contrast) -> None:
    over_seeds = contrast.interval.low is not None
    interval = contrast.shown or contrast.interval
    certain = interval.holds_zero is False
    colour = UNCERTAIN if not certain else BETTER if interval.mean < 0 else WORSE
    seeds = [percent(difference) for difference in contrast.differences]
    axes.plot(seeds, [row] * len(seeds), "|", color="0.55", markersize=9)
    if interval.low is not None and interval.high is not None:
        limits = [percent(interval.low), percent(interval.high)]
        axes.plot(limits, [row, row], "-" if over_seeds else "--", color=colour, linewidth=2)
    fill = colour if certain else "white"
    axes.plot(percent(contrast.interval.mean), row, "s" if certain else "o", color=colour, markerfacecolor=fill, markersize=6)


def degrees(summary: Summary) -> Image | None:
    """The difference to the baseline against the degree, a line for each family of which three degrees or more were run."""
    lines = by_degree(summary)
    if not lines:
        return None

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.axhline(0, color="black", linewidth=0.8)
        colours = styles([short(summary.baseline), *lines])
        for index, (label, points) in enumerate(lines.items()):
            x = [degree + 0.08 * (index - (len(lines) - 1) / 2) for degree, _ in points]
            mean, low, high = (
                [percent(getattr(contrast.interval, name)) for _, contrast in points] for name in ("mean", "low", "high")
            )
            spread = [[m - a for m, a in zip(mean, low, strict=True)], [b - m for m, b in zip(mean, high, strict=True)]]
            axes.errorbar(x, mean, spread, label=label, marker="o", markersize=4, capsize=3, linewidth=1.3, **colours[label])
        axes.set_xticks(sorted({degree for points in lines.values() for degree, _ in points}))
        # Linear up to 10 %, logarithmic beyond: degree 1 of a polynomial is a linear network, whose +50 % flattened the rest.
        axes.set_yscale("symlog", linthresh=10, linscale=2)
        ticks = [tick for tick in _TICKS if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
        axes.set_yticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="degree", ylabel=f"change of perplexity against {short(summary.baseline)},\npercent")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)

    return picture(draw, 6.0, 3.8 + 0.1 * len(lines))


def by_degree(summary: Summary) -> dict[str, list[tuple[int, Contrast]]]:
    """Arm with n for its degree -> (degree, contrast with the baseline), ascending, where there are three with intervals."""
    lines: dict[str, list[tuple[int, Contrast]]] = {}
    for arm in summary.arms:
        degree, contrast = _degree(arm), summary.contrast(arm)
        if degree is not None and contrast and contrast.interval.low is not None:
            label = arm.label.replace(f":degree={degree}", ":degree=n").replace(f",degree={degree}", ",degree=n")
            lines.setdefault(label, []).append((degree, contrast))
    return {label: sorted(points, key=lambda point: point[0]) for label, points in lines.items() if len(points) >= 3}


def _degree(arm: Arm) -> int | None:
    """Its option of that name; None for families that have none."""
    spec = split(arm.activation)[1]
    degree = None if len(registry.stages(spec)) > 1 else registry.parse(spec)[1].get("degree")
    return degree if isinstance(degree, int) else None


def lengths(summary: Summary) -> Image:
    """The difference to the baseline of the same length against tokens, an arm a line, on a logarithmic axis."""
    curves = {name: arms for name, arms in summary.curves().items() if any(map(summary.contrast, arms))}
    style = styles(curves)
    first = next(iter(summary.arms)).records[0]
    parameters = next((a.records[0] for a in summary.arms if a.activation == summary.baseline), first).parameters

    def fill(figure: "Figure") -> None:
        axes = figure.subplots()
        for place, (name, arms) in enumerate(curves.items()):
            points = [(arm, contrast) for arm in arms if (contrast := summary.contrast(arm))]
            tokens = [arm.records[0].tokens_per_step * arm.records[0].config["max_steps"] for arm, _ in points]
            marker = MARKERS[place // len(OKABE_ITO) % len(MARKERS)]
            line(axes, tokens, [contrast for _, contrast in points], name, {**style[name], "marker": marker})
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel="training tokens", ylabel=_CHANGE)
        logarithmic(axes)
        divided(axes, parameters, "tokens a parameter")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)

    return picture(fill, 7.5, 4.6 + 0.2 * -(-len(curves) // 3))


def line(axes: "Axes", x: Sequence[float], contrasts: Sequence[Contrast], name: str, style: dict[str, Any]) -> None:
    """Differences in percent of perplexity with their intervals: a band over seeds, bars over documents."""
    means = np.array([percent(contrast.interval.mean) for contrast in contrasts])
    limits = [contrast.shown for contrast in contrasts]
    low, high = (
        np.array([percent(v) if i and (v := getattr(i, side)) is not None else np.nan for i in limits])
        for side in ("low", "high")
    )
    axes.plot(x, means, label=name, linewidth=1.3, markersize=0, **{**style, "marker": None})
    for at_x, mean, interval in zip(x, means, limits, strict=True):
        filled = interval is not None and interval.holds_zero is False
        face = style["color"] if filled else "white"
        axes.plot(
            [at_x], [mean], linestyle="", marker=style["marker"], color=style["color"], markersize=5, markerfacecolor=face
        )
    if len(contrasts) > 1 and all(contrast.interval.low is not None for contrast in contrasts):
        axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    else:
        axes.errorbar(x, means, [means - low, high - means], fmt="none", ecolor=style["color"], linewidth=0.8)
