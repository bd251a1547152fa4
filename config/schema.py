"""The one flat description of a run, validated once when it is made, and the model's own part of it.

Fields without a default are the recipe: a preset states each of them, so that it reads as a whole and a
value stands in one place. `Config` is never changed after it is made; `dataclasses.replace` makes another one,
which is validated again. Wrong values raise one ValueError that names all of them.
"""

import dataclasses
import difflib
import math
import types
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from activations import registry

# Sizes beyond these are slips of the keyboard: larger than any GPT-2 by orders of magnitude, small enough for int32 arithmetic.
_LARGEST = {"n_layer": 10_000, "n_head": 10_000, "n_embd": 1 << 20, "block_size": 1 << 20, "vocab_size": 1 << 16}


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """What `model.GPT` is built from; see the fields of the same names in `Config`. `vocab_size` is the true one, unpadded."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bias: bool = True
    dropout: float = 0.0
    activation: str = "gelu"
    mlp_init: Literal["gpt2", "unit"] = "gpt2"
    preactivation_std: float = 1.0
    input_scale: Literal["auto", "1"] = "auto"

    @property
    def matrix_parameters(self) -> int:
        """Scalars in embeddings and matrices, the bulk of the model: biases, norms and coefficients are left out."""
        return (self.vocab_size + self.block_size) * self.n_embd + 12 * self.n_layer * self.n_embd**2

    def __post_init__(self) -> None:
        _raise(_type_problems(self) or [*_shape_problems(self), *_positive_problems(self, "vocab_size")])
        _make_canonical(self)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run. Batch sizes count sequences of `block_size` tokens; intervals count optimizer steps."""

    # Model
    activation: str = "gelu"
    """Spec string of the MLP activation, as hermite:degree=3 (activations.names() lists the families)."""
    n_layer: int
    """Transformer blocks."""
    n_head: int
    """Attention heads; divides n_embd."""
    n_embd: int
    """Width of the residual stream."""
    block_size: int
    """Context length in tokens."""
    vocab_size: int = 0
    """Token ids in use; 0 reads the prepared data's meta.json. The table is padded to a multiple of 64 inside."""
    bias: bool
    """Biases in linear layers and norms, as in GPT-2 (nanoGPT trains without)."""
    dropout: float = 0.0
    """Dropout probability on embeddings, attention weights and residual branches."""
    mlp_init: Literal["gpt2", "unit"] = "gpt2"
    """Standard deviation of c_fc at init: gpt2 0.02; unit preactivation_std/sqrt(n_embd)."""
    preactivation_std: float = 1.0
    """Standard deviation of the activation's inputs at init, with mlp_init unit."""
    input_scale: Literal["auto", "1"] = "auto"
    """input_std given to the activation: auto is the standard deviation that mlp_init produces; 1 ignores it."""

    # Data
    data_dir: str
    """Folder with *train*.bin and *val*.bin shards (python -m data.prepare makes one)."""
    tokenizer: str = ""
    """Tokenizer of foreign shards: gpt2, bytes, none (ids without text) or PATH/tokenizer.json; empty reads meta.json."""
    global_batch_size: int
    """Sequences an optimizer step, over all processes."""
    micro_batch_size: int
    """Sequences a forward pass, per process; global_batch_size is a multiple of processes * micro_batch_size."""

    # Schedule and evaluation
    max_steps: int
    """Optimizer steps of the whole run."""
    log_interval: int = 10
    """Steps between training rows in metrics.jsonl."""
    eval_interval: int
    """Steps between evaluations; there is always one at the start and one at the end."""
    eval_tokens: int = 0
    """Validation targets used, from the start of the set; 0 uses all."""
    eval_only: bool = False
    """Evaluate the initial or resumed weights and stop."""
    checkpoint_interval: int
    """Steps between checkpoints; one is written at the end and at each new best evaluation too."""
    keep_checkpoints: int = 1
    """How many of the newest checkpoints stay on disk; the best always does."""

    # Optimizer: AdamW, linear warm-up, cosine decay
    learning_rate: float
    """Peak learning rate."""
    min_lr: float
    """Learning rate at the end of the decay and after it."""
    warmup_steps: int
    """Steps of linear warm-up."""
    lr_decay_steps: int = 0
    """Step at which min_lr is reached; 0: max_steps."""
    weight_decay: float = 0.1
    """Decay of matrices and embeddings; norms, biases and activation coefficients have none."""
    beta1: float = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: float
    """AdamW's decay rate of the second moment."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 does not clip."""
    activation_lr_scale: float = 1.0
    """Learning rate of activation coefficients relative to learning_rate."""

    # Run
    seed: int = 1337
    """Seeds initial weights, data order and dropout, each with a generator of its own."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast type; auto: bfloat16 where the hardware computes in it, float16 on older GPUs, else float32."""
    compile: bool = True
    """torch.compile the model where a compiler is present."""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """Collectives under torchrun; auto: nccl on CUDA, else gloo."""
    deterministic: bool = False
    """CUDA kernels that repeat to the bit, or an error where there is none; CPU runs repeat in any case."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a non-finite loss or gradient does: stop the run with exit code 1, or skip the step."""
    telemetry_interval: int = 0
    """Steps between telemetry rows (per layer: coefficients, input law, gains); 0: none."""
    timeout_s: float = 600.0
    """Seconds after which a collective that waits for a lost rank is an error."""

    # Where it lies and where it starts
    out_dir: str = ""
    """The run's folder; empty: runs/<preset file name>."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: go on from the newest checkpoint in out_dir if there is one; never: out_dir must be new; must: it must have one."""
    init_from: str = ""
    """Weights to start from: empty (random), a run's folder, a GPT-2 folder or hub name."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Weights & Biases; metrics.jsonl has the same numbers in any case."""
    wandb_project: str = "activations"
    """W&B project."""
    wandb_run_name: str = ""
    """W&B run name; empty: the folder's name."""

    def __post_init__(self) -> None:
        _raise(_type_problems(self) or _problems(self))
        _make_canonical(self)

    @property
    def decay_steps(self) -> int:
        """Step at which the schedule reaches `min_lr`."""
        return self.lr_decay_steps or self.max_steps

    @property
    def tokens_per_step(self) -> int:
        """Tokens an optimizer step trains on."""
        return self.global_batch_size * self.block_size

    def gpt(self, vocab_size: int) -> GPTConfig:
        """The model's part, with the vocabulary that the data have."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(GPTConfig)}
        return GPTConfig(**shared | {"vocab_size": vocab_size})


# A resumed run must agree with its checkpoint in these; in everything else it may differ, and the difference is logged.
FIXED_FIELDS = (
    "activation", "n_layer", "n_head", "n_embd", "block_size", "bias", "dropout", "mlp_init", "preactivation_std",
    "input_scale", "tokenizer",
    "global_batch_size", "learning_rate", "min_lr", "warmup_steps", "decay_steps", "weight_decay", "beta1", "beta2",
    "grad_clip", "activation_lr_scale", "seed",
)  # fmt: skip


def from_dict(values: dict[str, Any], where: str) -> Config:
    """A `Config` from untrusted data such as a checkpoint's config.json. Raises ValueError that begins with `where`."""
    known = {field.name: field for field in dataclasses.fields(Config)}
    problems = [unknown_field(name) for name in values if name not in known]
    problems += [
        f"{name} is missing" for name, field in known.items() if name not in values and field.default is dataclasses.MISSING
    ]
    try:
        _raise(problems)
        return Config(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def unknown_field(name: str) -> str:
    """The problem that a field of this name does not exist, with the nearest one that does."""
    nearest = difflib.get_close_matches(name, [field.name for field in dataclasses.fields(Config)], n=1, cutoff=0.4)
    return f"unknown field {name!r}" + (f", did you mean {nearest[0]!r}?" if nearest else "; --help lists the fields")


def field_types() -> dict[str, Any]:
    """Name -> type (int, float, bool, str or a Literal of strings) of every field of `Config`."""
    return get_type_hints(Config)


def _make_canonical(config: GPTConfig | Config) -> None:
    """One spelling for one activation: resume, hashes and comparisons go by it."""
    object.__setattr__(config, "activation", registry.check(config.activation))


def _type_problems(config: GPTConfig | Config) -> list[str]:
    problems = []
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                problems.append(f"{name}={value!r} is not one of {', '.join(repr(a) for a in get_args(kind))}")
        elif kind is float:
            if isinstance(value, bool) or not isinstance(value, int | float):
                problems.append(f"{name}={value!r} is not a number")
            elif not math.isfinite(value):
                problems.append(f"{name}={value!r} is not finite")
            else:
                object.__setattr__(config, name, float(value))  # 1 and 1.0 are one setting: hashes and resume compare by it
        elif type(value) is not kind:
            problems.append(f"{name}={value!r} is not {_article(kind)}")
    return problems


def _article(kind: type | types.GenericAlias) -> str:
    return {int: "an integer", bool: "True or False", str: "a string"}[kind]  # type: ignore[index]


def _positive_problems(config: GPTConfig | Config, *names: str) -> list[str]:
    return [f"{name}={getattr(config, name)} must be at least 1" for name in names if getattr(config, name) < 1]


def _shape_problems(config: GPTConfig | Config) -> list[str]:
    problems = _positive_problems(config, "n_layer", "n_head", "n_embd", "block_size")
    problems += [
        f"{name}={getattr(config, name)} is above {most}" for name, most in _LARGEST.items() if getattr(config, name) > most
    ]
    if not problems and config.n_embd % config.n_head:
        problems.append(f"n_embd={config.n_embd} is not a multiple of n_head={config.n_head}")
    if config.preactivation_std <= 0:
        problems.append(f"preactivation_std={config.preactivation_std} must be positive")
    if config.preactivation_std != 1 and config.mlp_init != "unit":
        problems.append(
            f"preactivation_std={config.preactivation_std} has no effect with mlp_init='gpt2'; give --mlp_init unit"
        )
    if not 0.0 <= config.dropout < 1.0:
        problems.append(f"dropout={config.dropout} must be in [0, 1)")
    try:
        registry.check(config.activation)
    except ValueError as error:
        problems.append(f"activation: {error}")
    return problems


def _problems(config: Config) -> list[str]:
    problems = _shape_problems(config)
    problems += _positive_problems(config, "global_batch_size", "micro_batch_size", "keep_checkpoints")
    problems += _positive_problems(config, "log_interval", "eval_interval", "checkpoint_interval")
    for name in (
        "vocab_size", "max_steps", "eval_tokens", "warmup_steps", "lr_decay_steps", "telemetry_interval", "seed",
        "learning_rate", "min_lr", "weight_decay", "grad_clip", "activation_lr_scale",
    ):  # fmt: skip
        if getattr(config, name) < 0:
            problems.append(f"{name}={getattr(config, name)} must not be negative")
    problems += [
        f"{name}={getattr(config, name)} must be in [0, 1)" for name in ("beta1", "beta2") if not 0 <= getattr(config, name) < 1
    ]
    if config.seed >= 2**31:
        problems.append(f"seed={config.seed} must be below 2**31")
    if config.timeout_s <= 0:
        problems.append(f"timeout_s={config.timeout_s} must be positive")
    if config.min_lr > config.learning_rate:
        problems.append(f"min_lr={config.min_lr} is above learning_rate={config.learning_rate}")
    if config.micro_batch_size > 0 and config.global_batch_size % config.micro_batch_size:
        problems.append(
            f"global_batch_size={config.global_batch_size} is not a multiple of micro_batch_size={config.micro_batch_size}"
        )
    if config.device not in ("auto", "cpu", "mps", "cuda") and not (
        config.device.startswith("cuda:") and config.device[5:].isdecimal()
    ):
        problems.append(f"device={config.device!r} is not auto, cpu, cuda, cuda:N or mps")
    if not config.data_dir:
        problems.append("data_dir is empty; python -m data.prepare pystdlib makes data/pystdlib")
    if config.tokenizer not in ("", "gpt2", "bytes", "none") and not config.tokenizer.partition("@")[0].endswith(".json"):
        problems.append(f"tokenizer={config.tokenizer!r} is not gpt2, bytes, none or the path of a tokenizer.json")
    for name in ("data_dir", "out_dir", "init_from", "tokenizer"):
        if "\0" in getattr(config, name):
            problems.append(f"{name} holds a NUL character")
    return problems


def _raise(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))
