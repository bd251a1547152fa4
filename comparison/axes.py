"""A logarithmic axis whose labels have room."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def logarithmic(axes: "Axes") -> None:
    """Make x logarithmic once everything is drawn, with labels at 1, 2, 5, 10, from two decades on at 1, 10.

    Matplotlib's own lie on one another where x spans one decade.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    least, most = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 100 * least else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
