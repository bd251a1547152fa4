"""Logarithmic axes whose labels have room."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


def logarithmic(axes: "Axes") -> None:
    """Make x logarithmic once everything is drawn, with labels at 1, 2, 5, 10, from two decades on at 1, 10.

    Matplotlib's own lie on one another where x spans one decade.
    """
    axes.set_xscale("log")
    _label(axes.xaxis, *axes.get_xlim())


def divided(axes: "Axes", divisor: float, label: str) -> None:
    """A second axis on top of a logarithmic one, for x / divisor."""
    top = axes.secondary_xaxis("top", functions=(lambda x: np.divide(x, divisor), lambda x: np.multiply(x, divisor)))
    top.set_xlabel(label)
    _label(top.xaxis, *axes.get_xlim())


def _label(axis: "Axis", least: float, most: float) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 100 * least else (1,)))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())
