"""The one flat description of a run, validated once when it is made, and the model's own part of it.

Fields without a default are the recipe: a preset states each of them, so that it reads as a whole and a
value stands in one place. `Config` is never changed after it is made; `dataclasses.replace` makes another one,
which is validated again. Wrong values raise one ValueError that names all of them.
"""

import dataclasses
import difflib
import math
import re
import types
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from activations import registry

T = TypeVar("T")
Fact = str | bool | tuple[str, ...]

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
    layer_norm_epsilon: float = 1e-5
    activation: str = "gelu"
    mlp: Literal["plain", "gated"] = "plain"
    mlp_init: Literal["gpt2", "unit"] = "gpt2"
    preactivation_std: float = 1.0
    input_scale: Literal["auto", "1"] = "auto"
    mup_base_width: int = 0
    mup_base_heads: int = 0

    @property
    def width_ratio(self) -> float:
        """n_embd over `mup_base_width`; 1 where muP is off."""
        return self.n_embd / self.mup_base_width if self.mup_base_width else 1.0

    @property
    def attention_scale(self) -> float:
        """Factor of q k^T: 1/sqrt(D) for heads of size D; under muP sqrt(D at the base) / D, the same at the base width."""
        size = self.n_embd // self.n_head
        standard: float = size**-0.5
        at_base = self.mup_base_width // (self.mup_base_heads or self.n_head) if self.mup_base_width else size
        return math.sqrt(at_base / size) * standard

    @property
    def matrix_parameters(self) -> int:
        """Scalars in embeddings and matrices, the bulk of the model: biases, norms and coefficients are left out."""
        of_mlp = (3 if self.mlp == "gated" else 2) * self.mlp_width
        return (self.vocab_size + self.block_size) * self.n_embd + self.n_layer * (4 * self.n_embd + of_mlp) * self.n_embd

    def flops_per_token(self, num_parameters: int) -> int:
        """Floating-point operations a trained token, forward and backward: 6 N + 12 L C T (PaLM, Appendix B),
        N without the position table, activations not counted."""
        matrices = num_parameters - self.block_size * self.n_embd
        return 6 * matrices + 12 * self.n_layer * self.n_embd * self.block_size

    @property
    def mlp_width(self) -> int:
        """Channels of the activation: 4 n_embd, or `gated_width`."""
        return gated_width(self.n_embd, self.bias) if self.mlp == "gated" else 4 * self.n_embd

    def __post_init__(self) -> None:
        _raise(_type_problems(self) or [*_shape_problems(self), *_positive_problems(self, "vocab_size")])
        _make_canonical(self)


def gated_width(n_embd: int, bias: bool) -> int:
    """Channels of a gated MLP, whose three matrices then have the parameters, and so the FLOPs, of a plain MLP's two.

    The exact number is 8/3 n_embd, a little less with biases (Shazeer 2020, arXiv 2002.05202, section 3: two thirds of the
    plain width). It is rounded to the multiple of 64 that is nearest if the parameters, biases included, stay within 1 %;
    else to that of 32, 16, 8, 4, 2 or 1. At n_embd 768 that is 2048, at 256: 688, at 128: 344, at 64: 172 (170 with biases).
    Some widths below 16 have no such multiple, and take the nearest integer (11 at n_embd 4: 3 % more parameters).
    """
    plain = 8 * n_embd**2 + (5 * n_embd if bias else 0)
    fixed, per_channel = (n_embd, 3 * n_embd + 2) if bias else (0, 3 * n_embd)
    exact = (plain - fixed) / per_channel
    for multiple in (64, 32, 16, 8, 4, 2):
        width = multiple * round(exact / multiple)
        if abs(fixed + width * per_channel - plain) <= plain / 100:
            return width
    return max(1, round(exact))


