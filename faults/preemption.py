"""Asked to stop, or a part of it lost: the step is finished and saved, torchrun starts again, and nothing waits in silence."""

import dataclasses
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from config.schema import Config
from faults.process import trainer
from faults.runs import Launched, assert_same, free_port, launch, rows, small_config, write_shards
from faults.tally import Tally, expect

STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138, signal.SIGHUP: 129}
SLACK_S = 2.0  # for a checkpoint and the process's own end, beside one step


def run(tally: Tally, folder: Path) -> None:
    """Signals to one process; then torchrun: signals, a killed rank, a hanging rank, a lost node."""
    data_dir = folder / "data"
    data_dir.mkdir()
    base = dataclasses.replace(
        small_config(write_shards(data_dir), folder / "run"),
        max_steps=60, eval_interval=20, checkpoint_interval=10, micro_batch_size=6,
    )  # fmt: skip
    alone = dataclasses.replace(base, out_dir=str(folder / "alone"))
    expect(trainer(alone, folder / "alone.log").finish() == 0, "the undisturbed run failed")
    per_signal = 5 if tally.full else 1
    tally.plan(len(STOPS) * 5, len(STOPS))
    for number, code in STOPS.items():
        for index in range(per_signal):
            with tally.fault(f"{number.name} {index}"):
                stopped(
                    dataclasses.replace(base, out_dir=str(folder / f"{number.name}-{index}")),
                    alone,
                    number,
                    code,
                    3 + 7 * index,
                )
    if not tally.full:
        return
    both = dataclasses.replace(base, out_dir=str(folder / "both"))
    code, errors = launch(both, 2).finish()
    expect(code == 0, f"the undisturbed run of two processes failed: {errors[-500:]}")
    cases = {
        "SIGUSR1 to torchrun that was told of it": usr1_through_torchrun,
        "SIGTERM to torchrun": term_through_torchrun,
        "SIGINT to torchrun": int_through_torchrun,
        "a killed rank, with --max-restarts": killed_rank,
        "a hanging rank": hanging_rank,
        "one of two nodes killed and started again": lost_node,
    }
    tally.plan(len(cases), 0)
    for name, case in cases.items():
        if tally.has_time:
            with tally.fault(name):
                case(dataclasses.replace(base, out_dir=str(folder / case.__name__)), both)


def stopped(config: Config, plain: Config, number: signal.Signals, code: int, step: int) -> None:
    """One process: the signal's exit code within the time of a step, one line, a checkpoint; and the run goes on to the bit."""
    log = Path(config.out_dir).with_suffix(".log")
    child = trainer(config, log)
    child.until(lambda: any(row["step"] >= step for row in rows(config)), f"step {step}")
    child.send(number)
    sent = time.monotonic()
    found = child.finish()
    took = time.monotonic() - sent
    expect(found == code, f"exit code {found}, not {code}: {child.said[-300:]}")
    match = re.search(rf"{number.name}: step (\d+) is finished and saved", child.said)
    expect(match and "Traceback" not in child.said, f"it did not say so: {child.said[-300:]}")
    expect(took < SLACK_S + rows(config)[-1].get("ms_per_step", 0) / 1e3, f"it took {took:.2f} s")
    again = trainer(config, log)
    expect(again.finish() == 0, f"it did not go on: {again.said[-300:]}")
    assert_same(plain, config)


def usr1_through_torchrun(config: Config, plain: Config) -> None:
    """As SLURM sends it ahead of time: with --signals-to-handle the ranks save, and no worker is left behind."""
    started = launch(config, 2, ("--standalone", "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"))
    signalled(started, signal.SIGUSR1)
    goes_on(config, plain)


def term_through_torchrun(config: Config, plain: Config) -> None:
    """torchrun passes SIGTERM on; it says 1 whatever its workers say."""
    signalled(launch(config, 2), signal.SIGTERM)
    goes_on(config, plain)


def int_through_torchrun(config: Config, plain: Config) -> None:
    """Ctrl-C, and torchrun passes it on likewise."""
    signalled(launch(config, 2), signal.SIGINT)
    goes_on(config, plain)


def killed_rank(config: Config, plain: Config) -> None:
    """SIGKILL to one rank: torchrun starts both again, and the same launch ends as the undisturbed one."""
    started = launch(config, 2, ("--standalone", "--max-restarts=2"))
    wait_for(started, 12)
    victim = workers(started.process.pid)[-1]
    os.kill(victim, signal.SIGKILL)
    code, errors = started.finish()
    expect(code == 0, f"exit code {code}: {errors[-500:]}")
    expect(errors.count("resuming") >= 1, f"it was not started again: {errors[-500:]}")
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
    took = time.monotonic() - sent
    expect(code != 0, "exit code 0")
    expect("timeout_s" in errors and "rank" in errors, f"it does not say what happened: {errors[-1500:]}")
    expect(took < 60, f"it took {took:.0f} s")
    goes_on(dataclasses.replace(config, timeout_s=600.0), plain)


def lost_node(config: Config, plain: Config) -> None:
    """Two agents of one process each; one is killed with its worker and started again, the other one waits for it."""
    nodes = (
        "--nnodes=2",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint=127.0.0.1:{free_port()}",
        "--rdzv_id=faults",
        "--max-restarts=3",
    )
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
        expect(code == 0, f"exit code {code}: {errors[-800:]}")
    assert_same(plain, config)


def signalled(started: Launched, number: signal.Signals) -> None:
    """Signal to torchrun: the run is saved at the step that rank 0 names, exit code 1, and nobody is left."""
    wait_for(started, 12)
    pids = workers(started.process.pid)
    started.process.send_signal(number)
    code, errors = started.finish()
    expect(code == 1, f"exit code {code}: {errors[-500:]}")
    match = re.search(rf"{number.name}: step (\d+) is finished and saved", errors)
    expect(match is not None, f"rank 0 did not say that it saved: {errors[-800:]}")
    left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    expect(not left, f"workers {left} are left behind")


def goes_on(config: Config, plain: Config) -> None:
    """The same command ends as the undisturbed run."""
    code, errors = launch(config, 2).finish()
    expect(code == 0, f"it did not go on: {errors[-500:]}")
    assert_same(plain, config)


def wait_for(started: Launched, step: int) -> None:
    """Until metrics.jsonl has a row of that step."""
    started.send(signal.SIGCONT, step)  # which a running process ignores


def workers(agent: int) -> Sequence[int]:
    """The process ids of torchrun's workers, in the order of their ranks."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(agent)], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "train.py" in line]
