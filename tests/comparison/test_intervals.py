"""What the pictures of differences are drawn from, and that they are drawn."""

import struct
from typing import Any

from comparison import intervals
from comparison.record import read
from comparison.results import Results, Settings
from comparison.summary import Summary, summarise


def summary_of(make_run: Any, specs: tuple[str, ...], seeds: tuple[int, ...]) -> Summary:
    records = tuple(read(make_run(spec, s, 1.5 - 0.01 * i + 0.002 * s * i)) for i, spec in enumerate(specs) for s in seeds)
    return summarise(Results(Settings(activations=specs), records))


def test_the_forest_has_a_row_for_each_contrast_and_grows_with_them(make_run: Any) -> None:
    few = intervals.forest(summary_of(make_run, ("silu", "relu"), (1, 2)))
    many = intervals.forest(summary_of(make_run, ("gelu", *(f"hermite:degree={n}" for n in range(1, 9))), (1, 2, 3)))
    assert few
    assert many
    assert struct.unpack(">I", few[20:24])[0] < struct.unpack(">I", many[20:24])[0] < 3000
    assert intervals.forest(summary_of(make_run, ("relu_squared",), (1,))) is None


def test_degrees_are_drawn_in_order_from_three_of_them_on(make_run: Any) -> None:
    specs = ("gelu", "hermite:degree=3", "hermite:degree=1", "hermite:degree=8", "fourier:degree=5", "fourier:degree=1")
    summary = summary_of(make_run, specs, (1, 2))
    lines = intervals.by_degree(summary)
    assert {label: [degree for degree, _ in points] for label, points in lines.items()} == {"hermite:degree=n": [1, 3, 8]}
    assert [contrast.arm for _, contrast in lines["hermite:degree=n"]] == [specs[2], specs[1], specs[3]]
    assert (intervals.degrees(summary) or b"").startswith(b"\x89PNG")
    assert intervals.degrees(summary_of(make_run, ("silu", "tropical:degree=2", "tropical:degree=3"), (1, 2))) is None
