"""Every picture that there are data for is a PNG; arms beyond the colours still differ; long names stay on the picture."""

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

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


def test_all_pictures_of_many_arms(make_run: Any) -> None:
    found = plots.figures(summary_of(make_run, SPECS, (0, 1, 2)))
    assert found.keys() == {"loss", "differences", "cost", "shapes", "degrees"}
    for png in (image.png for image in found.values()):
        assert png.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", png[16:24])
        assert 1.5 < width / plots.DOTS < 20
        assert 0.75 < height / plots.DOTS < 45


def test_one_seed_has_intervals_over_documents_and_no_degrees(make_run: Any) -> None:
    summary = summary_of(make_run, SPECS, (0,))
    assert plots.forest(summary)
    assert plots.degrees(summary) is None


def test_one_arm_has_curves_alone(make_run: Any) -> None:
    assert plots.figures(summarise(Results(Settings(), (read(make_run("gelu", 1, 1.5)),)))).keys() == {"loss", "cost"}


def test_equal_losses_have_no_bar_below_zero(make_run: Any) -> None:
    """The mean of equal losses can be another number in its last bit; on which machine does not matter."""
    loss = float(next(x for x in np.linspace(1.5, 5.5, 10_000) if np.mean([x] * 3) < x))
    records = tuple(read(make_run("gelu", seed, loss)) for seed in range(3))
    assert plots._cost(summarise(Results(Settings(), records)))


def test_what_only_some_runs_know_is_drawn_for_them(make_run: Any) -> None:
    layers = [f"transformer.h.{i}.mlp.act" for i in range(24)]
    gains = {"step": [10.0, 500.0], "second_moment": [1.0, 0.8], "slope": [1.0, 1.1]}
    coefficients = {"step": [10.0, 500.0], "coefficients.0": [1.0, 0.8], "coefficients.1": [1.0, 1.1]}
    records = [read(make_run("hermite:degree=3", 1, 1.5 + rate, learning_rate=rate)) for rate in (1e-3, 2e-3)]
    records = [
        replace(r, gains=dict.fromkeys(layers, gains), coefficients=dict.fromkeys(layers, coefficients)) for r in records
    ]
    summary = summarise(Results(Settings(rates=(1e-3, 2e-3)), tuple(records)))
    assert plots.figures(summary).keys() == {"loss", "cost", "rates", "shapes", "coefficients", "gains"}
    assert list(summary.arms[0].loss_by_rate) == [1e-3, 2e-3]
    assert summary.arms[0].loss_by_rate[1e-3] == pytest.approx(records[0].part("selects")[0])


def test_shapes_are_scaled_by_where_inputs_are_and_layers_count_from_one(
    make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "picture", lambda draw, width, height: drawn.append(draw))
    record = read(make_run("hermite:degree=3", 1, 1.5))
    x = np.linspace(-3, 3, 61)
    table = {"x": x.tolist(), "0": (x**9).tolist(), "500": (x**9).tolist(), "density": np.exp(-8 * x**2).tolist()}
    layers = {f"transformer.h.{i}.mlp.act": table for i in range(2)}
    plots._shapes(summarise(Results(Settings(), (replace(record, shapes=layers),))))
    figure = Figure()
    drawn[0](figure)
    assert [axes.get_title() for axes in figure.axes] == ["layer 1", "layer 2"]
    for axes in figure.axes:
        assert -2 < axes.get_ylim()[0] < axes.get_ylim()[1] < 2  # x**9 goes to 19,683


def test_a_crowd_is_drawn_by_family(make_run: Any) -> None:
    specs = ("gelu", "relu", *(f"hermite:degree={n}" for n in range(1, 9)), *(f"fourier:degree={n}" for n in range(1, 5)))
    summary = summarise(Results(Settings(activations=specs), tuple(read(make_run(spec, 1, 1.5)) for spec in specs)))
    rows = [[arm.label for arm in row] for row in plots._groups(summary)]
    assert rows == [["gelu", "relu"], ["gelu", *specs[2:10]], ["gelu", *specs[10:]]]
    assert plots._loss(summary).png.startswith(b"\x89PNG")


def summary_of(make_run: Any, specs: tuple[str, ...], seeds: tuple[int, ...]) -> Summary:
    records = tuple(read(make_run(spec, s, 1.5 - 0.01 * i + 0.002 * s * i)) for i, spec in enumerate(specs) for s in seeds)
    return summarise(Results(Settings(activations=specs), records))


def test_the_forest_has_a_row_for_each_contrast_and_grows_with_them(make_run: Any) -> None:
    few = plots.forest(summary_of(make_run, ("silu", "relu"), (1, 2)))
    many = plots.forest(summary_of(make_run, ("gelu", *(f"hermite:degree={n}" for n in range(1, 9))), (1, 2, 3)))
    assert few
    assert many
    assert struct.unpack(">I", few.png[20:24])[0] < struct.unpack(">I", many.png[20:24])[0] < 20 * plots.DOTS
    assert plots.forest(summary_of(make_run, ("relu_squared",), (1,))) is None


def test_degrees_are_drawn_in_order_from_three_of_them_on(make_run: Any) -> None:
    specs = ("gelu", "hermite:degree=3", "hermite:degree=1", "hermite:degree=8", "fourier:degree=5", "fourier:degree=1")
    summary = summary_of(make_run, specs, (1, 2))
    lines = plots.by_degree(summary)
    assert {label: [degree for degree, _ in points] for label, points in lines.items()} == {"hermite:degree=n": [1, 3, 8]}
    assert [contrast.arm for _, contrast in lines["hermite:degree=n"]] == [specs[2], specs[1], specs[3]]
    assert plots.degrees(summary)
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
