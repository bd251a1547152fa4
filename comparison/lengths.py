"""The difference to the baseline against the length of training: a table and a picture of a sweep with --lengths.

Each length is judged by itself: its runs are paired by seed, and each arm has its best learning rate there.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from comparison.document import Block, Heading, Paragraph, Picture, Table
from comparison.judge import Arm, Contrast, Interval, Summary, length_of, percent
from comparison.plan import Settings, label
from comparison.plots import MARKERS, OKABE_ITO, Image, picture, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_UNKNOWN = "–"
_AXIS = "change of validation perplexity, percent"
_CAPTION = (
    "Difference to the baseline of the same length against training tokens, below zero is better; the axis on top counts "
    "tokens a parameter of the baseline. Bands: 95 % over seeds; with one seed bars, over documents. Hollow: the interval "
    "holds zero."
)


def blocks(summary: Summary, settings: Settings) -> list[Block]:
    """The first part of the report: what the verdict is at each length, and the curve."""
    found: list[Block] = [Heading("Difference against length"), table(summary, settings), Paragraph(_sentence(settings))]
    if any(summary.contrast(arm) for arm in summary.arms):
        found.append(Picture("lengths", draw(summary, settings), _CAPTION))
    return found


def longest(summary: Summary, settings: Settings) -> Summary:
    """The summary of the longest runs alone."""
    return at(summary, settings, max(length for arm in summary.arms if (length := length_of(arm, settings)) is not None))


def at(summary: Summary, settings: Settings, length: int) -> Summary:
    """The summary of the runs of one length."""
    arms = tuple(arm for arm in summary.arms if length_of(arm, settings) == length)
    labels = {arm.label for arm in arms}
    return replace(summary, arms=arms, contrasts=tuple(c for c in summary.contrasts if c.arm in labels))


def table(summary: Summary, settings: Settings) -> Table:
    """A row an arm, a column a length: verdict, difference in perplexity and its interval."""
    curves, steps = by_arm(summary, settings), lengths(summary, settings)
    header = ("activation", *(_length(summary, settings, number) for number in steps))
    rows = []
    for name, arms in curves.items():
        cells = []
        for number in steps:
            arm = next((arm for arm in arms if length_of(arm, settings) == number), None)
            cells.append(_cell(summary, arm) if arm else _UNKNOWN)
        rows.append((name, *cells))
    return Table(header, tuple(rows), words=len(header), name="lengths")


def by_arm(summary: Summary, settings: Settings) -> dict[str, list[Arm]]:
    """What an arm is called without its length -> its arms, shortest first; the baseline first, then by the last effect."""
    found: dict[str, list[Arm]] = {}
    steps = {arm.label: length_of(arm, settings) or 0 for arm in summary.arms}
    order = sorted(summary.arms, key=lambda arm: (arm.activation != summary.baseline, -steps[arm.label], _effect(summary, arm)))
    for arm in order:
        values = {name: v for name, v in zip(settings.varied, arm.values, strict=True) if name != "max_steps"}
        found.setdefault(label(arm.activation, values), []).insert(0, arm)
    return found


def lengths(summary: Summary, settings: Settings) -> list[int]:
    """All numbers of steps, shortest first."""
    return sorted({length for arm in summary.arms if (length := length_of(arm, settings)) is not None})


def interval_of(contrast: Contrast) -> Interval | None:
    """Over seeds, or over documents where there is one seed."""
    return contrast.interval if contrast.interval.low is not None else contrast.documents


def _effect(summary: Summary, arm: Arm) -> float:
    contrast = summary.contrast(arm)
    return contrast.interval.mean if contrast else arm.loss


def _length(summary: Summary, settings: Settings, number: int) -> str:
    arm = next(arm for arm in summary.arms if length_of(arm, settings) == number)
    tokens = number * arm.records[0].tokens_per_step
    return f"{number:,} steps, {tokens / 1e6:.3g}M tokens, {tokens / arm.records[0].parameters:.2g} a parameter"


def _cell(summary: Summary, arm: Arm) -> str:
    contrast = summary.contrast(arm)
    if not contrast:
        return f"baseline, perplexity {arm.perplexity:.3f}" if arm.activation == summary.baseline else "not compared"
    interval = interval_of(contrast)
    limits = ""
    if interval and interval.low is not None and interval.high is not None:
        limits = f" ({percent(interval.low):+.1f} to {percent(interval.high):+.1f})"
    return f"{contrast.verdict}: {percent(contrast.interval.mean):+.2f} %{limits}"


def _sentence(settings: Settings) -> str:
    rate = "Each arm has its best learning rate at each length. " if settings.rates else ""
    return (
        "Differences in perplexity to the baseline of the same number of steps, with 95 % intervals over seeds (over documents "
        f"where there is one seed). {rate}p-values are corrected for the comparisons of one length, not for the number of "
        "lengths. Loss curves, costs and shapes below are those of the longest runs."
    )


def draw(summary: Summary, settings: Settings) -> Image:
    """Difference against tokens, an arm a line, on a logarithmic axis."""
    curves = {name: arms for name, arms in by_arm(summary, settings).items() if any(map(summary.contrast, arms))}
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
        axes.set(xscale="log", xlabel="training tokens", ylabel=_AXIS)
        top = axes.secondary_xaxis("top", functions=(lambda t: np.divide(t, parameters), lambda r: np.multiply(r, parameters)))
        top.set_xlabel("tokens a parameter")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)

    return picture(fill, 7.5, 4.6 + 0.2 * -(-len(curves) // 3))


def line(axes: "Axes", x: Sequence[float], contrasts: Sequence[Contrast], name: str, style: dict[str, Any]) -> None:
    """Differences in percent of perplexity with their intervals: a band over seeds, bars over documents."""
    means = np.array([percent(contrast.interval.mean) for contrast in contrasts])
    limits = [interval_of(contrast) for contrast in contrasts]
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
