"""Train a GPT: `python train.py CONFIG.py [--field value ...]`, or `torchrun ... train.py ...` for several processes.

The run, from the top:
  main        command line -> Config; bad input is exit code 2 and one line, a stop signal 128 + its number
  train       set_up, then the loop: step, log, evaluate, checkpoint, until max_steps or a signal
  set_up      (runtime/run.py) processes, data, model, optimizer, resume; all that can be wrong with the input shows there
  take_step   micro-batches -> gradients -> clip -> AdamW
With --eval_only, `evaluate_only` takes the loop's place: one JSON object on stdout, and nothing is written.
The tokens of a step, its dropout and its learning rate are functions of (seed, step). So a checkpoint needs no state of
data or generators, and a run that goes on is to the bit the run that never stopped: on a CPU, or with `deterministic` on
CUDA, with the same device, threads, library versions, compilation, processes and micro-batch. A checkpoint records them
(`runtime.run.environment`), and a resume warns of each that differs.
"""

import contextlib
import json
import logging
import math
import os
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from activations import telemetry
from config.command_line import parse
from data.batches import Batch, Prefetcher
from runtime import checkpoint, distributed, weights_and_biases
from runtime.evaluate import Evaluation, evaluate
from runtime.files import reason
from runtime.hardware import autocast, peak_flops, peak_memory_bytes
from runtime.log import Metrics, update_record
from runtime.optim import learning_rate, set_learning_rate
from runtime.run import NonFiniteError, Run, set_up
from runtime.signals import STOP_SIGNALS, StoppedError, StopSignals
from runtime.terminal import Terminal

log = logging.getLogger("train")


