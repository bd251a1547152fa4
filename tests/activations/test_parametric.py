"""Families of a few lines: gains, kinks, fits, and what is said of a wrong one. The whole suite for them is test_family.py."""

import logging
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import activations
from activations import plot, registry, telemetry
from tests.activations import toy
from tests.activations.test_compiled import wrong


@pytest.mark.parametrize("document", ["docs/activations.md:Add one", "README.md:Add an activation"])
def test_the_lines_that_are_shown_make_a_family(document: str, tmp_path: Path) -> None:
    """From the text as it stands there to a module with unit gain; README may point to docs/activations.md instead."""
    code = toy.shown(*document.split(":"))
    if not code:
        assert document.startswith("README.md")
        return
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    (tmp_path / "mine.py").write_text(code)
    spec = f"{tmp_path / 'mine.py'}:Swish"
    for per in ("layer", "channel"):
        act = activations.build(f"{spec},per={per}", 8, 0.5)
        assert activations.gains(act) == pytest.approx((0.25, 1.0), rel=1e-6)
        assert activations.fit(act, torch.nn.functional.silu, 0.5).value_max < 1e-6
    assert wrong([f"{spec},per={per}" for per in ("layer", "channel")], "cpu") == []
    model = nn.Sequential(nn.Linear(4, 8), nn.SiLU())
    assert activations.swap(model, nn.SiLU, f"{spec}:init=fit", 0.5) == 1
    assert math.isfinite(telemetry.observe(model, torch.ones(2, 4))["1.slope_moment"])
    assert plot.shapes(model).startswith(b"\x89PNG")


def test_kinks_are_found_where_nobody_stated_them() -> None:
    module = toy.HardTanh(4, 1.0, per="channel")
    limits = torch.tensor([0.3, 1.3, 2.0, 0.123456789], dtype=torch.float64)[:, None]
    values = module.values() | {"limit": limits, "scale": torch.ones(4, 1).double(), "shift": torch.zeros(4, 1).double()}
    kinks = module.kinks(values)
    for row, (limit,) in zip(kinks, limits.tolist(), strict=True):
        assert sorted(row[row.isfinite()].tolist()) == pytest.approx([-limit, limit], abs=1e-12)
    inside = torch.special.ndtr(limits) - torch.special.ndtr(-limits)  # E F'^2 of a clamp
    torch.testing.assert_close(module.moments(values, 1.0).slope, inside[:, 0], rtol=1e-11, atol=1e-13)
    assert toy.Swish(4).kinks(toy.Swish(4).values()).isinf().all()


def test_what_a_formula_without_constant_starts_with() -> None:
    odd = toy.Odd(4, 0.5)
    second, slope = activations.gains(odd)
    assert second == pytest.approx(0.25, rel=1e-6)
    assert f"E F^2 = s^2 and E F'^2 = {slope:.4g}" in repr(odd)
    assert odd(torch.zeros(1, 4)).abs().max() == 0
    assert "unit gain at the start" in repr(toy.Swish(4))


class Bare(activations.Parametric):
    """z + w z^3 / 6, as stated."""

    start = {"w": 0.5}  # noqa: RUF012
    adds = ()

    def formula(self, z: Tensor, w: Tensor) -> Tensor:
        return z + w * z.clamp(-1e6, 1e6) ** 3 / 6


def test_a_family_that_is_left_as_it_is() -> None:
    bare = Bare(4, 2.0)
    assert bare.values()["w"].tolist() == [0.5]
    # E (z + w z^3/6)^2 = 1 + w + 15 w^2 / 36 and E (1 + w z^2 / 2)^2 = 1 + w + 3 w^2 / 4, times s^2 = 4 and 1
    assert activations.gains(bare) == pytest.approx((4 * (1.5 + 15 / 144), 1.5 + 3 / 16), rel=1e-6)
    assert "E F^2 = 1.604 s^2 and E F'^2 = 1.688" in repr(bare)
    activations.fit(bare, lambda x: x + 0.1 * x**3)
    assert bare.values()["w"].item() == pytest.approx(0.6 * 4, rel=1e-5)  # in z = x / 2


def family(**stated: object) -> type[activations.Parametric]:
    return type("Wrong", (activations.Parametric,), stated)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"start": {"a": 1.0}}, "states no start or no formula"),
        ({"formula": lambda self, z: z}, "states no start or no formula"),
        ({"start": {"scale": 1.0}, "formula": lambda self, z, scale: z}, "must be"),
        ({"start": {"channels": 1.0}, "formula": lambda self, z, channels: z}, "'channels' is taken"),
        ({"start": {"forward": 1.0}, "formula": lambda self, z, forward: z}, "'forward' is taken"),
        ({"start": {"a": "one"}, "formula": lambda self, z, a: a * z}, "more than numbers"),
        ({"start": {"a": 1.0}, "formula": lambda self, z, a: (a * z).sum()}, "one of shape () for (7, 1)"),
        ({"start": {"a": 1.0}, "formula": lambda self, z, a: a / z}, "finite tensor"),
        ({"start": {"a": 0.0}, "formula": lambda self, z, a: a * z}, "constant"),
    ],
)
def test_a_wrong_statement_is_one_line(stated: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match="Wrong") as caught:
        family(**stated)(4)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


