"""What a run says before it takes long: numbers that are the run's own."""

import dataclasses
import re
import sys
import types
from pathlib import Path

import pytest

import activations
import train
from config.schema import Config, GPTConfig
from data.shards import Tokens
from model import GPT
from runtime import announce, journal, log
from tests.runs import ROOT, arguments, train_here


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [*activations.names(), "hermite:degree=5,per=channel"])
def test_parameters_and_operations_are_counted_without_the_model(activation: str, bias: bool) -> None:
    config = GPTConfig(n_layer=2, n_head=2, n_embd=8, block_size=6, vocab_size=11, bias=bias, activation=activation)
    gpt = GPT(config)
    coefficients = activations.tensor_names(gpt)
    own = sum(p.numel() for name, p in gpt.named_parameters() if name in coefficients)
    assert announce.count_parameters(config) == (gpt.num_parameters(), own)
    assert config.flops_per_token(gpt.num_parameters()) == gpt.flops_per_token()


def test_a_run_says_what_it_will_do_before_it_reads_its_tokens(
    small: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then how long it will take, once ten steps are known; a resume, from which step."""
    said_before = []
    whole = Tokens.check_vocabulary
    monkeypatch.setattr(Tokens, "check_vocabulary", lambda *a: said_before.append(capsys.readouterr().err) or whole(*a))
    config = train_here(small, max_steps=12)
    record = log.read_object(Path(config.out_dir) / "run.json")
    plan = said_before[0]
    for expected in (
        f"in 2 layers of width 32: {record['parameters']:,} parameters, 8 of them in the activations\n",
        f"data    {small.data_dir}: {record['data']['train_tokens']:,} tokens to train on, ",
        "work    12 steps of 384 tokens, 4,608 in all; ",
        f"{record['flops_per_token']:.3g} FLOP a token, {4608 * record['flops_per_token']:.3g} in all\n",
        "(cpu), float32, about 0.0 GiB of ",
        f"run     {small.out_dir}\n",
    ):
        assert expected in plan
    assert re.search(r"\d+ ms a step: \d+ s for the 2 steps that are left", capsys.readouterr().err)
    said_before.clear()
    train_here(small, max_steps=12)
    assert f"run     {small.out_dir}, from step 12\n" in said_before[0]


def test_compiling_is_said_with_its_time(
    small: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a clock of its own: each look at it is an hour later."""
    hours = iter(range(1000))
    monkeypatch.setattr(journal, "time", types.SimpleNamespace(perf_counter=lambda: 3600.0 * next(hours)))
    monkeypatch.setattr("runtime.setup.compile_model", lambda gpt, *_: gpt)
    train_here(small, max_steps=1, compile=True)
    said = capsys.readouterr().err
    assert said.index("compiling: ") < said.index("compiled in 60 min")
    train_here(small, max_steps=1, warmup_steps=1, out_dir=small.out_dir + "2")
    said = capsys.readouterr().err
    assert "compiled in" not in said
    assert "work    1 steps of 384 tokens, 384 in all, all of them in the warm-up; " in said


@pytest.mark.parametrize(("seconds", "words"), [(3.2, "3 s"), (200, "3 min"), (8000, "2 h 13 min"), (200_000, "2 days 7 h")])
def test_durations(seconds: float, words: str) -> None:
    assert announce.duration(seconds) == words


def test_tensorboard_gets_the_numbers_in_groups(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's module replaced, as the package need not be there."""
    scalars: list[tuple[str, float, int]] = []
    made: list[tuple[str, int]] = []

    class SummaryWriter:
        def __init__(self, log_dir: str, purge_step: int) -> None:
            made.append((log_dir, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            scalars.append((name, value, step))

        def close(self) -> None:
            scalars.append(("closed", 0.0, 0))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setattr("runtime.tensorboard.check", lambda: None)
    config = train_here(small, max_steps=2, lr_decay_steps=2, tensorboard=True, telemetry_interval=2)
    rows = log.read(Path(config.out_dir) / "metrics.jsonl")
    numbers = [
        (name, value, row["step"])
        for row in map(log.grouped, rows)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float)
    ]
    assert scalars == [*numbers, ("closed", 0.0, 0)]
    names = {name for name, _, _ in numbers}
    assert {"train/loss", "train/lr", "val/loss", "activations/transformer.h.1.mlp.act.input_std"} <= names
    assert made == [(f"{config.out_dir}/tensorboard", 0)]


def test_a_disk_that_fails_under_tensorboard_is_one_line(
    small: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    writer = types.SimpleNamespace(add_scalar=full, close=full)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=lambda *_, **__: writer))
    monkeypatch.setattr("runtime.tensorboard.check", lambda: None)
    train_here(small, max_steps=2, tensorboard=True)
    (said,) = [record.getMessage() for record in caplog.records if "TensorBoard" in record.getMessage()]
    assert said.startswith("TensorBoard gets no more rows (log: OSError: [Errno 28] No space left on device); the run goes on")


def test_a_missing_tensorboard_is_said_before_anything_is_written(
    small: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runtime.tensorboard.importlib.util.find_spec", lambda name: None)
    argv = [str(ROOT / "config" / "tiny.py"), *arguments(dataclasses.replace(small, tensorboard=True))]
    assert train.main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("not installed; type: pip install tensorboard, or leave --tensorboard out")
    assert not Path(small.out_dir).exists()
