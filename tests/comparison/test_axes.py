"""Labels of a logarithmic axis do not lie on one another."""

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comparison.axes import logarithmic


@pytest.mark.parametrize("most", [2e6, 8e6, 9e8])
def test_labels_have_room(most: float) -> None:
    """In a panel as wide as a report's, for one decade and for three."""
    figure = Figure(figsize=(3.4, 2.6))
    axes = figure.subplots()
    axes.plot([7e5, most], [0, 1])
    logarithmic(axes)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    left, right = axes.get_xlim()
    ticks = zip([*axes.get_xticks(), *axes.get_xticks(minor=True)], axes.get_xticklabels(which="both"), strict=True)
    shown = [label for x, label in ticks if left <= x <= right and label.get_text()]
    boxes = sorted((label.get_window_extent(canvas.get_renderer()) for label in shown), key=lambda box: float(box.x0))
    assert len(boxes) >= 2
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
