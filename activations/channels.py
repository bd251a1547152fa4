"""How many channels an activation is fed, and along which dimension: from a forward pass, or from the order of a Sequential.

Neighbours by registration prove nothing: BART's layer registers its activation between the attention and fc1.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from activations.activation import Activation

# torch's functions whose result has the channels where the tensor of the same shape that they were given has them.
SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "mul", "mul_", "__mul__", "__rmul__", "__imul__")
KEPT = (
    "clone",
    "contiguous",
    "div",
    "dropout",
    "float",
    "gelu",
    "layer_norm",
    "relu",
    "relu_",
    "sigmoid",
    "silu",
    "tanh",
    "to",
)
POOLING = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")


class Channels(NamedTuple):
    """The size of a dimension, and which one, counted from the end."""

    size: int
    dim: int


def find(
    model: nn.Module,
    places: Mapping[str, nn.Module],
    example_inputs: object = None,
    channel_dim: int | Mapping[str, int] | None = None,
) -> dict[str, Channels]:
    """For each name in `places`, a module of `model`, what it is fed. ValueError where that is not certain.

    example_inputs: what one call of the model takes: a tensor, a tuple of positional or a mapping of keyword arguments.
    Without them: what our own activations say; PyTorch's transformer layers; the order of a Sequential; one pass of a
    transformers model over its own `dummy_inputs`, or zeros of the size that its config names.
    """
    if example_inputs is not None:
        return _watched(model, places, example_inputs, channel_dim)
    if channel_dim is not None:
        raise ValueError("swap: channel_dim is read off a forward pass; pass example_inputs too")
    known = {
        name: found
        for name, module in places.items()
        if (found := _of_ours(module) or _in_torch_layer(model, name) or _in_sequence(model, name))
    }
    rest = {name: module for name, module in places.items() if name not in known}
    if rest and (dummy := _dummy_inputs(model)):
        try:
            return known | _watched(model, rest, dummy, None)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"swap: the model's own dummy_inputs do not tell ({reason}); pass example_inputs") from error
    if rest:
        raise ValueError(
            f"swap: how many channels {next(iter(rest))!r} is fed is not certain; pass example_inputs (what one call of the "
            "model takes: a tensor, a tuple or a dict), or use a spec with per=layer (rational: groups=1)"
        )
    return known


def _of_ours(module: nn.Module) -> Channels | None:
    return Channels(module.channels, module.channel_dim) if isinstance(module, Activation) and module.channels > 1 else None


def _dummy_inputs(model: nn.Module) -> dict[str, Tensor]:
    """What one call of a transformers model takes: its own dummy tokens, or zeros of the size that its config names.

    Empty for models of other inputs. What such a pass shows is certain, whatever its values: it is a pass of the model.
    """
    config, given = getattr(model, "config", None), getattr(model, "dummy_inputs", None)
    if config is None or not isinstance(given, Mapping) or "input_ids" not in given:
        return {}
    kind = getattr(model, "main_input_name", "")
    shapes = {
        "pixel_values": (1, getattr(config, "num_channels", 0), *_pair(getattr(config, "image_size", 0))),
        "input_values": (1, 16000),  # a second at the 16 kHz of wav2vec 2.0
        "input_features": (1, getattr(config, "num_mel_bins", 0), 2 * getattr(config, "max_source_positions", 0)),  # Whisper
    }
    like = next(model.parameters(), torch.zeros(1))
    if kind == "input_ids":
        return {name: value.to(like.device) for name, value in given.items() if isinstance(value, Tensor)}
    if not all(shapes.get(kind, (0,))):
        return {}
    inputs = {kind: torch.zeros(shapes[kind], dtype=like.dtype, device=like.device)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = torch.zeros(1, 1, dtype=torch.long, device=like.device)
    return inputs


def _pair(size: Any) -> tuple[Any, ...]:
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def _in_torch_layer(model: nn.Module, name: str) -> Channels | None:
    """PyTorch's transformer layers compute linear2(dropout(activation(linear1(x)))), unless a subclass changes that."""
    layer, _, key = name.rpartition(".")
    parent = model.get_submodule(layer)
    for kind in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer):
        if isinstance(parent, kind) and key == "activation":
            unchanged = type(parent).forward is kind.forward and type(parent)._ff_block is kind._ff_block
            return _of_layer(parent.linear1, "out") if unchanged else None
    return None


def _in_sequence(model: nn.Module, name: str) -> Channels | None:
    """The channels of a module in a Sequential: of the layer before or after, where what lies between keeps them."""
    parts = name.split(".")
    depth = len(parts)
    while depth and _runs_in_order(model.get_submodule(".".join(parts[: depth - 1]))):
        depth -= 1
    if depth == len(parts):
        return None
    root = ".".join(parts[:depth])
    chain = list(_chain(model.get_submodule(root), root))
    at = [key for key, _ in chain].index(name)
    for ends, modules in (("out", reversed(chain[:at])), ("in", iter(chain[at + 1 :]))):
        for _, module in modules:
            if found := _of_layer(module, ends):
                return found
            if not _keeps_channels(module):
                break
    return None


