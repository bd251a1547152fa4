"""Lines that can be told apart, and labels that fit."""

from comparison import canvas


def test_every_line_has_a_style_of_its_own() -> None:
    labels = [str(i) for i in range(28)]
    styles = canvas.styles(labels)
    assert len({(style["color"], style["linestyle"]) for style in styles.values()}) == len(labels)
    assert set(canvas.OKABE_ITO) <= {"#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"}


def test_time_runs_from_light_to_dark() -> None:
    brightness = [sum(canvas.time_colour(i, 5)[:3]) for i in range(5)]
    assert brightness == sorted(brightness, reverse=True)
    assert canvas.time_colour(0, 1)


def test_labels_break_where_they_can() -> None:
    assert canvas.wrapped("hermite:degree=3,init=paper mlp_init=unit") == "hermite:degree=3,\ninit=paper\nmlp_init=unit"
    assert canvas.wrapped("gelu") == "gelu"
