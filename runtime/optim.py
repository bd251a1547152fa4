"""AdamW and its schedule, as nanoGPT trains GPT-2, with the activation's own parameter group."""

import math

import torch
from torch import nn

import activations
from config.schema import Config


def adamw(model: nn.Module, config: Config, device: torch.device) -> torch.optim.AdamW:
    """Fused AdamW over `activations.parameter_groups`: decay on matrices and embeddings alone, coefficients apart."""
    groups = activations.parameter_groups(model, config.learning_rate, config.weight_decay, config.activation_lr_scale)
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=device.type in ("cpu", "cuda")
    )


def learning_rate(step: int, config: Config) -> float:
    """Rate of the update that follows `step` updates: linear warm-up, then half a cosine from learning_rate to min_lr."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    if step >= config.decay_steps:
        return config.min_lr
    progress = (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.learning_rate - config.min_lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
