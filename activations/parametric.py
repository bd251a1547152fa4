"""The short way to a family: its formula in plain torch and its parameters' starting values. All else follows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from activations import solve
from activations.activation import LEARNABLE_OPTIONS, Activation, Learnable, Values
from activations.moments import Moments, differentiate, find_kinks, unit_gain
from activations.target import Target, Weight

LARGEST_INPUT = 1e30  # float32 holds its product with any coefficient, so that no infinity meets a zero


class Parametric(Learnable):
    """G(z) = shift + scale * h(z), h the subclass's `formula`.

    start: parameter name -> starting value, a number or several.
    formula(z, **parameters) -> h(z): plain torch, elementwise, continuous. A number comes as a tensor that broadcasts against
    z, several come as a tuple of these.
    adds: which of `scale` and `shift` are put around h. With both, init=unit has unit gain exactly, for every h that is not
    constant (moments.py). With `("scale",)`, for families that keep G(0) = 0, E F^2 = s^2 is exact and E F'^2 is what it is.
    With `()`, for families that are closed under both already, h starts at `start` as it is. `repr` says which gains result.
    init=paper is h as stated, at scale 1, shift 0 and s = 1.

    Gains are found by quadrature, fits by least squares over all parameters, gradients by autograd, eagerly and compiled. Eager
    autograd saves intermediate results; a `fast_path` can be added later. ValueError for a bad `start` or `formula`.
    """

    options: ClassVar = LEARNABLE_OPTIONS
    degrees = ()
    default_weight = Weight("normal", 1.5)
    start: ClassVar[Mapping[str, float | Sequence[float]]]
    adds: ClassVar[tuple[str, ...]] = ("scale", "shift")
    formula: Callable[..., Tensor]
    _own: ClassVar[tuple[str, ...]] = ()
    _several: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        start = getattr(cls, "start", ())
        cls.parameter_names = (*start, *cls.adds)
        # Names apart, as tuples: Dynamo of torch 2.6 refuses to read a dict of the class.
        cls._own = tuple(start)
        cls._several = tuple(name for name in start if isinstance(start, Mapping) and isinstance(start[name], Sequence))

    def __init__(self, channels: int, input_std: float = 1.0, **options: Any) -> None:
        with torch.device("cpu"):  # whatever the caller's default device
            self._check()
        super().__init__(channels, input_std, **options)

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        given = {name: values[name].unbind(-1) for name in self.parameter_names}
        own = {name: given[name] if name in self._several else given[name][0] for name in self._own}
        y = self.formula(z.clamp(-LARGEST_INPUT, LARGEST_INPUT), **own)
        if "scale" in self.adds:
            y = given["scale"][0] * y
        return y + given["shift"][0] if "shift" in self.adds else y

    def initial(self, init: str) -> Values:
        values = self._as_stated()
        if init == "paper":
            return values
        found = self.moments(values, 1.0)
        if not (found.second.isfinite() and found.slope.isfinite() and found.slope > 0):
            raise ValueError(f"{self._name}: h has no finite gain, or is constant, at its starting values; give others")
        if "shift" in self.adds:
            scale, shift = unit_gain(found)
            values |= {"scale": scale[None], "shift": shift[None]}
        elif "scale" in self.adds:
            values["scale"] = found.second.rsqrt()[None]
        return values

    def fitted(self, target: Target) -> Values:
        """Least squares in value and derivative over all parameters, from the best scale and shift of the starting values."""
        values = self._as_stated()
        z = target.z[:, None]
        value, slope = differentiate(lambda z: self.evaluate(values, z), z)
        columns = {"scale": (value, slope), "shift": (torch.ones_like(z), torch.zeros_like(z))}
        if self.adds:
            basis, slopes = (torch.cat([columns[name][i] for name in self.adds], dim=1) for i in (0, 1))
            values |= dict(zip(self.adds, solve.linear(target, basis, slopes).split(1), strict=True))
        sizes = [len(value) for value in values.values()]

        def misfit(theta: Tensor) -> Tensor:
            there = dict(zip(values, theta.split(sizes), strict=True))
            with torch.enable_grad():
                z = target.z[:, None].detach().requires_grad_()
                value = self.evaluate(there, z)
                (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
            matrix, right = solve.stack(target, value, slope)
            return matrix[:, 0] - right

        theta = solve.gauss_newton(misfit, torch.cat(list(values.values())))
        return dict(zip(values, theta.split(sizes), strict=True))

    def kinks(self, values: Values) -> Tensor:
        rows = next((value.shape[:-1] for value in values.values()), torch.Size())
        return find_kinks(lambda z: self.evaluate(values, z), rows)

    @property
    def has_free_constant(self) -> bool:
        return {"scale", "shift"} <= set(self.adds)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self._gains()}"

    def _gains(self) -> str:
        if self.choices["init"] != "unit":
            return "gains not set"
        if self.has_free_constant:
            return "unit gain at the start"
        with torch.device("cpu"):
            of: Moments = self.moments(self.initial("unit"), 1.0)
        second = "s^2" if "scale" in self.adds else f"{float(of.second):.4g} s^2"
        return f"at the start E F^2 = {second} and E F'^2 = {float(of.slope):.4g}"

    def _as_stated(self) -> Values:
        """h alone, in float64, (k,) each."""
        values = {name: torch.tensor(value, dtype=torch.float64).reshape(-1) for name, value in self.start.items()}
        return values | {name: torch.tensor([float(name == "scale")], dtype=torch.float64) for name in self.adds}

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check(self) -> None:
        """Raises ValueError, in one line, for what a subclass states wrongly."""
        kind = type(self)
        if not isinstance(getattr(kind, "start", None), Mapping) or not callable(getattr(kind, "formula", None)):
            raise ValueError(f"{kind.__name__} states no start or no formula; see docs/activations.md, Add one")
        if taken := [name for name in kind.parameter_names if hasattr(Learnable, name) or hasattr(Activation(1), name)]:
            raise ValueError(f"{kind.__name__}: {taken[0]!r} is taken and names no parameter; call it otherwise")
        if kind.adds not in ((), ("scale",), ("scale", "shift")) or set(kind.start) & set(kind.adds):
            raise ValueError(
                f"{kind.__name__}: adds={kind.adds} must be (), ('scale',) or ('scale', 'shift'), none of them in start"
            )
        try:
            values = self._as_stated()
        except (TypeError, ValueError):
            raise ValueError(
                f"{kind.__name__}: start={dict(kind.start)} holds more than numbers and sequences of them"
            ) from None
        z = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None].requires_grad_()
        with torch.enable_grad():
            y = self.evaluate(values, z)
        if not isinstance(y, Tensor) or y.shape != z.shape or not y.requires_grad or not y.isfinite().all():
            raise ValueError(
                f"{kind.__name__}: formula(z) must give a finite tensor of z's shape that depends on z; it gave "
                + (f"one of shape {tuple(y.shape)} for {tuple(z.shape)}" if isinstance(y, Tensor) else type(y).__name__)
            )