def main(argv: list[str] | None = None) -> int:
    """Exit code of the run that `argv` describes: 0, 2 for bad input, 128 + signal, 1 for other trouble."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        try:
            config = parse(sys.argv[1:] if argv is None else argv)
            run = set_up(config)
        except ValueError as error:
            return fail(2, str(error))
        except OSError as error:
            return fail(2, f"{reason(error)}; give a folder that can be read and written")
        with run.resources:
            return evaluate_only(run) if config.eval_only else train(run)
    except KeyboardInterrupt:
        return fail(130, "interrupted twice; the same command goes on from the last checkpoint")
    except OSError as error:
        return fail(1, f"{reason(error)}; once that is put right, the same command goes on from the last checkpoint")
    except RuntimeError as error:
        if not distributed.is_lost_rank(error):
            raise
        rank, first = distributed.rank(), str(error).splitlines()[0]
        told = f"rank {rank} waited for another one, which is lost or hangs (timeout_s={config.timeout_s:g}): {first}"
        return fail(1, f"{told}; the same command goes on from the last checkpoint", everywhere=True)


def fail(code: int, what: str, everywhere: bool = False) -> int:
    """Say in one line what is wrong, on rank 0 alone unless `everywhere`; the exit code."""
    if everywhere or distributed.is_main():
        tqdm.write(f"train.py: {what}", file=Terminal())
    return code


def train(run: Run) -> int:
    """Run all steps that are left and write rows, checkpoints and the final evaluation. Returns the exit code."""
    config, processes, progress = run.config, run.processes, run.progress
    if progress.step >= config.max_steps and not progress.evaluation_due and (last := run.evaluation_at(progress.step)):
        say(run, f"finished before: step {progress.step}, val_loss {last['val_loss']:.4f}", "Nothing to do.")
        return 0
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        metrics = None
        if processes.is_main:
            metrics = Metrics(run.out_dir, config, progress.step, progress.evaluation_due, run.check_folder)
        if metrics:
            stack.callback(metrics.close)
        if progress.step == 0 or progress.step >= config.max_steps or progress.evaluation_due:
            try:
                final = validate(run, metrics, signals)
            except StoppedError as stop:
                say(run, f"{stop}: stopped in the evaluation of step {progress.step}; the same command begins with it.")
                return 128 + int(stop.number)
            if progress.evaluation_due and progress.note_best(final.loss) and metrics:
                checkpoint.mark_best(checkpoint.find(run.out_dir, "last"))
            progress.evaluation_due = False
        if metrics and progress.step == 0 and config.telemetry_interval:
            metrics.write({"step": 0} | observe(run, run.batches.read(0, run.rows)))
        prefetcher = stack.enter_context(
            Prefetcher(lambda step: run.batches.read(step, run.rows), progress.step, config.max_steps)
        )
        bar = stack.enter_context(
            tqdm(
                total=config.max_steps,
                initial=progress.step,
                unit="step",
                disable=not processes.is_main or None,
                file=Terminal(),
                dynamic_ncols=True,
            )
        )
        peak = peak_flops(processes.device, run.dtype)[0] if processes.is_main else math.inf
        flops_per_step = run.gpt.flops_per_token() * config.tokens_per_step
        run.warm_up()
        loss_sum, steps_in_sum, clock = torch.zeros((), device=processes.device), 0, Clock()
        for step, batch in enumerate(prefetcher, progress.step):
            try:
                loss, grad_norm = take_step(run, step, batch)
            except NonFiniteError as trouble:
                return stop_at(run, metrics, trouble)
            *stops, hash_sum = processes.sum_integers([*signals.counts(), batch.digest])
            progress.advance(hash_sum, clock.lap())
            loss_sum, steps_in_sum = loss_sum + loss, steps_in_sum + 1

            if due(progress.step, config.log_interval, config.max_steps):
                mean_loss = processes.sum([float(loss_sum) / steps_in_sum])[0] / processes.world_size
                seconds = clock.take()
                say(run, *run.watch.report(progress.step, mean_loss))
                if metrics:
                    metrics.write(
                        {
                            "step": progress.step,
                            "train_loss": mean_loss,
                            "lr": learning_rate(step, config),
                            "grad_norm": grad_norm,
                            "tokens": progress.step * config.tokens_per_step,
                            "tokens_per_second": config.tokens_per_step * steps_in_sum / seconds,
                            "ms_per_step": 1e3 * seconds / steps_in_sum,
                            "mfu": flops_per_step * steps_in_sum / seconds / peak / processes.world_size,
                            "elapsed_s": progress.elapsed_s,
                            "skipped_steps": progress.skipped_steps,
                            "data_hash": progress.data_hash,
                        }
                    )
                    bar.set_postfix_str(f"loss {mean_loss:.3f}", refresh=False)
                    if bar.disable:  # not a terminal: a log file wants lines
                        say(
                            run,
                            f"step {progress.step}: train_loss {mean_loss:.4f}, {1e3 * seconds / steps_in_sum:.0f} ms a step",
                        )
                loss_sum, steps_in_sum = torch.zeros_like(loss_sum), 0
            bar.update()
            if metrics and due(progress.step, config.telemetry_interval, config.max_steps):
                metrics.write({"step": progress.step} | observe(run, batch) | run.watch.input_gradients())

            stopped = [number for number, count in zip(STOP_SIGNALS, stops, strict=True) if count]
            is_best = False
            if due(progress.step, config.eval_interval, config.max_steps):
                try:
                    is_best = progress.note_best(validate(run, metrics, signals).loss)
                except StoppedError as stop:
                    stopped, progress.evaluation_due = [stop.number], True
            if is_best or stopped or due(progress.step, config.checkpoint_interval, config.max_steps):
                save(run, metrics, is_best)
            if stopped:
                say(run, f"{stopped[0].name}: step {progress.step} is finished and saved; the same command goes on from there.")
                return 128 + int(stopped[0])
            clock.restart()
        summarize(run)
    return 0


def take_step(run: Run, step: int, batch: Batch) -> tuple[torch.Tensor, float]:
    """One optimizer step on this process's rows of the batch: (mean loss over them, global gradient norm before clipping).

    Raises NonFiniteError, with the weights as they were, where `nonfinite` is stop and loss or gradient is not finite.
    """
    config, device = run.config, run.processes.device
    run.seed_dropout(step)
    micro_batches = run.to_device(batch)
    total = torch.zeros((), device=device)
    for index, (inputs, targets) in enumerate(micro_batches):
        is_last = index == len(micro_batches) - 1
        quiet = (
            run.model.no_sync() if isinstance(run.model, DistributedDataParallel) and not is_last else contextlib.nullcontext()
        )
        with quiet:
            with autocast(device, run.dtype):
                loss = run.model(inputs, targets) / len(micro_batches)
            run.scaler.scale(loss).backward()
        total += loss.detach()
    run.scaler.unscale_(run.optimizer)
    if any(due(step + 1, every, config.max_steps) for every in (config.log_interval, config.telemetry_interval)):
        run.watch.note_gradients()
    limit = config.grad_clip or math.inf
    grad_norm = float(torch.nn.utils.clip_grad_norm_(run.gpt.parameters(), limit))
    # Each rank knows its own loss alone: what follows from it is decided on the sums, by all of them alike.
    bad_losses, bad_norms = run.processes.sum_integers([not math.isfinite(float(total)), not math.isfinite(grad_norm)])
    if bad_losses or bad_norms:
        # With fp16 an overflow is the scaler's business as long as it can still lower its scale.
        if config.nonfinite == "stop" and not (run.scaler.is_enabled() and run.scaler.get_scale() > 1 and not bad_losses):
            raise non_finite(run, total, grad_norm, inputs)
        run.progress.skipped_steps += 1
        if (skipped := run.progress.skipped_steps).bit_count() == 1:  # the 1st, 2nd, 4th, 8th: there may be very many
            say(run, f"step {step + 1} is skipped, number {skipped}: {non_finite(run, total, grad_norm, inputs)}")
    else:
        set_learning_rate(run.optimizer, learning_rate(step, config))
        run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return total, grad_norm


def non_finite(run: Run, loss: torch.Tensor, grad_norm: float, inputs: torch.Tensor) -> NonFiniteError:
    """What is not finite after a backward pass, and where in the model."""
    return NonFiniteError(f"loss {float(loss)}, gradient norm {grad_norm}", telemetry.locate_nonfinite(run.gpt, inputs))


def evaluate_only(run: Run) -> int:
    """Evaluate the initial or resumed weights; the row is one JSON object on stdout. Nothing in the run's folder changes."""
    with StopSignals() as signals:
        try:
            result = validate(run, None, signals)
        except StoppedError as stop:
            say(run, f"{stop}: stopped in the evaluation; nothing was written.")
            return 128 + int(stop.number)
    if run.processes.is_main:
        print(json.dumps({"step": run.progress.step} | result.row() | {"data_hash": run.progress.data_hash}), flush=True)
    return 0


