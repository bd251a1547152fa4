"""The benchmark of activations runs end to end on a small shape."""

import json
from pathlib import Path

import pytest

from bench import activations as bench


def test_it_prints_ratios_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = bench.main(
        [
            "--activations",
            "hermite:degree=3",
            "--shape",
            "4",
            "64",
            "--dtypes",
            "float32",
            "--rounds",
            "2",
            "--device",
            "cpu",
            "--json",
            str(tmp_path / "x.json"),
        ]
    )
    assert code == 0
    assert "hermite" in capsys.readouterr().out
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert {row["mode"] for row in rows} >= {"eager", "compiled"}


def test_scaling_asks_for_degrees_that_there_are() -> None:
    degrees = {degree: [spec.partition(":")[0] for spec in bench.specs_of(degree)] for degree in bench.DEGREES}
    assert degrees[12] == ["hermite", "fourier", "tropical"]
    assert degrees[16] == ["hermite", "tropical"]


def test_scaling_has_a_line_for_each_family(tmp_path: Path) -> None:
    def row(activation: str, shape: str, ms: float) -> dict[str, object]:
        return {"activation": activation, "mode": "eager", "dtype": "float32", "shape": shape, "ms": ms}

    rows = [row(spec, shape, 1.0) for spec in ("gelu", "hermite:degree=3,per=layer") for shape in ("10x1000", "100x1000")]
    rows += [row(f"hermite:degree={n}", bench.DEGREE_SHAPE, float(n)) for n in (1, 2, 16)]
    bench.draw_scaling(rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
