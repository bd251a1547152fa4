"""From a `Config` to a `Run`: processes, data, weights, optimizer, and the checkpoint to go on from.

`set_up` is where bad input shows: it raises ValueError (one line) before anything is written or trained.
"""

import contextlib
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from config.schema import Config
from data import shards
from data.batches import Batches
from data.files import write_bytes, write_json
from data.tokenizer import FILE
from model import GPT
from runtime import announce, branch, checkpoint, distributed, log, memory, optim, profiling, sharding, tensorboard
from runtime.dataset import open_dataset
from runtime.distributed import Processes
from runtime.folder import find_checkpoint, take_folder
from runtime.hardware import pick_dtype, retain_memory, set_determinism, use_compile_cache, why_not_compile
from runtime.run import Run, nothing
from runtime.state import load_optimizer, load_scaler, read_progress
from runtime.terminal import say
from runtime.watch import Watch
from runtime.weights import initial_model, optimizer_hash, sharded_model, weights_hashes

logger = logging.getLogger("train")


def set_up(config: Config) -> Run:
    """Join the processes, open the data, make or load the model. Raises ValueError for anything wrong with the input.

    Everything on disk is left as it was until all of that has gone well. `run.resources` closes what the run holds.
    Each `alike` block ends on all ranks or on none, and compares what it has put into `same`.
    """
    with contextlib.ExitStack() as resources:
        facts = log.software() | config.values(ranks="same")
        sharded = config.parallelism == "fsdp"
        processes = distributed.join(config.device, config.backend, config.timeout_s, facts, alone=sharded)
        resources.callback(distributed.leave)
        with processes.alike() as same:
            set_determinism(config.deterministic)
            check_batch(config, processes)
            optim.check(config)
            if config.tensorboard and processes.is_main:
                tensorboard.check()
            dataset = open_dataset(config, check_tokens=False)
            config = replace(config, tokenizer=dataset.tokenizer, vocab_size=dataset.vocab_size)
            dtype = pick_dtype(config.dtype, processes.device)
            sharding.check(config, processes.device, dtype)
            memory.check(config, processes.device, distributed.processes_here(), dtype, processes.world_size)
            batches = Batches(dataset.train, config.block_size, config.global_batch_size, config.seed)
            origin = find_checkpoint(config)
            trunk = None if origin else branch.find(config)
            config, changes = go_on(config, origin, processes) if origin else (config, {})
            config = branch.check(config, trunk) if trunk else config
            start = origin or trunk
            say(*announce.plan(config, dataset, processes, dtype, start))  # before all that takes long
            dataset = dataset.checked()
            same |= {"tokenizer": config.tokenizer, "vocab_size": config.vocab_size, "dtype": str(dtype)} | dataset.contents()
        with processes.alike() as same:
            if start:
                checkpoint.verify(start)
            if sharded:
                gpt = sharded_model(config, batches, processes.device, dtype, start)
            else:
                gpt = GPT(config.gpt(config.vocab_size), config.seed) if start else initial_model(config, batches)
            watch = Watch(gpt)
        initial = hashes = weights_hashes(gpt)
        with processes.alike():
            if start:
                checkpoint.load_weights(gpt, start, sharding.put)
        if start:
            hashes = weights_hashes(gpt)
        with processes.alike() as same:
            same |= {
                "resume step": int(start.name[5:]) if start else "none",
                "hash of the weights": hashes[0][:16],
                "hash of the activations": hashes[1][:16],
            }
        with processes.alike() as same:
            writes = processes.is_main and not config.eval_only
            check_folder = take_folder(config, resources) if writes else nothing
            if not sharded:
                gpt.to(processes.device)
            if processes.device.type == "cpu":
                retain_memory()
            torch.set_float32_matmul_precision("high")  # TF32 for float32 matrix products on the GPUs that have it
            compiled = compile_model(gpt, config, processes)
            same["whether the model is compiled"] = why_not_compile(processes.device) or config.compile
        if origin:
            logger.info("resuming %s%s", origin, "".join(f"; {n}: {was!r} -> {now!r}" for n, (was, now) in changes.items()))
        run = Run(
            config=config,
            processes=processes,
            dtype=dtype,
            gpt=gpt,
            compiled=compiled,
            model=compiled if sharded else exchange_gradients(compiled, processes),
            optimizer=optim.optimizer(gpt, config, processes.device),
            scaler=torch.amp.GradScaler(processes.device.type, enabled=dtype == torch.float16),
            dataset=dataset,
            batches=batches,
            watch=watch,
            check_folder=check_folder,
        )
        resources.callback(run.stop_exchange)
        with processes.alike():
            if start:
                restore(run, start)
            if trunk:
                branch.begin(run.progress)
        optimizer_state = optimizer_hash(run.optimizer, run.scaler)
        with processes.alike() as same:
            same |= asdict(run.progress) | {"hash of the optimizer's state": optimizer_state[:16]}
            if writes:
                from_seed = not (start and config.init_from)  # else run.json has the hashes from the first launch
                facts = dict(zip(("init_hash", "activation_init_hash"), initial, strict=True)) if from_seed else {}
                record(run, origin, facts | (branch.take_over(run.out_dir, trunk) if trunk else {}))
        run.resources = resources.pop_all()
    return run


