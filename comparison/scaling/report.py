"""The report of several sizes and lengths: scaling.md and scaling.html, with pictures, tables and scaling.json beside them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from comparison import document
from comparison.axes import logarithmic
from comparison.document import UNKNOWN, Block, Bullets, Code, Heading, Paragraph, Picture, Table, change
from comparison.plots import MARKERS, Image, line, picture, styles
from comparison.results import Results
from comparison.scaling.study import Forecast, Scaling, to_json
from comparison.statistics import Interval, percent
from data.files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3
_AXIS = "change of perplexity, percent"
_CAPTION = (
    "One panel an arm: the difference to the baseline of the same size and length, below zero is better. One line a size. "
    "Bands: 95 % over seeds; bars, over documents, where there is one seed. Hollow: the interval holds zero."
)
_METHOD = (
    "Each size and length is judged by itself: runs are paired by seed, and each arm has its best learning rate there where "
    "several were run. Intervals are 95 % over seeds, or over documents where there is one seed."
)
_LAW = (
    "L(N, D) = E + A / N^a + B / D^b in nats a token (Hoffmann et al. 2022), through the means over seeds; N is the number of "
    "parameters of the baseline, D that of training tokens. shared: E, a and b are those of all arms, so every difference goes "
    "to zero as N and D grow, which is assumed and not found. own limit: each arm has its own E. apart: its own of all five. "
    "Intervals: 95 %, Student's with the deviation of a bootstrap over the seeds of each size."
)
_WARNING = (
    "What this is worth: an extrapolation holds only if the law holds far beyond the points that it was fitted to. The "
    "interval covers the spread of the seeds alone, not the form of the law, the text, the tokenizer or the learning rates. "
    "Where the laws disagree, none is to be trusted. Only a run at that size can tell."
)


def write(folder: Path, scaling: Scaling, found: Results, command: str) -> None:
    """Write the report into `folder`."""
    blocks = compose(scaling, found, command)
    document.write(folder, "scaling", blocks)
    write_json(folder / "scaling.json", {"command": command, **to_json(scaling)})


def compose(scaling: Scaling, found: Results, command: str) -> list[Block]:
    """What the report says, in order."""
    blocks: list[Block] = [
        Heading("The difference against size and length"),
        Paragraph(summary_of(scaling, found)),
        difference_table(scaling),
        Paragraph(_METHOD),
    ]
    if any(point.contrast for point in scaling.points):
        blocks += [
            Picture("scaling", draw(scaling, per_parameter=False), _CAPTION),
            Picture("scaling_per_parameter", draw(scaling, per_parameter=True), "The same against tokens a parameter."),
        ]
    blocks.append(Heading("Extrapolation"))
    if scaling.laws:
        blocks += [forecast_table(scaling), Paragraph(_WARNING), law_table(scaling), Paragraph(_LAW), *_missed(scaling)]
    if scaling.notes:
        blocks.append(Bullets(scaling.notes))
    return [*blocks, Heading("Commands"), Code((command, *found.settings.commands))]


def summary_of(scaling: Scaling, found: Results) -> str:
    """What was run, in two sentences."""
    tokens = sorted({point.tokens for point in scaling.points})
    ratios = [point.tokens / point.parameters for point in scaling.points]
    seeds = sorted({len(point.losses) for point in scaling.points})
    each = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    sizes = f"{len(scaling.sizes)} sizes ({', '.join(scaling.sizes)}: layers x width)"
    lengths = f"{len(tokens)} lengths ({tokens[0] / 1e6:.3g} to {tokens[-1] / 1e6:.3g} million tokens"
    return (
        f"{len(found.records)} runs of {len(scaling.arms)} arms at {sizes} and {lengths}, {min(ratios):.2g} to "
        f"{max(ratios):.2g} a parameter), {each} seeds each. The baseline is {scaling.baseline}."
    )


def difference_table(scaling: Scaling) -> Table:
    """A row for each arm, size and length: the verdict is in the second column, which a narrow screen shows."""
    baseline = scaling.baseline
    header = ("arm", f"against {baseline}", "size", "tokens a parameter", "tokens", "parameters", f"perplexity of {baseline}")
    base = {(point.parameters, point.tokens): point for point in scaling.points if point.arm == baseline}
    order = {arm: place for place, arm in enumerate(scaling.arms)}
    rows = [
        (
            point.arm,
            change(point.contrast.interval.mean, point.contrast.shown),
            point.size,
            f"{point.tokens / point.parameters:.2g}",
            f"{point.tokens / 1e6:.3g}M",
            f"{point.parameters:,}",
            f"{np.exp(base[point.parameters, point.tokens].loss):.3f}",
        )
        for point in sorted(scaling.points, key=lambda point: (order[point.arm], point.parameters, point.tokens))
        if point.contrast
    ]
    return Table(header, tuple(rows), name="scaling_differences")


def forecast_table(scaling: Scaling) -> Table:
    """A row an arm: its difference at the target, by both laws."""
    parameters, tokens = scaling.target
    laws = tuple(scaling.laws)
    header = ("arm", *(f"at {parameters:.3g} parameters, {tokens:.3g} tokens: {name}" for name in laws))
    found = {(each.arm, each.law): each for each in scaling.forecasts}
    arms = dict.fromkeys(each.arm for each in scaling.forecasts)
    rows = tuple((arm, *(_forecast(found.get((arm, name))) for name in laws)) for arm in arms)
    return Table(header, rows, name="forecasts")


def _forecast(each: Forecast | None) -> str:
    return change(each.difference, Interval(each.difference, each.low, each.high), digits=2) if each else UNKNOWN


def law_table(scaling: Scaling) -> Table:
    """The coefficients."""
    arms = list(dict.fromkeys([scaling.baseline, *(each.arm for each in scaling.forecasts)]))
    rows = []
    for name, law in scaling.laws.items():
        for i, arm in enumerate(arms):
            numbers = (f"{getattr(law, key)[i]:.4g}" for key in "EAaBb")
            rows.append((arm, name, *numbers, f"{100 * law.error:.2f} %"))
    return Table(("arm", "law", "E", "A", "a", "B", "b", "misses the loss by"), tuple(rows), words=2, name="laws")


def _missed(scaling: Scaling) -> list[Block]:
    if not scaling.missed:
        return []
    errors = ", ".join(f"{name} by {error:.4f} nats ({percent(error):.2f} %)" for name, error in scaling.missed.items())
    return [Paragraph(f"Fitted without the largest size, the laws miss its differences (RMS over arms and lengths): {errors}.")]


def draw(scaling: Scaling, per_parameter: bool) -> Image:
    """Difference against tokens, or tokens a parameter, on a logarithmic axis: a panel an arm, a line a size."""
    arms = [arm for arm in scaling.arms[1:] if any(p.contrast for p in scaling.points if p.arm == arm)]
    style = styles(scaling.sizes)
    columns = min(_COLUMNS, len(arms))
    rows = -(-len(arms) // columns)

    def fill(figure: "Figure") -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(arms) :]:
            axes.set_visible(False)
        for arm, axes in zip(arms, grid.flat, strict=False):
            for place, size in enumerate(scaling.sizes):
                points = [p for p in scaling.points if (p.arm, p.size) == (arm, size) and p.contrast]
                x = [p.tokens / (p.parameters if per_parameter else 1) for p in points]
                look: dict[str, Any] = {**style[size], "marker": MARKERS[place % len(MARKERS)]}
                line(axes, x, [p.contrast for p in points if p.contrast], size, look)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set(title=arm)
            logarithmic(axes)
        for axes in grid[:, 0]:
            axes.set_ylabel(_AXIS)
        for axes in grid.flat[max(0, len(arms) - columns) : len(arms)]:  # the lowest of each column
            axes.set_xlabel("tokens a parameter" if per_parameter else "training tokens")
            axes.tick_params(labelbottom=True)
        handles, labels = max((axes.get_legend_handles_labels() for axes in grid.flat[: len(arms)]), key=lambda f: len(f[1]))
        figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)

    return picture(fill, 0.6 + 3.4 * columns, 0.9 + 2.6 * rows)
