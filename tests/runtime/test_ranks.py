"""Ranks compare notes: what must be alike is compared, what must be decided alike is decided on sums."""

import dataclasses
from pathlib import Path

import pytest
import torch

from config.schema import Config
from runtime.distributed import Processes, differences
from tests.runs import free_port, launch


def test_two_nodes_with_different_command_lines_through_torchrun(small: Config) -> None:
    config = dataclasses.replace(small, micro_batch_size=6)
    nodes = ("--nnodes=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}", "--rdzv_id=test")
    agents = [launch(config, torchrun=nodes, weight_decay=decay) for decay in (0.1, 0.2)]
    ended = [agent.finish() for agent in agents]
    assert [code for code, _ in ended] == [1, 1]  # torchrun's; its workers' is 2
    said = "".join(errors for _, errors in ended)
    assert said.count("train.py: rank 1 has weight_decay 0.") == 1
    assert "exitcode  : 2" in said
    assert not (Path(config.out_dir) / "metrics.jsonl").exists()


def test_differences_name_the_first_rank_that_knows() -> None:
    facts = [{"a": None, "b": 1}, {"a": 2, "b": 1}, {"a": 3, "b": 1, "c": 0}]
    assert differences(facts) == ["rank 2 has a 3, rank 1 has 2"]
    assert differences([{"a": 1}]) == []


def test_one_process_agrees_with_itself() -> None:
    alone = Processes(0, 1, 0, torch.device("cpu"))
    assert alone.gather({"a": [1]}) == [{"a": [1]}]
    with pytest.raises(ZeroDivisionError), alone.alike() as same:
        same["a"] = 1 // 0
