"""TPGU: the projection of GELU, the published start, and derivatives of the sigmoid at any order."""

import math

import pytest
import torch

import activations
from activations.moments import quadrature
from activations.tpgu import SLOPE, TPGU, _derivatives, start
from config.schema import GPTConfig
from model import GPT

SLOPE_GAIN = {1: 1.124, 2: 1.124, 3: 1.099, 4: 1.099, 5: 1.085}


@pytest.mark.parametrize("degree", SLOPE_GAIN)
def test_initial_coefficients_are_the_scaled_projection(degree: int, reference: dict[str, list[dict[str, object]]]) -> None:
    case = next(case for case in reference["cases"] if case["id"] == f"tpgu_n{degree}_gelu_unit")
    module = activations.build(f"tpgu:degree={degree},per=layer", 1)
    params = case["params"]
    assert isinstance(params, dict)
    assert module.values()["coefficients"].tolist() == pytest.approx(params["a"], abs=1e-6)
    assert module.values()["expansion_point"].tolist() == [params["b"]]
    assert activations.gains(module) == pytest.approx((1, SLOPE_GAIN[degree]), abs=1e-3)


def test_paper_is_a_nearly_linear_network_at_half_gain() -> None:
    module = activations.build("tpgu:degree=3,init=paper", 256)
    coefficients = module.values()["coefficients"]
    assert (coefficients[:, 0] == 1).all()
    assert float(coefficients[:, 1:].std()) == pytest.approx(0.0176, abs=0.002)  # 0.02 cut at two standard deviations
    assert coefficients[:, 1:].abs().max() <= 0.04
    assert activations.gains(module) == pytest.approx((0.25, 0.25), abs=0.02)


def test_layers_draw_their_own_start_where_asked() -> None:
    spec = "tpgu:init=paper,draw=layer"
    layers = [activations.build(spec, 64, layer=layer).values()["coefficients"] for layer in range(3)]
    assert torch.equal(layers[0], activations.build("tpgu:init=paper", 64, layer=2).values()["coefficients"])
    assert torch.equal(layers[2], activations.build(spec, 64, layer=2).values()["coefficients"])
    for one, other in ((0, 1), (1, 2)):
        correlation = torch.corrcoef(torch.stack([layers[one][:, 1:].flatten(), layers[other][:, 1:].flatten()]))[0, 1]
        assert abs(float(correlation)) < 0.2
    config = GPTConfig(n_layer=3, n_head=1, n_embd=16, block_size=8, vocab_size=257, activation=spec)
    for layer, block in enumerate(GPT(config).transformer.h):
        assert torch.equal(block.mlp.act.values()["coefficients"], layers[layer][:64])
    swapped = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.GELU(), torch.nn.Linear(64, 64), torch.nn.GELU())
    activations.swap(swapped, torch.nn.GELU, spec)
    assert torch.equal(swapped[3].values()["coefficients"], layers[1])
    with pytest.raises(ValueError, match="draw=layer is for init=paper"):
        activations.build("tpgu:draw=layer", 4)


def test_derivatives_of_the_sigmoid() -> None:
    """S_k by autograd, k times, against the polynomials in tanh."""
    b = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    S = torch.sigmoid(SLOPE * b)
    powers = torch.tanh(SLOPE / 2 * b.detach()) ** torch.arange(10, dtype=torch.float64)
    for k, row in enumerate(_derivatives(8)):
        assert float((row * powers).sum()) * math.factorial(k) == pytest.approx(float(S.detach()), rel=1e-10)
        (S,) = torch.autograd.grad(S, b, create_graph=True)


@pytest.mark.parametrize("degree", range(1, 13))
def test_no_derivative_is_near_zero_where_the_expansion_begins(degree: int) -> None:
    """Each |S_k| against its largest for |b| < 1; at degree 9 and above no other b in steps of 0.001 is better."""
    derivatives = _derivatives(degree)
    b = torch.arange(1, 1000, dtype=torch.float64)[:, None] / 1000
    sizes = (torch.tanh(SLOPE / 2 * b) ** torch.arange(degree + 2) @ derivatives.T).abs()
    smallest = (sizes / sizes.amax(0)).amin(1)
    at = round(start(degree) * 1000) - 1
    assert smallest[at] > 0.35
    if degree > 8:
        assert smallest[at] > smallest.max() - 1e-3
    module = activations.build(f"tpgu:degree={degree}", 2)
    assert module.values()["expansion_point"].flatten().tolist() == pytest.approx([start(degree)] * 2)


@pytest.mark.parametrize("degree", [9, 10, 12])
def test_high_degrees_keep_their_moments_and_their_digits(degree: int) -> None:
    """Exact second moment, by quadrature too; the reported slope; float32 within 4e-7 of the sum of the terms' sizes."""
    module = activations.build(f"tpgu:degree={degree}", 4, input_std=0.5)
    assert isinstance(module, TPGU)
    second, slope = activations.gains(module)
    assert second == pytest.approx(0.25, rel=1e-6)
    values = module.values()
    found = quadrature(lambda z: module.evaluate(values, z), 1.0, torch.zeros(4, 0))
    assert float(found.second.mean()) == pytest.approx(1, rel=1e-6)
    assert slope == pytest.approx(float(found.slope.mean()), rel=1e-9)
    x = torch.linspace(-2, 2, 401)[:, None].expand(-1, 4)
    c = TPGU._gate(values["coefficients"], values["expansion_point"], _derivatives(degree))
    powers = (x.double() / 0.5)[..., None].abs() ** torch.arange(1, degree + 2)
    scale = 0.5 * (powers * c.abs()).sum(-1)
    assert ((module(x) - module.reference(x)).abs() <= 4e-7 * scale).all()


def test_integration_by_parts_identity() -> None:
    """E F'^2 = E F^2 / s^2 + E[x^2 P'^2] >= E F^2 / s^2: why unit gain cannot be had."""
    module = activations.build("tpgu", 4, input_std=0.5)
    for std in (0.3, 0.5, 1.0):
        second, slope = activations.gains(module, std)
        assert slope >= second / std**2


def test_documented_overflow_in_float16() -> None:
    for degree, largest in ((1, 430), (3, 40), (5, 18)):
        module = activations.build(f"tpgu:degree={degree}", 1)
        assert module(torch.tensor([[largest]], dtype=torch.float16)).isfinite().all()
        assert module(torch.tensor([[largest + 4.0]], dtype=torch.float16)).isinf().all()
        assert str(largest) in (TPGU.__doc__ or "")
