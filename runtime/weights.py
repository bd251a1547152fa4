"""The weights that a run begins with, and the hashes by which runs and ranks compare what they have."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import activations
from activations import registry, telemetry
from config.schema import Config, GPTConfig, names
from data.batches import Batches
from model import GPT
from pretrained import folder
from runtime import checkpoint, sharding
from runtime.sharding import whole


def sharded_model(config: Config, batches: Batches, device: torch.device, dtype: torch.dtype, origin: Path | None) -> GPT:
    """This process's part of the model at step 0: random from `seed`, also where a checkpoint `origin` is loaded after it.

    With `init_from` a process copies its part of one tensor of the file after another. Only where the activation changes too
    does it hold the whole model, to measure what that feeds. Raises ValueError.
    """
    gpt = sharding.make(config)
    sharding.distribute(gpt, config, device, dtype)
    if config.init_from and not origin:
        start_from(gpt, config, batches, sharding.put)
    else:
        sharding.fill(gpt, gpt.initial_values(config.seed))
    return gpt


def initial_model(config: Config, batches: Batches) -> GPT:
    """The model at step 0: random from `seed`, or with the weights that `init_from` names. Raises ValueError."""
    gpt = GPT(config.gpt(config.vocab_size), config.seed)
    if config.init_from:
        start_from(gpt, config, batches, folder.put)
    return gpt


def start_from(gpt: GPT, config: Config, batches: Batches, put: Callable[[Tensor, Tensor], object]) -> None:
    """Give a model the weights that `init_from` names, by put(own tensor, value). Raises ValueError.

    Where those were trained with another activation, this run's takes its place, made for the inputs that the model is
    measured to feed it on the first sequences of the training data.
    """
    source, wanted = Path(config.init_from), gpt.config
    is_run = (source / "checkpoints").is_dir() or (source / "state.pt").is_file()
    there, weights = checkpoint.read_weights(source) if is_run else folder.read(folder.locate(config.init_from))
    if wanted.block_size < there.block_size:
        there, weights = folder.cropped(there, weights, wanted.block_size)
    if wrong := [name for name in names(model="shape") if getattr(there, name) != getattr(wanted, name)]:
        problems = ", ".join(f"{name} {getattr(wanted, name)} (it has {getattr(there, name)})" for name in wrong)
        raise ValueError(f"init_from {config.init_from!r} does not fit this config: {problems}")
    if there.activation != wanted.activation:
        own = replaced(there, weights, config, batches) if config.input_scale == "auto" else gpt.state_dict()
        ours = activations.tensor_names(gpt) - activations.repeated_names(gpt)
        weights = {name: weight for name, weight in weights.items() if ".mlp.act." not in name}
        weights |= {name: own[name] for name in ours}
    gpt.load_gpt2_state_dict(weights, config.init_from, put)


def replaced(there: GPTConfig, weights: dict[str, Tensor], config: Config, batches: Batches) -> dict[str, Tensor]:
    """The state_dict of the model `there` with this run's activations, made for what the model feeds them."""
    if registry.shares(config.activation):
        raise ValueError(
            f"activation {config.activation!r} has per=model, and init_from {config.init_from!r} has another activation, whose "
            "layers are fed inputs of different sizes; type per=layer, or --input_scale 1"
        )
    loaded = GPT(there).eval()
    loaded.load_gpt2_state_dict(weights, config.init_from)
    stds = telemetry.input_stds(loaded, torch.from_numpy(batches.read(0, slice(0, 8)).inputs))
    for layer in range(there.n_layer):
        mlp, spec = f"transformer.h.{layer}.mlp", registry.of_layer(config.activation, layer, there.n_layer)
        activations.swap(loaded.get_submodule(mlp), activations.Activation, spec, stds[f"{mlp}.act"])
    return loaded.state_dict()


def weights_hashes(gpt: GPT) -> tuple[str, str]:
    """SHA-256 over all tensors outside the activations, and over the activations'. Of a sharded model all ranks call this."""
    digests, of_activations = (hashlib.sha256(), hashlib.sha256()), activations.tensor_names(gpt)
    for name, tensor in gpt.gpt2_tensors(whole):
        digests[name in of_activations].update(name.encode() + tensor.cpu().numpy().tobytes())
    return digests[0].hexdigest(), digests[1].hexdigest()


def optimizer_hash(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> str:
    """SHA-256 over what the optimizer and the gradient scaler remember. Of a sharded model all ranks call this."""
    digest = hashlib.sha256(repr(scaler.state_dict()).encode())
    for parameter, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            digest.update(f"{parameter} {name}".encode() + whole(value).cpu().numpy().tobytes())
    return digest.hexdigest()
