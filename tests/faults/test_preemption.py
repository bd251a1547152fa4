"""Asked to stop, or a part of it lost: the step is finished and saved, torchrun starts again, and nothing waits in silence."""

import dataclasses
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from config.schema import Config
from tests.faults.forms import some
from tests.processes import ends, trained, trainer
from tests.runs import Launched, assert_same, free_port, launch, rows

pytestmark = pytest.mark.fault
STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138, signal.SIGHUP: 129}


@pytest.fixture(scope="module")
def preempted(base: Config) -> Config:
    """What every run here is."""
    return dataclasses.replace(base, max_steps=60, eval_interval=20, checkpoint_interval=10, micro_batch_size=6)


@pytest.fixture(scope="module")
def alone(preempted: Config) -> Config:
    """The undisturbed run."""
    return trained(preempted)


@pytest.fixture(scope="module")
def both(preempted: Config) -> Config:
    """The undisturbed run of two processes."""
    started = launch(preempted, 2, out_dir=f"{preempted.out_dir}-both")
    code, errors = started.finish()
    assert code == 0, errors[-500:]
    return started.config


@pytest.mark.parametrize(("number", "step"), some([(n, 3 + 7 * i) for i in range(5) for n in STOPS], slice(4)))
def test_a_signal_to_one_process(alone: Config, number: signal.Signals, step: int) -> None:
    """The signal's exit code at the end of the step under way, one line, a checkpoint; and the run goes on to the bit."""
    config = dataclasses.replace(alone, out_dir=f"{alone.out_dir}-{number.name}-{step}")
    child = trainer(config)
    child.until(lambda: any(row["step"] >= step for row in rows(config)), f"step {step}")
    child.send(signal.SIGSTOP)  # so that the steps it has taken can be counted
    time.sleep(0.01)
    taken = rows(config)[-1]["step"]
    child.send(number)
    child.send(signal.SIGCONT)
    said = ends(child, STOPS[number])
    match = re.search(rf"{number.name}: step (\d+) is finished and saved", said)
    assert match, f"it did not say so: {said[-300:]}"
    assert taken <= int(match[1]) <= taken + 2, f"it stopped at step {match[1]}, {taken} were logged at the signal"
    assert_same(alone, trained(config))


HANDLED = ("--standalone", "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1")  # as the README tells SLURM's users


@pytest.mark.long
@pytest.mark.parametrize(("number", "torchrun"), [(signal.SIGUSR1, HANDLED), (signal.SIGTERM, ()), (signal.SIGINT, ())])
def test_a_signal_to_torchrun(both: Config, number: signal.Signals, torchrun: tuple[str, ...]) -> None:
    """The run is saved at the step that rank 0 names, torchrun's exit code is 1, nobody is left, and the run goes on."""
    config = dataclasses.replace(both, out_dir=f"{both.out_dir}-{number.name}")
    started = launch(config, 2, torchrun)
    wait_for(started, 12)
    pids = workers(started.process.pid)
    started.process.send_signal(number)
    code, errors = started.finish()
    assert code == 1, errors[-500:]
    assert re.search(rf"{number.name}: step (\d+) is finished and saved", errors), errors[-800:]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "workers are left behind"
    goes_on(config, both)


def killed_rank(config: Config, plain: Config) -> None:
    """SIGKILL to one rank: torchrun starts both again, and the same launch ends as the undisturbed one."""
    started = launch(config, 2, ("--standalone", "--max-restarts=2"))
    wait_for(started, 12)
    os.kill(workers(started.process.pid)[-1], signal.SIGKILL)
    code, errors = started.finish()
    assert code == 0, errors[-500:]
    assert "resuming" in errors, f"it was not started again: {errors[-500:]}"
    assert_same(plain, config)


def hanging_rank(config: Config, plain: Config) -> None:
    """SIGSTOP to one rank: within timeout_s the other says what it waited for."""
    config = dataclasses.replace(config, timeout_s=5.0)
    started = launch(config, 2, ("--standalone", "--shutdown-timeout", "5"))
    wait_for(started, 12)
    victim = workers(started.process.pid)[-1]
    os.kill(victim, signal.SIGSTOP)
    sent = time.monotonic()
    try:
        code, errors = started.finish()
    finally:
        if Path(f"/proc/{victim}").exists():
            os.kill(victim, signal.SIGKILL)
    assert code != 0
    assert "timeout_s" in errors, errors[-1500:]
    assert "rank" in errors, errors[-1500:]
    assert time.monotonic() - sent < 60, "it waited for longer than timeout_s and torchrun's own end"
    goes_on(dataclasses.replace(config, timeout_s=600.0), plain)


def lost_node(config: Config, plain: Config) -> None:
    """Two agents of one process each; one is killed with its worker and started again, the other one waits for it."""
    rendezvous = ("--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}", "--rdzv_id=faults")
    nodes = ("--nnodes=2", *rendezvous, "--max-restarts=3")
    agents = [launch(config, torchrun=nodes, own_store=True)]
    time.sleep(3)  # the first one keeps the store of the rendezvous: it is the one that stays
    agents.append(launch(config, torchrun=nodes, own_store=True))
    wait_for(agents[0], 12)
    for pid in [agents[1].process.pid, *workers(agents[1].process.pid)]:
        os.kill(pid, signal.SIGKILL)
    agents[1].finish()
    agents[1] = launch(config, torchrun=nodes, own_store=True)
    for agent in agents:
        code, errors = agent.finish()
        assert code == 0, errors[-800:]
    assert_same(plain, config)


@pytest.mark.long
@pytest.mark.parametrize("case", [killed_rank, hanging_rank, lost_node], ids=lambda case: case.__name__)
def test_a_lost_part_of_torchrun_s_run(both: Config, case: Callable[[Config, Config], None]) -> None:
    case(dataclasses.replace(both, out_dir=f"{both.out_dir}-{case.__name__}"), both)


def goes_on(config: Config, plain: Config) -> None:
    """The same command ends as the undisturbed run."""
    code, errors = launch(config, 2).finish()
    assert code == 0, errors[-500:]
    assert_same(plain, config)


def wait_for(started: Launched, step: int) -> None:
    """Until metrics.jsonl has a row of that step."""
    started.send(signal.SIGCONT, step)  # which a running process ignores


def workers(agent: int) -> Sequence[int]:
    """The process ids of torchrun's workers, in the order of their ranks."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(agent)], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "train.py" in line]