def validate(run: Run, metrics: Metrics | None, signals: StopSignals) -> Evaluation:
    """Evaluate all of `eval_tokens` and write the row; at the last step, before its checkpoint, what closes run.json, too.

    Raises StoppedError between two batches, with no row written.
    """
    data, processes, progress = run.dataset, run.processes, run.progress
    run.gpt.eval()
    try:
        result = evaluate(
            run.compiled, data.validation, data.byte_lengths, processes, run.config.micro_batch_size, run.dtype,
            lambda: signals.check(processes),
        )  # fmt: skip
    finally:
        run.gpt.train()
    if metrics:
        metrics.write(
            {"step": progress.step} | result.row() | {"data_hash": progress.data_hash, "elapsed_s": progress.elapsed_s}
        )
        if progress.step >= run.config.max_steps:
            device = run.processes.device
            facts = {"peak_memory_bytes": peak_memory_bytes(device), "peak_flops_source": peak_flops(device, run.dtype)[1]}
            facts["val_rule"] = data.validation.rule
            update_record(run.out_dir, facts | asdict(result))
    bits = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.4f} bits per byte"
    corpus = f" (corpus {data.corpus[:12]})"
    say(run, f"step {progress.step}: val_loss {result.loss:.4f}, perplexity {result.perplexity:.3f}{bits}{corpus}")
    return result


def observe(run: Run, batch: Batch) -> dict[str, Any]:
    """Telemetry of every activation on this process's first micro-batch, by the uncompiled model."""
    inputs, _ = run.to_device(batch)[0]
    with torch.no_grad(), autocast(run.processes.device, run.dtype):
        return telemetry.observe(run.gpt, inputs)


def save(run: Run, metrics: Metrics | None, is_best: bool) -> None:
    """Write a checkpoint; metrics first, so that no checkpoint is ahead of its rows."""
    if metrics:
        metrics.sync()
        checkpoint.save(run.out_dir, run.progress.step, run.gpt, run.state(), run.config, is_best)


def stop_at(run: Run, metrics: Metrics | None, trouble: NonFiniteError) -> int:
    """Say where the trouble is, then save the weights from before the non-finite step: a full disk must not hide the former."""
    say(run, f"stopped: step {run.progress.step + 1} gave {trouble}.")
    save(run, metrics, is_best=False)
    say(run, "The weights from before it are saved. The same command with --nonfinite skip goes on past it.")
    return 1


def summarize(run: Run) -> None:
    """Say where the run lies and what to try next."""
    memory = peak_memory_bytes(run.processes.device) / 2**30
    say(
        run,
        f"{run.gpt.num_parameters():,} parameters, {run.gpt.flops_per_token():,} FLOP a token, {memory:.2f} GiB",
        f"The run lies in {run.out_dir}. Next:",
        f"  python sample.py {run.out_dir} --prompt 'def '          write text with it",
        f"  python compare.py shapes {run.out_dir}                  draw the activations that it learned",
        "  python compare.py config/tiny.py --activations gelu hermite:degree=3 --seeds 3    is it better than GELU?",
    )


def say(run: Run, *lines: str) -> None:
    """Lines on rank 0's terminal that do not tear the progress bar."""
    if run.processes.is_main:
        for line in lines:
            tqdm.write(line, file=Terminal())


def due(step: int, interval: int, last: int) -> bool:
    """Whether something done every `interval` steps, and at the last one, is due after `step` updates; interval 0 is never."""
    return interval > 0 and (step % interval == 0 or step == last)


class Clock:
    """Training time: `lap` since the step began, `take` the laps since the last take; evaluation is outside."""

    def __init__(self) -> None:
        self._started, self._taken = time.perf_counter(), 0.0

    def restart(self) -> None:
        """The next step begins now."""
        self._started = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the step began."""
        lap = time.perf_counter() - self._started
        self._taken += lap
        return lap

    def take(self) -> float:
        """Seconds of all laps since the last call."""
        taken, self._taken = self._taken, 0.0
        return taken


if __name__ == "__main__":
    code = main()
    if weights_and_biases.hangs():
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
