"""What the engine promises of every kernel: values and gradients of the plain formula, whichever way it runs."""

import copy
import functools
import logging
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

import activations
from activations import engine, hermite
from activations.activation import Learnable
from activations.engine import Pointwise, working_dtype

CHANNELS = 12
WIDE = 96  # channels of the tests that split inputs into blocks
NORMAL_16_BIT = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # half a unit in the last place


@functools.cache
def built(spec: str) -> Learnable:
    module = activations.build(spec, CHANNELS, input_std=0.7)
    assert isinstance(module, Learnable)
    return module


@dataclass(frozen=True)
class Case:
    """A family at a degree, with any number of rows of coefficients."""

    spec: str

    def module(self, *coefficients: Tensor) -> Learnable:
        """The family's module, whose coefficients are buffers; those that are given take their place."""
        module = copy.deepcopy(built(f"{self.spec},learnable=false"))
        if coefficients:
            module.to(coefficients[0].dtype)
        for name, c in zip(module.parameter_names, coefficients, strict=bool(coefficients)):
            module.register_buffer(name, c)
        return module

    def fast(self, *coefficients: Tensor) -> Pointwise:
        found = self.module(*coefficients).fast_path()
        assert found is not None
        return found

    def kernel(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        return self.fast(*coefficients)(x)

    def plain(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        """By the family's formula, of x and coefficients in the dtype to work in."""
        module = self.module(*coefficients)
        return module.plain(x, module.unit, *coefficients)

    def coefficients(self, rows: int | None = None, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = [value.shape[-1:] if rows is None else (rows, value.shape[-1]) for value in self.module().values().values()]
        return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


SPECS = [
    *(f"hermite:degree={n}" for n in (1, 3, 9)),
    "fourier:degree=3",
    *(f"tropical:degree={n}" for n in (1, 6)),
    "tropical_rational:degree=3",
    *(f"tpgu:degree={n},per=layer" for n in (1, 2)),
    "rational:p=5,q=4,groups=1",
    "xielu:per=layer",
    "spline:knots=5",
]


@pytest.fixture(params=SPECS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float64_stays_and_everything_else_is_float32(dtype):
    assert working_dtype(torch.zeros(1, dtype=dtype)) == (torch.float64 if dtype == torch.float64 else torch.float32)


def run(function, x: Tensor, coefficients: list[Tensor], dy: Tensor) -> list[Tensor]:
    """Output, then the gradients of x and the coefficients."""
    y = function(x, *coefficients)
    gradients = torch.autograd.grad(y, [x, *coefficients], dy, allow_unused=True)
    return [y, *[torch.zeros_like(t) if g is None else g for g, t in zip(gradients, [x, *coefficients], strict=True)]]


@pytest.mark.parametrize("rows", [None, 1, 3, CHANNELS])
@pytest.mark.parametrize("shape", [(7, 5, CHANNELS), (CHANNELS,), (0, CHANNELS)])
def test_value_and_gradients_agree_with_the_plain_formula(case, rows, shape):
    coefficients = case.coefficients(rows)
    x, dy = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    ours = run(case.kernel, x, coefficients, dy)
    theirs = run(case.plain, x, coefficients, dy)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_computes_in_float32_and_rounds_once(case, dtype):
    coefficients = case.coefficients(dtype=torch.float32)
    x, dy = (2 * torch.randn(37, CHANNELS)).to(dtype).requires_grad_(), torch.randn(37, CHANNELS).to(dtype)
    y, dx, *gradients = run(case.kernel, x, coefficients, dy)
    wide = run(
        case.plain,
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
    for own, other in zip(run(case.kernel, x, coefficients, dy), run(case.plain, x, coefficients, dy), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def test_does_not_write_to_its_inputs(case):
    coefficients = case.coefficients(dtype=torch.float32)
    x, dy = torch.randn(5, CHANNELS, requires_grad=True), torch.randn(5, CHANNELS)
    before = [t.detach().clone() for t in (x, dy, *coefficients)]
    run(case.kernel, x, coefficients, dy)
    assert all(torch.equal(t, b) for t, b in zip((x, dy, *coefficients), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_never_nan_for_finite_inputs(case, dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([0.0, -0.0, 1e-30, 1e10, -1e10, 1e30, -1e30, largest, -largest], dtype=dtype)
    for seed in range(20):
        assert not case.kernel(x, *case.coefficients(dtype=torch.float32, seed=seed)).isnan().any()
    nan = torch.full((CHANNELS,), torch.nan, dtype=dtype)
    assert case.kernel(nan, *case.coefficients(dtype=torch.float32)).isnan().all()


def test_saves_x_and_the_coefficients_and_a_few_constants(case):
    coefficients = case.coefficients(dtype=torch.float32)
    x = torch.randn(64, CHANNELS).bfloat16().requires_grad_()
    fast = case.fast(*coefficients)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        fast(x)
    sizes = [t.numel() for t in saved]
    for expected in [x, *fast.coefficients]:
        sizes.remove(expected.numel())
    assert sum(sizes) <= 64, "something that grows with x or the channels"


def test_frozen_coefficients_get_no_gradient(case):
    frozen = [c.detach() for c in case.coefficients()]
    x = torch.randn(6, CHANNELS, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    (ours,) = torch.autograd.grad(case.kernel(x, *frozen), x, dy)
    theirs = run(case.plain, x, case.coefficients(), dy)[1]
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
    assert engine.is_exporting is torch.compiler.is_exporting
    monkeypatch.setattr(engine, "is_exporting", torch.compiler.is_compiling)
    act = activations.build("hermite:degree=3", 8)
    ran: list[object] = []
    monkeypatch.setattr(act, "fast_path", lambda: ran.append("kernel"))
    x = torch.linspace(-2, 2, 24).view(3, 8)
    torch.testing.assert_close(torch.compile(act, backend="eager", fullgraph=True)(x).double(), act.reference(x.double()))
    assert not ran


def test_blocks_give_the_values_of_one_block(case, monkeypatch):
    x, dy = torch.randn(50, WIDE, dtype=torch.float64, requires_grad=True), torch.randn(50, WIDE, dtype=torch.float64)
    for rows in (None, 3):
        coefficients = case.coefficients(rows)
        whole = run(case.kernel, x, coefficients, dy)
        monkeypatch.setattr(engine, "BLOCK", 7 * WIDE + 5)
        blocked = run(case.kernel, x, coefficients, dy)
        monkeypatch.undo()
        for own, other in zip(blocked, whole, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_give_the_values_of_blocks(case, dtype, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, WIDE, generator=generator).to(dtype).requires_grad_()
    dy = torch.randn(200, WIDE, generator=generator).to(dtype)
    coefficients = case.coefficients(dtype=torch.float32)
    expected = run(case.kernel, x, coefficients, dy)
    monkeypatch.setattr(engine, "TABLE_PAYS_FROM", 1)
    y, dx, *sums = run(case.kernel, x, coefficients, dy)
    assert torch.equal(y, expected[0])
    torch.testing.assert_close(dx, expected[1])
    for own, other in zip(sums, expected[2:], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4 * float(other.abs().max() + 1))


def test_the_path_depends_on_dtype_size_and_rows(monkeypatch):
    small, large = torch.zeros(1, 1, 8), torch.zeros(engine.TABLE_PAYS_FROM // 8, 1, 8)
    dear, cheap = hermite._RECURRENCE, hermite._POWER_BASIS
    assert engine.choose(dear, large.bfloat16()) == engine.choose(dear, large.half()) == "table"
    assert engine.choose(cheap, large.bfloat16()) == "blocks"
    assert engine.choose(dear, large) == engine.choose(dear, small.bfloat16()) == "blocks"
    assert engine.choose(dear, large.bfloat16().view(-1, 8, 1)) == "blocks"
    assert engine.choose(dear, large.to("meta")) == "whole"


def test_the_path_is_announced_once(caplog):
    engine._announce.cache_clear()
    with caplog.at_level(logging.DEBUG, logger=engine.log.name):
        for _ in range(3):
            activations.build("fourier", 4)(torch.zeros(2, 4))
    assert [record.getMessage() for record in caplog.records] == ["activations of torch.float32 run eagerly on the CPU: blocks"]


def test_coefficients_by_channel_are_made_before_the_loop_over_the_inputs() -> None:
    """Inside it, where Inductor had put them, TPGU raised input_std to seven powers for each element."""
    act, x = activations.build("tpgu:degree=5", 24), torch.randn(37, 24)
    with torch.no_grad():
        y, (code, *_) = run_and_get_code(torch.compile(act, fullgraph=True, dynamic=False), x)
    assert torch.allclose(y, act(x), rtol=1e-5, atol=1e-6)
    loop = code[code.rindex("(37L)") :]  # the last one over rows; a hundred temporaries before
    assert "pow(" not in loop
    assert 5 < loop.count("auto tmp") < 60
