"""Every picture that there are data for is a PNG; arms beyond the colours still differ; long names stay on the picture."""

import struct
from typing import Any

import pytest

from comparison import plots
from comparison.record import read
from comparison.results import Results, Settings
from comparison.summary import summarise

SPECS = (
    "gelu",
    "relu",
    "silu",
    "relu_squared",
    "gelu:exact=true",
    *(f"hermite:degree={n},per=channel,init=fit-gelu" for n in range(2, 6)),
)


@pytest.mark.parametrize("seeds", [1, 3])
def test_all_pictures_of_many_arms(make_run: Any, seeds: int) -> None:
    records = tuple(
        read(make_run(spec, s, 1.5 + 0.01 * i + 0.002 * s * i)) for i, spec in enumerate(SPECS) for s in range(seeds)
    )
    found = plots.figures(summarise(Results(Settings(), records)))
    assert found.keys() == {"loss", "differences", "shapes"} | ({"degrees"} if seeds > 1 else set())
    for png in found.values():
        assert png.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", png[16:24])
        assert 300 < width < 2500
        assert 150 < height < 6000


def test_one_arm_has_curves_alone(make_run: Any) -> None:
    assert plots.figures(summarise(Results(Settings(), (read(make_run("gelu", 1, 1.5)),)))).keys() == {"loss"}


def test_gains_are_drawn_where_they_were_measured(make_run: Any) -> None:
    from dataclasses import replace

    table = {"step": [10.0, 500.0], "second_moment": [1.0, 0.8], "slope": [1.0, 1.1]}
    record = replace(read(make_run("hermite:degree=3", 1, 1.5)), gains={f"transformer.h.{i}.mlp.act": table for i in range(24)})
    assert "gains" in plots.figures(summarise(Results(Settings(), (record,))))


def test_a_crowd_is_drawn_by_family(make_run: Any) -> None:
    specs = ("gelu", "relu", *(f"hermite:degree={n}" for n in range(1, 9)), *(f"fourier:degree={n}" for n in range(1, 5)))
    summary = summarise(Results(Settings(activations=specs), tuple(read(make_run(spec, 1, 1.5)) for spec in specs)))
    rows = [[arm.label for arm in row] for row in plots._groups(summary)]
    assert rows == [["gelu", "relu"], ["gelu", *specs[2:10]], ["gelu", *specs[10:]]]
    assert plots.figures(summary)["loss"].startswith(b"\x89PNG")
