"""GPT-2 in one file: read it from the top and you have read the model.

The MLP's activation is the only thing that is not GPT-2's: `activations.build` makes it from a spec string. Parameters
carry the names of the released checkpoints (c_attn, c_fc, ...), so that `transformers` loads what `save_pretrained`
writes, and `from_pretrained` loads what `transformers` and OpenAI published.

Shapes in the comments: B batch, T time (tokens), C n_embd, H heads, D = C/H, S cached time, V vocab_size, P = V padded.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import activations
import decoding
from activations import registry
from config.schema import GPTConfig
from pretrained import folder

WRITTEN_OUT = 512  # tokens up to which attention on CPUs in bfloat16 is written out


class LayerNorm(nn.Module):
    """Layer normalisation with an optional bias, (..., C) -> (..., C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None
        self.eps = config.layer_norm_epsilon

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Ones and zeros, in place."""
        self.weight.fill_(1)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Linear(nn.Linear):
    """x W^T + b, (..., in) -> (..., out)."""

    product = staticmethod(F.linear)  # `decoding.compile_products` puts another one here

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


class KVCache:
    """Keys and values of the `length` tokens so far: 2 * n_layer * B * block_size * C numbers."""

    def __init__(self, config: GPTConfig, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, batch_size, config.n_head, config.block_size, config.n_embd // config.n_head)
        self.k = torch.empty(shape, device=device, dtype=dtype)  # (L, B, H, block_size, D)
        self.v = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, T, D) behind the `length` tokens there are; returns all (B, H, S, D), S = length + T."""
        end = self.length + k.size(2)
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.layer, self.n_head, self.dropout = layer, config.n_head, config.dropout
        self.scale = config.attention_scale

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        # A single new token sees everything cached; several (the prompt) are only ever given to an empty cache.
        causal = cache is None or T > 1
        if cache is not None:
            assert T == 1 or cache.length == 0, "more than one token on top of a filled cache needs a mask"
            k, v = cache.extend(self.layer, k, v)
        dropout = self.dropout if self.training else 0.0
        y = attention(q, k, v, causal, dropout, self.scale)  # (B, H, T, D)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # heads side by side again
        return F.dropout(y, dropout) if dropout else y


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, dropout: float, scale: float) -> Tensor:
    """softmax(scale q k^T) v of q (B, H, T, D) and k, v (B, H, S, D); `causal`: S = T, and no query sees a later key."""
    # On CPUs the fused kernel reaches a fraction of the matrix products' speed in bfloat16 (`python -m bench.parts`, LOG.md).
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and causal and q.size(2) <= WRITTEN_OUT:
        return written_out_attention(q, k, v, dropout, scale)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, scale=scale)


def written_out_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float) -> Tensor:
    """Causal attention as plain matrix products; the scores (B, H, T, T) lie in memory, and in a cache while they are small."""
    B, H, T, D = q.shape
    q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
    mask = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    weights = torch.baddbmm(mask, q, k.mT, alpha=scale).softmax(-1)
    return (F.dropout(weights, dropout) @ v).view(B, H, T, D)