def setting(
    default: Any = dataclasses.MISSING,
    *,
    resume: Literal["fixed", "free"],
    compare: Literal["same", "own", "free"],
    ranks: Literal["same", "free"] = "same",
    model: Literal["", "shape", "other"] = "",
    start: bool = False,
    from_data: bool = False,
    schedule: bool = False,
) -> Any:
    """A field of `Config`, with all that the project has to know of it. What follows from a fact is found by `names`.

    resume: a resumed run has the checkpoint's value (fixed), or may have another one (free).
    compare: compared runs have one value (same); the comparison chooses it (own); or it does not change what a run computes
        (free), and then `config_hash` leaves it out.
    ranks: all processes of a run have one value (same). Paths and devices may differ (free): what they hold is compared.
    model: the field is part of `GPTConfig`. Weights of another value do not fit (shape), or they do (other).
    start: the bytes that a run is fed, or its initial weights outside the activation, depend on it.
    from_data: a run finds the value in its data where the config leaves it open.
    schedule: the field is part of the learning rate's schedule, in which a branch may differ from its trunk.
    """
    facts: dict[str, Fact] = {"resume": resume, "compare": compare, "ranks": ranks, "model": model}
    facts |= {"start": start, "from_data": from_data, "schedule": schedule}
    return dataclasses.field(default=default, metadata=facts)


def declared(config: type[T]) -> type[T]:
    """Class decorator: TypeError for a field made without `setting`, or one whose `model` is not what `GPTConfig` says."""
    of_model = {field.name for field in dataclasses.fields(GPTConfig)}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        if "resume" not in field.metadata:
            raise TypeError(
                f"{config.__name__}.{field.name} is not declared; write {field.name} = setting(..., resume=..., ...)"
            )
        if bool(field.metadata["model"]) != (field.name in of_model):
            raise TypeError(f"{config.__name__}.{field.name} has model={field.metadata['model']!r}; GPTConfig says otherwise")
    return config


