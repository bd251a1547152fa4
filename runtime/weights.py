"""The weights that a run begins with, and the hashes by which runs and ranks compare what they have."""

import hashlib
from pathlib import Path

import torch

import activations
from activations import telemetry
from config.schema import Config, names
from data.batches import Batches
from model import GPT
from runtime import checkpoint, sharding
from runtime.sharding import whole


def sharded_model(config: Config, batches: Batches, device: torch.device, dtype: torch.dtype, origin: Path | None) -> GPT:
    """This process's part of the model at step 0: random from `seed`, also where a checkpoint `origin` is loaded after it.

    With `init_from` each process reads the whole model once, and keeps its part. Raises ValueError.
    """
    source = initial_model(config, batches) if config.init_from and not origin else None
    gpt = sharding.make(config)
    sharding.distribute(gpt, config, device, dtype)
    if source:
        gpt.load_gpt2_state_dict(source.gpt2_state_dict(), config.init_from, sharding.put)
    else:
        sharding.fill(gpt, gpt.initial_values(config.seed))
    return gpt


def initial_model(config: Config, batches: Batches) -> GPT:
    """The model at step 0: random from `seed`, or with the weights that `init_from` names. Raises ValueError.

    Where those were trained with another activation, this run's takes its place, made for the inputs that the model is
    measured to feed it on the first sequences of the training data.
    """
    wanted = config.gpt(config.vocab_size)
    gpt = GPT(wanted, config.seed)
    if not config.init_from:
        return gpt
    source = Path(config.init_from)
    is_run = (source / "checkpoints").is_dir() or (source / "state.pt").is_file()
    loaded = checkpoint.load_model(source)[0] if is_run else GPT.from_pretrained(config.init_from).eval()
    if wanted.block_size < loaded.config.block_size:
        loaded.crop_block_size(wanted.block_size)
    if wrong := [name for name in names(model="shape") if getattr(loaded.config, name) != getattr(wanted, name)]:
        problems = ", ".join(f"{name} {getattr(wanted, name)} (it has {getattr(loaded.config, name)})" for name in wrong)
        raise ValueError(f"init_from {config.init_from!r} does not fit this config: {problems}")
    weights = loaded.gpt2_state_dict()
    if loaded.config.activation == wanted.activation:
        gpt.load_gpt2_state_dict(weights, config.init_from)
        return gpt
    if config.input_scale == "auto":
        inputs = torch.from_numpy(batches.read(0, slice(0, 8)).inputs)
        activations.swap(loaded, activations.Activation, wanted.activation, telemetry.input_stds(loaded, inputs))
        gpt.load_gpt2_state_dict(loaded.gpt2_state_dict(), config.init_from)
        return gpt
    own, of_activations = gpt.gpt2_state_dict(), activations.tensor_names(gpt)
    gpt.load_gpt2_state_dict({n: own[n] if n in of_activations else weights[n] for n in own}, config.init_from)
    return gpt


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
