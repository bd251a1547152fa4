"""Everything a training step needs, put together once: processes, data, model, optimizer, and where the run stands.

`set_up` is where bad input shows: it raises ValueError (one line) before anything is written or trained.
"""

import contextlib
import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import activations
from activations import telemetry
from config.schema import Config, names
from data import shards
from data.batches import Batch, Batches
from data.files import write_bytes, write_json
from data.lock import locked
from data.tokenizer import FILE
from model import GPT
from runtime import checkpoint, distributed, log, memory, optim
from runtime.dataset import Dataset, open_dataset
from runtime.distributed import Processes
from runtime.hardware import autocast, describe, pick_dtype, retain_memory, set_determinism, why_not_compile
from runtime.progress import Progress
from runtime.state import load_optimizer, load_scaler, read_progress
from runtime.watch import Watch

logger = logging.getLogger("train")

LOCK = ".lock"


def nothing() -> None:
    """What a rank that writes nothing has to check."""


class NonFiniteError(Exception):
    """A loss or gradient that is not finite, and the places in the model where it shows."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what}{'; ' if where else ''}{where}")


@dataclass
class Run:
    """The parts of a run. `gpt` owns the weights; `compiled` computes with them, and `model` adds the gradient exchange."""

    config: Config
    """Resolved: it names the tokenizer and the vocabulary."""
    processes: Processes
    dtype: torch.dtype
    gpt: GPT
    compiled: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    dataset: Dataset
    batches: Batches
    watch: Watch
    check_folder: Callable[[], object] = nothing
    """Raises OSError where another process has taken the run's folder meanwhile; rank 0's alone."""
    progress: Progress = field(default_factory=Progress)
    resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def out_dir(self) -> Path:
        """The run's folder."""
        return Path(self.config.out_dir)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """This process's rows of every global batch, micro-batch after micro-batch."""
        per_pass = self.processes.world_size * self.config.micro_batch_size
        rows = np.arange(self.config.global_batch_size).reshape(-1, per_pass)  # (micro-batches, all processes' rows)
        first = self.processes.rank * self.config.micro_batch_size
        return rows[:, first : first + self.config.micro_batch_size].reshape(-1)

    def to_device(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """(inputs, targets) of each micro-batch, int64 (micro_batch_size, block_size), on the device."""
        device, size = self.processes.device, self.config.micro_batch_size
        # Contiguous: the strides of a window's two views would compile the model once more than warm_up's.
        both = [torch.from_numpy(np.ascontiguousarray(array)) for array in (batch.inputs, batch.targets)]
        if device.type == "cuda":
            both = [tensor.pin_memory().to(device, non_blocking=True) for tensor in both]
        else:
            both = [tensor.to(device) for tensor in both]
        return list(zip(both[0].split(size), both[1].split(size), strict=True))

    def seed_dropout(self, step: int) -> None:
        """The global generator as a function of (seed, step, rank); after set-up nothing but dropout draws from it."""
        if self.config.dropout:
            key = hashlib.blake2b(f"{self.config.seed} {step} {self.processes.rank}".encode(), digest_size=7).digest()
            torch.manual_seed(int.from_bytes(key))

    def warm_up(self) -> None:
        """One pass whose gradients are thrown away: it compiles, and makes DDP sort its buckets now, not after the first step.

        Sorting changes the order of the gradients' sums over three or more processes, so a resumed run, whose first step
        is another one, would otherwise differ in the last bit.
        """
        inputs, targets = (
            torch.zeros(self.config.micro_batch_size, self.config.block_size, dtype=torch.int64) for _ in range(2)
        )
        with autocast(self.processes.device, self.dtype):
            loss = self.model(inputs.to(self.processes.device), targets.to(self.processes.device))
        loss.backward()
        self.optimizer.zero_grad(set_to_none=True)

    def stop_exchange(self) -> None:
        """Let go of DDP, and so of the process group, before the group ends: see distributed.leave."""
        self.model = self.compiled

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "data_fingerprint": self.dataset.fingerprint,
            "data_checksums": self.dataset.checksums,
            "environment": environment(self),
        }

    def evaluation_at(self, step: int) -> dict[str, Any] | None:
        """The evaluation row of a step in rank 0's metrics.jsonl, on every rank."""
        rows = log.read(self.out_dir / "metrics.jsonl") if self.processes.is_main else []
        found = [row for row in rows if "val_loss" in row and row["step"] == step]
        last: dict[str, Any] | None = self.processes.gather(found[-1] if found else None)[0]
        return last