@declared
@dataclass(frozen=True, kw_only=True)
class Config:
    """A run. Batch sizes count sequences of `block_size` tokens; intervals count optimizer steps."""

    # Model
    activation: str = setting("gelu", resume="fixed", compare="own", model="other")
    """Spec string of the MLP activation: hermite:degree=3 (activations.names() lists families), mine.py:Swish, A;B by depth."""
    n_layer: int = setting(resume="fixed", compare="same", model="shape", start=True)
    """Transformer blocks."""
    n_head: int = setting(resume="fixed", compare="same", model="shape", start=True)
    """Attention heads; divides n_embd."""
    n_embd: int = setting(resume="fixed", compare="same", model="shape", start=True)
    """Width of the residual stream."""
    block_size: int = setting(resume="fixed", compare="same", model="shape", start=True)
    """Context length in tokens."""
    vocab_size: int = setting(0, resume="fixed", compare="same", model="shape", start=True, from_data=True)
    """Token ids in use; 0 reads the prepared data's meta.json. The table is padded to a multiple of 64 inside."""
    bias: bool = setting(resume="fixed", compare="same", model="shape", start=True)
    """Biases in linear layers and norms, as in GPT-2 (nanoGPT trains without)."""
    dropout: float = setting(0.0, resume="fixed", compare="same", model="other")
    """Dropout probability on embeddings, attention weights and residual branches."""
    layer_norm_epsilon: float = setting(1e-5, resume="fixed", compare="same", model="shape")
    """Added to the variance in every layer norm; 1e-5 in GPT-2."""
    mlp: Literal["plain", "gated"] = setting("plain", resume="fixed", compare="own", model="shape", start=True)
    """plain: c_proj(act(c_fc x)). gated: c_proj(act(c_gate x) * c_fc x), as many parameters; with silu it is SwiGLU."""
    mlp_init: Literal["gpt2", "unit"] = setting("gpt2", resume="fixed", compare="same", model="other", start=True)
    """Standard deviation of the matrix before the activation at init: gpt2 0.02; unit preactivation_std/sqrt(n_embd)."""
    preactivation_std: float = setting(1.0, resume="fixed", compare="same", model="other", start=True)
    """Standard deviation of the activation's inputs at init, with mlp_init unit."""
    input_scale: Literal["auto", "1"] = setting("auto", resume="fixed", compare="same", model="other")
    """input_std given to the activation: auto is the standard deviation that mlp_init produces; 1 ignores it."""

    mup_base_width: int = setting(0, resume="fixed", compare="same", model="shape", start=True)
    """muP: n_embd at which a model is the standard one; others have its init, rates and scales by their width. 0: off."""
    mup_base_heads: int = setting(0, resume="fixed", compare="same", model="shape", start=True)
    """n_head of the model of mup_base_width; 0: the same n_head, so that heads grow with the width."""

    # Data
    data_dir: str = setting(resume="free", compare="same", ranks="free", start=True)
    """Folder with *train*.bin and *val*.bin shards (python -m data.prepare makes one)."""
    tokenizer: str = setting("", resume="fixed", compare="same", ranks="free", start=True, from_data=True)
    """Tokenizer of foreign shards: gpt2, bytes, none (ids without text) or PATH/tokenizer.json; empty reads meta.json."""
    global_batch_size: int = setting(resume="fixed", compare="same", start=True)
    """Sequences an optimizer step, over all processes."""
    micro_batch_size: int = setting(resume="free", compare="same")
    """Sequences a forward pass, per process; global_batch_size is a multiple of processes * micro_batch_size."""

    # Schedule and evaluation
    max_steps: int = setting(resume="free", compare="same", start=True)
    """Optimizer steps of the whole run."""
    log_interval: int = setting(10, resume="free", compare="same")
    """Steps between training rows in metrics.jsonl."""
    eval_interval: int = setting(resume="free", compare="same")
    """Steps between evaluations; there is always one at the start and one at the end."""
    eval_tokens: int = setting(0, resume="free", compare="same")
    """Validation targets used, in windows spread evenly over the set; 0 uses all."""
    eval_only: bool = setting(False, resume="free", compare="same")
    """Evaluate the initial or resumed weights and stop."""
    checkpoint_interval: int = setting(resume="free", compare="free")
    """Steps between checkpoints; one is written at the end and at each new best evaluation too."""
    keep_checkpoints: int = setting(1, resume="free", compare="free")
    """How many of the newest checkpoints stay on disk; the best always does."""
    checkpoint_steps: str = setting("", resume="free", compare="free")
    """Further steps, apart by commas, whose checkpoints are written and stay on disk, for `branch_from`."""

    # Optimizer: linear warm-up, decay
    optimizer: Literal["adamw", "muon"] = setting("adamw", resume="fixed", compare="same")
    """adamw; muon for the weights of the linear layers, at the same learning rate, with AdamW for all others."""
    learning_rate: float = setting(resume="fixed", compare="same", schedule=True)
    """Peak learning rate."""
    min_lr: float = setting(resume="fixed", compare="same", schedule=True)
    """Learning rate at the end of the decay and after it."""
    warmup_steps: int = setting(resume="fixed", compare="same", schedule=True)
    """Steps of linear warm-up."""
    lr_schedule: Literal["cosine", "wsd", "constant"] = setting("cosine", resume="fixed", compare="same", schedule=True)
    """After the warm-up: half a cosine; a constant rate and then a decay (wsd: warm-up, stable, decay); or a constant rate."""
    lr_decay_steps: int = setting(0, resume="fixed", compare="same", schedule=True)
    """Step at which min_lr is reached; 0: max_steps."""
    lr_decay_fraction: float = setting(0.2, resume="fixed", compare="same", schedule=True)
    """wsd: the last part of those steps, in which the rate falls; a branch decays over its own length instead."""
    weight_decay: float = setting(0.1, resume="fixed", compare="same")
    """Decay of matrices and embeddings; norms, biases and activation coefficients have none."""
    beta1: float = setting(0.9, resume="fixed", compare="same")
    """AdamW's decay rate of the first moment."""
    beta2: float = setting(resume="fixed", compare="same")
    """AdamW's decay rate of the second moment."""
    grad_clip: float = setting(1.0, resume="fixed", compare="same")
    """Largest global gradient norm; 0 does not clip."""
    activation_lr_scale: float = setting(1.0, resume="fixed", compare="same")
    """Learning rate of activation coefficients relative to learning_rate."""

    # Run
    seed: int = setting(1337, resume="fixed", compare="own", start=True)
    """Seeds initial weights, data order and dropout, each with a generator of its own."""
    device: str = setting("auto", resume="free", compare="same", ranks="free")
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("auto", resume="free", compare="same")
    """Autocast type; auto: bfloat16 where the hardware computes in it, float16 on older GPUs, else float32."""
    compile: bool = setting(True, resume="free", compare="same")
    """torch.compile the model where a compiler is present."""
    compile_cache: str = setting("auto", resume="free", compare="free", ranks="free")
    """Folder for compiled code, used again by later runs; auto: learnable-activations in the user's cache; empty: none."""
    recompute: Literal["none", "blocks"] = setting("none", resume="free", compare="free")
    """none keeps every activation for the backward pass; blocks keeps each block's input and computes the block again."""
    parallelism: Literal["ddp", "fsdp"] = setting("ddp", resume="free", compare="same")
    """ddp: every process holds the model; fsdp: each holds a part of its matrices, their gradients and moments (FSDP2)."""
    reshard_after_forward: bool = setting(True, resume="free", compare="free")
    """fsdp: let go of a block's matrices after its forward pass; False gathers them once a step, and holds the model then."""
    backend: Literal["auto", "nccl", "gloo"] = setting("auto", resume="free", compare="same")
    """Collectives under torchrun; auto: nccl on CUDA, else gloo."""
    deterministic: bool = setting(False, resume="free", compare="same")
    """CUDA kernels that repeat to the bit, or an error where there is none; CPU runs repeat in any case."""
    nonfinite: Literal["stop", "skip"] = setting("stop", resume="free", compare="same")
    """What a non-finite loss or gradient does: stop the run with exit code 1, or skip the step."""
    telemetry_interval: int = setting(0, resume="free", compare="same")
    """Steps between telemetry rows (per layer: coefficients, moments of the inputs, gains, gradients); 0: none."""
    profile_steps: int = setting(0, resume="free", compare="free")
    """Steps to profile, after the first two of this launch: a trace and a table in out_dir/profile; 0: none."""
    timeout_s: float = setting(600.0, resume="free", compare="free")
    """Seconds after which a collective that waits for a lost rank is an error."""

    # Where it lies and where it starts
    out_dir: str = setting("", resume="free", compare="free", ranks="free")
    """The run's folder; empty: runs/<preset file name>."""
    resume: Literal["auto", "never", "must"] = setting("auto", resume="free", compare="free")
    """auto: go on from the newest checkpoint in out_dir if there is one; never: out_dir must be new; must: it must have one."""
    init_from: str = setting("", resume="fixed", compare="same", ranks="free", start=True)
    """Weights to start from: empty (random), a run's folder, a GPT-2 folder or hub name."""
    branch_from: str = setting("", resume="fixed", compare="same", ranks="free", schedule=True)
    """RUN@STEP: go on from that checkpoint of another run, in a new folder, under the schedule of this config."""
    wandb: Literal["disabled", "offline", "online"] = setting("disabled", resume="free", compare="free")
    """Weights & Biases; metrics.jsonl has the same numbers in any case."""
    wandb_project: str = setting("activations", resume="free", compare="free")
    """W&B project."""
    wandb_run_name: str = setting("", resume="free", compare="free")
    """W&B run name; empty: the folder's name."""
    wandb_group: str = setting("", resume="free", compare="free")
    """W&B group; compare.py gives all runs of a sweep its folder's name."""
    tensorboard: bool = setting(False, resume="free", compare="free")
    """Scalars for TensorBoard in out_dir/tensorboard; needs the package tensorboard."""

    def __post_init__(self) -> None:
        _raise(_type_problems(self) or _problems(self))
        _make_canonical(self)

    @property
    def decay_steps(self) -> int:
        """Step at which the schedule reaches `min_lr`."""
        return self.lr_decay_steps or self.max_steps

    @property
    def decay_start(self) -> int:
        """wsd: step from which the learning rate falls: where a branch began, else `lr_decay_fraction` before the end."""
        length = max(1, round(self.lr_decay_fraction * self.decay_steps))
        return max(self.warmup_steps, branch_step(self.branch_from) or self.decay_steps - length)

    @property
    def kept_steps(self) -> frozenset[int]:
        """`checkpoint_steps` as numbers."""
        return frozenset(int(word) for word in self.checkpoint_steps.split(",") if word)

    @property
    def tokens_per_step(self) -> int:
        """Tokens an optimizer step trains on."""
        return self.global_batch_size * self.block_size

    def gpt(self, vocab_size: int) -> GPTConfig:
        """The model's part, with the vocabulary that the data have."""
        shared = {name: getattr(self, name) for name in names(model=("shape", "other"))}
        return GPTConfig(**shared | {"vocab_size": vocab_size})

    def values(self, **facts: Fact) -> dict[str, Any]:
        """The fields that `names` finds, with their values, as far as they change what is computed.

        A decay left open counts as the `max_steps` that it means, and as 0 where there is none. A branch counts by its step.
        """
        meant = {"lr_decay_steps": self.decay_steps * (self.lr_schedule != "constant")}
        meant["branch_from"] = branch_step(self.branch_from)
        return {name: meant.get(name, getattr(self, name)) for name in names(**facts)}


