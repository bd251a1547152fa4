"""The plan of a sweep: what is compared, which runs there are, what each is called, and the command line that makes it."""

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from activations import registry
from config import arm
from config.command_line import load_preset, overrides
from config.schema import Config, branch_step

_TELEMETRY_ROWS = 8  # gains and shapes through training, where the preset asks for no telemetry
_TELEMETRY_STEPS = 250  # the same where runs of several lengths are compared, which must agree in it
T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """A run without a result: a row of the report."""

    arm: str
    """The label of its arm."""
    run: str
    """Its name."""
    reason: str
    """What it said, or what is wrong with its folder."""


@dataclass(frozen=True)
class Settings:
    """What a comparison compares."""

    activations: tuple[str, ...] = ()
    """Arms (`config.arm`) in the order of the report; others follow as they come."""
    baseline: str = ""
    """The arm that the others are compared with; empty: the first."""
    varied: tuple[str, ...] = ()
    """Configuration fields that differ on purpose, besides activation and seed."""
    rates: tuple[float, ...] = ()
    """Learning rates among which each activation takes its best; empty: all runs have one."""
    rate_seeds: tuple[int, ...] = ()
    """Seeds that choose the learning rate; empty: all."""
    commands: tuple[str, ...] = ()
    """Command lines that made the runs."""
    failures: tuple[Failure, ...] = ()
    """Runs that ended without a result."""
    lengths: tuple[int, ...] = ()
    """Lengths in steps that the report compares, each apart; empty: max_steps is a field like others."""

    @property
    def free(self) -> tuple[str, ...]:
        """All fields that may differ between runs."""
        rates = ("learning_rate", "min_lr") if self.rates else ()
        return self.varied + rates + (("branch_from",) if self.lengths else ())


def merge(a: Settings, b: Settings) -> Settings:
    """Both settings: the order and the baseline of `a` first, then what `b` adds."""
    return replace(
        a,
        activations=union(a.activations, b.activations),
        baseline=a.baseline or b.baseline,
        varied=union(a.varied, b.varied),
        rates=tuple(sorted({*a.rates, *b.rates})),
        # Only seeds that both sweeps ran at all of their rates say which rate is best.
        rate_seeds=tuple(sorted({*a.rate_seeds} & {*b.rate_seeds})) or a.rate_seeds or b.rate_seeds,
        commands=union(a.commands, b.commands),
        failures=union(a.failures, b.failures),
        lengths=tuple(sorted({*a.lengths, *b.lengths})),
    )


def union(a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(a + b))


def label(spec: str, values: Mapping[str, Any]) -> str:
    """The name of an arm: its spec and its varied values."""
    return " ".join([short(spec), *(f"{name}={value}" for name, value in values.items())])


def short(spec: str) -> str:
    """An arm as people write it: degrees, and the options that are not at their defaults; swiglu for gated(silu)."""
    mlp, spec = arm.split(spec)
    if mlp != "plain":
        name = short(spec)
        return next((gated for gated, gate in arm.GATES.items() if gate == name), arm.join(mlp, name))
    if len(parts := registry.stages(spec)) > 1:
        return registry.STAGE.join(map(short, parts))
    name, options = registry.parse(spec)
    if registry.files_of(spec):  # its options are as they were written, and its code is not run to know more
        return ":".join([registry.short_name(name), ",".join(f"{key}={value}" for key, value in options.items())]).rstrip(":")
    family = registry.family(name)
    kept = [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in options.items()
        if key in family.degrees or value != family.options[key].default
    ]
    return ":".join([name, ",".join(kept)]) if kept else name