def set_up(config: Config) -> Run:
    """Join the processes, open the data, make or load the model. Raises ValueError for anything wrong with the input.

    Everything on disk is left as it was until all of that has gone well. `run.resources` closes what the run holds.
    """
    with contextlib.ExitStack() as resources:
        same = log.software() | config.values(ranks="same")
        processes = distributed.join(config.device, config.backend, config.timeout_s, same)
        resources.callback(distributed.leave)
        with processes.alike() as same:
            set_determinism(config.deterministic)
            check_batch(config, processes)
            dataset = open_dataset(config, check_tokens=True)
            resolved: dict[str, Any] = {"tokenizer": dataset.tokenizer, "vocab_size": dataset.vocab_size}
            config = replace(config, **resolved)
            dtype = pick_dtype(config.dtype, processes.device)
            memory.check(config, processes.device, distributed.processes_here(), dtype)
            batches = Batches(dataset.train, config.block_size, config.global_batch_size, config.seed)
            same |= resolved | dataset.contents() | {"dtype": str(dtype)}
        with processes.alike() as same:
            folder = find_checkpoint(config)
            if folder:
                if not checkpoint.verify(folder) and processes.is_main:
                    checkpoint.say_unchecked(folder)
                earlier = checkpoint.read_config(folder)
                config = replace(config, init_from=config.init_from or earlier.init_from)  # told once, and not read again
                changed = checkpoint.check_resumable(config, earlier, folder)
            gpt = GPT(config.gpt(config.vocab_size), config.seed) if folder else initial_model(config, batches)
            watch = Watch(gpt)
            known = not folder or not config.init_from  # run.json has them from the first launch
            hashes = {"init_hash": weights_hash(gpt, False), "activation_init_hash": weights_hash(gpt, True)} if known else {}
            if folder:
                checkpoint.load_weights(gpt, folder)
            same |= {"resume step": int(folder.name[5:]) if folder else "none"}
            same |= {
                "hash of the weights": weights_hash(gpt, False)[:16],
                "hash of the activations": weights_hash(gpt, True)[:16],
            }
        with processes.alike() as same:
            check_folder: Callable[[], object] = nothing
            if processes.is_main and not config.eval_only:
                check_folder = take_folder(config, resources)
            gpt.to(processes.device)
            if processes.device.type == "cpu":
                retain_memory()
            torch.set_float32_matmul_precision("high")  # TF32 for float32 matrix products on the GPUs that have it
            compiled = compile_model(gpt, config, processes)
            same["whether the model is compiled"] = why_not_compile(processes.device) or config.compile
        if folder:
            logger.info("resuming %s%s", folder, "".join(f"; {n}: {was!r} -> {now!r}" for n, (was, now) in changed.items()))
        run = Run(
            config=config,
            processes=processes,
            dtype=dtype,
            gpt=gpt,
            compiled=compiled,
            model=exchange_gradients(compiled, processes),
            optimizer=optim.adamw(gpt, config, processes.device),
            scaler=torch.amp.GradScaler(processes.device.type, enabled=dtype == torch.float16),
            dataset=dataset,
            batches=batches,
            watch=watch,
            check_folder=check_folder,
        )
        resources.callback(run.stop_exchange)
        with processes.alike() as same:
            if folder:
                restore(run, folder)
            same |= asdict(run.progress) | {"hash of the optimizer's state": state_hash(run)[:16]}
            if processes.is_main and not config.eval_only:
                if folder and run.progress.best_step == run.progress.step:  # killed before `best` named it, perhaps
                    checkpoint.mark_best(folder)
                if dataset.tokenizer_file:
                    write_bytes(run.out_dir / FILE, dataset.tokenizer_file)
                write_json(run.out_dir / "config.json", asdict(config))
                log.record_launch(run.out_dir, run.progress.step, facts(run) | hashes, resumed=folder is not None)
        run.resources = resources.pop_all()
    return run


