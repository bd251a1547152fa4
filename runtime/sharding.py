"""parallelism=fsdp: each process holds a part of every matrix, of its gradient and of its moments (PyTorch's FSDP2).

Sharded are the matrices: those of a block are one exchange, gathered in autocast's type, as autocast would round them anyway;
the two tables are another, in float32. Norms, biases and the coefficients of activations are small, and exact on every process;
their gradients are averaged once a step. So the losses are those of DDP up to the order of sums.

A process makes its model on the meta device, and fills its rows of one parameter after another: none ever holds the whole.
Checkpoints are gathered tensor by tensor on rank 0, into the same files as with DDP.
"""

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from activations import Activation, registry
from config.schema import Config
from model import GPT, LayerNorm

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_NEEDED = "2.7"  # the first PyTorch whose fully_shard has ignored_params


def check(config: Config, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError for what does not go together with parallelism=fsdp, by name."""
    if config.parallelism != "fsdp":
        return
    back = "type --parallelism ddp"
    if not dist.is_available():
        raise ValueError(f"parallelism 'fsdp' needs torch.distributed, which this PyTorch lacks; {back}")
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise ValueError(f"parallelism 'fsdp' needs PyTorch {_NEEDED} or later, this is {torch.__version__}; {back}")
    if config.optimizer != "adamw":
        raise ValueError(
            f"optimizer {config.optimizer!r} needs whole matrices, parallelism 'fsdp' has parts; {back} or --optimizer adamw"
        )
    if registry.shares(config.activation):
        raise ValueError(
            f"activation {config.activation!r} has per=model, parallelism 'fsdp' parts layers; {back} or per=layer"
        )
    if dtype == torch.float16:
        raise ValueError(f"dtype float16 needs one gradient scale, parallelism 'fsdp' has none; {back} or --dtype bfloat16")
    if device.type == "mps":
        raise ValueError(f"parallelism 'fsdp' does not work on {device.type}; {back}")


def make(config: Config) -> GPT:
    """The model without any memory: its parameters are on the meta device until `distribute` makes this process's part."""
    with torch.device("meta"):
        return GPT(config.gpt(config.vocab_size))


def distribute(gpt: GPT, config: Config, device: torch.device, dtype: torch.dtype) -> None:
    """Make a meta model this process's part of a model, in place, and give norms and activations their initial values."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    small = {parameter for _, parameter in replicated(gpt)}
    low = None if dtype == torch.float32 else dtype
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in gpt.transformer.h:
        again = config.reshard_after_forward
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=again, ignored_params=small)
    fully_shard(gpt, mesh=mesh, reshard_after_forward=False, ignored_params=small)
    gpt.to_empty(device=device)
    for module in gpt.modules():
        if isinstance(module, LayerNorm | Activation):
            module.reset_parameters()


def replicated(gpt: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that every process holds: all but the matrices and tables."""
    own = {id(p) for module in gpt.modules() if isinstance(module, Activation) for p in module.parameters()}
    return [(name, p) for name, p in gpt.named_parameters() if p.dim() < 2 or id(p) in own]


def is_sharded(module: nn.Module) -> bool:
    """Whether `distribute` has been there."""
    return any(is_part(parameter) for parameter in module.parameters())


def is_part(tensor: Tensor) -> TypeGuard["DTensor"]:
    """Whether a process holds only a part of this tensor."""
    return hasattr(tensor, "full_tensor")  # a DTensor, whose module takes long to import


def whole(tensor: Tensor) -> Tensor:
    """The full tensor. Where processes hold parts, all of them call this, in the same order."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def put(own: Tensor, value: Tensor) -> None:
    """Copy this process's rows of a value into its part of a tensor; rows that the value lacks (a padded table) are zeros.

    Rows are dealt out as torch.chunk does.
    """
    if not is_part(own):
        (own[: len(value)] if own.dim() else own).copy_(value)
        return
    local = own.to_local()
    size = math.ceil(own.shape[0] / own.device_mesh.size())
    first = size * own.device_mesh.get_local_rank()
    rows = value[first : first + len(local)]
    local[: len(rows)].copy_(rows)
    local[len(rows) :] = 0


@torch.no_grad()
def fill(gpt: GPT, values: Iterable[tuple[str, Tensor]]) -> None:
    """Give each named parameter this process's rows of its value."""
    for name, value in values:
        put(gpt.get_parameter(name), value)


@torch.no_grad()
def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of `value` that is sharded as `parameter` is: its moments."""
    if not is_part(parameter) or value.dim() == 0:
        return value.clone()
    part = torch.zeros_like(parameter, dtype=value.dtype)
    put(part, value)
    return part


def gathered(state: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """An optimizer's state_dict with full tensors on the CPU, on the processes that `keep` it; all of them call this."""
    found: dict[int, dict[str, Tensor]] = {}
    for index, entry in state["state"].items():
        for name, value in entry.items():
            full = whole(value)
            if keep:
                found.setdefault(index, {})[name] = full.cpu()
    return dict(state) | {"state": found}


@torch.no_grad()
def average_gradients(gpt: nn.Module) -> None:
    """Average the gradients of what every process holds, in one sum; FSDP has done the rest."""
    gradients = [p.grad for _, p in replicated(gpt) if p.grad is not None]
    if not gradients or dist.get_world_size() == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def clip_gradients(gpt: nn.Module, limit: float) -> float:
    """`torch.nn.utils.clip_grad_norm_` over parts and whole tensors together: the global norm before clipping."""
    found = [p.grad for p in gpt.parameters() if p.grad is not None]
    if not is_sharded(gpt):
        return float(torch.nn.utils.clip_grad_norm_(gpt.parameters(), limit))
    parts = [g.to_local() for g in found if is_part(g)]
    rest = [g for g in found if not is_part(g)]
    squares = torch.stack([torch.linalg.vector_norm(g).square() for g in parts]).sum()
    dist.all_reduce(squares)
    norm = torch.sqrt(squares + sum(torch.linalg.vector_norm(g).square() for g in rest))
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
    for gradient in [*parts, *rest]:
        gradient.mul_(factor)
    return float(norm)