def branch_step(branch_from: str) -> int:
    """The step in RUN@STEP; 0 where nothing is given."""
    return int(branch_from.rpartition("@")[2]) if branch_from else 0


def names(**facts: Fact) -> tuple[str, ...]:
    """The fields of `Config` that were declared so, in their order: names(resume="fixed"); a tuple is one of its values."""
    wanted = {fact: value if isinstance(value, tuple) else (value,) for fact, value in facts.items()}
    return tuple(
        field.name for field in dataclasses.fields(Config) if all(field.metadata[f] in values for f, values in wanted.items())
    )


def from_dict(values: dict[str, Any], where: str) -> Config:
    """A `Config` from untrusted data such as a checkpoint's config.json. Raises ValueError that begins with `where`."""
    known = {field.name: field for field in dataclasses.fields(Config)}
    problems = [unknown_field(name) for name in values if name not in known]
    problems += [
        f"{name} is missing" for name, field in known.items() if name not in values and field.default is dataclasses.MISSING
    ]
    try:
        _raise(problems)
        config = Config(**values)
        registry.check_recorded(values.get("activation", config.activation))
        return config
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
    if config.layer_norm_epsilon <= 0:
        problems.append(f"layer_norm_epsilon={config.layer_norm_epsilon} must be positive")
    if config.preactivation_std <= 0:
        problems.append(f"preactivation_std={config.preactivation_std} must be positive")
    if config.preactivation_std != 1 and config.mlp_init != "unit":
        problems.append(
            f"preactivation_std={config.preactivation_std} has no effect with mlp_init='gpt2'; give --mlp_init unit"
        )
    problems += _mup_problems(config)
    if not 0.0 <= config.dropout < 1.0:
        problems.append(f"dropout={config.dropout} must be in [0, 1)")
    try:
        checked = registry.check(config.activation)
        if config.n_layer > 0:
            registry.of_layer(checked, 0, config.n_layer)
    except ValueError as error:
        problems.append(f"activation: {error}")
    return problems


