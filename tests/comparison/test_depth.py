"""comparison/depth.py: unit gain keeps second moments through depth where the inputs keep their law; others do not."""

import json
import math
from pathlib import Path

import pytest
import torch

import activations
import compare
from comparison.untrained import depth


def test_unit_gain_keeps_both_directions_and_gelu_neither() -> None:
    rows = depth.measure(["fourier:degree=5", "gelu"], [12], width=256, seeds=1)
    ends = {(row["network"], row["activation"]): (row["forward"][-1], row["backward"][0]) for row in rows}
    for end in ends["stack", "fourier:degree=5"]:
        assert 0.7 < end < 1.4
    assert all(end < 1e-4 for end in ends["stack", "gelu"])
    assert all(1 < end < 100 for network, spec in ends if network == "gpt" for end in ends[network, spec])


RULE = {
    "fourier:degree=1": -1.0,
    "fourier:degree=5": -1.309,
    "rational:p=2,q=3": -0.397,
    "rational:p=3,q=3": -0.046,
    "rational:p=4,q=4": -0.121,
    "rational:p=5,q=4": 0.069,
    "tropical:degree=1": 0.0,
    "tropical:degree=6": 0.115,
    "tropical_rational:degree=2": -0.028,
    "tropical_rational:degree=6": 0.103,
    "hermite:degree=1": 0.0,
    "hermite:degree=2": 0.354,
    "hermite:degree=3": 0.765,
    "tpgu:degree=5": 0.069,
    "xielu": 0.477,
    "gelu": 0.031,
}


@pytest.mark.parametrize("spec", RULE)
def test_the_rule_agrees_with_quadrature_and_with_a_simulated_layer(spec: str) -> None:
    """E[F F''] = E[z F F'] - E F'^2 by Stein's lemma, over a grid; then two inputs 5 % apart in variance through one stack.

    Through the same weights, so that the noise of finite width is common to both.
    """
    second, slope, curvature = depth.rule(spec)
    assert curvature == pytest.approx(RULE[spec], abs=1e-3)
    act = activations.build(spec, 8)
    z = torch.linspace(-10, 10, 40001, dtype=torch.float64)[:, None].expand(-1, 8).clone().requires_grad_()
    f = act.reference(z)
    (f_slope,) = torch.autograd.grad(f.sum(), z)
    density = torch.exp(-(z.detach() ** 2) / 2) * 5e-4 / math.sqrt(2 * math.pi)
    stein = float((z * f * f_slope * density).mean(1).sum().detach()) - float((f_slope**2 * density).mean(1).sum())
    assert stein == pytest.approx(curvature, abs=1e-3)

    generator = torch.Generator().manual_seed(0)
    layers, width = 2, 1024
    wide = activations.build(spec, width)
    h = torch.randn(64, width, generator=generator)
    pair = [h, math.sqrt(1.05) * h]
    for _ in range(layers):
        weight = torch.randn(width, width, generator=generator) / math.sqrt(width)
        with torch.no_grad():
            pair = [wide(x @ weight.T) for x in pair]
    ratio = float(pair[1].square().mean() / pair[0].square().mean())
    exponent = math.log(ratio) / math.log(1.05)
    # Finite width adds to it, about as 1 / width: for Hermite 3, whose fourth moment is 19 times its second squared,
    # 0.47, 0.23, 0.13 and 0.09 at width 128, 512, 1024 and 2048.
    if second == pytest.approx(1, abs=1e-3):  # variance 1 is a fixed point
        assert exponent == pytest.approx((slope + curvature) ** layers, abs=0.1 + 0.2 * abs(curvature))


def test_the_rule_tells_which_families_keep_variance_through_depth() -> None:
    """24 layers without normalisation: those with E F'^2 = 1 and -2 < E[F F''] < 0 keep variance, Hermite 3 does not.

    Within a factor of 2 forward and 3 backward. Rational 4/4 attracts weakly (0.88 a layer): within 5 forward at width 128.
    """
    kept = {"fourier:degree=1": 2, "rational:p=2,q=3": 2, "rational:p=4,q=4": 5}
    for row in depth.measure([*kept, "hermite:degree=3"], [24], width=128, seeds=1):
        if row["network"] == "stack":
            forward, backward, factor = row["forward"][-1], row["backward"][0], kept.get(row["activation"], 2)
            assert (forward is not None and 1 / factor < forward < factor) == (row["activation"] in kept), row["activation"]
            assert factor != 2 or row["activation"] not in kept or 1 / 3 < backward < 3, row["activation"]


def test_curves_begin_at_one_and_overflow_is_told() -> None:
    rows = depth.measure(["hermite:degree=8"], [12], width=64, seeds=1)
    stack = next(row for row in rows if row["network"] == "stack")
    assert stack["forward"][0] == 1
    assert len(stack["forward"]) == len(stack["backward"]) == 13
    assert stack["forward"][-1] is None, "Hermite 8 without normalisation was expected to overflow"
    assert "overflow in 1 of 1" in str(depth.table(rows))
    assert depth.picture(rows).png.startswith(b"\x89PNG")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["depth", "--activations", "relu", "--depths", "2", "3", "--width", "64", "--seeds", "1", "--out_dir", str(tmp_path)]
    assert compare.main(argv) == 0
    assert len(json.loads((tmp_path / "depth.json").read_text())["rows"]) == 4
    assert (tmp_path / "depth.png").is_file()
    assert "| stack | relu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "required: --activations"),
        (["--activations", "gelu", "--depths", "0"], "--depths 0 is not a number of layers"),
        (["--activations", "gelu", "--width", "65"], "multiples of 64"),
        (["--activations", "gellu"], "gelu"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["depth", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
