"""The contract that every kernel keeps, forward, backward and coefficient gradients, against its plain-torch reference."""

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

import activations
from activations.kernels import pointwise

CHANNELS = 12
NORMAL_16_BIT = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # half a unit in the last place


def per_channel(coefficients: list[Tensor], channels: int = CHANNELS) -> list[Tensor]:
    return [c if c.ndim == 1 else c.repeat_interleave(channels // len(c), 0) for c in coefficients]


def run(function, x: Tensor, coefficients: list[Tensor], dy: Tensor) -> list[Tensor]:
    """Output, then the gradients of x and the coefficients."""
    y = function(x, *coefficients)
    gradients = torch.autograd.grad(y, [x, *coefficients], dy, allow_unused=True)
    return [y, *[torch.zeros_like(t) if g is None else g for g, t in zip(gradients, [x, *coefficients], strict=True)]]


@pytest.mark.parametrize("rows", [None, 1, 3, CHANNELS])
@pytest.mark.parametrize("shape", [(7, 5, CHANNELS), (CHANNELS,), (0, CHANNELS)])
def test_value_and_gradients_agree_with_the_reference(case, rows, shape):
    coefficients = case.coefficients(rows)
    x, dy = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    ours = run(case.kernel, x, coefficients, dy)
    theirs = run(lambda x, *c: case.reference(x, *per_channel(list(c))), x, coefficients, dy)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_computes_in_float32_and_rounds_once(case, dtype):
    coefficients = case.coefficients(dtype=torch.float32)
    x, dy = (2 * torch.randn(37, CHANNELS)).to(dtype).requires_grad_(), torch.randn(37, CHANNELS).to(dtype)
    y, dx, *gradients = run(case.kernel, x, coefficients, dy)
    wide = run(
        case.reference,
        x.detach().double().requires_grad_(),
        [c.detach().double().requires_grad_() for c in coefficients],
        dy.double(),
    )
    assert y.dtype == dx.dtype == dtype
    assert all(g.dtype == torch.float32 for g in gradients)
    step = NORMAL_16_BIT.get(dtype, 0.0)
    largest = wide[0].abs().max()
    assert ((y.double() - wide[0]).abs() <= step * wide[0].abs() + 3e-6 * largest).all()
    for own, other in zip(gradients, wide[2:], strict=True):
        torch.testing.assert_close(own.double(), other, rtol=2e-5, atol=2e-5 * float(other.abs().max() + 1))


def test_takes_any_layout(case):
    coefficients = case.coefficients()
    x = torch.randn(CHANNELS, 9, 4, dtype=torch.float64).transpose(0, 2)[:, ::2].requires_grad_()
    dy = torch.ones((), dtype=torch.float64).expand(x.shape)
    for own, other in zip(run(case.kernel, x, coefficients, dy), run(case.reference, x, coefficients, dy), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def test_does_not_write_to_its_inputs(case):
    coefficients = case.coefficients(dtype=torch.float32)
    x, dy = torch.randn(5, CHANNELS, requires_grad=True), torch.randn(5, CHANNELS)
    before = [t.detach().clone() for t in (x, dy, *coefficients)]
    run(case.kernel, x, coefficients, dy)
    assert all(torch.equal(t, b) for t, b in zip((x, dy, *coefficients), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_never_nan_for_finite_inputs(case, dtype):
    if len(case.counts) == 4:
        pytest.skip("the difference of two maxima of ordinary slopes is checked in test_tropical")
    largest = torch.finfo(dtype).max
    x = torch.tensor([0.0, -0.0, 1e-30, 1e10, -1e10, 1e30, -1e30, largest, -largest], dtype=dtype)
    for seed in range(20):
        assert not case.kernel(x, *case.coefficients(dtype=torch.float32, seed=seed)).isnan().any()
    assert case.kernel(
        torch.tensor([torch.nan], dtype=dtype), *case.coefficients(dtype=torch.float32)
    ).isnan().all() or case.counts == (1,)


def test_saves_x_and_the_coefficients_and_a_few_constants(case):
    coefficients = case.coefficients(dtype=torch.float32)
    x = torch.randn(64, CHANNELS).bfloat16().requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        case.kernel(x, *coefficients)
    sizes = [t.numel() for t in saved]
    for expected in [x, *coefficients]:
        sizes.remove(expected.numel())
    assert sum(sizes) <= 64, "something that grows with x or the channels"


def test_frozen_coefficients_get_no_gradient(case):
    frozen = [c.detach() for c in case.coefficients()]
    x = torch.randn(6, CHANNELS, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    (ours,) = torch.autograd.grad(case.kernel(x, *frozen), x, dy)
    theirs = run(case.reference, x, case.coefficients(), dy)[1]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_rows_that_do_not_divide_the_channels_are_refused(case):
    with pytest.raises(ValueError, match="5 rows of coefficients cannot serve 12 channels; give a number of rows that divides"):
        case.kernel(torch.randn(2, CHANNELS), *case.coefficients(5))


def test_differentiating_twice_is_refused_without_a_plain_formula(case):
    x = torch.randn(2, CHANNELS, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="differentiable once; call it with `plain`"):
        torch.autograd.grad(case.kernel(x, *case.coefficients()).sum(), x, create_graph=True)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 needs no disguise")
def test_without_a_name_for_export_compilers_get_the_plain_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on torch 2.6, which has no torch.compiler.is_exporting."""
    assert pointwise.is_exporting is torch.compiler.is_exporting
    monkeypatch.setattr(pointwise, "is_exporting", torch.compiler.is_compiling)
    act = activations.build("hermite:degree=3", 8)
    ran: list[object] = []
    monkeypatch.setattr(act, "function", lambda: ran.append("kernel"))
    x = torch.linspace(-2, 2, 24).view(3, 8)
    torch.testing.assert_close(torch.compile(act, backend="eager", fullgraph=True)(x).double(), act.reference(x.double()))
    assert not ran


def test_coefficients_by_channel_are_made_before_the_loop_over_the_inputs() -> None:
    """Inside it, where Inductor had put them, TPGU raised input_std to seven powers for each element."""
    act, x = activations.build("tpgu:degree=5", 24), torch.randn(37, 24)
    with torch.no_grad():
        y, (code, *_) = run_and_get_code(torch.compile(act, fullgraph=True, dynamic=False), x)
    assert torch.allclose(y, act(x), rtol=1e-5, atol=1e-6)
    loop = code[code.rindex("(37L)") :]  # the last one over rows; a hundred temporaries before
    assert "pow(" not in loop
    assert 5 < loop.count("auto tmp") < 60