def _runs_in_order(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _chain(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of nested Sequentials in the order that they run in."""
    for key, child in module._modules.items():  # named_children would list a shared module once
        assert child is not None
        full = f"{name}.{key}" if name else key
        if _runs_in_order(child):
            yield from _chain(child, full)
        else:
            yield full, child


def _of_layer(module: nn.Module, end: str) -> Channels | None:
    if isinstance(module, nn.Linear):
        return Channels(module.out_features if end == "out" else module.in_features, -1)
    if isinstance(module, nn.modules.conv._ConvNd):
        return Channels(module.out_channels if end == "out" else module.in_channels, -1 - len(module.kernel_size))
    return None


def _keeps_channels(module: nn.Module) -> bool:
    pointwise = type(module).__module__ == "torch.nn.modules.activation" and not isinstance(
        module, nn.GLU | nn.MultiheadAttention
    )
    kinds = nn.Identity | nn.modules.dropout._DropoutNd | nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm
    return pointwise or isinstance(module, kinds | Activation)


def _watched(
    model: nn.Module, places: Mapping[str, nn.Module], example_inputs: object, channel_dim: int | Mapping[str, int] | None
) -> dict[str, Channels]:
    """One forward pass, in evaluation mode and without gradients, with a hook on every module of `places`."""
    seen: dict[int, set[Channels]] = {id(module): set() for module in places.values()}
    layouts = _Layouts()

    def hook(name: str) -> Callable[..., None]:
        given = channel_dim.get(name) if isinstance(channel_dim, Mapping) else channel_dim

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            dim = _dimension(name, x, layouts, given)
            seen[id(module)].add(Channels(x.shape[dim], dim))

        return note

    first = {id(module): name for name, module in reversed(list(places.items()))}
    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True) for name in first.values()]
    try:
        with _quietly(model), layouts:
            if isinstance(example_inputs, Mapping):
                model(**example_inputs)
            else:
                model(*example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,))
    finally:
        for handle in handles:
            handle.remove()
    for name, module in places.items():
        if not seen[id(module)]:
            raise ValueError(
                f"swap: the forward pass does not run {name!r}; pass example_inputs that reach it, or use per=layer"
            )
        if len(seen[id(module)]) > 1:
            sizes = " and ".join(f"{size} (dimension {dim})" for size, dim in sorted(seen[id(module)]))
            raise ValueError(
                f"swap: {name!r} is one module in several places, fed {sizes} channels; use per=layer, or one module a place"
            )
    return {name: next(iter(seen[id(module)])) for name, module in places.items()}


def _dimension(name: str, x: Tensor, layouts: "_Layouts", given: int | None) -> int:
    if given is not None:
        if not -x.dim() <= given < x.dim():
            raise ValueError(f"swap: channel_dim={given} is no dimension of the {tuple(x.shape)} that {name!r} is fed")
        return given if given < 0 else given - x.dim()
    if hasattr(x, TAG):
        return int(getattr(x, TAG))
    if x.dim() > 2 and layouts.spatial:
        raise ValueError(
            f"swap: which dimension of the {tuple(x.shape)} that {name!r} is fed holds its channels is not certain; pass "
            "channel_dim (1 for N, C, H, W), or a mapping from module names"
        )
    return -1


@contextmanager
def _quietly(model: nn.Module) -> Iterator[None]:
    """Nothing of the model changes: no running statistics, no random numbers, no gradients."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


TAG = "_channel_dim"


class _Layouts(TorchFunctionMode):
    """Tags tensors with the dimension of their channels, as the layer that made them has it, through elementwise functions."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = False  # whether a layer put its channels before other dimensions

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        y = func(*args, **(kwargs or {}))
        if isinstance(y, Tensor) and (dim := self._dim(getattr(func, "__name__", ""), y, args)) is not None:
            setattr(y, TAG, dim)
            self.spatial |= dim < -1
        return y

    @staticmethod
    def _dim(name: str, y: Tensor, args: Sequence[Any]) -> int | None:
        if name == "linear":
            return -1
        if name.startswith("conv") and name[-2:] in ("1d", "2d", "3d"):  # conv2d, conv_transpose2d; without a batch too
            return -1 - int(name[-2])
        if name in ("batch_norm", "group_norm", "instance_norm"):
            return 1 - y.dim()
        if (pools := name.startswith(POOLING)) or name in SUMS + KEPT:
            tagged = [t for t in args if isinstance(t, Tensor) and hasattr(t, TAG) and t.dim() == y.dim()]
            dims = {int(getattr(t, TAG)) for t in tagged if pools or t.shape == y.shape}
            return dims.pop() if len(dims) == 1 else None
        if name == "__getitem__" and hasattr(args[0], TAG):  # slices keep the dimensions, indices do not
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return int(getattr(args[0], TAG)) if all(isinstance(i, slice) for i in index) else None
        return None
