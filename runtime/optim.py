"""The optimizers and their schedule: AdamW as nanoGPT trains GPT-2, or Muon for the hidden matrices; coefficients apart.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) steps along the orthogonalised momentum of a matrix. Its update
has the RMS 1 / sqrt(max(rows, columns)), AdamW's about 0.2. So the step is made 0.2 sqrt(max(rows, columns)) times as long (Liu
et al. 2025, arXiv 2502.16982, section 2.2, equation 4): then one learning rate and one weight decay serve both.

muP (Yang et al. 2022, arXiv 2203.03466, Table 8, Adam): with r = n_embd / mup_base_width the rate of a hidden matrix is 1/r of
learning_rate, that of all others is learning_rate itself. So it is for coefficients: a layer's are as many at each width, and
channels' are like biases. Adam's step then changes the shape at a rate that does not depend on the width.
Muon's step has the spectral norm 0.2 learning_rate sqrt(max(rows, columns)). It has to stay as the width grows (Yang et al.
2023, arXiv 2310.17813, condition 1), so the rate is 1/sqrt(r). Weight decay grows by as much as the rate falls: a step leaves
1 - rate * decay of a weight at each width.
"""

import math
from typing import Any

import torch
from torch import nn

import activations
from config.schema import Config

MOMENTUM = 0.95  # Muon's, and Nesterov's form of it: what both sources use
_NEEDED = "2.9"  # the first PyTorch with torch.optim.Muon


def check(config: Config) -> None:
    """Raises ValueError where this PyTorch does not have the optimizer."""
    if config.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"optimizer 'muon' needs PyTorch {_NEEDED} or later, this is {torch.__version__}; type --optimizer adamw, or "
            f"pip install 'torch>={_NEEDED}'"
        )


def optimizer(model: nn.Module, config: Config, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer that `config` names, over `activations.parameter_groups`: decay on matrices and embeddings alone.

    "muon": the weights of all linear layers go to Muon (the head is the token table, and no layer). Embeddings, norms, biases
    and coefficients stay with AdamW. A table of coefficients per channel does so too, although it has two dimensions: the
    modules decide, not the shape. c_attn, which holds queries, keys and values, is one matrix to Muon.
    """
    groups = activations.parameter_groups(model, config.learning_rate, config.weight_decay, config.activation_lr_scale)
    betas, fused = (config.beta1, config.beta2), device.type in ("cpu", "cuda")
    ratio = config.n_embd / config.mup_base_width if config.mup_base_width else 1.0
    if config.optimizer == "adamw" and ratio == 1:
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=fused)
    slower = ratio if config.optimizer == "adamw" else math.sqrt(ratio)
    hidden = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
    others, matrices = list[dict[str, Any]](), list[dict[str, Any]]()
    for group in groups:
        for is_hidden, found in ((False, others), (True, matrices)):
            if members := [parameter for parameter in group["params"] if (id(parameter) in hidden) == is_hidden]:
                own = {
                    "name": "matrices",
                    "lr": group["lr"] / slower,
                    "lr_scale": 1 / slower,
                    "weight_decay": group["weight_decay"] * slower,
                }
                found.append(group | {"params": members} | (own if is_hidden else {}))
    if config.optimizer == "adamw":
        return torch.optim.AdamW([*others, *matrices], lr=config.learning_rate, betas=betas, fused=fused)
    return Together(
        torch.optim.AdamW(others, lr=config.learning_rate, betas=betas, fused=fused),
        torch.optim.Muon(matrices, lr=config.learning_rate, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"),
    )


class Together(torch.optim.Optimizer):
    """Two optimizers as one: the groups of the first, then of the second, and one state.

    So a gradient scaler skips the step of both or of none, and a checkpoint holds them in one table.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = [(part, len(part.param_groups)) for part in parts]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of each."""
        assert closure is None, "a closure would be evaluated twice"
        start = 0
        for part, count in self._parts:  # load_state_dict puts new groups and a new state here
            part.param_groups, part.state = self.param_groups[start : start + count], self.state
            part.step()
            start += count


def remembers(group: dict[str, Any]) -> tuple[str, ...]:
    """The tensors that an optimizer keeps for each parameter of one of its groups, each of the parameter's shape and type."""
    return ("momentum_buffer",) if "ns_steps" in group else ("exp_avg", "exp_avg_sq")


def learning_rate(step: int, config: Config) -> float:
    """Rate of the update that follows `step` updates: linear warm-up, then what `lr_schedule` says, to `min_lr` at the end.

    cosine: half a cosine. wsd: learning_rate until `decay_start`, then min_lr + (1 - sqrt(p)) (learning_rate - min_lr) with p
    from 0 to 1, the 1-sqrt cooldown of Haegele et al. 2024 (arXiv 2405.18392), which prefer it to a linear one. constant:
    learning_rate.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    if config.lr_schedule == "constant" or (config.lr_schedule == "wsd" and step < config.decay_start):
        return config.learning_rate
    if step >= config.decay_steps:
        return config.min_lr
    if config.lr_schedule == "wsd":
        progress = (step - config.decay_start) / (config.decay_steps - config.decay_start)
        return config.min_lr + (1 - math.sqrt(progress)) * (config.learning_rate - config.min_lr)
    progress = (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.learning_rate - config.min_lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