def check_batch(config: Config, processes: Processes) -> None:
    """Raises ValueError where the global batch cannot be shared out evenly. It is the recipe's, so the rest has to give."""
    batch, count, micro = config.global_batch_size, processes.world_size, config.micro_batch_size
    if batch % (count * micro):
        fitting = max(number for number in range(1, count + 1) if batch % number == 0)
        rows = max(number for number in range(1, micro + 1) if batch // fitting % number == 0)
        what = f"type --micro_batch_size {rows}" if fitting == count else f"start {fitting} processes"
        if fitting != count and rows != micro:
            what += f" and type --micro_batch_size {rows}"
        raise ValueError(f"global_batch_size={batch} is not a multiple of {count} processes * micro_batch_size={micro}; {what}")


def find_checkpoint(config: Config) -> Path | None:
    """The checkpoint in `out_dir` to go on from, or None for a new run. Raises ValueError for what `resume` does not allow."""
    out_dir = Path(config.out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"out_dir {config.out_dir!r} is a file; give a folder")
    checkpoint.refuse_links(out_dir)
    if config.resume == "never" and out_dir.is_dir() and any(path.name != LOCK for path in out_dir.iterdir()):
        raise ValueError(f"out_dir {config.out_dir!r} is not empty and resume is never; give another or --resume auto")
    if config.resume == "must" and not checkpoint.checkpoints(out_dir):
        raise ValueError(f"out_dir {config.out_dir!r} holds no checkpoint and resume is must; give a run's or --resume auto")
    newest = checkpoint.checkpoints(out_dir)[-1:]
    if (
        not newest and (out_dir / "config.json").is_file() and log.read(out_dir / "metrics.jsonl")
    ):  # it ended before its first checkpoint: its rows are still its own
        checkpoint.check_resumable(config, checkpoint.read_config(out_dir), out_dir)
    return newest[0] if newest else None


def take_folder(config: Config, resources: contextlib.ExitStack) -> Callable[[], object]:
    """Take `out_dir` for this run alone, until `resources` close; what checks that it still is the run's alone.

    Raises ValueError where another run has it.
    """
    found, out_dir = find_checkpoint(config), Path(config.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    check = resources.enter_context(locked(out_dir, LOCK))
    log.read(out_dir / "metrics.jsonl")  # what is not ours to go on from is said now
    checkpoint.sweep(out_dir)
    if checkpoint.checkpoints(out_dir)[-1:] != ([found] if found else []):
        raise ValueError(f"another process has just written a checkpoint into {out_dir}; type the same command again")
    return check


def initial_model(config: Config, batches: Batches) -> GPT:
    """The model at step 0: random from `seed`, or with the weights that `init_from` names. Raises ValueError.

    Where those were trained with another activation, this run's takes its place, made for the inputs that the model is
    measured to feed it on the first rows of the training data.
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
        told = ", ".join(f"{name} {getattr(wanted, name)} (it has {getattr(loaded.config, name)})" for name in wrong)
        raise ValueError(f"init_from {config.init_from!r} does not fit this config: {told}")
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


def compile_model(gpt: GPT, config: Config, processes: Processes) -> nn.Module:
    """The model, compiled in place where that is wanted and can be."""
    if not config.compile:
        return gpt
    if reason := why_not_compile(processes.device):
        logger.info("not compiling: %s", reason)
        return gpt
    gpt.compile(dynamic=False, fullgraph=True)
    return gpt


def exchange_gradients(model: nn.Module, processes: Processes) -> nn.Module:
    """The model with its gradients averaged over the processes, where there are several."""
    if processes.world_size == 1:
        return model
    devices = [processes.device.index] if processes.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def facts(run: Run) -> dict[str, Any]:
    """What run.json says of a run beside its launch."""
    gpt, data = run.gpt, run.dataset
    coefficients = activations.tensor_names(gpt)
    return {
        "config_hash": log.config_hash(run.config),
        "parameters": gpt.num_parameters(),
        "activation_parameters": sum(p.numel() for n, p in gpt.named_parameters() if n in coefficients),
        "flops_per_token": gpt.flops_per_token(),
        "data": {
            "corpus_sha256": data.corpus,
            "fingerprint": data.fingerprint,
            "train_tokens": len(data.train),
            "val_fingerprint": data.validation.tokens.fingerprint(),
            "val_targets": data.validation.num_targets,
            "val_rule": data.validation.rule,
        },
        "hardware": describe(run.processes.device) | {"processes": run.processes.world_size, "dtype": str(run.dtype)},
    }


def environment(run: Run) -> dict[str, Any]:
    """What a run's last bits depend on beside its config and data; a checkpoint records it, a resume compares it."""
    described = describe(run.processes.device)
    return {name: described[name] for name in ("device", "threads", "torch", "cuda")} | {
        "dtype": str(run.dtype),
        "compiled": run.config.compile and not why_not_compile(run.processes.device),
        "processes": run.processes.world_size,
        "micro_batch_size": run.config.micro_batch_size,
    }


def restore(run: Run, folder: Path) -> None:
    """Optimizer, scaler and progress of a checkpoint. Raises ValueError where they do not fit or the data have changed."""
    state = checkpoint.load_state(folder)
    try:
        if missing := {"optimizer", "scaler", "progress", "data_fingerprint"} - state.keys():
            raise ValueError(f"it has no {sorted(missing)[0]}")
        if not isinstance(state.get("environment", {}), dict):
            raise ValueError("its environment is no table")
        before, now = state.get("data_checksums"), run.dataset.checksums
        change = shards.first_change(before, now) if before and now else ""
        progress = read_progress(state["progress"], checkpoint.step_of(folder))
        updates = range(progress.step - progress.skipped_steps, progress.step + 1)  # float16's scaler may count one as skipped
        load_optimizer(run.optimizer, state["optimizer"], updates)
        load_scaler(run.scaler, state["scaler"])
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'state.pt'} does not fit this run ({error}); use another checkpoint") from None
    run.progress = progress
    was, is_now = state.get("environment", {}), environment(run)
    other = [f"{name} was {was[name]!r} and is {now!r}" for name, now in is_now.items() if name in was and was[name] != now]
    if other and run.processes.is_main:
        logger.warning("not to the bit the run that never stopped: %s", ", ".join(other))
    if change or state.get("data_fingerprint") != run.dataset.fingerprint:
        told = f"{run.config.data_dir} has changed since {folder} was written{': ' if change else ''}{change}"
        raise ValueError(f"{told}; restore the shards, or give another out_dir")


def state_hash(run: Run) -> str:
    """SHA-256 over what the optimizer and the gradient scaler remember."""
    digest = hashlib.sha256(repr(run.scaler.state_dict()).encode())
    for parameter, state in run.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            digest.update(f"{parameter} {name}".encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def weights_hash(gpt: GPT, activation: bool) -> str:
    """SHA-256 over the activation's tensors, or over all others."""
    digest, of_activations = hashlib.sha256(), activations.tensor_names(gpt)
    for name, tensor in gpt.gpt2_state_dict().items():
        if (name in of_activations) == activation:
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
