"""Pictures of differences with their intervals: a forest plot of all contrasts, and the difference against the degree."""

from typing import TYPE_CHECKING

from activations import registry
from comparison.arm import Arm
from comparison.canvas import BETTER, UNCERTAIN, WORSE, png, styles
from comparison.record import short
from comparison.statistics import percent
from comparison.summary import Contrast, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TICKS = (-50, -20, -10, -5, 0, 5, 10, 20, 50, 100, 200, 500)
_AXIS = "change of validation perplexity, percent (negative is better)"


def forest(summary: Summary) -> bytes | None:
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
        axes.set_xlabel(_AXIS)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)

    longest = max(len(row) if isinstance(row, str) else len(row.arm) for row in rows)
    return png(draw, 5.5 + 0.075 * longest, 1.0 + 0.27 * len(rows))


def _heading(contrast: Contrast) -> str:
    """What the rows of a block are compared with."""
    if contrast.about == "activation" or contrast.about in registry.names() or ".py:" in contrast.about:
        return f"against {contrast.reference}"
    return f"against the first {contrast.about}"


def _draw_interval(axes: "Axes", row: int, contrast: Contrast) -> None:
    over_seeds = contrast.interval.low is not None
    interval = contrast.interval if over_seeds else contrast.documents or contrast.interval
    certain = interval.holds_zero is False
    colour = UNCERTAIN if not certain else BETTER if interval.mean < 0 else WORSE
    seeds = [percent(difference) for difference in contrast.differences]
    axes.plot(seeds, [row] * len(seeds), "|", color="0.55", markersize=9)
    if interval.low is not None and interval.high is not None:
        limits = [percent(interval.low), percent(interval.high)]
        axes.plot(limits, [row, row], "-" if over_seeds else "--", color=colour, linewidth=2)
    fill = colour if certain else "white"
    axes.plot(percent(contrast.interval.mean), row, "s" if certain else "o", color=colour, markerfacecolor=fill, markersize=6)


def degrees(summary: Summary) -> bytes | None:
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

    return png(draw, 6.0, 3.8 + 0.1 * len(lines))


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
    degree = registry.parse(arm.activation)[1].get("degree")
    return degree if isinstance(degree, int) else None
