"""What all pictures share: colours, line styles, and a figure as PNG bytes. matplotlib needs no display here.

Colours are Okabe and Ito's, which the colour-blind tell apart; beyond seven arms the line style tells them apart too.
Time runs from light to dark along cividis, which is uniform for every kind of colour vision.
"""

import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OKABE_ITO = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")  # without yellow: unreadable on white
LINES = ("-", "--", ":", "-.")
BETTER, WORSE, UNCERTAIN = OKABE_ITO[6], OKABE_ITO[4], OKABE_ITO[0]
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def png(draw: Callable[["Figure"], None], width: float, height: float) -> bytes:
    """The figure that `draw` fills, `width` by `height` inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


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
