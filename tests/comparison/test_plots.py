"""Every picture that there are data for is a PNG; arms beyond the colours still differ; long names stay on the picture."""

import struct
from typing import Any

import pytest

from comparison import plots
from comparison.judge import Summary, summarise
from comparison.plan import Settings
from comparison.record import read
from comparison.results import Results

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


def summary_of(make_run: Any, specs: tuple[str, ...], seeds: tuple[int, ...]) -> Summary:
    records = tuple(read(make_run(spec, s, 1.5 - 0.01 * i + 0.002 * s * i)) for i, spec in enumerate(specs) for s in seeds)
    return summarise(Results(Settings(activations=specs), records))


def test_the_forest_has_a_row_for_each_contrast_and_grows_with_them(make_run: Any) -> None:
    few = plots.forest(summary_of(make_run, ("silu", "relu"), (1, 2)))
    many = plots.forest(summary_of(make_run, ("gelu", *(f"hermite:degree={n}" for n in range(1, 9))), (1, 2, 3)))
    assert few
    assert many
    assert struct.unpack(">I", few[20:24])[0] < struct.unpack(">I", many[20:24])[0] < 3000
    assert plots.forest(summary_of(make_run, ("relu_squared",), (1,))) is None


def test_degrees_are_drawn_in_order_from_three_of_them_on(make_run: Any) -> None:
    specs = ("gelu", "hermite:degree=3", "hermite:degree=1", "hermite:degree=8", "fourier:degree=5", "fourier:degree=1")
    summary = summary_of(make_run, specs, (1, 2))
    lines = plots.by_degree(summary)
    assert {label: [degree for degree, _ in points] for label, points in lines.items()} == {"hermite:degree=n": [1, 3, 8]}
    assert [contrast.arm for _, contrast in lines["hermite:degree=n"]] == [specs[2], specs[1], specs[3]]
    assert (plots.degrees(summary) or b"").startswith(b"\x89PNG")
    assert plots.degrees(summary_of(make_run, ("silu", "tropical:degree=2", "tropical:degree=3"), (1, 2))) is None


def test_every_line_has_a_style_of_its_own() -> None:
    labels = [str(i) for i in range(28)]
    styles = plots.styles(labels)
    assert len({(style["color"], style["linestyle"]) for style in styles.values()}) == len(labels)
    assert set(plots.OKABE_ITO) <= {"#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"}


def test_time_runs_from_light_to_dark() -> None:
    brightness = [sum(plots.time_colour(i, 5)[:3]) for i in range(5)]
    assert brightness == sorted(brightness, reverse=True)
    assert plots.time_colour(0, 1)


def test_labels_break_where_they_can() -> None:
    assert plots.wrapped("hermite:degree=3,init=paper mlp_init=unit") == "hermite:degree=3,\ninit=paper\nmlp_init=unit"
    assert plots.wrapped("gelu") == "gelu"
