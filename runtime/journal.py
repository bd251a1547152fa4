"""What a run writes and says while it trains: rows of metrics.jsonl, the progress bar, lines on the terminal."""

import math
import time
from dataclasses import asdict
from statistics import median
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from data.batches import Batch
from runtime import announce, checkpoint
from runtime.evaluate import Evaluation
from runtime.hardware import peak_flops, peak_memory_bytes
from runtime.log import Metrics, update_record
from runtime.optim import learning_rate
from runtime.profiling import Profile
from runtime.run import Run
from runtime.terminal import Terminal, say

_ENOUGH = 10  # steps by which the time of a run is estimated


class Journal:
    """Collects losses and times between training rows. Rank 0 writes, the others take part in the sums. Use it in a `with`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._metrics: Metrics | None = None
        if run.processes.is_main:
            self._metrics = Metrics(
                run.out_dir,
                run.config,
                run.progress.step,
                evaluates_again=run.progress.evaluation_due,
                check=run.check_folder,
                facts=run.facts(),
            )
        self._loss_sum, self._num_steps = torch.zeros((), device=run.processes.device), 0
        self._seconds = self._waited = self._started = 0.0
        self._communicated = run.processes.clock.seconds
        self._profile = Profile(run.out_dir, run.config.profile_steps if run.processes.is_main else 0, run.processes.device)
        self._first_steps: list[float] = []
        self._peak = math.inf
        self._bar: Any = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.close()
        if summary := self._profile.close():
            say(summary)
        if self._metrics:
            self._metrics.close()

    def begin_steps(self) -> None:
        """Show the progress bar, and compile."""
        run = self._run
        self._bar = tqdm(
            total=run.config.max_steps,
            initial=run.progress.step,
            unit="step",
            disable=not run.processes.is_main or None,
            file=Terminal(),
            dynamic_ncols=True,
        )
        if self._metrics:
            self._peak = peak_flops(run.processes.device, run.dtype)[0]
        started, compiles = time.perf_counter(), run.environment()["compiled"]
        if compiles:
            say("compiling: the first time this takes from ten seconds to some minutes")
        run.warm_up()
        if compiles:
            say(f"compiled in {announce.duration(time.perf_counter() - started)}")
        self.begin_step()

    def begin_step(self) -> None:
        """The next step's time begins now: evaluations and checkpoints are no part of it."""
        self._started = time.perf_counter()

    def have_data(self) -> None:
        """The batch is there: what has passed since the step began was waiting for it."""
        self._waited += time.perf_counter() - self._started

    def end_step(self, loss: torch.Tensor) -> float:
        """Seconds of the step whose mean loss over this process's share is `loss`."""
        seconds = time.perf_counter() - self._started
        self._seconds += seconds
        self._loss_sum, self._num_steps = self._loss_sum + loss, self._num_steps + 1
        self._bar.update()
        self._say_how_long(seconds)
        if summary := self._profile.step(seconds):
            say(summary)
        return seconds

    def _say_how_long(self, seconds: float) -> None:
        """Once _ENOUGH steps are known: what the others will take."""
        left = self._run.config.max_steps - self._run.progress.step - 1  # the step that ends now is not counted yet
        if len(self._first_steps) < _ENOUGH:
            self._first_steps.append(seconds)
            if len(self._first_steps) == _ENOUGH and left > 0:
                step_s = median(self._first_steps)
                expected = announce.duration(left * step_s)
                say(f"{1e3 * step_s:.0f} ms a step: {expected} for the {left:,} steps that are left, without evaluations")

    def log_training(self, grad_norm: float) -> None:
        """A training row of the steps since the last one, and what `watch` finds in it."""
        run, config, progress = self._run, self._run.config, self._run.progress
        loss = run.processes.sum([float(self._loss_sum) / self._num_steps])[0] / run.processes.world_size
        seconds = self._seconds / self._num_steps
        communicated, self._communicated = run.processes.clock.seconds - self._communicated, run.processes.clock.seconds
        say(*run.watch.report(progress.step, loss))
        if self._metrics:
            flops = run.gpt.flops_per_token() * config.tokens_per_step
            self._metrics.write(
                {
                    "step": progress.step,
                    "train_loss": loss,
                    "lr": learning_rate(progress.step - 1, config),
                    "grad_norm": grad_norm,
                    "tokens": progress.step * config.tokens_per_step,
                    "tokens_per_second": config.tokens_per_step / seconds,
                    "ms_per_step": 1e3 * seconds,
                    "data_ms_per_step": 1e3 * self._waited / self._num_steps,
                    "communication_ms_per_step": 1e3 * communicated / self._num_steps,
                    "mfu": flops / seconds / self._peak / run.processes.world_size,
                    "elapsed_s": progress.elapsed_s,
                    "skipped_steps": progress.skipped_steps,
                    "data_hash": progress.data_hash,
                }
            )
            self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            if self._bar.disable:  # not a terminal: a log file wants lines
                say(f"step {progress.step}: train_loss {loss:.4f}, {1e3 * seconds:.0f} ms a step")
        self._loss_sum, self._num_steps = torch.zeros_like(self._loss_sum), 0
        self._seconds = self._waited = 0.0

    def log_telemetry(self, batch: Batch) -> None:
        """A row of what the activations see and do on `batch`."""
        if self._metrics or self._run.is_sharded:  # then no rank computes without the others
            row = {"step": self._run.progress.step} | self._run.observe(batch)
        if self._metrics:
            self._metrics.write(row | self._run.watch.input_gradients())

    def log_evaluation(self, result: Evaluation) -> None:
        """An evaluation row; at the last step, before its checkpoint, what closes run.json, too."""
        run, progress = self._run, self._run.progress
        if self._metrics:
            row = {"step": progress.step} | result.row()
            self._metrics.write(row | {"data_hash": progress.data_hash, "elapsed_s": progress.elapsed_s})
            if progress.step >= run.config.max_steps:
                device = run.processes.device
                facts = {"peak_memory_bytes": peak_memory_bytes(device), "peak_flops_source": peak_flops(device, run.dtype)[1]}
                facts["val_rule"] = run.dataset.validation.rule
                update_record(run.out_dir, facts | asdict(result))

    def save(self, is_best: bool) -> None:
        """Write a checkpoint; metrics first, so that no checkpoint is ahead of its rows."""
        run = self._run
        if self._metrics:
            self._metrics.sync()
        if self._metrics or run.is_sharded:  # then every rank gives its part
            weights, state = run.weights(), run.state()
        if self._metrics:
            checkpoint.save(run.out_dir, run.progress.step, weights, state, run.config, is_best)
