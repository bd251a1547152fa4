"""How the time of an activation grows: forward plus backward against the number of elements and against the degree.

    python -m bench.scaling [--device D] [--json PATH] [--chart PATH.png]

Elements 1e4 to 1e8 at the default degree; degrees 1 to 16 at 1.6 million elements; float32, eager and compiled, beside GELU.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

import torch

from activations import registry
from bench import activations, harness
from bench.harness import Row
from data.files import write_atomically
from runtime.hardware import pick_device, retain_memory

FAMILIES = ("hermite", "fourier", "tropical")
DEGREES = (1, 2, 3, 4, 6, 8, 12, 16)
DEGREE_SHAPE = "1024x1536"


def main(argv: list[str] | None = None) -> int:
    """Print the tables and write the files asked for."""
    parser = argparse.ArgumentParser(description="Time of activations against elements and degree.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each contender gets")
    parser.add_argument("--seconds", type=float, default=30, help="a table: start no further turn after this many")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chart", type=Path, metavar="PATH.png")
    options = parser.parse_args(argv)
    device = pick_device(options.device)
    retain_memory()
    bandwidth = harness.copy_bandwidth(device)
    rows = measure(device, options.rounds, bandwidth, options.seconds)
    activations.show(rows)
    if options.json:
        harness.save(options.json, rows, device, copy_bytes_per_second=bandwidth)
    if options.chart:
        draw(rows, options.chart)
    return 0


def measure(device: torch.device, rounds: int, bandwidth: float, seconds: float) -> list[Row]:
    """Rows of one family after the other: more elements at the default degree, then more degrees at 1.6 million elements."""
    default = [registry.check(name) for name in FAMILIES]
    tables = [(default, (elements // 1000, 1000)) for elements in (10**4, 10**5, 10**6, 10**7, 10**8)]
    tables += [(specs_of(degree), (1024, 1536)) for degree in DEGREES]
    rows = []
    for specs, shape in tables:
        rows += activations.measure(specs, shape, torch.float32, device, rounds, bandwidth, seconds)
    return rows


def specs_of(degree: int) -> list[str]:
    """The families, where they have this degree."""
    return [
        registry.check(f"{name}:degree={degree}")
        for name in FAMILIES
        if degree in registry.family(name).options["degree"].allowed
    ]


def draw(rows: list[Row], path: Path) -> None:
    """Milliseconds against elements and against degree, a line a family and mode; GELU, in grey, has no degree."""
    from matplotlib.figure import Figure

    lines: dict[tuple[int, str, str], list[tuple[float, float]]] = {}
    for row in rows:
        name, _, options = row["activation"].partition(":")
        name = row["activation"] if name == "gelu" else name
        if row["shape"] != DEGREE_SHAPE:
            lines.setdefault((0, name, row["mode"]), []).append((math.prod(map(int, row["shape"].split("x"))), row["ms"]))
        elif name in FAMILIES:
            degree = options.partition("degree=")[2].partition(",")[0]
            lines.setdefault((1, name, row["mode"]), []).append((float(degree), row["ms"]))
        else:  # measured beside every degree
            lines.setdefault((1, name, row["mode"]), []).extend((degree, row["ms"]) for degree in (DEGREES[0], DEGREES[-1]))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    colors = dict(zip((*FAMILIES, *activations.GELU), ("#0072B2", "#E69F00", "#009E73", "#777777", "#BBBBBB"), strict=True))
    for (panel, name, mode), points in lines.items():
        style = {"color": colors[name], "linestyle": "-" if mode == "compiled" else "--", "marker": "."}
        sizes = sorted({size for size, _ in points})
        medians = [statistics.median(ms for at, ms in points if at == size) for size in sizes]
        panels[panel].plot(sizes, medians, label=f"{name}, {mode}", **style)
    panels[0].set(
        xscale="log", yscale="log", xlabel="elements", ylabel="forward + backward, ms", title="default degree, float32"
    )
    panels[1].set(yscale="log", xlabel="degree", title=f"{DEGREE_SHAPE}, float32")
    panels[1].set_xscale("log", base=2)
    panels[1].set_xticks(DEGREES, map(str, DEGREES))
    panels[0].legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


if __name__ == "__main__":
    sys.exit(main())
