"""A branch is to the bit the run that was never cut, and takes over its trunk; more than another schedule is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import train
from comparison import record, results
from config.schema import Config
from runtime import checkpoint
from tests.runs import PRESET, arguments, assert_same, rows, train_here

WSD = {"lr_schedule": "wsd", "max_steps": 12, "dropout": 0.1}


@pytest.fixture(scope="module")
def trunk(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Ten steps at a constant rate; checkpoints of steps 4 and 8 are kept."""
    from tests.runs import small_config

    config = small_config(data_dir, tmp_path_factory.mktemp("trunk") / "run")
    return train_here(config, lr_schedule="constant", dropout=0.1, max_steps=10, checkpoint_steps="4,8")


def branch(small: Config, trunk: Config, step: int = 8, **changes: object) -> Config:
    return dataclasses.replace(
        small,
        branch_from=f"{trunk.out_dir}@{step}",
        **{**WSD, **changes},  # type: ignore[arg-type]
    )


def test_wanted_checkpoints_stay(trunk: Config) -> None:
    there = [checkpoint.step_of(path) for path in checkpoint.checkpoints(Path(trunk.out_dir))]
    assert {4, 8, 10} <= set(there)


def test_trunk_and_branch_are_the_uninterrupted_run(small: Config, trunk: Config, tmp_path: Path) -> None:
    """Weights, moments (in the next steps), data and rows."""
    cut = train_here(branch(small, trunk))
    whole = train_here(dataclasses.replace(small, **WSD, lr_decay_fraction=1 / 3), out_dir=str(tmp_path / "whole"))
    assert_same(cut, whole)
    assert {row["lr"] for row in rows(whole) if 4 <= row["step"] <= 8 and "lr" in row} == {small.learning_rate}
    told = json.loads((Path(cut.out_dir) / "run.json").read_text())
    there = json.loads((Path(whole.out_dir) / "run.json").read_text())
    assert told["branched_from"]["run"] == trunk.out_dir
    assert told["branched_from"]["step"] == 8
    assert told["branched_from"]["schedule"]["lr_schedule"] == "constant"
    assert (told["init_hash"], told["data"]) == (there["init_hash"], there["data"])
    assert record.is_finished(Path(cut.out_dir))


def test_a_branch_goes_on_without_its_trunk(small: Config, trunk: Config, tmp_path: Path) -> None:
    copy = dataclasses.replace(trunk, out_dir=str(tmp_path / "copy"))
    shutil.copytree(trunk.out_dir, copy.out_dir)
    whole = train_here(branch(small, trunk), out_dir=str(tmp_path / "whole"))
    cut = train_here(branch(small, copy, checkpoint_interval=2, keep_checkpoints=9))
    shutil.rmtree(copy.out_dir)
    shutil.rmtree(Path(cut.out_dir) / "checkpoints" / "step_00000012")
    train_here(cut)
    assert_same(cut, whole)
    (resumed,) = json.loads((Path(cut.out_dir) / "run.json").read_text())["resumed"]
    assert resumed["step"] == 10


def test_a_branch_is_resumed_as_a_branch(small: Config, trunk: Config, capsys: pytest.CaptureFixture[str]) -> None:
    train_here(branch(small, trunk))
    assert train.main([PRESET, *arguments(dataclasses.replace(branch(small, trunk), branch_from="", max_steps=14))]) == 2
    assert f"--branch_from {trunk.out_dir}@8" in capsys.readouterr().err


def test_a_branch_that_died_before_its_first_checkpoint_begins_again(small: Config, trunk: Config, tmp_path: Path) -> None:
    once = train_here(branch(small, trunk), out_dir=str(tmp_path / "once"))
    again = train_here(branch(small, trunk))
    shutil.rmtree(Path(again.out_dir) / "checkpoints")
    train_here(again)
    assert_same(once, again)


def test_branches_of_one_trunk_are_one_run_to_a_comparison(small: Config, trunk: Config) -> None:
    """Where the trunk lay does not matter, at which step it was left does."""
    one, moved, other = (dataclasses.asdict(branch(small, trunk)) for _ in range(3))
    moved["branch_from"], other["branch_from"] = "elsewhere/run@8", "elsewhere/run@4"
    assert results.same_run(one, moved)
    assert not results.same_run(one, other)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n_embd": 16}, "n_embd was 32 and is 16; only the schedule may differ: type --n_embd 32"),
        ({"seed": 7}, "seed was 1337 and is 7; only the schedule may differ: type --seed 1337"),
        ({"global_batch_size": 24}, "global_batch_size was 12 and is 24"),
        ({"weight_decay": 0.3}, "weight_decay was 0.1 and is 0.3"),
        ({"activation": "gelu"}, "activation was 'hermite:degree=3"),
    ],
)
def test_more_than_another_schedule_is_refused_in_one_line(
    small: Config, trunk: Config, changes: dict[str, object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([PRESET, *arguments(branch(small, trunk, **changes))]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"train.py: cannot branch from {trunk.out_dir}/checkpoints/step_00000008: ")
    assert told in line
    assert not Path(small.out_dir).exists()


def test_a_step_that_is_not_there_or_the_own_folder_is_refused(
    small: Config, trunk: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    for config, told in (
        (branch(small, trunk, step=5), "give best, last or one of the steps "),
        (branch(small, trunk, out_dir=trunk.out_dir + "/"), "cannot resume"),
        (dataclasses.replace(branch(small, trunk), branch_from=f"{small.out_dir}@8"), "is the run's own out_dir"),
        (
            dataclasses.replace(branch(small, trunk), branch_from=f"{trunk.out_dir}/checkpoints/step_00000008@4"),
            "is a checkpoint; give the folder of its run",
        ),
    ):
        assert train.main([PRESET, *arguments(config)]) == 2
        assert told in capsys.readouterr().err


def test_other_data_are_refused(small: Config, trunk: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "data"
    shutil.copytree(small.data_dir, copy)
    shard = copy / "train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"a\0")
    assert train.main([PRESET, *arguments(branch(small, trunk, data_dir=str(copy)))]) == 2
    assert "has changed since" in capsys.readouterr().err
