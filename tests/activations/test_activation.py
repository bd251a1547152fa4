"""The base class: what it does for every family beyond the suite of test_family.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import activations
from activations import registry
from activations.activation import Learnable
from tests.runs import in_processes

LEARNABLE = [name for name in registry.names() if issubclass(registry.family(name), Learnable)]


def network() -> nn.ModuleDict:
    """One activation of every learnable family, by layer and by channel."""
    specs = [f"{name}:per={per}" for name in LEARNABLE for per in ("layer", "channel")]
    return nn.ModuleDict({str(index): activations.build(spec, 16, 0.5) for index, spec in enumerate(specs)})


class Parallel(nn.Module):
    """The sum of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.all = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([module(x) for module in self.all.values()]).sum(0)


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    model = DistributedDataParallel(Parallel())
    for _ in range(2):  # the second step fails where a parameter got no gradient in the first
        model.zero_grad()
        model(_batch()[rank::2]).square().mean().backward()
    torch.save([p.grad for p in model.module.parameters()], folder / f"{rank}.pt")
    dist.destroy_process_group()


def _batch() -> torch.Tensor:
    return 0.5 * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def test_distributed_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    in_processes(_rank, (tmp_path,), 2)
    model = Parallel()
    model(_batch()).square().mean().backward()
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for parameter, first, second in zip(model.parameters(), *ranks, strict=True):
        assert parameter.grad is not None
        assert torch.equal(first, second)
        torch.testing.assert_close(first, parameter.grad, rtol=1e-4, atol=1e-4 * float(parameter.grad.abs().max()))


@pytest.mark.parametrize("name", LEARNABLE)
def test_learning_rate_and_autocast_leave_coefficients_in_float32(name: str) -> None:
    module = activations.build(f"{name}:per=channel", 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(_batch().bfloat16())
    y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    plain = activations.build(f"{name}:per=channel", 16)
    plain(_batch().bfloat16()).float().square().mean().backward()
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        assert a.grad is not None
        assert a.grad.dtype == torch.float32
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad), "autocast changed how small tensors are folded"


def test_reference_of_rows_serves_blocks_of_channels() -> None:
    module = activations.build("rational:groups=4", 8).double()
    assert isinstance(module, Learnable)
    values = module.values()
    values["numerator"] = values["numerator"] * torch.arange(1, 5)[:, None]
    module.set_values(values)
    x = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(3, 8)
    one = activations.build("rational:groups=1", 8).double()
    expected = one(x) * torch.tensor([1, 1, 2, 2, 3, 3, 4, 4])
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module.reference(x), expected)


def test_gains_average_over_channels() -> None:
    module = activations.build("hermite:degree=1,per=channel", 2)
    assert isinstance(module, Learnable)
    module.set_values({"coefficients": torch.tensor([[0.0, 1.0], [0.0, 3.0]], dtype=torch.float64)})
    assert activations.gains(module) == pytest.approx((5.0, 5.0))


def test_says_what_it_is() -> None:
    assert repr(activations.build("hermite", 4, 0.25)) == (
        "Hermite('hermite:degree=3,per=layer,init=unit,learnable=true', channels=4, input_std=0.25)"
    )
    with torch.device("meta"):
        assert "input_std=meta" in repr(activations.build("hermite", 4))


@pytest.mark.parametrize("missing", ["evaluate", "initial", "fitted"])
def test_a_family_without_its_formulas_says_which(missing: str) -> None:
    module = activations.build("hermite", 4)
    arguments = {"evaluate": ({}, torch.zeros(1))}.get(missing, ("unit",))
    with pytest.raises(TypeError, match=rf"has no {missing}\(\)"):
        getattr(Learnable, missing)(module, *arguments)


def test_torch_alone_is_enough() -> None:
    """Building, running, fitting and swapping work where nothing but torch can be imported."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(['matplotlib', 'scipy', 'triton', 'transformers', 'safetensors', 'tyro']);"
        "import torch, activations; from activations import telemetry;"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU());"
        "[activations.build(name, 8)(torch.ones(2, 8)) for name in activations.names()];"
        "activations.swap(model, torch.nn.GELU, 'tropical:init=fit-gelu');"
        "print(any('outside' in name for name in telemetry.observe(model, torch.ones(2, 4))))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "True", ran.stderr
