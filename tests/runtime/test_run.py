"""Putting a run together: shares of the batch, where weights come from, what stops a step."""

import dataclasses
import errno
import io
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import activations
import train
from activations import telemetry
from config.command_line import parse
from config.schema import Config
from data.batches import EvaluationWindows
from model import GPT
from runtime import checkpoint
from runtime.dataset import open_dataset
from runtime.distributed import Processes
from runtime.run import Run
from runtime.setup import check_batch, set_up
from tests.processes import worker
from tests.runs import ROOT, arguments, assert_same, free_port, in_processes, rows, train_here, weights

TINY = "config/tiny.py"


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_ranks_partition_every_global_batch(small: Config, world_size: int, micro_batch_size: int) -> None:
    run = set_up(dataclasses.replace(small, micro_batch_size=micro_batch_size))
    shares = []
    for rank in range(world_size):
        run.processes = Processes(rank, world_size, rank, torch.device("cpu"))
        shares.append(run.share)
    assert sorted(np.concatenate(shares).tolist()) == list(range(12))
    digests = sum(run.batches.read(3, r).digest for r in shares)
    assert (digests - run.batches.read(3, slice(None)).digest) % 2**64 == 0
    assert {len(r) for r in shares} == {12 // world_size}


@pytest.mark.parametrize(
    ("batch", "processes", "micro", "told"),
    [
        (8, 3, 4, "start 2 processes"),
        (12, 2, 12, "type --micro_batch_size 6"),
        (12, 3, 3, "type --micro_batch_size 2"),
        (10, 4, 10, "start 2 processes and type --micro_batch_size 5"),
        (7, 4, 7, "start 1 processes"),
    ],
)
def test_the_global_batch_is_the_recipe_s_and_the_rest_gives(
    small: Config, batch: int, processes: int, micro: int, told: str
) -> None:
    config = dataclasses.replace(small, global_batch_size=batch, micro_batch_size=micro)
    with pytest.raises(ValueError, match=rf"not a multiple of {processes} processes \* micro_batch_size={micro}; {told}$"):
        check_batch(config, Processes(0, processes, 0, torch.device("cpu")))


def test_a_resumed_run_needs_no_init_from(small: Config, tmp_path: Path) -> None:
    """Its origin is gone and not typed again: it goes on to the bit, and its config still names the origin."""
    source = train_here(small, max_steps=2, activation="gelu", out_dir=str(tmp_path / "source"))
    config = dataclasses.replace(small, max_steps=4, init_from=source.out_dir, lr_decay_steps=4, eval_interval=2)
    whole = train_here(config, out_dir=str(tmp_path / "whole"))
    train_here(config, max_steps=2)
    first = json.loads((Path(config.out_dir) / "run.json").read_text())
    shutil.rmtree(source.out_dir)
    train_here(config, init_from="")
    assert_same(whole, config)
    assert checkpoint.read_config(Path(config.out_dir)).init_from == source.out_dir
    record = json.loads((Path(config.out_dir) / "run.json").read_text())
    assert record["init_hash"] == first["init_hash"]
    with pytest.raises(ValueError, match=r"init_from was .*source' and is 'elsewhere'"):
        set_up(dataclasses.replace(config, init_from="elsewhere"))


def test_rows_without_a_checkpoint_are_not_overwritten_by_another_config(small: Config) -> None:
    config = train_here(small, max_steps=2)
    shutil.rmtree(Path(config.out_dir) / "checkpoints")
    path = Path(config.out_dir) / "metrics.jsonl"
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"holds another run's rows: seed was 1337 and is 3; type --seed 1337 to begin"):
        set_up(dataclasses.replace(config, seed=3))
    assert path.read_bytes() == before
    train_here(config)
    assert [row["step"] for row in rows(config) if "train_loss" in row] == [1, 2]


def test_training_longer_is_done_by_what_the_refusal_says(small: Config) -> None:
    train_here(small, max_steps=2)
    with pytest.raises(ValueError, match=r"lr_decay_steps was 2 and is 4 \(left out, .*; to go on type --lr_decay_steps 2,"):
        set_up(dataclasses.replace(small, max_steps=4))
    longer = train_here(small, max_steps=4, lr_decay_steps=2)
    assert [row["lr"] for row in rows(longer) if "train_loss" in row][2:] == [small.min_lr] * 2