class MLP(nn.Module):
    """c_proj(act(c_fc(x))), (B, T, C) -> (B, T, C), four times as wide inside.

    `mlp` gated: c_proj(act(c_gate(x)) * c_fc(x)), `mlp_width` wide (Shazeer 2020, arXiv 2002.05202, equation 6).
    With silu that is SwiGLU.

    Initial weights, std by matrix (biases zero, L = n_layer, W = mlp_width, s = `preactivation_std`):

                  plain                gated, gpt2              gated, unit
        c_gate    -                    0.02                     s / sqrt(C)
        c_fc      0.02, s / sqrt(C)    1 / sqrt(C)              1 / sqrt(C)
        c_proj    0.02 / sqrt(2 L)     0.02 sqrt(4 C/W) / sqrt(2 L)     the same

    A row x of the layer norm has |x|^2 = C, so g = c_gate x and u = c_fc x are independent Gaussians over the draw of the
    weights, and E[(F(g) u)^2] = E[F(g)^2] E[u^2], exactly. c_gate feeds the activation what c_fc feeds it in the plain MLP, and
    E[u^2] = 1: so the product has the plain MLP's second moment, E[F^2], which is s^2 at unit gain. There are W products in the
    place of 4 C values; c_proj makes up for it, and the branch adds to the residual stream just what the plain one adds.
    Backward, E F'^2 E[u^2] = 1 comes through the gate at unit gain, as in the plain MLP, and E[F^2] through c_fc on top.
    """

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        width = config.mlp_width
        # After the layer norm x has unit second moment, so this matrix's std sets the law that the activation is fed.
        input_std = preactivation_matrix_std(config) * math.sqrt(config.n_embd) if config.input_scale == "auto" else 1.0
        self.c_fc = Linear(config.n_embd, width, bias=config.bias)
        self.c_gate = Linear(config.n_embd, width, bias=config.bias) if config.mlp == "gated" else None
        self.act = activations.build(registry.of_layer(config.activation, layer, config.n_layer), width, input_std, layer)
        self.c_proj = Linear(width, config.n_embd, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.c_fc(x)) if self.c_gate is None else self.act(self.c_gate(x)) * self.c_fc(x)
        x = self.c_proj(x)
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class Block(nn.Module):
    """Pre-norm transformer block, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = LayerNorm(config)
        self.mlp = MLP(config, layer)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        x = x + self.mlp(self.ln_2(x))
        return x


class Transformer(nn.Module):
    """Embeddings, blocks and the last norm: int64 tokens (B, T) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        padded = 64 * math.ceil(config.vocab_size / 64)  # P; matrix products with aligned rows are faster
        self.wte = nn.Embedding(padded, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config)
        self.dropout = config.dropout
        self.recomputes = False

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        start = cache.length if cache is not None else 0
        positions = torch.arange(start, start + tokens.size(1), device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
        if self.training and self.dropout:
            x = F.dropout(x, self.dropout)
        for block in self.h:
            if self.recomputes and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=self.training and self.dropout > 0)
            else:
                x = block(x, cache)
        if cache is not None:
            cache.length += tokens.size(1)
            x = x[:, -1:]  # generation wants the next token alone, and the head is the largest matrix
        normed: Tensor = self.ln_f(x)
        return normed


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks, output head tied to the token embedding.

    Initial weights are drawn by a generator of their own from `seed`; the activation draws none of them, so that
    two models that differ in the activation start from the same weights.
    """

    product = staticmethod(F.linear)  # the head's, as in Linear
    is_compiled = False

    def __init__(self, config: GPTConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # torch's own default init draws from the global generator
            self.transformer = Transformer(config)
        activations.share(self)
        if not self.transformer.wte.weight.is_meta:
            self.reset_parameters(seed)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Give every parameter outside norms and activations its initial value; those have theirs since they were made."""
        for name, value in self.initial_values(seed):
            self.get_parameter(name).copy_(value)

    def initial_values(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """(name, initial value on the CPU) of the parameters outside norms and activations, one after another.

        GPT-2's init: normal(0.02), residual projections over sqrt(2 n_layer), the MLP's as `MLP` says, biases zero.
        """
        generator = torch.Generator().manual_seed(seed)
        made_with_values = (activations.Activation, LayerNorm)
        left = {id(p) for module in self.modules() if isinstance(module, made_with_values) for p in module.parameters()}
        for name, parameter in self.named_parameters():
            if id(parameter) in left:
                continue
            value = torch.zeros(parameter.shape, dtype=parameter.dtype, device="cpu")
            if not name.endswith("bias"):
                value.normal_(0.0, initial_std(name, self.config), generator=generator)
            if name == "transformer.wte.weight":
                # Padded rows get no gradient and no decay away from zero: they stay out of the checkpoint, and are zeros again.
                value[self.config.vocab_size :] = 0
            yield name, value

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        reduction: Literal["mean", "none"] = "mean",
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of int64 `tokens` (B, T); with `targets` (B, T) the cross-entropy in nats instead.

        Targets of -1 count as no token. `reduction` "mean" gives a scalar, "none" (B, T) with zeros at -1.
        With a `cache` the logits are those of the last token alone, (B, 1, V), and the tokens join the cache.
        """
        x = self.transformer(tokens, cache)
        y = self.logits(x) if targets is None else self.loss(x, targets, reduction)
        if self.is_compiled and y.requires_grad and not torch.compiler.is_compiling():
            y.register_hook(refuse_second_derivatives)
        return y

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) of the transformer's output (..., C); the padded ids have none. muP divides them by `width_ratio`."""
        if self.config.width_ratio != 1:
            x = x / self.config.width_ratio
        return self.product(x, self.transformer.wte.weight)[..., : self.config.vocab_size]

    def loss(self, x: Tensor, targets: Tensor, reduction: Literal["mean", "none"]) -> Tensor:
        """Cross-entropy of the transformer's output (B, T, C), as in `forward`; compiled, it keeps no logits in float32."""
        logits = self.logits(x).flatten(0, 1).float()
        loss = F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction=reduction)
        return loss if reduction == "mean" else loss.view_as(targets)

    def compile(self, inside_hooks: bool = False, **options: Any) -> None:
        """Compile in place, with `torch.compile`'s options, the blocks, which share one graph, and the loss.

        `inside_hooks` leaves hooks on the blocks, as FSDP's, out of the graph.
        Compile time does not grow with depth, and the step is as fast as from one graph of everything, or faster (LOG.md).
        Asked for second derivatives, the model raises RuntimeError from then on.
        """
        for block in self.transformer.h:
            if inside_hooks:
                block.forward = torch.compile(block.forward, **options)
            else:
                block.compile(**options)
        self.is_compiled = True
        self.loss = torch.compile(self.loss, **options)  # type: ignore[method-assign]

    def recompute_blocks(self) -> None:
        """From now on keep only each block's input for the backward pass, which computes the block once more.

        Gradients are the same to the bit: the second pass is the first one again, its dropout masks included. It costs one
        forward pass of the blocks a step, a third of their work (Chen et al. 2016, arXiv:1604.06174).
        """
        self.transformer.recomputes = True

    def generate(self, tokens: Tensor, max_new_tokens: int, **sampling: Any) -> Tensor:
        """`tokens` (B, T) with up to `max_new_tokens` more behind them; see `decoding.stream` for the sampling arguments."""
        return torch.cat([tokens, *(new[:, None] for new in self.stream(tokens, max_new_tokens, **sampling))], dim=1)

    @torch.inference_mode()
    def stream(self, tokens: Tensor, max_new_tokens: int, **sampling: Any) -> Iterator[Tensor]:
        """Yield one new token a sequence, (B,), at a time: `decoding.stream` with the activations frozen."""
        yield from decoding.stream(decoding.frozen(self), tokens, max_new_tokens, **sampling)

    def empty_cache(self, tokens: Tensor) -> KVCache:
        """A cache for the sequences `tokens` (B, T), in autocast's type where it is on, else in that of the weights."""
        weight, kind = self.transformer.wte.weight, tokens.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        return KVCache(self.config, tokens.size(0), tokens.device, dtype)

    def num_parameters(self) -> int:
        """Trainable scalars, the padding of the token table left out."""
        padding = (self.transformer.wte.num_embeddings - self.config.vocab_size) * self.config.n_embd
        return sum(p.numel() for p in self.parameters()) - padding

    def flops_per_token(self) -> int:
        """Floating-point operations a trained token: see `GPTConfig.flops_per_token`."""
        return self.config.flops_per_token(self.num_parameters())

    def gpt2_state_dict(self) -> dict[str, Tensor]:
        """Every tensor under GPT-2's name and in its orientation, the tied table once and unpadded."""
        return dict(self.gpt2_tensors())

    def _own_state(self) -> dict[str, Tensor]:
        """`state_dict`, but coefficients that several layers share (per=model) once, under the first layer's name."""
        again = activations.repeated_names(self)
        return {name: tensor for name, tensor in self.state_dict().items() if name not in again}

    def gpt2_tensors(self, whole: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Iterator[tuple[str, Tensor]]:
        """The items of `gpt2_state_dict`, one after another; `whole` makes a full tensor of what a process holds a part of."""
        for name, tensor in self._own_state().items():
            yield from folder.to_gpt2({name: whole(tensor)}, self.config.vocab_size).items()

    def load_gpt2_state_dict(
        self, state: dict[str, Tensor], where: str, put: Callable[[Tensor, Tensor], object] = folder.put
    ) -> None:
        """Inverse of `gpt2_state_dict`. Raises ValueError that begins with `where` and names tensors that do not fit.

        put(own, value) writes a value into a tensor of the model, which may have more rows than it.
        """
        folder.load_gpt2(self._own_state(), state, self.config.vocab_size, where, put)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors as `transformers` reads them.

        A model with muP is written as the standard one that computes the same (`folder.standard`).
        GPT-2 knows no model without biases: where `bias` is off they are written as zeros. A model with a learnable activation
        comes back through `from_pretrained` alone; export.py writes it for `transformers`.
        """
        folder.write(Path(directory), *folder.standard(self.config, self.gpt2_state_dict()))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, block_size: int | None = None) -> "GPT":
        """A GPT-2 folder (config.json and safetensors or .bin weights) or a hub name, e.g. openai-community/gpt2.

        The logits are those of `transformers`' GPT2LMHeadModel. A `block_size` below the folder's keeps the first positions.
        Raises ValueError where there is no such folder, or where it holds what this model cannot compute.
        """
        path = folder.locate(name_or_path)
        config, state = folder.read(path)
        if block_size is not None and block_size != config.block_size:
            config, state = folder.cropped(config, state, block_size)
        model = cls(config)
        model.load_gpt2_state_dict(state, str(path))
        return model


def refuse_second_derivatives(gradient: Tensor) -> None:
    """A hook on what compiled code computes: PyTorch's own error comes later, and names ways that lead no further."""
    if torch.is_grad_enabled():
        advice = "take them of another GPT, not compiled: its load_state_dict takes these weights"
        raise RuntimeError(f"a compiled GPT has first derivatives only, and create_graph asks for second ones; {advice}")


def initial_std(name: str, config: GPTConfig) -> float:
    """Standard deviation of the initial weights of the matrix or table of that name; see `MLP` for its three.

    Under muP (Yang et al. 2022, arXiv 2203.03466, Table 8) a hidden matrix has a variance of 1/fan-in, and the tables one that
    does not depend on the width: 0.02 becomes 0.02/sqrt(`width_ratio`) for the former.
    """
    gated = config.mlp == "gated"
    if name.endswith("mlp.c_gate.weight" if gated else "mlp.c_fc.weight"):
        return preactivation_matrix_std(config)
    if name.endswith("mlp.c_fc.weight"):
        return 1 / math.sqrt(config.n_embd)
    if name.endswith(("wte.weight", "wpe.weight")):
        return 0.02
    std = 0.02 / math.sqrt(config.width_ratio)
    if not name.endswith("c_proj.weight"):
        return std
    std /= math.sqrt(2 * config.n_layer)
    return std * math.sqrt(4 * config.n_embd / config.mlp_width) if gated and name.endswith("mlp.c_proj.weight") else std


def preactivation_matrix_std(config: GPTConfig) -> float:
    """Initial standard deviation of the matrix before the activation; times sqrt(n_embd) it is that of the pre-activations."""
    gpt2 = 0.02 / math.sqrt(config.width_ratio)
    return gpt2 if config.mlp_init == "gpt2" else config.preactivation_std / math.sqrt(config.n_embd)
