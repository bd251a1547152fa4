"""GPT-2 with a learnable activation or a gated MLP, for transformers. MIT licence. It needs: pip install learnable-activations

export.py copies this file into the folders that it writes; `trust_remote_code=True` makes transformers run it from there.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.pytorch_utils import Conv1D


class LearnableGPT2Config(GPT2Config):  # type: ignore[misc]
    """GPT-2's config; `activation_function` is a spec of learnable-activations, such as "hermite:degree=3,...".

    A;B means A in the first half of the layers. gated(SPEC) means c_proj(act(c_gate x) * c_fc x), `n_inner` wide.
    The model type is another one than GPT-2's, and no activation of transformers has such a name: nothing can load the weights
    with a GELU by mistake.
    """

    model_type = "learnable_gpt2"


class Undecayed(nn.Module):
    """An activation under the name `bias_like`: Trainer, and most other trainers, decay no parameter that has bias in its name.

    Weight decay would undo the activation's gain.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.bias_like = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bias_like(x)
        return y


class Gated(nn.Module):
    """c_proj(act(c_gate x) * c_fc x) in the place of a GPT2MLP, whose c_fc, c_proj and dropout it takes over."""

    def __init__(self, mlp: Any, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_gate, self.c_proj = mlp.c_fc, Conv1D(mlp.c_fc.nf, width), mlp.c_proj
        self.act, self.dropout = mlp.act, mlp.dropout

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.c_proj(self.act(self.c_gate(x)) * self.c_fc(x)))
        return y


class LearnableGPT2Model(GPT2Model):  # type: ignore[misc]
    """GPT2Model with `activations.build(config.activation_function, ...)` in every MLP."""

    config_class = LearnableGPT2Config
    _keep_in_fp32_modules_strict = {"bias_like"}  # noqa: RUF012  # transformers' own attribute

    def __init__(self, config: Any) -> None:
        activations = _activations()
        with _gelu(config):
            super().__init__(config)
        spec = config.activation_function.removeprefix("gated(")
        is_gated = spec != config.activation_function
        for layer, block in enumerate(self.h):
            if is_gated:
                block.mlp = Gated(block.mlp, config.n_embd)
            with torch.device("cpu"):  # from_pretrained builds on the meta device, where nothing has a value
                own = activations.registry.of_layer(spec.removesuffix(")"), layer, config.n_layer)
                block.mlp.act = Undecayed(activations.build(own, block.mlp.c_fc.nf))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As GPT-2. from_pretrained overwrites the buffers that no file holds; an activation gets its own back here."""
        if isinstance(module, _activations().Activation):
            if not hasattr(module, "constants"):  # a fixed one: the law of its inputs is all it holds
                module.reset_parameters()
                return
            for name, value in module.constants().items():
                getattr(module, name).copy_(value)
        else:
            super()._init_weights(module)


class LearnableGPT2LMHeadModel(GPT2LMHeadModel):  # type: ignore[misc]
    """GPT2LMHeadModel with a LearnableGPT2Model inside."""

    config_class = LearnableGPT2Config

    def __init__(self, config: Any) -> None:
        with _gelu(config):
            super().__init__(config)
        self.transformer = LearnableGPT2Model(config)
        self.post_init()


@contextmanager
def _gelu(config: Any) -> Iterator[None]:
    """GPT2MLP asks for an activation of transformers; it is replaced afterwards."""
    spec, config.activation_function = config.activation_function, "gelu_new"
    try:
        yield
    finally:
        config.activation_function = spec


def _activations() -> Any:
    """The package, by name: transformers would tell of a missing import to install another package that has this name."""
    found = importlib.import_module("activations") if importlib.util.find_spec("activations") else None
    if not hasattr(found, "parameter_groups"):
        raise ImportError("this model needs learnable activations; type: pip install learnable-activations")
    return found
