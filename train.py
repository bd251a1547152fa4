"""Train a GPT: `python train.py CONFIG.py [--field value ...]`, or `torchrun ... train.py ...` for several processes.

The run, from the top:
  main        command line -> Config; bad input is exit code 2 and one line, a stop signal 128 + its number
  train       set_up, then the loop: step, log, evaluate, checkpoint, until max_steps or a signal
  set_up      (runtime/setup.py) processes, data, model, optimizer, resume; all that can be wrong with the input shows there
  take_step   micro-batches -> gradients -> clip -> AdamW
  Journal     (runtime/journal.py) rows of metrics.jsonl, the progress bar, checkpoints
With --eval_only, `evaluate_only` takes the loop's place: one JSON object on stdout, and nothing is written.
The tokens of a step, its dropout and its learning rate are functions of (seed, step). So a checkpoint needs no state of
data or generators, and a run that goes on is to the bit the run that never stopped: on a CPU, or with `deterministic` on
CUDA, with the same device, threads, library versions, compilation, processes and micro-batch. A checkpoint records them
(`Run.environment`), and a resume warns of each that differs.
"""

import contextlib
import json
import logging
import math
import sys

import torch
from torch.nn.parallel import DistributedDataParallel

from activations import telemetry
from config.command_line import parse
from data import tokenizer
from data.batches import Batch, Prefetcher
from data.files import reason
from runtime import checkpoint, distributed, sharding, weights_and_biases
from runtime.evaluate import Evaluation, evaluate
from runtime.hardware import autocast, peak_memory_bytes
from runtime.journal import Journal
from runtime.optim import learning_rate, set_learning_rate
from runtime.run import Run
from runtime.setup import set_up
from runtime.signals import StoppedError, StopSignals, first_of
from runtime.terminal import close_stdout, say


def main(argv: list[str] | None = None) -> int:
    """Exit code of the run that `argv` describes: 0, 2 for bad input, 128 + signal, 1 for other trouble."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        try:
            config = parse(sys.argv[1:] if argv is None else argv)
            run = set_up(config)
        except ValueError as error:
            return fail(2, str(error))
        except BrokenPipeError:  # of --help
            close_stdout()
            return 0
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
        trouble = f"rank {rank} waited for another one, which is lost or hangs (timeout_s={config.timeout_s:g}): {first}"
        return fail(1, f"{trouble}; the same command goes on from the last checkpoint", everywhere=True)


def fail(code: int, what: str, everywhere: bool = False) -> int:
    """Say in one line what is wrong, on rank 0 alone unless `everywhere`; the exit code."""
    say(f"train.py: {what}", everywhere=everywhere)
    return code


def train(run: Run) -> int:
    """Run all steps that are left and write rows, checkpoints and the final evaluation. Returns the exit code."""
    config, progress = run.config, run.progress
    if finished_before(run):
        return 0
    with StopSignals() as signals, Journal(run) as journal:
        try:
            evaluate_before_steps(run, journal, signals)
        except StoppedError as stop:
            say(f"{stop}: stopped in the evaluation of step {progress.step}; the same command begins with it.")
            return stop.exit_code
        with Prefetcher(run.read_batch, progress.step, config.max_steps) as batches:
            journal.begin_steps()
            for step, batch in enumerate(batches, progress.step):
                journal.have_data()
                try:
                    loss, grad_norm = take_step(run, step, batch)
                except NonFiniteError as trouble:
                    return stop_at(run, journal, trouble)
                *counts, digest = run.processes.sum_integers([*signals.counts(), batch.digest])
                progress.advance(digest, journal.end_step(loss))

                if due(progress.step, config.log_interval, config.max_steps):
                    journal.log_training(grad_norm)
                if due(progress.step, config.telemetry_interval, config.max_steps):
                    journal.log_telemetry(batch)
                stopped, is_best = first_of(counts), False
                if due(progress.step, config.eval_interval, config.max_steps):
                    try:
                        is_best = progress.note_best(validate(run, journal, signals).loss)
                    except StoppedError as stop:
                        stopped, progress.evaluation_due = stop, True
                wanted = progress.step in config.kept_steps
                if is_best or stopped or wanted or due(progress.step, config.checkpoint_interval, config.max_steps):
                    journal.save(is_best)
                if stopped:
                    say(f"{stopped}: step {progress.step} is finished and saved; the same command goes on from there.")
                    return stopped.exit_code
                journal.begin_step()
        summarize(run)
    return 0


def finished_before(run: Run) -> bool:
    """Whether the run has taken and evaluated its last step; says so. The same on every rank."""
    config, progress = run.config, run.progress
    if progress.step < config.max_steps or progress.evaluation_due or not (last := run.evaluation_at(progress.step)):
        return False
    loss = "not finite" if last["val_loss"] is None else f"{last['val_loss']:.4f}"
    say(f"finished before: step {progress.step}, val_loss {loss}", "Nothing to do.")
    return True


def evaluate_before_steps(run: Run, journal: Journal, signals: StopSignals) -> None:
    """The evaluation of step 0, or one that is due since before the resume; the telemetry of step 0. Raises StoppedError."""
    progress, last = run.progress, run.config.max_steps
    if progress.step == 0 or progress.step >= last or progress.evaluation_due:
        result = validate(run, journal, signals)
        if progress.evaluation_due and progress.note_best(result.loss) and run.processes.is_main:
            checkpoint.mark_best(checkpoint.find(run.out_dir, "last"))
        progress.evaluation_due = False
    if progress.step == 0 and run.config.telemetry_interval:
        journal.log_telemetry(run.read_batch(0))


class NonFiniteError(Exception):
    """A loss or gradient that is not finite, and the places in the model where it shows."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what}{'; ' if where else ''}{where}")


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
    if run.is_sharded:
        sharding.average_gradients(run.gpt)
    run.scaler.unscale_(run.optimizer)
    if any(due(step + 1, every, config.max_steps) for every in (config.log_interval, config.telemetry_interval)):
        run.watch.note_gradients()
    limit = config.grad_clip or math.inf
    grad_norm = sharding.clip_gradients(run.gpt, limit)
    # Each rank knows its own loss alone: what follows from it is decided on the sums, by all of them alike.
    bad_losses, bad_norms = run.processes.sum_integers([not math.isfinite(float(total)), not math.isfinite(grad_norm)])
    if bad_losses or bad_norms:
        # With fp16 an overflow is the scaler's business as long as it can still lower its scale.
        if config.nonfinite == "stop" and not (run.scaler.is_enabled() and run.scaler.get_scale() > 1 and not bad_losses):
            raise non_finite(run, total, grad_norm, inputs)
        run.progress.skipped_steps += 1
        if (skipped := run.progress.skipped_steps).bit_count() == 1:  # the 1st, 2nd, 4th, 8th: there may be very many
            say(f"step {step + 1} is skipped, number {skipped}: {non_finite(run, total, grad_norm, inputs)}")
    else:
        set_learning_rate(run.optimizer, learning_rate(step, config))
        run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return total, grad_norm


