"""From a spec string to a module: `hermite:degree=3,per=channel` names a family and sets its options.

A new activation is a file of its own and one line in FAMILIES.
"""

import difflib
import importlib
import math
from collections.abc import Iterable
from typing import Any

from activations.activation import Activation, Option

FAMILIES = {
    "gelu": "activations.fixed.GELU",
    "relu": "activations.fixed.ReLU",
    "silu": "activations.fixed.SiLU",
    "relu_squared": "activations.fixed.ReLUSquared",
    "hermite": "activations.hermite.Hermite",
    "fourier": "activations.fourier.Fourier",
    "tropical": "activations.tropical.Tropical",
    "tropical_rational": "activations.tropical_rational.TropicalRational",
    "tpgu": "activations.tpgu.TPGU",
    "rational": "activations.rational.Rational",
    "xielu": "activations.xielu.XIELU",
}


def build(spec: str, channels: int, input_std: float = 1.0) -> Activation:
    """The module that `spec` names: (..., channels) -> (..., channels), dtype kept, no global random numbers drawn.

    `input_std` is the standard deviation of the inputs it will get; fixed activations and `init=paper` ignore it.
    ValueError (one line) for a bad spec, channel count or input_std.
    """
    name, options = parse(spec)
    if channels < 1:
        raise ValueError(f"channels={channels} is not a number of channels; give the size of the last dimension, at least 1")
    if not (math.isfinite(input_std) and input_std > 0):
        raise ValueError(f"input_std={input_std} is not a standard deviation; give a finite number above 0")
    module = family(name)(channels, input_std, **options)
    module.spec = _format(name, options)
    return module


def check(spec: str) -> str:
    """The canonical spec: every option of the family, in its order. ValueError (one line) if there is no such activation."""
    return _format(*parse(spec))


def names() -> tuple[str, ...]:
    """Every registered activation, the fixed ones first."""
    return tuple(FAMILIES)


def family(name: str) -> type[Activation]:
    """The class behind a registered name."""
    module, _, class_name = FAMILIES[name].rpartition(".")
    found: type[Activation] = getattr(importlib.import_module(module), class_name)
    assert issubclass(found, Activation), f"registry: {FAMILIES[name]} is not an Activation"
    return found


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Family name and the value of each of its options, defaults filled in."""
    name, colon, text = spec.strip().partition(":")
    if name not in FAMILIES:
        raise ValueError(f"activation {name!r} is not known; {_nearest(name, FAMILIES)}")
    allowed = family(name).options
    given: dict[str, Any] = {}
    for item in text.split(",") if colon else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in allowed:
            hint = _nearest(key, allowed) if allowed else f"it takes none: type {name}"
            raise ValueError(f"activation {spec!r}: {key!r} is not an option of {name}; {hint}")
        if key in given:
            raise ValueError(f"activation {spec!r}: {key} is given twice; keep one")
        given[key] = _convert(spec, name, key, value if equals else "", allowed[key])
    return name, {key: given.get(key, option.default) for key, option in allowed.items()}


def _convert(spec: str, name: str, key: str, text: str, option: Option) -> Any:
    values = {_show(value): value for value in option.allowed} if not isinstance(option.allowed, range) else {}
    if text in values:
        return values[text]
    if isinstance(option.allowed, range) and text.isascii() and text.isdigit() and int(text) in option.allowed:
        return int(text)
    default = f"{name}:{key}={_show(option.default)}"
    if isinstance(option.allowed, range):
        hint = f"allowed: {option.allowed.start} to {option.allowed.stop - 1}, for example {default}"
    else:
        hint = _nearest(text, values)
    raise ValueError(f"activation {spec!r}: {key}={text!r} is not allowed; {hint}")


def _format(name: str, options: dict[str, Any]) -> str:
    return name + (":" if options else "") + ",".join(f"{key}={_show(value)}" for key, value in options.items())


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"allowed: {', '.join(known)}"