def test_what_the_last_bits_depend_on_is_compared_on_resume(
    small: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = train_here(small, max_steps=2, lr_decay_steps=2)
    with set_up(dataclasses.replace(config, max_steps=4)).resources:
        assert "to the bit" not in caplog.text
    monkeypatch.setattr("runtime.hardware.torch.get_num_threads", lambda: 64)
    monkeypatch.setattr("runtime.hardware.torch.__version__", "2.12.0")
    with set_up(dataclasses.replace(config, max_steps=4, micro_batch_size=3)).resources:
        warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1
    assert "threads was 1 and is 64, torch was " in warned[0]
    assert "and is '2.12.0', micro_batch_size was 4 and is 3" in warned[0]


def first_model(config: Config) -> GPT:
    run = set_up(config)
    run.resources.close()
    return run.gpt


def test_init_from_a_run_keeps_what_it_learned(small: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = train_here(small)
    trained = weights(source, 12)
    started = first_model(dataclasses.replace(small, init_from=source.out_dir, out_dir=str(tmp_path / "next")))
    assert torch.equal(started.transformer.wte.weight[:257], trained["transformer.wte.weight"])
    assert torch.equal(started.transformer.h[0].mlp.act.coefficients, trained["transformer.h.0.mlp.act.coefficients"])
    half = small.block_size // 2
    cropped = first_model(
        dataclasses.replace(small, block_size=half, init_from=source.out_dir, out_dir=str(tmp_path / "cropped"))
    )
    assert torch.equal(cropped.transformer.wpe.weight, trained["transformer.wpe.weight"][:half])
    assert "block_size 16: the first of the model's 32 positions are kept" in caplog.messages
    with pytest.raises(ValueError, match=r"does not fit this config: layer_norm_epsilon 0\.01 \(it has 1e-05\)"):
        set_up(dataclasses.replace(small, layer_norm_epsilon=0.01, init_from=source.out_dir, out_dir=str(tmp_path / "eps")))
    with pytest.raises(ValueError, match=r"does not fit this config: mup_base_width 16 \(it has 0\)"):
        set_up(dataclasses.replace(small, mup_base_width=16, init_from=source.out_dir, out_dir=str(tmp_path / "mup")))
    with pytest.raises(ValueError, match=r"does not fit this config: mlp gated \(it has plain\)"):
        set_up(dataclasses.replace(small, mlp="gated", init_from=source.out_dir, out_dir=str(tmp_path / "gated")))
    with pytest.raises(ValueError, match=r"does not fit this config: n_layer 3 \(it has 2\)"):
        set_up(dataclasses.replace(small, n_layer=3, init_from=source.out_dir, out_dir=str(tmp_path / "other")))


def test_init_from_another_activation_swaps_it_for_the_inputs_it_gets(small: Config, tmp_path: Path) -> None:
    gelu = GPT(dataclasses.replace(small, activation="gelu").gpt(257), 3).eval()
    with torch.no_grad():
        for block in gelu.transformer.h:
            block.mlp.c_fc.weight *= 7
    gelu.save_pretrained(tmp_path / "gelu")
    config = dataclasses.replace(small, activation="hermite:degree=8,init=fit-gelu", init_from=str(tmp_path / "gelu"))
    swapped = first_model(config).eval()
    assert torch.equal(swapped.transformer.wpe.weight, gelu.transformer.wpe.weight)
    run = set_up(dataclasses.replace(config, out_dir=str(tmp_path / "data")))
    inputs = torch.from_numpy(run.batches.read(0, slice(0, 8)).inputs)
    measured = telemetry.input_stds(gelu, inputs)
    for name, module in swapped.named_modules():
        if isinstance(module, activations.Activation):
            assert float(module.input_std) == pytest.approx(measured[name], rel=1e-5)
    with torch.no_grad():
        difference = (swapped(inputs) - gelu(inputs)).square().mean() / gelu(inputs).square().mean()
    assert float(difference) < 1e-3
    GPT(dataclasses.replace(small, activation="relu").gpt(257), 3).save_pretrained(tmp_path / "relu")
    with pytest.raises(ValueError, match=r"init=fit-gelu would change the function: .* is a ReLU"):
        first_model(dataclasses.replace(config, init_from=str(tmp_path / "relu")))


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: when it was written, and what it holds."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_eval_only_prints_a_row_and_changes_nothing(small: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = train_here(small)
    before = contents(Path(config.out_dir))
    capsys.readouterr()
    train_here(small, eval_only=True, log_interval=7, compile=False, checkpoint_interval=3)
    said = capsys.readouterr()
    (last,) = [row for row in rows(config) if row["step"] == 12 and "val_loss" in row]
    told = json.loads(said.out)
    assert told.pop("val_targets") == open_dataset(config, check_tokens=False).validation.num_targets
    assert told == {name: value for name, value in last.items() if name != "elapsed_s"}
    assert re.search(r"bits per byte \([\d,]+ targets of corpus ", said.err)
    assert contents(Path(config.out_dir)) == before


def test_eval_only_of_a_model_that_never_trained_makes_no_folder(small: Config, capsys: pytest.CaptureFixture[str]) -> None:
    train_here(small, eval_only=True)
    names = ["step", "val_loss", "val_perplexity", "val_bits_per_byte", "val_targets", "data_hash"]
    assert list(json.loads(capsys.readouterr().out)) == names
    assert not Path(small.out_dir).exists()


def test_eval_only_reads_a_run_that_is_being_trained(small: Config) -> None:
    config = train_here(small, max_steps=2, lr_decay_steps=12)
    with set_up(dataclasses.replace(small, lr_decay_steps=12)).resources:
        before = rows(config)
        train_here(small, eval_only=True, lr_decay_steps=12)
        assert rows(config) == before


def test_a_finished_run_is_left_alone(small: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = train_here(small)
    before = rows(config)
    train_here(small)
    assert rows(config) == before
    assert "finished before: step 12" in capsys.readouterr().err


def test_a_finished_run_whose_last_loss_is_not_finite_is_left_alone_too(
    small: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its val_loss is null in metrics.jsonl; before, a TypeError."""
    config = train_here(small, max_steps=1)
    path = Path(config.out_dir) / "metrics.jsonl"
    *earlier, last = rows(config)
    path.write_text("".join(json.dumps(row) + "\n" for row in [*earlier, last | {"val_loss": None}]))
    train_here(config)
    assert "finished before: step 1, val_loss not finite" in capsys.readouterr().err


@pytest.fixture
def poisoned(small: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The fifth step's loss is made infinite by a coefficient."""
    original = Run.to_device

    def poison(run: Run, batch: object) -> object:
        if run.progress.step == 4 and not run.progress.skipped_steps:
            with torch.no_grad():
                run.gpt.transformer.h[1].mlp.act.coefficients[2] = torch.inf
        return original(run, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "to_device", poison)
    return small


def test_a_non_finite_step_stops_with_layer_and_coefficient_named(poisoned: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([TINY, *arguments(poisoned)]) == 1
    told = capsys.readouterr().err
    assert "stopped: step 5 gave loss" in told
    assert "h.1.mlp.act.coefficients" in told
    assert [path.name for path in checkpoint.checkpoints(Path(poisoned.out_dir))] == ["step_00000000", "step_00000004"][1:]


def test_a_non_finite_step_right_after_a_resume_is_told_and_the_checkpoint_stays(
    small: Config, poisoned: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(small, max_steps=4, lr_decay_steps=12)
    before = contents(Path(small.out_dir) / "checkpoints" / "step_00000004")
    capsys.readouterr()
    assert train.main([TINY, *arguments(dataclasses.replace(poisoned, lr_decay_steps=12))]) == 1
    told = capsys.readouterr().err
    assert "stopped: step 5 gave loss" in told
    assert "h.1.mlp.act.coefficients" in told
    assert contents(Path(small.out_dir) / "checkpoints" / "step_00000004") == before


def test_a_non_finite_step_is_told_where_nothing_can_be_saved(
    poisoned: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(checkpoint, "save", full)
    assert train.main([TINY, *arguments(poisoned)]) == 1
    told = capsys.readouterr().err
    assert "stopped: step 5 gave loss" in told
    assert told.strip().splitlines()[-1].startswith("train.py: No space left on device (model.safetensors)")


def interrupt_in_evaluation(monkeypatch: pytest.MonkeyPatch, number: int, wanted: signal.Signals) -> list[int]:
    """A signal comes in the first batch of the `number`-th evaluation; the batches that are read, by evaluation."""
    whole, batches = EvaluationWindows.read, []

    def read(windows: EvaluationWindows, indices: np.ndarray) -> object:
        if indices[0] == 0:
            batches.append(0)
            if len(batches) == number:
                os.kill(os.getpid(), wanted)
        batches[-1] += 1
        return whole(windows, indices)

    monkeypatch.setattr(EvaluationWindows, "read", read)
    return batches


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_signal_in_an_evaluation_is_obeyed_within_a_batch_and_leaves_no_trace(
    small: Config, tmp_path: Path, number: int
) -> None:
    """In the first evaluation, one between, and the last."""
    whole = train_here(small, out_dir=str(tmp_path / "whole"))
    argv = [TINY, *arguments(small)]
    with pytest.MonkeyPatch.context() as patch:
        batches = interrupt_in_evaluation(patch, number, signal.SIGTERM)
        assert train.main(argv) == 143
        assert batches[-1] == 1
        patch.undo()
    assert train.main(argv) == 0
    assert_same(whole, small)
    best = [(Path(config.out_dir) / "checkpoints" / "best").read_text() for config in (whole, small)]
    assert best[0] == best[1]
    assert train.main(argv) == 0  # finished before


def _three_runs(rank: int, folder: str, commands: list[list[str]], ports: list[int]) -> None:
    """A whole run, one that a signal to rank 1 stops in its second evaluation, and the same command again."""
    whole, calls = EvaluationWindows.read, [0, 0, 0]
    for index, (argv, port) in enumerate(zip(commands, ports, strict=True)):
        os.environ |= worker(rank, 2, port)

        def read(windows: EvaluationWindows, indices: np.ndarray, index: int = index) -> object:
            calls[index] += 1
            if (rank, index) == (1, 1) and calls[1] == calls[0] // 3 + 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(windows, indices)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EvaluationWindows, "read", read)
            assert train.main(argv) == (0, 143, 0)[index]
    assert calls[1] == calls[0] // 3 + 1, f"{calls}: stopped a batch after the signal, on both ranks"
    Path(folder, str(rank)).write_text("ended as they should")


def test_a_signal_to_one_rank_in_an_evaluation_stops_both_within_a_batch(small: Config, tmp_path: Path) -> None:
    runs = [
        dataclasses.replace(small, dropout=0.1, micro_batch_size=6, out_dir=str(tmp_path / name))
        for name in ("whole", "parts", "parts")
    ]
    argvs = [[TINY, *arguments(run)] for run in runs]
    in_processes(_three_runs, (str(tmp_path), argvs, [free_port() for _ in runs]), 2)
    assert all((tmp_path / str(rank)).exists() for rank in range(2))
    assert_same(runs[0], runs[1])


def test_a_signal_in_eval_only_is_obeyed_within_a_batch(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = interrupt_in_evaluation(monkeypatch, 1, signal.SIGHUP)
    assert train.main([TINY, *arguments(dataclasses.replace(small, eval_only=True))]) == 129
    assert batches == [1]


def test_a_second_writer_that_the_lock_did_not_stop_is_noticed(
    small: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a network file system: another machine writes its name into the lock file between two rows."""
    original = Run.to_device

    def take(run: Run, batch: object) -> object:
        if run.progress.step == 4:
            (run.out_dir / ".lock").write_text("process 7 on elsewhere since 2026-01-01 00:00:00 (00)")
        return original(run, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "to_device", take)
    assert train.main([TINY, *arguments(small)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "was taken by process 7 on elsewhere since 2026-01-01 00:00:00 (00) while this process wrote in it" in last
    assert max(row["step"] for row in rows(small)) == 4
    assert "elsewhere" in (Path(small.out_dir) / ".lock").read_text()  # not wiped by the one that left


class Closed(io.StringIO):
    """A terminal that is gone, or a log file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_outlives_its_terminal(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Closed())
    train_here(small)
    assert weights(small, 12)


def test_skip_counts_the_step_says_so_and_goes_on(
    small: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = train.torch.nn.utils.clip_grad_norm_
    calls = []

    def once(*arguments: object) -> object:
        calls.append(1)
        norm = original(*arguments)
        return norm * torch.nan if len(calls) == 3 else norm

    monkeypatch.setattr(train.torch.nn.utils, "clip_grad_norm_", once)
    config = train_here(small, nonfinite="skip")
    steps = [row for row in rows(config) if "train_loss" in row]
    assert [row["skipped_steps"] for row in steps] == [0, 0] + [1] * 10
    assert steps[2]["grad_norm"] is None
    assert "step 3 is skipped, number 1: loss" in capsys.readouterr().err


def test_float16_trains_with_its_scaler(small: Config) -> None:
    config = train_here(small, dtype="float16", max_steps=3)
    evaluations = [row["val_loss"] for row in rows(config) if "val_loss" in row]
    assert evaluations[-1] < evaluations[0]
    state = checkpoint.load_state(checkpoint.find(config.out_dir, "last"))
    assert state["scaler"]["scale"] > 1


def test_telemetry_rows_name_each_layer(small: Config) -> None:
    config = train_here(small, telemetry_interval=6)
    found = [row for row in rows(config) if "transformer.h.1.mlp.act.second_moment" in row]
    assert [row["step"] for row in found] == [0, 6, 12]
    assert found[0]["transformer.h.0.mlp.act.coefficients.3"] == pytest.approx(0.6324555)
    assert found[0]["transformer.h.0.mlp.act.coefficients.3"] != found[2]["transformer.h.0.mlp.act.coefficients.3"]


def test_a_workspace_that_does_not_repeat_is_refused_before_anything_is_written(
    small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ValueError, match="CUBLAS_WORKSPACE_CONFIG"):
        set_up(dataclasses.replace(small, deterministic=True))
    assert not Path(small.out_dir).exists()


def test_a_second_run_into_the_same_folder_is_refused(small: Config) -> None:
    first = set_up(small)
    with pytest.raises(ValueError, match=r"is in use by process \d+ on .* since"):
        set_up(small)
    first.resources.close()
    set_up(small).resources.close()


def test_bad_input_leaves_no_folder(small: Config) -> None:
    with pytest.raises(ValueError, match="fewer than global_batch_size"):
        set_up(dataclasses.replace(small, global_batch_size=1200))
    assert not Path(small.out_dir).exists()


def test_a_run_killed_before_best_was_named_names_it_on_resume(small: Config) -> None:
    first = train_here(small, max_steps=6, lr_decay_steps=12)
    best = Path(first.out_dir) / "checkpoints" / "best"
    assert best.read_text() == "step_00000006\n"
    best.write_text("step_00000001\n")  # as a kill between the checkpoint's rename and this file's leaves it
    with set_up(dataclasses.replace(first, max_steps=12)).resources:
        assert best.read_text() == "step_00000006\n"


GLOO_THREAD = "pt_gloo_runloop"


def _run_to_its_end(rank: int, port: int, arguments: list[str]) -> None:
    """A run as far as its first step; then nothing of the group is left, though the run's objects are."""
    os.environ |= worker(rank, 2, port)
    run = set_up(parse(arguments))
    run.warm_up()
    run.processes.barrier()
    assert GLOO_THREAD in threads()
    run.resources.close()
    assert run.gpt.num_parameters()
    assert GLOO_THREAD not in threads(), "the group outlives leave(): its destructor may hang later"


def threads() -> set[str]:
    """The names of this process's threads."""
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in Linux's /proc")
def test_the_group_ends_where_the_run_leaves_it(small: Config) -> None:
    """Where it ends later, in the destructor of DDP, two processes hang at their end once in a while."""
    config = dataclasses.replace(small, micro_batch_size=6)
    argv = [str(ROOT / "config" / "tiny.py"), *arguments(config)]
    in_processes(_run_to_its_end, (free_port(), argv), 2)
