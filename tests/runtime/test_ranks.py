"""Ranks compare notes: what must be alike is compared, what must be decided alike is decided on sums."""

import contextlib
import dataclasses
import os
from pathlib import Path
from unittest import mock

import pytest

import train
from config.schema import Config
from faults import ranks
from faults.process import PRESET, worker
from faults.runs import arguments, free_port, launch
from runtime.distributed import Processes, differences
from tests.runs import in_processes


def _all_cases(rank: int, folder: str, cases: list[ranks.Case], commands: list[list[list[str]]], ports: list[int]) -> None:
    """Every case in one process a rank: exit codes and what was said go into files."""
    for index, (case, argv, port) in enumerate(zip(cases, commands, ports, strict=True)):
        os.environ |= worker(rank, 2, port)
        with contextlib.ExitStack() as stack:
            said = stack.enter_context(open(f"{folder}/{index}.{rank}.said", "w"))
            stack.enter_context(contextlib.redirect_stderr(said))
            for target, value in case.patches if rank else ():
                stack.enter_context(mock.patch(target, value))
            code = train.main([PRESET, *argv[rank]])
        Path(f"{folder}/{index}.{rank}.code").write_text(str(code))


def test_ranks_that_are_not_alike_end_together_and_say_why(tmp_path: Path) -> None:
    """Each case of the fault suite that leaves its processes alive; before, most ended with exit code 0 and a wrong loss."""
    base, found = ranks.cases(tmp_path)
    found = [case for case in found if not case.lost]
    pairs = [ranks.configs(case, base, tmp_path) for case in found]
    ports = [free_port() for _ in found]
    in_processes(_all_cases, (str(tmp_path), found, [[arguments(c) for c in pair] for pair in pairs], ports), 2)
    for index, (case, (first, _)) in enumerate(zip(found, pairs, strict=True)):
        codes = [int((tmp_path / f"{index}.{rank}.code").read_text()) for rank in range(2)]
        assert codes == [case.code] * 2, case.name
        said = (tmp_path / f"{index}.0.said").read_text()
        ranks.judge(case, codes[0], said, first)
        if case.code == 2:
            assert said.count("train.py: ") == 1, said
            assert not (Path(first.out_dir) / "config.json").exists() or "step" in case.said[0], "something was written"


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
    alone = Processes(0, 1, 0, ranks.train.torch.device("cpu"))
    assert alone.gather({"a": [1]}) == [{"a": [1]}]
    with pytest.raises(ZeroDivisionError), alone.alike() as same:
        same["a"] = 1 // 0
