"""evaluate.py as users call it: losses and tasks of runs, exported folders and GPT-2 folders, kept beside the run."""

import dataclasses
import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import compare
import evaluate
import export
from comparison import record
from config.schema import Config
from evaluation import request, scores, store
from evaluation.subject import load
from tests.evaluation import items
from tests.runs import small_config, train_here

needs_lm_eval = pytest.mark.skipif(not find_spec("lm_eval"), reason="lm_eval is not installed: pip install lm_eval")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Config:
    return train_here(
        small_config(data_dir, tmp_path_factory.mktemp("evaluated") / "run"),
        max_steps=8,
        eval_interval=4,
        checkpoint_interval=4,
        keep_checkpoints=2,
    )


@pytest.fixture(scope="module")
def exported(trained: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "model"
    assert export.main([trained.out_dir, str(out), "--checkpoint", "last"]) == 0
    return out


@pytest.fixture(scope="module")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return items.write(tmp_path_factory.mktemp("items"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and store.FOLDER not in path.parts}


def rows(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in out.splitlines() if line.startswith("|")]


def test_losses_are_those_of_the_run_wherever_its_weights_lie(
    trained: Config, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, before = Path(trained.out_dir), contents(Path(trained.out_dir))
    out = tmp_path / "all" / "found.json"
    argv = [
        str(run),
        str(exported),
        "--data_dir",
        trained.data_dir,
        "--checkpoint",
        "last",
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    assert evaluate.main(argv) == 0
    told = rows(capsys.readouterr().out)
    last = record.read(run).val_loss
    assert [row[0] for row in told[2:]] == [f"{run} step 8", str(exported)]
    assert told[2][1:] == told[3][1:]
    assert told[2][4:6] == [f"{last:.4f}", f"{math.exp(last):.3f}"]
    kept = json.loads((run / "evaluation" / "step_00000008" / f"loss_{Path(trained.data_dir).name}.json").read_text())
    assert kept["loss"] == pytest.approx(last, rel=1e-5)
    assert kept["step"] == 8
    assert math.fsum(kept["documents"]["nats"]) / kept["targets"] == kept["loss"]
    found = json.loads(out.read_text())
    assert [one["losses"][0]["loss"] for one in found] == pytest.approx([last, last], rel=1e-5)
    assert found[0]["weights_sha256"] == kept["weights_sha256"]
    assert contents(run) == before
    assert not (exported / store.FOLDER).exists()
    assert compare.main(["eval", str(run), str(exported), "--data_dir", trained.data_dir, "--checkpoint", "last"]) == 0
    assert [row[2:] for row in rows(capsys.readouterr().out)[2:]] == [[*told[2][3:]], [*told[3][3:]]]


def test_a_run_has_data_of_its_own(trained: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([trained.out_dir, "--checkpoint", "4"]) == 0
    assert rows(capsys.readouterr().out)[2][0].endswith("step 4")
    assert (Path(trained.out_dir) / "evaluation" / "step_00000004").is_dir()


@needs_lm_eval
def test_tasks_are_kept_item_by_item(
    trained: Config, exported: Path, task_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, before = Path(trained.out_dir), contents(Path(trained.out_dir))
    tasks = ["blimp", "lambada", "hellaswag", "wikitext"]
    argv = ["--tasks", *tasks, "--task_data", str(task_data), "--task_limit", "8", "--checkpoint", "last"]
    assert evaluate.main([str(run), str(exported), *argv, "--out", str(tmp_path / "all.json")]) == 0
    told = capsys.readouterr()
    table = rows(told.out)[2:]
    assert [row[2:4] for row in table[:8]] == [
        ["blimp", "acc"], ["lambada", "perplexity"], ["lambada", "acc"], ["hellaswag", "acc"], ["hellaswag", "acc_norm"],
        ["wikitext", "word_perplexity"], ["wikitext", "byte_perplexity"], ["wikitext", "bits_per_byte"],
    ]  # fmt: skip
    assert [row[2:] for row in table[:8]] == [row[2:] for row in table[8:]], "the exported folder holds the same model"
    assert table[0][4] == "8 of 16"
    folder = run / "evaluation" / "step_00000008"
    kept = json.loads((folder / "blimp.json").read_text())
    assert kept["weights_sha256"] == load(str(run), "last").weights_sha256
    found = scores.from_json({name: value for name, value in kept.items() if name not in ("step", "weights_sha256")}, "here")
    assert len(found.metrics["acc"].scores) == found.items == 8
    assert f"{found.metrics['acc'].value:.4f}" == table[0][5]
    assert {path.name for path in folder.iterdir()} >= {f"{task}.json" for task in tasks}
    assert f"wrote {folder / 'wikitext.json'}" in told.err
    assert contents(run) == before
    assert len(json.loads((tmp_path / "all.json").read_text())[1]["tasks"]) == 4


def test_bad_input_is_exit_2_and_one_line(
    trained: Config, exported: Path, task_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained.out_dir
    cases: list[tuple[list[Any], str]] = [
        ([], "required: RUN; evaluate.py --help lists all"),
        ([tmp_path], "is neither a run nor a GPT-2 folder"),
        ([run, "--chekpoint", "last"], "unknown option '--chekpoint', did you mean --checkpoint?"),
        ([run, "--checkpoint", "3"], "give best, last or one of the steps"),
        ([run, "--checkpoint", "3", "--checkpoint", "4"], "--checkpoint: is given twice"),
        ([exported], "is no run and has no data of its own; give --data_dir DIR or --tasks NAME"),
        ([run, "--data_dir", tmp_path / "none"], "does not exist"),
        ([run, "--data_dir", "a/b", "c/b"], "two of --data_dir are called b"),
        ([run, "--task_data", task_data], "none is named; add --tasks blimp"),
        ([run, "--tasks", "blimp", "blimp"], "--tasks names blimp twice"),
        ([run, "--tasks", "blimp", "--task_limit", "-1"], "is no number of items"),
        ([run, "--tasks", "blimp", "--task_limit", "x"], "'x' is not an integer"),
        ([run, "--tasks", "blimp", "--task_data", tmp_path / "none"], "is not a folder"),
        ([run, "--device", "tpu"], "device='tpu' is not auto"),
    ]
    if find_spec("lm_eval"):
        cases += [
            ([run, "--tasks", "blimp", "--task_data", tmp_path], "has no blimp.jsonl"),
            ([run, "--tasks", "arc_easy", "--task_data", task_data], "is not read from files"),
        ]
    for argv, told in cases:
        assert evaluate.main([str(word) for word in argv]) == 2, argv
        errors = capsys.readouterr().err
        assert told in errors, errors
        assert errors.count("\n") == 1, errors
        assert errors.startswith("evaluate.py: ")


def test_without_lm_eval_the_command_that_installs_it_is_named(
    trained: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(request, "find_spec", lambda name: None)
    assert evaluate.main([trained.out_dir, "--tasks", "blimp"]) == 2
    assert capsys.readouterr().err == "evaluate.py: --tasks needs lm_eval, which is not installed; type: pip install lm_eval\n"


def test_a_link_in_the_run_s_folder_is_not_written_through(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(train_here(dataclasses.replace(small, max_steps=2, eval_interval=2)).out_dir)
    (tmp_path / "elsewhere").mkdir()
    (run / store.FOLDER).symlink_to(tmp_path / "elsewhere")
    assert evaluate.main([str(run)]) == 2
    assert "link" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_run_that_is_not_there_or_not_ready_is_told_so(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/one", "runs/two"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs" / "two" / "run.json").write_text("{}")
    for run, told in (
        ("runs/on", "there is no folder 'runs/on'; in runs there are one, two"),
        (str(tmp_path / "none" / "x"), "python train.py CONFIG.py makes runs"),
        ("runs/two", "holds no checkpoint yet: a run writes one every checkpoint_interval steps"),
    ):
        assert evaluate.main([run]) == 2
        errors = capsys.readouterr().err
        assert told in errors
        assert errors.count("\n") == 1