def check_batch(config: Config, processes: Processes) -> None:
    """Raises ValueError where the global batch cannot be shared out evenly. It is the recipe's, so the rest has to give."""
    batch, count, micro = config.global_batch_size, processes.world_size, config.micro_batch_size
    if batch % (count * micro):
        fitting = max(number for number in range(1, count + 1) if batch % number == 0)
        smaller = max(number for number in range(1, micro + 1) if batch // fitting % number == 0)
        advice = f"type --micro_batch_size {smaller}" if fitting == count else f"start {fitting} processes"
        if fitting != count and smaller != micro:
            advice += f" and type --micro_batch_size {smaller}"
        raise ValueError(
            f"global_batch_size={batch} is not a multiple of {count} processes * micro_batch_size={micro}; {advice}"
        )


def go_on(config: Config, origin: Path, processes: Processes) -> tuple[Config, dict[str, tuple[Any, Any]]]:
    """The config that resumes the checkpoint `origin`, and the fields that changed since, as name -> (was, is).

    Raises ValueError for a damaged config.json, or for a change that a run cannot make on its way.
    """
    if not checkpoint.verify(origin, ["config.json"]) and processes.is_main:
        checkpoint.say_unchecked(origin)
    earlier = checkpoint.read_config(origin)
    config = replace(config, init_from=config.init_from or earlier.init_from)  # said once, and not read again
    return config, checkpoint.check_resumable(config, earlier, origin)


def compile_model(gpt: GPT, config: Config, processes: Processes) -> nn.Module:
    """The model, compiled in place where that is wanted and can be; its blocks are computed twice with `recompute`."""
    if config.recompute == "blocks":
        gpt.recompute_blocks()
    if not config.compile:
        return gpt
    if reason := why_not_compile(processes.device):
        logger.info("not compiling: %s", reason)
        return gpt
    use_compile_cache(config.compile_cache)
    if config.profile_steps:
        profiling.name_kernels()
    gpt.compile(inside_hooks=config.parallelism == "fsdp", dynamic=False, fullgraph=True)
    return gpt


def exchange_gradients(model: nn.Module, processes: Processes) -> nn.Module:
    """The model with its gradients averaged over the processes, where they are a group; one process is none by itself."""
    if not torch.distributed.is_initialized():
        return model
    devices = [processes.device.index] if processes.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


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
    was, is_now = state.get("environment", {}), run.environment()
    other = [f"{name} was {was[name]!r} and is {now!r}" for name, now in is_now.items() if name in was and was[name] != now]
    if other and run.processes.is_main:
        logger.warning("not to the bit the run that never stopped: %s", ", ".join(other))
    if change or state.get("data_fingerprint") != run.dataset.fingerprint:
        difference = f"{run.config.data_dir} has changed since {folder} was written{': ' if change else ''}{change}"
        raise ValueError(f"{difference}; restore the shards, or give another out_dir")


def record(run: Run, origin: Path | None, facts: dict[str, Any]) -> None:
    """Write config.json and run.json, with `facts` of where the run began; `best` names `origin` where it is the best."""
    if origin and run.progress.best_step == run.progress.step:  # killed before `best` named it, perhaps
        checkpoint.mark_best(origin)
    if run.dataset.tokenizer_file:
        write_bytes(run.out_dir / FILE, run.dataset.tokenizer_file)
    write_json(run.out_dir / "config.json", asdict(run.config))
    log.record_launch(run.out_dir, run.progress.step, run.facts() | facts, resumed=origin is not None)