def non_finite(run: Run, loss: torch.Tensor, grad_norm: float, inputs: torch.Tensor) -> NonFiniteError:
    """What is not finite after a backward pass, and where in the model."""
    where = telemetry.locate_nonfinite(run.gpt, inputs, sharding.whole)
    return NonFiniteError(f"loss {float(loss)}, gradient norm {grad_norm}", where)


def evaluate_only(run: Run) -> int:
    """Evaluate the initial or resumed weights; the row is one JSON object on stdout. Nothing in the run's folder changes."""
    with StopSignals() as signals:
        try:
            result = validate(run, None, signals)
        except StoppedError as stop:
            say(f"{stop}: stopped in the evaluation; nothing was written.")
            return stop.exit_code
    if run.processes.is_main:
        data = {"val_targets": result.num_targets, "data_hash": run.progress.data_hash}
        print(json.dumps({"step": run.progress.step} | result.row() | data), flush=True)
    return 0


def validate(run: Run, journal: Journal | None, signals: StopSignals) -> Evaluation:
    """Evaluate all of `eval_tokens`, and write the row. Raises StoppedError between two batches, with no row written."""
    data, processes = run.dataset, run.processes
    run.gpt.eval()
    try:
        result = evaluate(
            run.compiled, data.validation, data.byte_lengths, processes, run.config.micro_batch_size, run.dtype,
            lambda: signals.check(processes), together=run.is_sharded,
        )  # fmt: skip
    finally:
        run.gpt.train()
    if journal:
        journal.log_evaluation(result)
    bits = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.4f} bits per byte"
    corpus = f" ({result.num_targets:,} targets of corpus {data.corpus[:12]})"
    say(f"step {run.progress.step}: val_loss {result.loss:.4f}, perplexity {result.perplexity:.3f}{bits}{corpus}")
    return result


def stop_at(run: Run, journal: Journal, trouble: NonFiniteError) -> int:
    """Say where the trouble is, then save the weights from before the non-finite step: a full disk must not hide the former."""
    say(f"stopped: step {run.progress.step + 1} gave {trouble}.")
    journal.save(is_best=False)
    say("The weights from before it are saved. The same command with --nonfinite skip goes on past it.")
    return 1


def summarize(run: Run) -> None:
    """Say where the run lies and what to try next."""
    memory = peak_memory_bytes(run.processes.device) / 2**30
    sample = f"  python sample.py {run.out_dir} --prompt 'def '          write text with it"
    say(
        f"{run.gpt.num_parameters():,} parameters, {run.gpt.flops_per_token():,} FLOP a token, {memory:.2f} GiB",
        f"The run lies in {run.out_dir}. Next:",
        *([] if run.config.tokenizer == tokenizer.NONE else [sample]),
        f"  python compare.py shapes {run.out_dir}                  draw the activations that it learned",
        "  python compare.py config/tiny.py --activations gelu hermite:degree=3 --seeds 3    is it better than GELU?",
    )


def due(step: int, interval: int, last: int) -> bool:
    """Whether something done every `interval` steps, and at the last one, is due after `step` updates; interval 0 is never."""
    return interval > 0 and (step % interval == 0 or step == last)


if __name__ == "__main__":
    weights_and_biases.leave(main())