@dataclass(frozen=True)
class Job:
    """One run: `arguments` are train.py's."""

    name: str
    arm: str
    """The label of its arm."""
    config: Config
    arguments: tuple[str, ...]
    trunk: "Job | None" = None
    """The run that this one branches from, and waits for."""
    is_trunk: bool = False
    """Whether it is there for its branches, and is not compared itself."""

    @property
    def num_steps(self) -> int:
        """Steps that it computes itself."""
        return self.config.max_steps - branch_step(self.config.branch_from)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.out_dir)

    @property
    def shape(self) -> str:
        """All that its compiled graphs depend on: runs of one shape share them."""
        own = asdict(self.config.gpt(self.config.vocab_size or 1)) | {"data": [self.config.data_dir, self.config.vocab_size]}
        names = ("micro_batch_size", "global_batch_size", "device", "dtype", "compile", "recompute", "deterministic")
        return json.dumps(own | {name: getattr(self.config, name) for name in names})


@dataclass(frozen=True)
class Sweep:
    """Every activation with every combination of varied values, at every seed and learning rate."""

    preset: Path
    base: Config
    """The preset's, without `overrides`."""
    overrides: Mapping[str, Any]
    activations: tuple[str, ...]
    seeds: tuple[int, ...]
    out_dir: Path
    varied: Mapping[str, tuple[Any, ...]]
    """Field -> values."""
    rates: tuple[float, ...]
    """Learning rates to choose from; empty: the preset's."""
    rate_seeds: tuple[int, ...]
    """Seeds that are trained at every rate; the others at the chosen one."""
    settings: Settings
    lengths: tuple[int, ...] = ()
    """Values of max_steps that make a curve; with lr_schedule=wsd they are branches of one trunk."""

    def cells(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(activation, varied values) of each arm."""
        for values in product(*self.varied.values()):
            for activation in self.activations:
                yield activation, dict(zip(self.varied, values, strict=True))

    def jobs(self, seeds: Iterable[int], rates: Sequence[float]) -> list[Job]:
        """All runs at these seeds and rates, seed by seed, so that what is there when it stops early is paired."""
        return [
            self.job(activation, values, rate, seed)
            for seed in seeds
            for activation, values in self.cells()
            for rate in rates or (None,)
        ]

    def job(self, activation: str, values: Mapping[str, Any], rate: float | None, seed: int) -> Job:
        """One run. `rate` None is the preset's; min_lr keeps its proportion to the learning rate. Raises ValueError."""
        own = replace(self.base, **self.overrides)
        fields = dict(self.overrides) | dict(values) | arm.fields(activation) | {"seed": seed}
        if rate is not None:
            fields |= {"learning_rate": rate, "min_lr": own.min_lr * rate / own.learning_rate}
        if own.wandb != "disabled":
            fields.setdefault("wandb_group", self.out_dir.name)
        if "telemetry_interval" not in fields and not self.base.telemetry_interval:
            by_length = max(1, replace(self.base, **fields).max_steps // _TELEMETRY_ROWS)
            fields["telemetry_interval"] = _TELEMETRY_STEPS if self.lengths else by_length
        fixed = {name: value for name, value in values.items() if name != "max_steps" or not self.lengths}
        trunk = None
        if self.lengths and own.lr_schedule == "wsd":
            trunk = self._trunk(activation, fixed, fields, rate)
            fields["branch_from"] = f"{trunk.folder}@{trunk.config.max_steps}"
        return self._made(activation, values, fields, rate, trunk)

    def _trunk(self, activation: str, fixed: Mapping[str, Any], fields: Mapping[str, Any], rate: float | None) -> Job:
        """The constant run as far as the branch of these `fields`, which keeps the checkpoints of all shorter branches."""
        starts = [replace(self.base, **{**fields, "max_steps": length}).decay_start for length in self.lengths]
        last = replace(self.base, **fields).decay_start
        kept = ",".join(str(start) for start in starts if start <= last)
        own = {"lr_schedule": "constant", "lr_decay_fraction": 0.2, "max_steps": last, "checkpoint_steps": kept}
        return self._made(activation, {**fixed, "trunk": ""}, {**fields, **own}, rate, None)

    def _made(
        self, activation: str, values: Mapping[str, Any], fields: Mapping[str, Any], rate: float | None, trunk: Job | None
    ) -> Job:
        """The job of these `fields`, named by what varies."""
        is_trunk = "trunk" in values
        parts = [arm.file_name(short(activation)), *(f"{name}={value}" for name, value in values.items() if name != "trunk")]
        parts += ([f"lr={rate:g}"] if rate is not None else []) + [f"seed={fields['seed']}"] + ["trunk"] * is_trunk
        name = "-".join(part.replace("/", "_").replace(",", "-") for part in parts)
        fields = {**fields, "out_dir": str(self.out_dir / name)}
        arguments = [str(self.preset), *(word for name, value in fields.items() for word in (f"--{name}", str(value)))]
        arm_label = label(activation, {name: value for name, value in values.items() if name != "trunk"})
        return Job(name, arm_label, replace(self.base, **fields), tuple(arguments), trunk, is_trunk)


def with_trunks(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with the trunks that they branch from, seed by seed, each trunk once and as long as a branch needs it."""
    found = []
    for seed in dict.fromkeys(job.config.seed for job in jobs):
        mine = [job for job in jobs if job.config.seed == seed]
        trunks: dict[str, Job] = {}
        for trunk in (job.trunk for job in mine if job.trunk):
            longest = trunks.setdefault(trunk.name, trunk)
            trunks[trunk.name] = max(longest, trunk, key=lambda job: job.config.max_steps)
        found += [*trunks.values(), *mine]
    return found


def plan(
    preset: Path,
    activations: Sequence[str],
    num_seeds: int,
    overrides: Mapping[str, Any],
    out_dir: Path | None = None,
    baseline: str = "",
    varied: Mapping[str, tuple[Any, ...]] | None = None,
    rates: Sequence[float] = (),
    num_rate_seeds: int = 0,
    command: str = "",
    lengths: Sequence[int] = (),
) -> Sweep:
    """A checked plan. Seeds count up from the preset's. Raises ValueError, in one line, for anything that cannot be run."""
    base = load_preset(preset)
    own = replace(base, **overrides)
    if own.mlp == "gated":  # of all arms
        base = replace(base, mlp="plain")
        overrides = {name: value for name, value in overrides.items() if name != "mlp"}
        activations = [arm.join("gated", arm.split(name)[1]) for name in activations]
        baseline = baseline and arm.join("gated", arm.split(baseline)[1])
    specs = [arm.check(name) for name in activations]
    for name in specs:  # a class in a file is known to be right once it is built, and groups must divide the channels
        fields = arm.fields(name)
        for part in registry.stages(fields["activation"]):
            registry.build(part, replace(own, **fields).gpt(1).mlp_width)
    problems = []
    if len(set(specs)) < len(specs):
        problems.append(
            f"--activations names {next(s for s in activations if specs.count(arm.check(s)) > 1)} twice; name each once"
        )
    if not specs:
        problems.append("no --activations given; type for example --activations gelu hermite:degree=3")
    if num_seeds < 1:
        problems.append(f"--seeds {num_seeds} is no number of seeds; give at least 1")
    if not 0 <= num_rate_seeds <= num_seeds:
        problems.append(f"--lr_seeds {num_rate_seeds} must lie in 0 (all) to --seeds {num_seeds}")
    if baseline and arm.check(baseline) not in specs:
        problems.append(f"--baseline {baseline} is not among --activations {' '.join(activations)}")
    if any(not rate > 0 for rate in rates):
        problems.append(f"--lr {' '.join(map(str, rates))} holds a rate that is not above 0")
    fixed = {"activation": "--activations", "seed": "--seeds", "out_dir": "--out_dir"} | (
        {"learning_rate": "--lr", "min_lr": "--lr"} if rates else {}
    )
    problems += [f"{name} is varied by {option} already" for name, option in fixed.items() if name in (varied or {})]
    problems += _length_problems(own, lengths, {*overrides, *(varied or {})})
    if lengths:
        varied = {**(varied or {}), "max_steps": tuple(sorted(lengths))}
    if "mlp" in (varied or {}):
        problems.append("mlp belongs to the arms: leave it out of --vary, and name gated(SPEC) or swiglu in --activations")
    problems += [f"{name} is given to --vary and as --{name}; keep one" for name in varied or {} if name in overrides]
    if "activation" in overrides:
        problems.append("--activation is one run's; name all of them in --activations")
    if own.eval_only:
        problems.append("--eval_only True trains nothing to compare; leave it out")
    if problems:
        raise ValueError("; ".join(problems))
    seeds = tuple(own.seed + i for i in range(num_seeds))
    sweep = Sweep(
        preset=preset,
        base=base,
        overrides={name: value for name, value in overrides.items() if name != "out_dir"},
        activations=tuple(specs),
        seeds=seeds,
        out_dir=out_dir or Path("runs") / f"compare_{preset.stem}",
        varied=varied or {},
        rates=tuple(rates),
        rate_seeds=seeds[: num_rate_seeds or num_seeds],
        settings=Settings(
            activations=tuple(specs),
            baseline=arm.check(baseline) if baseline else specs[0],
            varied=tuple(varied or {}),
            rates=tuple(sorted(rates)),
            rate_seeds=seeds[: num_rate_seeds or num_seeds] if rates else (),
            commands=(command,) if command else (),
            lengths=tuple(sorted(lengths)),
        ),
        lengths=tuple(sorted(lengths)),
    )
    sweep.jobs(seeds, rates)  # every configuration is valid, or this raises
    return sweep


def _length_problems(own: Config, lengths: Sequence[int], given: Collection[str]) -> list[str]:
    """What is wrong with --lengths; `own` is the configuration without them, `given` the fields that are given elsewhere."""
    problems: list[str] = []
    if not lengths:
        return problems
    if wrong := [length for length in lengths if length < 1]:
        problems.append(f"--lengths {wrong[0]} is no number of steps; give at least 1")
    if len(set(lengths)) < len(lengths):
        problems.append(f"--lengths {','.join(map(str, lengths))} names one twice; name each once")
    if "max_steps" in given:
        problems.append("max_steps is given by --lengths already; leave it out elsewhere")
    if own.branch_from or own.lr_decay_steps:
        problems.append("--lengths plans branches and decays itself; leave out branch_from and lr_decay_steps")
    if own.lr_schedule == "constant":
        problems.append("--lengths needs runs that decay; give --lr_schedule wsd (branches of one run) or cosine")
    if own.lr_schedule == "wsd" and not problems:
        starts = [replace(own, max_steps=length).decay_start for length in lengths]
        wrong = [length for length, start in zip(lengths, starts, strict=True) if not 0 < start < length]
        if wrong:
            problems.append(f"--lengths {wrong[0]} leaves no steps before or in the decay; give more than warmup_steps")
    return problems


def step_counts(word: str) -> tuple[int, ...]:
    """--lengths' numbers, apart by commas; none of nothing. Raises ValueError."""
    if not word:
        return ()
    if not re.fullmatch(r"\d{1,12}(,\d{1,12})*", word, re.ASCII):
        raise ValueError(f"--lengths {word[:60]!r} is not numbers of steps apart by commas, as in 1000,3000,10000")
    return tuple(int(number) for number in word.split(","))


def varied_fields(words: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Field -> typed values, from --vary's words FIELD=A,B. Raises ValueError."""
    varied = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not equals:
            raise ValueError(f"--vary {word!r} has no values; type --vary {name}=A,B")
        varied[name] = tuple(overrides([f"--{name}", value])[name] for value in values.split(","))
    return varied


def learning_rates(words: Sequence[str]) -> tuple[float, ...]:
    """--lr's words, apart by spaces or commas, as positive numbers, each once. Raises ValueError."""
    found = []
    for word in " ".join(words).replace(",", " ").split():
        try:
            found.append(float(word))
        except ValueError:
            raise ValueError(f"--lr {word!r} is not a number") from None
        if not 0 < found[-1] < math.inf:
            raise ValueError(f"--lr {word} is not a learning rate above 0")
    return tuple(dict.fromkeys(found))
