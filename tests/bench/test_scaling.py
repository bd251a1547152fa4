"""The scaling benchmark asks for what there is, and draws it."""

from pathlib import Path

from bench import scaling


def test_asks_for_degrees_that_there_are() -> None:
    degrees = {degree: [spec.partition(":")[0] for spec in scaling.specs_of(degree)] for degree in scaling.DEGREES}
    assert degrees[12] == ["hermite", "fourier", "tropical"]
    assert degrees[16] == ["hermite", "tropical"]


def test_has_a_line_for_each_family(tmp_path: Path) -> None:
    def row(activation: str, shape: str, ms: float) -> dict[str, object]:
        return {"activation": activation, "mode": "eager", "dtype": "float32", "shape": shape, "ms": ms}

    rows = [row(spec, shape, 1.0) for spec in ("gelu", "hermite:degree=3,per=layer") for shape in ("10x1000", "100x1000")]
    rows += [row(f"hermite:degree={n}", scaling.DEGREE_SHAPE, float(n)) for n in (1, 2, 16)]
    scaling.draw(rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