def _mup_problems(config: GPTConfig | Config) -> list[str]:
    width, heads = config.mup_base_width, config.mup_base_heads
    problems = [f"{n}={v} must not be negative" for n, v in (("mup_base_width", width), ("mup_base_heads", heads)) if v < 0]
    if heads and not width:
        problems.append(f"mup_base_heads={heads} has no effect without mup_base_width; give --mup_base_width")
    used = heads or config.n_head
    if not problems and width and used > 0 and width % used:
        divisor = f"mup_base_heads={heads}" if heads else f"n_head={used}; give the base model's as --mup_base_heads"
        problems.append(f"mup_base_width={width} is not a multiple of {divisor}")
    return problems


def _problems(config: Config) -> list[str]:
    problems = _shape_problems(config)
    problems += _positive_problems(config, "global_batch_size", "micro_batch_size", "keep_checkpoints")
    problems += _positive_problems(config, "log_interval", "eval_interval", "checkpoint_interval")
    for name in (
        "vocab_size", "max_steps", "eval_tokens", "warmup_steps", "lr_decay_steps", "telemetry_interval", "seed",
        "profile_steps",
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
    if not 0 < config.lr_decay_fraction <= 1:
        problems.append(f"lr_decay_fraction={config.lr_decay_fraction} must be above 0 and at most 1")
    if config.lr_decay_fraction != 0.2 and config.lr_schedule != "wsd":
        problems.append(f"lr_decay_fraction={config.lr_decay_fraction} has no effect without --lr_schedule wsd")
    if config.lr_decay_steps and config.lr_schedule == "constant":
        problems.append(f"lr_decay_steps={config.lr_decay_steps} has no effect with lr_schedule='constant'; leave it out")
    problems += _branch_problems(config)
    if config.min_lr > config.learning_rate:
        problems.append(f"min_lr={config.min_lr} is above learning_rate={config.learning_rate}; give --min_lr too")
    if config.micro_batch_size > 0 and config.global_batch_size % config.micro_batch_size:
        problems.append(
            f"global_batch_size={config.global_batch_size} is not a multiple of micro_batch_size={config.micro_batch_size}; "
            f"type --micro_batch_size {math.gcd(config.global_batch_size, config.micro_batch_size)}"
        )
    if config.device not in ("auto", "cpu", "mps", "cuda") and not (
        config.device.startswith("cuda:") and config.device[5:].isdecimal()
    ):
        problems.append(f"device={config.device!r} is not auto, cpu, cuda, cuda:N or mps")
    if not config.data_dir:
        problems.append("data_dir is empty; python -m data.prepare pystdlib makes data/pystdlib")
    if config.tokenizer not in ("", "gpt2", "bytes", "none") and not config.tokenizer.partition("@")[0].endswith(".json"):
        problems.append(f"tokenizer={config.tokenizer!r} is not gpt2, bytes, none or the path of a tokenizer.json")
    for name in ("data_dir", "out_dir", "init_from", "branch_from", "tokenizer", "compile_cache"):
        if "\0" in getattr(config, name):
            problems.append(f"{name} holds a NUL character")
    return problems


def _branch_problems(config: Config) -> list[str]:
    problems = []
    if not re.fullmatch(r"(\d{1,12}(,\d{1,12})*)?", config.checkpoint_steps, re.ASCII):
        problems.append(f"checkpoint_steps={config.checkpoint_steps!r} is not steps apart by commas, as in 800,2400")
    if not re.fullmatch(r"(.+@0*[1-9]\d{0,11})?", config.branch_from, re.ASCII):
        problems.append(f"branch_from={config.branch_from!r} is not RUN@STEP, as in runs/study@800")
    elif config.branch_from and min(config.max_steps, config.decay_steps) <= branch_step(config.branch_from):
        name = "max_steps" if config.max_steps <= branch_step(config.branch_from) else "lr_decay_steps"
        problems.append(f"{name}={getattr(config, name)} is not above the step of branch_from={config.branch_from}")
    return problems


def _raise(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))
