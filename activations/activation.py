"""The base of every activation: its options, its parameters in z = x / input_std, and what it owes to the tests.

F(x) = s G(x / s), s = `input_std`: a family writes down G for N(0, 1) inputs and never thinks about s again.
The short way to a family is `Parametric` (parametric.py): a formula and starting values. The long way is a subclass of
`Learnable` in a file of its own plus one line in `registry.FAMILIES`. It states

    degrees     names of the options that are degrees (empty where it has none), each with its allowed range in `options`
    evaluate    G in plain torch, differentiable in parameters and z: second derivatives, transforms, quadrature and fits use it
    fast_path   a kernel for the engine (engine.py) and its coefficients; left out, the plain formula is the path
    initial     (learnable families) the parameters' starting values in float64, by `init`
    fitted      (learnable families) the parameters that match a target, see fit.py

and may override `moments` where a closed form exists and `kinks` where G is not smooth.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from activations import solve
from activations.engine import Pointwise, only_plain, working_dtype
from activations.moments import Moments, differentiate, quadrature
from activations.target import TARGETS, Target, Weight

Values = dict[str, Tensor]  # parameter name -> float64, (k,) for a whole layer or (rows, k)


class Option(NamedTuple):
    """One `key=value` of a spec string: what it is when left out, and what it may be.

    `silent`: the canonical spec leaves it out at its default, so that what was recorded before there was this option stays
    canonical.
    """

    default: int | str | bool
    allowed: range | tuple[str, ...] | tuple[bool, ...]
    silent: bool = False


class Activation(nn.Module):
    """(..., channels) -> (..., channels), elementwise, dtype kept, evaluated in float32 or wider and rounded once.

    `channels` is the size of dimension `channel_dim`, the last one unless `swap` found the channels elsewhere; `swap` says 1
    where no parameter depends on it. `input_std` (0-dim float32 buffer) the standard deviation that the inputs are
    expected to have; `fitted_range` (the same) the |x| up to which the shape was made, three of them unless `fit` set it;
    `spec` the canonical spec string, set by `registry.build`.
    """

    options: ClassVar[dict[str, Option]] = {}
    degrees: ClassVar[tuple[str, ...]]
    parameter_names: tuple[str, ...] = ()
    lr_scale: ClassVar[float] = 1.0  # multiplies the learning rate of this family's parameters
    spec: str = ""
    layer: int = 0  # counted from 0, set by `registry.build`
    channel_dim: int = -1  # counted from the end
    input_std: Tensor
    fitted_range: Tensor

    def __init__(self, channels: int, input_std: float = 1.0, **options: Any) -> None:
        super().__init__()
        self.channels, self.built_std = channels, float(input_std)
        self.choices: dict[str, Any] = {key: option.default for key, option in self.options.items()} | options
        # The fixed ones keep it out of the checkpoint, so that a GELU model has GPT-2's names and no others.
        saved = isinstance(self, Learnable)
        self.register_buffer("input_std", torch.tensor(input_std, dtype=torch.float32), persistent=saved)
        self.register_buffer("fitted_range", 3 * self.input_std, persistent=saved)

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        """G(z) for parameters `values` of z's dtype, float32 or float64; differentiable in both as often as G is.

        (..., 1) or (..., channels) in, broadcast against `values[name][..., k]`.
        """
        raise TypeError(f"{type(self).__name__} has no evaluate(): every family states its formula")

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Law of the inputs, parameters and constants as building left them, in place: for a module that `to_empty` made."""
        self.input_std.fill_(self.built_std)
        self.fitted_range.copy_(3 * self.input_std)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        self._mark()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()  # copies and unpickled parameters come without attributes

    def _mark(self) -> None:
        """Say to `is_coefficient` which parameters are ours."""
        for parameter in self.parameters(recurse=False):
            parameter.is_coefficient = True  # type: ignore[attr-defined]

    def values(self) -> Values:
        """The parameters in float64 on the CPU, detached; shapes as stored."""
        return {}

    @property
    def unit(self) -> Tensor:
        """s in F(x) = s G(x / s), 0-dim: 1 where the input law does not enter."""
        return torch.ones_like(self.input_std)

    def reference(self, x: Tensor) -> Tensor:
        """F(x) in float64 by the plain formula, differentiable in x: slow, and independent of `forward`."""
        values = [value.to(x.device) for value in self.values().values()]
        y = self.plain(x.double().movedim(self.channel_dim, -1), self.unit.to(x.device), *values)
        return y.movedim(-1, self.channel_dim)

    def plain(self, x: Tensor, unit: Tensor, *parameters: Tensor) -> Tensor:
        """F(x) by `evaluate` alone, for x (..., channels) and parameters in the order of `values`; computed as `forward` is."""
        dtype = working_dtype(x)
        values = {n: self._per_channel(p).to(dtype) for n, p in zip(self.parameter_names, parameters, strict=True)}
        s = unit.to(dtype)
        return (s * self.evaluate(values, x.to(dtype) / s)).to(x.dtype)

    def frozen(self) -> Callable[[Tensor], Tensor]:
        """F, without gradients and while the parameters stay as they are: what depends on them alone is computed once."""
        return self

    def kinks(self, values: Values) -> Tensor:
        """Where G is continuous but not smooth, in z, float64, (m,) or (rows, m): quadrature puts its panel ends there."""
        return torch.zeros(0, dtype=torch.float64)

    def moments(self, values: Values, std: float) -> Moments:
        """E G, E G^2, E G'^2 under z ~ N(0, std^2), one entry a row of `values`."""
        rows = next((value.shape[:-1] for value in values.values()), torch.Size())
        return quadrature(lambda z: self.evaluate(values, z), std, self.kinks(values).expand(*rows, -1))

    def extra_repr(self) -> str:
        std = "meta" if self.input_std.is_meta else f"{float(self.input_std):.4g}"
        dim = f", channel_dim={self.channel_dim}" if self.channel_dim != -1 else ""
        return f"{self.spec!r}, channels={self.channels}{dim}, input_std={std}"

    def _per_channel(self, value: Tensor) -> Tensor:
        rows = value.shape[0] if value.dim() == 2 else 1
        return value if rows == 1 else value.repeat_interleave(self.channels // rows, dim=0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Coefficients follow to another device and to float64, never to half precision (a bf16 step below 0.2 % is lost)."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        super()._apply(keep_precision, recurse)
        self._mark()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """Coefficients stay float32 when a file holds half precision, also with assign=True and onto the meta device."""
        for name in (*self._parameters, *self._buffers):
            given = state_dict.get(prefix + name)
            if isinstance(given, Tensor) and given.dtype in (torch.float16, torch.bfloat16):
                state_dict[prefix + name] = given.float()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if local_metadata.get("assign_to_params_buffers") and not isinstance(self, Learnable) and self.input_std.is_meta:
            self.input_std = torch.tensor(self.built_std)  # no file holds it
            self.fitted_range = 3 * self.input_std


LEARNABLE_OPTIONS = {
    "per": Option("layer", ("layer", "channel", "model")),
    "init": Option("unit", ("unit", "paper", *(f"fit-{name}" for name in TARGETS))),
    "learnable": Option(True, (True, False)),
}


class Learnable(Activation):
    """An activation with parameters: `per` layer or channel, starting at `init`, buffers when `learnable=false`.

    per=model is per=layer to the module itself: `sharing.share` ties the modules of a model to one set.

    Parameters are stored as (k,) or (channels, k); they take no weight decay (groups.py), since decay would undo the gain.
    A subclass adds `initial` and `fitted`, and states the weight under which `fit` matches a target when none is given.
    """

    default_weight: ClassVar[Weight]

    def __init__(self, channels: int, input_std: float = 1.0, **options: Any) -> None:
        super().__init__(channels, input_std, **options)
        for name, value in self._start().items():
            self._store(name, self._by_row(value))
        with torch.device("cpu"):
            constants = self.constants()
        for name, constant in constants.items():
            self.register_buffer(name, constant.to(self.input_std), persistent=False)

    def _start(self) -> Values:
        """The parameters' values by `init`; the published initialisations know nothing of the inputs' law, and set it to 1."""
        aim = TARGETS.get(self.choices["init"].removeprefix("fit-"))
        if self.choices["init"] != "unit" and aim is None:
            self.input_std.fill_(1.0)
            self.fitted_range.fill_(3.0)
        with torch.device("cpu"):  # whatever the caller's default device, meta included
            if aim is None:
                return self.initial(self.choices["init"])
            return self.fitted(Target.sample(aim, Weight("normal", self.built_std), unit=self.built_std))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.set_values(self._start())
        self._renew_constants()

    def forward(self, x: Tensor) -> Tensor:
        dim = self.channel_dim
        if not x.is_floating_point():
            raise NotImplementedError(
                f"{self.spec} is not implemented for {x.dtype}; give it floating-point numbers: x.float()"
            )
        if self.rows() > 1 and (x.dim() < -dim or x.shape[dim] != self.channels):  # a divisor would pass for blocks of channels
            raise ValueError(
                f"{self.spec} is for {self.channels} channels in dimension {dim}, and was given {tuple(x.shape)}; build it for "
                "the channels that it gets, or use per=layer"
            )
        last = dim == -1 or self.rows() == 1
        y = self._computed(x if last else x.movedim(dim, -1))
        return y if last else y.movedim(-1, dim)

    def _computed(self, x: Tensor) -> Tensor:
        """F(x) for x (..., channels): by the kernel, or by the plain formula where only that can be followed."""
        parameters = [getattr(self, name) for name in self.parameter_names]
        fast = None if only_plain(x, *parameters) else self.fast_path()
        if fast is None:
            return self.plain(x, self.unit, *parameters)
        # Images whose channels lie innermost in memory keep that, as they do in torch.nn.GELU.
        moved = self.rows() == 1 and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        y = fast(x.movedim(1, -1) if moved else x, self.plain, self.unit, *parameters)
        return y.movedim(-1, 1) if moved else y

    def fast_path(self) -> Pointwise | None:
        """F at the parameters as they are, by a kernel; None where the plain formula is the only path."""
        return None

    @torch.no_grad()
    def frozen(self) -> Callable[[Tensor], Tensor]:
        fast = self.fast_path() if type(self).forward is Learnable.forward and self.channel_dim == -1 else None
        return self if fast is None else fast.frozen()

    def initial(self, init: str) -> Values:
        """The starting values in float64, (k,) or (rows, k)."""
        raise TypeError(f"{type(self).__name__} has no initial(): every learnable family states where it starts")

    def fitted(self, target: Target) -> Values:
        """The values (k,) in float64 for which G matches `target`."""
        raise TypeError(f"{type(self).__name__} has no fitted(): every learnable family states how it is fitted")

    def combined(self, target: Target, units: Values) -> Tensor:
        """The c (k,) for which sum_i c_i G_i is nearest to `target` in value and derivative.

        G_i is G at the i-th row of `units`, of k rows; vectors in `units` are the same for all.
        """
        count = max(len(value) for value in units.values() if value.dim() == 2)
        basis, slopes = differentiate(lambda z: self.evaluate(units, z), target.z[:, None].expand(-1, count))
        return solve.linear(target, basis, slopes)

    def constants(self) -> Values:
        """Numbers that `forward` needs as tensors; kept as buffers in the parameters' dtype, exact in each, not saved."""
        return {}

    @property
    def has_free_constant(self) -> bool:
        """Whether S G + a_0 stays in the family, so that init=unit has E F'^2 = 1 beside E F^2 = s^2 (moments.py)."""
        return True

    def rows(self) -> int:
        """How many sets of parameters there are: 1 (a whole layer, stored without a row dimension) or one a channel."""
        return self.channels if self.choices["per"] == "channel" else 1

    @property
    def unit(self) -> Tensor:
        return self.input_std

    def values(self) -> Values:
        return {name: getattr(self, name).detach().cpu().double() for name in self.parameter_names}

    @torch.no_grad()
    def set_values(self, values: Values) -> None:
        """Overwrite the parameters, in place; (k,) goes to every row."""
        for name, value in values.items():
            getattr(self, name).copy_(self._by_row(value))

    def is_trained(self, name: str) -> bool:
        """Whether `name` is a parameter rather than a buffer."""
        return bool(self.choices["learnable"])

    def _by_row(self, value: Tensor) -> Tensor:
        return value.expand(self.rows(), -1) if self.rows() > 1 and value.dim() == 1 else value

    def _store(self, name: str, value: Tensor) -> None:
        value = value.to(self.input_std).contiguous().clone()
        if self.is_trained(name):
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._renew_constants()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        self._renew_constants()

    def _renew_constants(self) -> None:
        """No file holds them, and a float32 third widened to float64 is not a third."""
        with torch.device("cpu"):
            constants = self.constants()
        for name, constant in constants.items():
            self._buffers[name] = constant.to(self.input_std)


def gains(module: nn.Module, std: float | None = None) -> tuple[float, float]:
    """(E F^2, E F'^2) under x ~ N(0, std^2), averaged over channels, in closed form where there is one.

    std None: the module's `input_std`. ValueError for a module that is not an `Activation`.
    """
    if not isinstance(module, Activation):
        raise ValueError(
            f"gains takes an activation of ours, not {type(module).__name__}; use activations.build or activations.swap"
        )
    s = float(module.unit)
    found = module.moments(module.values(), (float(module.input_std) if std is None else std) / s)
    return float(s**2 * found.second.mean()), float(found.slope.mean())
