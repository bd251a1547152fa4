"""From a spec string to a module: `hermite:degree=3,per=channel` names a family and sets its options.

A new activation is a file of its own and one line in FAMILIES. Or it stays outside: `path/to/mine.py:Swish,per=channel` names a
class in a file (own_file.py). Its canonical spec holds the file's SHA-256, so that code which changed is another activation.
Only `build`, `family` and `options` run the file; `check` and `parse`, which also read what others wrote, do not.

`A;B;C` names one activation for each of three equal, consecutive parts of a model's layers. `check`, `stages` and `of_layer`
know it; everything else takes the spec of one layer.
"""

import difflib
import importlib
import math
from collections.abc import Iterable
from typing import Any

from activations import own_file
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
    "spline": "activations.spline.Spline",
    "swish": "activations.swish.Swish",
    "prelu": "activations.prelu.PReLU",
}

STAGE = ";"
MOST_STAGES = 8  # torch.compile keeps eight graphs of a block


def build(spec: str, channels: int, input_std: float = 1.0, layer: int = 0) -> Activation:
    """The module that `spec` names: (..., channels) -> (..., channels), dtype kept, no global random numbers drawn.

    `input_std` is the standard deviation of the inputs it will get; fixed activations and `init=paper` ignore it.
    `layer` counts from 0: what `draw=layer` draws differs by it.
    ValueError (one line) for a bad spec, channel count or input_std.
    """
    name, chosen = parse(spec)
    if channels < 1:
        raise ValueError(f"channels={channels} is not a number of channels; give the size of the last dimension, at least 1")
    if not (math.isfinite(input_std) and input_std > 0):
        raise ValueError(f"input_std={input_std} is not a standard deviation; give a finite number above 0")
    chosen_options = options(spec)
    # The one option that asks which layer it is; constructors of others, outside the checkout too, know no layers.
    place = {"layer": layer} if chosen_options.get("draw") == "layer" else {}
    module = family(name)(channels, input_std, **chosen_options, **place)
    module.layer = layer
    module.spec = _format(name, chosen)
    return module


def check(spec: str) -> str:
    """The canonical spec. ValueError (one line) if there is no such activation.

    Every option of the family, in its order. Of a class in a file: the file's SHA-256, and the options as they are written.
    Parts of the depth that are all alike are one activation.
    """
    parts = [_format(*parse(part)) for part in stages(spec)]
    if len(parts) > MOST_STAGES:
        raise ValueError(f"activation {spec!r} names {len(parts)} parts of the depth; allowed are {MOST_STAGES}")
    return parts[0] if len(set(parts)) == 1 else STAGE.join(parts)


def stages(spec: str) -> tuple[str, ...]:
    """The specs of the parts of the depth, the first layers' first; a spec without `;` is the one of all."""
    return tuple(part.strip() for part in spec.split(STAGE))


def of_layer(spec: str, layer: int, num_layers: int) -> str:
    """The spec of layer `layer`, from 0, of `num_layers`. ValueError (one line) where the parts are not equally long."""
    parts = stages(spec)
    if num_layers % len(parts):
        raise ValueError(
            f"activation {spec!r} names {len(parts)} parts of the depth, and {num_layers} layers have no {len(parts)} equal "
            f"parts; give n_layer a multiple of {len(parts)}, or name another number of parts"
        )
    return parts[layer * len(parts) // num_layers]


def shares(spec: str) -> bool:
    """Whether layers of a model have coefficients in common (per=model)."""
    return any(options(part).get("per") == "model" for part in stages(spec))


def check_recorded(spec: str) -> str:
    """`check` for a spec that a config, checkpoint or result holds: one of a class in a file has to say which code it means."""
    for part in stages(spec):
        if own_file.is_named(part) and not own_file.is_fixed(part):
            raise ValueError(
                f"activation {part!r} names a file without its SHA-256; a record of a run has one: path/to/file.py@SHA256:Class"
            )
    return check(spec)


def files_of(spec: str) -> tuple[str, ...]:
    """The paths of the files that a spec names; empty for registered activations."""
    return tuple(parse(part)[0].partition("@")[0] for part in stages(spec) if own_file.is_named(part))


def short_name(name: str) -> str:
    """A name for tables: `mine.py:Swish` of a class in a file, else the name."""
    return own_file.short(name) if own_file.is_named(name) else name


def names() -> tuple[str, ...]:
    """Every registered activation, the fixed ones first."""
    return tuple(FAMILIES)


def family(name: str) -> type[Activation]:
    """The class behind a name. ValueError (one line) where it is in a file that cannot be used."""
    if own_file.is_named(name):
        return own_file.load(name)
    module, _, class_name = FAMILIES[name].rpartition(".")
    found: type[Activation] = getattr(importlib.import_module(module), class_name)
    assert issubclass(found, Activation), f"registry: {FAMILIES[name]} is not an Activation"
    return found


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and options: the value of every option, defaults filled in; of a class in a file those given, as text."""
    if STAGE in spec:
        raise ValueError(f"activation {spec!r} names one for each part of the depth; here is one layer, name one")
    name, text = split(spec)
    if own_file.is_named(name):
        return name, _given(spec, name, text)
    if name not in FAMILIES:
        raise ValueError(f"activation {name!r} is not known; {_nearest(name, FAMILIES)}")
    return name, _chosen(spec, name, _given(spec, name, text, family(name).options))


def options(spec: str) -> dict[str, Any]:
    """The value of every option that the class has, defaults filled in."""
    name, given = parse(spec)
    return _chosen(spec, name, given) if own_file.is_named(name) else given


def changed(spec: str, **values: str) -> str:
    """The canonical spec with other values of some options."""
    name, given = parse(spec)
    return check(_format(name, given | values))


def split(spec: str) -> tuple[str, str]:
    """Name, and options as text; nothing of either is checked but a file's being there."""
    if own_file.is_named(spec):
        return own_file.split(spec)
    name, _, text = spec.strip().partition(":")
    if spec.count(":") and not text.strip():
        text = " "  # a colon promises an option
    return name, text


def _given(spec: str, name: str, text: str, allowed: dict[str, Option] | None = None) -> dict[str, str]:
    given: dict[str, str] = {}
    for item in text.split(",") if text else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if allowed is not None:
            _require(spec, name, key, allowed)
        if key in given:
            raise ValueError(f"activation {spec!r}: {key} is given twice; keep one")
        given[key] = value if equals else ""
    return given


def _require(spec: str, name: str, key: str, allowed: dict[str, Option]) -> None:
    if key not in allowed:
        hint = _nearest(key, allowed) if allowed else f"it takes none: type {name}"
        raise ValueError(f"activation {spec!r}: {key!r} is not an option of {name}; {hint}")


def _chosen(spec: str, name: str, given: dict[str, str]) -> dict[str, Any]:
    allowed = family(name).options
    for key in given:
        _require(spec, name, key, allowed)
    values = {key: _convert(spec, name, key, text, allowed[key]) for key, text in given.items()}
    return {key: values.get(key, option.default) for key, option in allowed.items()}


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
    if not own_file.is_named(name):
        allowed = family(name).options
        options = {key: v for key, v in options.items() if not (allowed[key].silent and v == allowed[key].default)}
    return name + (":" if options else "") + ",".join(f"{key}={_show(value)}" for key, value in options.items())


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"allowed: {', '.join(known)}"
