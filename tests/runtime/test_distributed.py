"""Sums over processes, and who is who."""

import json
import os
from pathlib import Path

import pytest
import torch

from runtime import distributed
from tests.runs import free_port, in_processes


def test_one_process_needs_no_group() -> None:
    alone = distributed.join("cpu", "auto", 10.0)
    assert (alone.rank, alone.world_size, alone.is_main) == (0, 1, True)
    assert alone.sum([0.1, 2.0]) == [0.1, 2.0]
    assert alone.sum_integers([2**62, -1]) == [2**62, -1]
    alone.barrier()
    distributed.leave()
    assert not torch.distributed.is_initialized()


def _work(rank: int, port: int, results: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "3",
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = distributed.join("cpu", "auto", 60.0)
    found = [processes.sum([1e16 * (rank == 0), 1.0]), processes.sum_integers([2**62, rank])]
    if processes.is_main:
        with open(results, "w") as file:
            json.dump(found, file)
    distributed.leave()


def test_sums_are_exact_over_three_processes(tmp_path: Path) -> None:
    results = tmp_path / "results"
    in_processes(_work, (free_port(), str(results)), 3)
    floats, integers = json.loads(results.read_text())
    assert floats == [1e16, 3.0]
    assert integers == [3 * 2**62 - 2**64, 3]  # modulo 2^64


def test_the_main_process_is_known_before_joining(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.is_main()
    monkeypatch.setenv("RANK", "2")
    assert not distributed.is_main()


def test_a_lost_rank_is_told_from_other_errors() -> None:
    assert distributed.is_lost_rank(torch.distributed.DistNetworkError("no"))
    assert distributed.is_lost_rank(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed"))
    assert not distributed.is_lost_rank(RuntimeError("shapes do not match"))


def test_a_restart_that_would_hang_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --max-restarts"):
        distributed.join("cpu", "gloo", 10.0)
