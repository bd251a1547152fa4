"""comparison/depth.py: unit gain keeps second moments through depth where the inputs keep their law; others do not."""

import json
import math
from pathlib import Path

import pytest
import torch

import activations
import compare
from comparison import depth, plots


def test_unit_gain_keeps_both_directions_and_gelu_neither() -> None:
    rows = depth.measure(["fourier:degree=5", "gelu"], [12], width=256, seeds=1)
    ends = {(row["network"], row["activation"]): (row["forward"][-1], row["backward"][0]) for row in rows}
    for end in ends["stack", "fourier:degree=5"]:
        assert 0.7 < end < 1.4
    assert all(end < 1e-4 for end in ends["stack", "gelu"])
    assert all(1 < end < 100 for network, spec in ends if network == "gpt" for end in ends[network, spec])


@pytest.mark.parametrize(("spec", "attracts"), [("fourier:degree=5", True), ("hermite:degree=3", False)])
def test_variance_one_attracts_where_the_docstring_says(spec: str, attracts: bool) -> None:
    """E[F F''] from finite differences of the reference, against what a variance that is 2 % off becomes in the next layer."""
    act = activations.build(spec, 1)
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)[:, None]
    density = torch.exp(-(z**2) / 2) * (z[1] - z[0]) / math.sqrt(2 * math.pi)
    h = 1e-3
    f = act.reference(z)
    curvature = float((f * (act.reference(z + h) - 2 * f + act.reference(z - h)) / h**2 * density).sum())
    assert (-2 < curvature < 0) == attracts
    wider = float((act.reference(1.01 * z) ** 2 * density).sum())
    assert (wider - 1) / (1.01**2 - 1) == pytest.approx(1 + curvature, rel=0.05)


def test_curves_begin_at_one_and_overflow_is_told() -> None:
    rows = depth.measure(["hermite:degree=8"], [12], width=64, seeds=1)
    stack = next(row for row in rows if row["network"] == "stack")
    assert stack["forward"][0] == 1
    assert len(stack["forward"]) == len(stack["backward"]) == 13
    assert stack["forward"][-1] is None, "Hermite 8 without normalisation was expected to overflow"
    assert "overflow in 1 of 1" in str(depth.table(rows))
    assert plots.depth(rows).startswith(b"\x89PNG")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["depth", "--activations", "relu", "--depths", "2", "3", "--width", "64", "--seeds", "1", "--out_dir", str(tmp_path)]
    assert compare.main(argv) == 0
    assert len(json.loads((tmp_path / "depth.json").read_text())["rows"]) == 4
    assert (tmp_path / "depth.png").is_file()
    assert "| stack | relu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "depth of what"),
        (["--activations", "gelu", "--depths", "0"], "'0' is not a number of layers"),
        (["--activations", "gelu", "--width", "65"], "multiples of 64"),
        (["--activations", "gellu"], "gelu"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["depth", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
