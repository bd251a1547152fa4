"""What is compared, named by one word: `SPEC`, an activation in a plain MLP, or `gated(SPEC)`, the gate of a gated one.

swiglu, geglu and reglu are gated(silu), gated(gelu) and gated(relu) (Shazeer 2020, arXiv 2002.05202, equation 6). So one
comparison can hold SwiGLU beside GELU: the fields `activation` and `mlp` follow from the arm.
"""

from collections.abc import Mapping
from typing import Any

from activations import registry

GATES = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}
_OPEN, _CLOSE = "gated(", ")"


def split(name: str) -> tuple[str, str]:
    """(mlp, spec) of an arm's name; the spec is not checked. ValueError (one line) for a gate without its bracket."""
    name = name.strip()
    if name in GATES:
        return "gated", GATES[name]
    if not name.startswith(_OPEN):
        return "plain", name
    if not name.endswith(_CLOSE):
        raise ValueError(f"activation {name!r} has no closing bracket; type for example gated(silu)")
    return "gated", name.removeprefix(_OPEN).removesuffix(_CLOSE)


def join(mlp: str, spec: str) -> str:
    """The inverse of `split`."""
    return spec if mlp == "plain" else f"{_OPEN}{spec}{_CLOSE}"


def check(name: str) -> str:
    """The canonical name: that of the spec, and `gated(...)` spelt out. ValueError (one line) if there is no such arm."""
    mlp, spec = split(name)
    return join(mlp, registry.check(spec))


def check_recorded(name: str) -> str:
    """`check` for a name that a result holds, as `registry.check_recorded`."""
    mlp, spec = split(name)
    return join(mlp, registry.check_recorded(spec))


def fields(name: str) -> dict[str, Any]:
    """The fields of a `Config` that make this arm: `activation`, and `mlp` where it is gated."""
    mlp, spec = split(name)
    return {"activation": registry.check(spec)} | ({"mlp": mlp} if mlp != "plain" else {})


def of(config: Mapping[str, Any]) -> str:
    """The canonical name of the arm that a recorded config belongs to."""
    return check_recorded(join(config.get("mlp", "plain"), config["activation"]))


def family(name: str) -> str:
    """Name of the activation's family, or of the file's class; `gated(...)` of one that is a gate.

    Of parts of the depth the names of all, once each: hermite:degree=3;hermite:degree=5 is of the family hermite.
    """
    mlp, spec = split(name)
    families = dict.fromkeys(registry.short_name(registry.parse(part)[0]) for part in registry.stages(spec))
    return join(mlp, registry.STAGE.join(families))


def file_name(name: str) -> str:
    """A name for a folder, without brackets, colons and semicolons that a shell or a file system reads."""
    name = name.replace(_OPEN, "gated-").removesuffix(_CLOSE).replace(registry.STAGE, "+")
    return name.replace(":", "-").replace("/", "_").replace(",", "-")
