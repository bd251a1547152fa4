"""compare.py as users call it: a whole sweep, its resumption, torchrun, and one line for bad input."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import compare
import train
from comparison import results
from comparison.plan import learning_rates
from config.schema import Config
from data.batches import Batch
from data.lock import locked
from tests.processes import Child, ends
from tests.runs import ROOT, arguments, train_here

TINY = str(ROOT / "config" / "tiny.py")


def fields(config: Config, **changes: Any) -> list[str]:
    """The command-line fields of a small run, without those that a sweep sets itself."""
    config = dataclasses.replace(config, activation="gelu", out_dir="", **changes)
    return arguments(config)


def test_a_sweep_from_the_command_line_to_the_report(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "sweep"
    argv = [
        TINY,
        "--activations",
        "gelu",
        "hermite:degree=3",
        "relu",
        "--seeds",
        "2",
        "--jobs",
        "2",
        "--out_dir",
        str(out),
        *fields(small),
    ]
    assert compare.main(argv) == 0
    said = capsys.readouterr()
    assert "hermite:degree=3 against gelu" in said.out
    assert "[6/6]" in said.err
    assert {path.name for path in out.iterdir()} >= {
        "report.md",
        "report.html",
        "results.json",
        "loss.png",
        "differences.png",
        "shapes.png",
        "gains.png",
    }

    monkeypatch.setattr("comparison.plots.figures", lambda summary: {})  # they have been drawn
    records = results.load(out / "results.json").records
    assert len(records) == 6
    for seed in (1337, 1338):
        paired = [record for record in records if record.seed == seed]
        assert len({record.data_hash for record in paired}) == len({record.init_hash for record in paired}) == 1
        assert all(sum(record.documents["targets"]) == 1233 for record in paired)
        assert all(sum(r.documents["nats"]) / 1233 == pytest.approx(r.val_loss, rel=1e-5) for r in paired)
    assert len({record.data_hash for record in records}) == 2

    # The process of a run computes what train.py does.
    alone = train_here(small, activation="relu", seed=1338)
    last = json.loads((Path(alone.out_dir) / "metrics.jsonl").read_text().splitlines()[-1])
    assert next(r for r in records if r.seed == 1338 and r.activation == "relu").val_loss == pytest.approx(
        last["val_loss"], rel=1e-6
    )

    for folder in out.glob("*-seed=*"):
        shutil.rmtree(folder)
    assert compare.main(argv) == 0
    assert "6 of 6 runs are finished already" in capsys.readouterr().err
    assert not list(out.glob("*-seed=*")), "something was trained again"

    assert compare.main(["report", str(out), "--baseline", "relu", "--out_dir", str(tmp_path / "again")]) == 0
    assert "gelu against relu" in (tmp_path / "again" / "report.md").read_text()


def test_runs_of_train_py_are_reported_evaluated_and_drawn(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comparison.plots.figures", lambda summary: {})  # of reports: shapes are drawn
    runs = [train_here(small, activation=a, out_dir=str(tmp_path / a)).out_dir for a in ("gelu", "hermite")]
    assert compare.main(["report", *runs, "--out_dir", str(tmp_path / "report")]) == 0
    assert "hermite:degree=3 against gelu" in (tmp_path / "report" / "report.md").read_text()
    capsys.readouterr()
    assert compare.main(["eval", *runs, "--data_dir", small.data_dir, "--checkpoint", "last"]) == 0
    table = capsys.readouterr().out
    final = json.loads((Path(runs[0]) / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"| {runs[0]} | gelu | 1,233 | {final['val_loss']:.4f} |" in table
    assert compare.main(["shapes", runs[1]]) == 0
    assert (Path(runs[1]) / "shapes.png").read_bytes().startswith(b"\x89PNG")

    third = train_here(small, activation="relu", n_embd=16, out_dir=str(tmp_path / "other")).out_dir
    assert compare.main(["report", *runs, third, "--out_dir", str(tmp_path / "no")]) == 2
    assert "differ in n_embd: 32 and 16; give it to --vary" in capsys.readouterr().err
    assert compare.main(["report", *runs, third, "--vary", "n_embd", "--out_dir", str(tmp_path / "yes")]) == 0


def test_a_killed_sweep_goes_on_where_it_was(small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comparison.plots.figures", lambda summary: {})
    out = tmp_path / "sweep"
    argv = [
        TINY,
        "--activations",
        "gelu",
        "--seeds",
        "1",
        "--out_dir",
        str(out),
        *fields(small, max_steps=300, eval_interval=300),
    ]
    metrics = out / "gelu-seed=1337" / "metrics.jsonl"
    child = Child("compare", argv, tmp_path / "log")
    child.until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 10, "its tenth row")
    child.send(signal.SIGTERM)
    assert "the same command goes on from there" in ends(child, 143)
    assert compare.main(argv) == 0
    (resumed,) = json.loads((metrics.parent / "run.json").read_text())["resumed"]
    assert 5 <= resumed["step"] < 300  # ten rows, those of the start and of telemetry among them
    whole = train_here(small, activation="gelu", max_steps=300, eval_interval=300, telemetry_interval=37)
    last = json.loads((Path(whole.out_dir) / "metrics.jsonl").read_text().splitlines()[-1])
    (record,) = results.load(out / "results.json").records
    assert (record.val_loss, record.data_hash) == (pytest.approx(last["val_loss"], rel=1e-6), last["data_hash"])


def test_under_torchrun_each_run_uses_all_processes(small: Config, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    argv = [TINY, "--activations", "gelu", "--seeds", "1", "--out_dir", str(out), *fields(small, micro_batch_size=6)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(ROOT / "compare.py"), *argv]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "gelu reaches a validation perplexity" in done.stdout
    assert [r.provenance["hardware"]["processes"] for r in results.load(out / "results.json").records] == [2]


def test_two_activations_are_fed_the_same_bytes(small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: dict[str, list[np.ndarray]] = {}
    take_step = train.take_step

    def watch(run: Any, step: int, batch: Batch) -> Any:
        fed.setdefault(run.config.activation, []).append(np.concatenate([batch.inputs, batch.targets[:, -1:]], axis=1))
        return take_step(run, step, batch)

    monkeypatch.setattr(train, "take_step", watch)
    for spec in ("gelu", "hermite:degree=3", "fourier:degree=5"):
        train_here(small, activation=spec, max_steps=3, out_dir=str(tmp_path / spec.partition(":")[0]))
    first, *others = (np.stack(batches).tobytes() for batches in fed.values())
    assert len(others) == 2
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([TINY], "no --activations given"),
        ([TINY, "--activations", "gelo"], "did you mean 'gelu'"),
        ([TINY, "--activations", "gelu", "--seeds", "x"], "--seeds: 'x' is not an integer"),
        ([TINY, "--activations", "gelu", "--seeds", "9" * 10_000], f"--seeds: '{'9' * 40}' is not an integer"),
        ([TINY, "--activations", "gelu", "--seeds"], "--seeds: expected one argument"),
        ([TINY, "--activations", "gelu", "--seeds", "1", "--seeds", "1"], "--seeds: is given twice"),
        ([TINY, "--activations", "gelu", "--discard_checkpoints=3"], "--discard_checkpoints: ignored explicit argument '3'"),
        ([TINY, "--activations", "gelu", "--n_layers", "3"], "unknown option '--n_layers', did you mean --n_layer?"),
        ([TINY, "--activations", "gelu", "--lr_seed", "3"], "unknown option '--lr_seed', did you mean --lr_seeds?"),
        ([TINY, "--activations", "gelu", "--n_layer", "x"], "--n_layer 'x': expected an integer"),
        ([TINY, "--activations", "gelu", "--lr", "1e999"], "--lr 1e999 is not a learning rate above 0"),
        ([TINY, "--activations", "gelu", "--lr", "1e-3,x"], "--lr 'x' is not a number"),
        ([TINY, "--activations", "gelu", "--vary", "mlp_init"], "--vary 'mlp_init' has no values"),
        ([TINY, "--activations", "gelu", "--vary", "mlp_init=a,b"], "--mlp_init 'a': allowed are 'gpt2', 'unit'"),
        ([TINY, "--activations", "gelu", "--jobs", "0"], "--jobs 0"),
        ([TINY, "--activations", "gelu", "--launcher", "pbs"], "--launcher: invalid choice: 'pbs' (choose from "),
        (["config/none.py", "--activations", "gelu"], "is not a preset file"),
        (["launch"], "invalid choice: 'launch' (choose from "),
        (["report"], "the following arguments are required: DIR; compare.py report --help lists all"),
        (["report", "/no/such/folder"], "holds neither results.json nor finished runs"),
        (["report", "x", "--baselin", "relu"], "unknown option '--baselin', did you mean --baseline?"),
        ([TINY, "--activations", "gelu", "--reuse", "/no/such/folder"], "holds neither results.json nor finished runs"),
        (["eval"], "required: RUN"),
        (["eval", "/no/such/folder"], "there is no folder"),
        (["shapes"], "required: RUN"),
        (["shapes", "a", "b"], "unknown option 'b'"),
    ],
)
def test_bad_input_is_exit_code_2_and_one_line(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare.main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("compare.py: ")
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_found_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert compare.main([TINY, "--activations", "gelu", "--out_dir", str(tmp_path / "file" / "sweep")]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_missing_data_and_a_second_sweep_are_told_before_training(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [TINY, "--activations", "gelu", "--out_dir", str(tmp_path / "out"), *fields(small)]
    nowhere = [word if word != small.data_dir else str(tmp_path / "none") for word in argv]
    assert compare.main(nowhere) == 2
    assert "does not exist" in capsys.readouterr().err
    with locked(tmp_path / "out"):
        assert compare.main(argv) == 2
        said = capsys.readouterr().err
        assert f"out is in use by process {os.getpid()}" in said
        assert said.count("\n") == 1


def test_a_full_disk_in_the_sweeps_own_files_is_one_line(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "out" / "results.json"))

    monkeypatch.setattr(compare.run, "run", full)
    assert compare.main([TINY, "--activations", "gelu", "--out_dir", str(tmp_path / "out"), *fields(small)]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"compare.py: No space left on device \(.*results.json\); once that is put right, the same .*\n", said)


def test_help_lists_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    top, commands = compare.parsers()
    for argv, parser in ([], top), ([TINY], commands["sweep"]), *(([name], parser) for name, parser in commands.items()):
        with pytest.raises(SystemExit) as stopped:
            compare.main([*argv, "--help"])
        assert stopped.value.code == 0
        said = capsys.readouterr().out
        assert said == parser.format_help()
        assert argv or all(f"compare.py {name} " in said for name in commands if name != "sweep")
    assert compare.main([]) == 2


def test_options_fields_and_folders_in_any_order() -> None:
    argv = [
        "c.py",
        "--activations",
        "gelu",
        "relu",
        "--n_layer",
        "2",
        "--seeds=3",
        "--bias",
        "True",
        "--activations",
        "silu",
        "--lr",
        "1e-3,2e-3",
        "1e-3",
    ]
    options = compare.read_options(argv)
    assert options.activations == ["gelu", "relu", "silu"]
    assert (options.seeds, options.jobs, options.discard_checkpoints) == (3, 1, False)
    assert options.fields == ["--n_layer", "2", "--bias", "True"]
    assert learning_rates(options.lr) == (1e-3, 2e-3)
    options = compare.read_options(["report", "--lr", "a", "--baseline", "relu", "b", "--vary", "n_layer", "--vary", "n_embd"])
    assert (options.folders, options.vary, options.lr) == ([Path("a"), Path("b")], ["n_layer", "n_embd"], True)


@given(st.lists(st.text(max_size=8).filter(lambda word: not word.startswith("-h")), max_size=8))
def test_any_words_are_options_or_one_line(words: list[str]) -> None:
    for argv in (["c.py", *words], ["report", *words]):
        try:
            options = compare.read_options(argv)
        except ValueError as error:
            message = str(error)
        else:
            message = "--help lists all"
            assert set(getattr(options, "fields", [])) <= set(words)
        assert "--help lists all" in message