FILE = '''
import torch
import activations

class Swish(activations.Parametric):
    """z sigmoid(beta z)."""
    start = {"beta": 1.0}
    def formula(self, z, beta):
        return z * torch.sigmoid(beta * z)

class Plain(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.slopes = torch.nn.Parameter(torch.rand(channels))
    def forward(self, x):
        return self.slopes * x.tanh()

class Sum(torch.nn.Module):
    def forward(self, x):
        return x.sum(-1)

class Sized(torch.nn.Module):
    def __init__(self, width):
        super().__init__()

class Odd(activations.Parametric):
    start = {"a": 1.0}
    def __init__(self, width):
        super().__init__(width)
    def formula(self, z, a):
        return a * z

class Number:
    pass
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_the_canonical_spec_names_the_file_as_it_was(file: Path) -> None:
    spec = registry.check(f" {file}:Swish,per=channel ")
    assert spec.startswith(f"{file}@")
    assert spec.endswith(":Swish:per=channel")
    assert spec == registry.check(spec) == registry.check(f"{file}:Swish:per=channel")
    module = activations.build(spec, 4)
    assert module.spec == spec
    assert registry.options(spec)["init"] == "unit"
    assert registry.short_name(registry.parse(spec)[0]) == "mine.py:Swish"
    file.write_text(FILE.replace("z * torch", "2 * z * torch"))
    assert registry.check(spec) == spec, "what is recorded can be read without the file"
    with pytest.raises(ValueError, match=r"has changed since .* put back the file as it was, or name the present one"):
        activations.build(spec, 4)
    assert activations.build(f"{file}:Swish", 4).spec != spec
    file.unlink()
    assert registry.check(spec) == spec
    with pytest.raises(ValueError, match="there is no file"):
        activations.build(spec, 4)


def test_reading_a_spec_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "evil.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Swish: pass\n")
    spec = registry.check(f"{path}:Swish")
    registry.parse(spec)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="without its SHA-256"):
        registry.check_recorded(f"{path}:Swish")
    with pytest.raises(ValueError, match="it is no class of"):
        activations.build(spec, 4)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("none.py:Swish", "there is no file"),
        ("mine.py", "names no class of the file; type"),
        ("mine.py:Swisch", "the file has no 'Swisch'; type"),
        ("mine.py:Number", "it is no class of activations.Parametric or nn.Module"),
        ("mine.py:torch", "it is no class of"),
        ("mine.py:Sum", "keeps the shape"),
        ("mine.py:Sized", "its constructor takes (width)"),
        ("mine.py:Odd", "its constructor is called as Odd(channels, input_std, **options), and takes (width)"),
        ("mine.py:Swish,per=chanel", "did you mean 'channel'?"),
        ("mine.py:Swish,degree=3", "'degree' is not an option"),
        ("mine.py:Plain,per=layer", "it takes none"),
        ("mine.py:Swish,per=layer,per=layer", "given twice"),
        ("broken.py:Swish", "broken.py cannot be run: line 2: NameError: name 'nonsense' is not defined"),
        ("syntax.py:Swish", "syntax.py cannot be run: line 1: SyntaxError"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(named: str, said: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    (file.parent / "broken.py").write_text("import torch\nnonsense\n")
    (file.parent / "syntax.py").write_text("class Swish(:\n")
    with pytest.raises(ValueError, match=r"activation|option") as caught:
        activations.build(named, 4)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plain_module_is_an_activation_that_says_what_it_lacks(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        modules = [activations.build(f"{file}:Plain", 4, 0.5) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "without gains, exact initialisation, fits" in line
    x = torch.linspace(-2, 2, 12).reshape(3, 4)
    assert torch.equal(modules[0](x), modules[1](x))
    torch.testing.assert_close(modules[0].reference(x), modules[0](x).double(), rtol=1e-6, atol=1e-6)
    assert modules[0](x.bfloat16()).dtype == torch.bfloat16
    assert modules[0].bfloat16().inner.slopes.dtype == torch.float32
    model = nn.Sequential(nn.Linear(4, 4), modules[0])
    groups = {group["name"]: group for group in activations.parameter_groups(model, 1e-3, 0.1)}
    assert [id(p) for p in groups["activation"]["params"]] == [id(modules[0].inner.slopes)]
    assert all(activations.is_coefficient(name, p) for name, p in modules[0].named_parameters())
    for refused in (activations.gains, lambda module: activations.fit(module, torch.tanh)):
        with pytest.raises(ValueError, match=r"Plain|Wrapped|learnable"):
            refused(modules[0])
    model(x).sum().backward()
    assert telemetry.observe(model, x)["1.second_moment"] > 0
    assert plot.shapes(model).startswith(b"\x89PNG")
