"""The SLURM script with a stub for srun: two nodes, each with a checkout and a data path, and one out_dir.

A worker is killed, and the job is stopped and begun again.
"""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config.schema import Config
from tests.runs import LIMIT_S, PRESET, ROOT, arguments, free_port, rows, train_here

SCRIPT = ROOT / "examples" / "slurm" / "train.sbatch"
# Starts the command once a node, each with its own paths, and passes SIGUSR1 on, as srun does.
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for node in 0 1; do CHECKOUT="$PLACE/checkout$node" DATA_DIR="$PLACE/data$node" "$@" & pids+=($!); done
trap 'kill -USR1 "${pids[@]}"' USR1
code=0
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || code=$?; done
done
exit $code
"""
# The pause shows a reader of the first name alone: it has ended when the second comes, and scontrol dies of SIGPIPE.
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; sleep 0.2; echo 127.0.0.1; else echo "$@" >> "$PLACE/requeued"; fi
"""


@pytest.fixture
def place(tmp_path: Path, data_dir: Path) -> Iterator[Path]:
    """A folder with the stubs, two checkouts and two copies of the data; no process outlives the test."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for node in (0, 1):
        (tmp_path / f"checkout{node}").symlink_to(ROOT)
        shutil.copytree(data_dir, tmp_path / f"data{node}")
    yield tmp_path
    for pid in workers(str(tmp_path)):
        os.kill(pid, signal.SIGKILL)


def submit(place: Path, config: Config, restarts: int) -> subprocess.Popen[str]:
    """The job's script, as SLURM would start it."""
    argv = arguments(dataclasses.replace(config, data_dir="data/pystdlib"))
    environment = os.environ | {
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", "PLACE": str(place), "PORT": str(free_port()),
        "WORKERS": "1",
        "TORCHRUN": f"{sys.executable} -m torch.distributed.run", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_RESTART_COUNT": str(restarts), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.Popen([str(SCRIPT), PRESET, *argv], env=environment, stderr=subprocess.PIPE, text=True)


def workers(word: str, rank: int | None = None) -> list[int]:
    """Processes of train.py with this word in their command line or environment, of a rank or of any."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((folder / name).read_text(errors="replace") for name in ("cmdline", "environ"))
        except OSError:  # it has ended, or is not ours
            continue
        mine = word in command + environment and (rank is None or f"\0RANK={rank}\0" in environment)
        if mine and "train.py" in command:
            found.append(int(folder.name))
    return found


def until(condition: Callable[[], object], job: subprocess.Popen[str]) -> None:
    """Wait for something that a job does."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert job.poll() is None, f"the job ended: {job.communicate()[1][-2000:]}"
        assert time.monotonic() < deadline, "the job does not get there"
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc")
def test_two_nodes_lose_a_worker_are_stopped_and_begin_again(place: Path, small: Config) -> None:
    """The run that went through all of it has taken every step once, on the data of one that did not."""
    config = dataclasses.replace(small, micro_batch_size=6, checkpoint_interval=1, max_steps=2000, eval_interval=2000)
    config = dataclasses.replace(config, lr_decay_steps=2000, eval_tokens=64, log_interval=1)
    job = submit(place, config, 0)
    until(lambda: any(row["step"] >= 3 for row in rows(config)), job)
    (victim,) = workers(config.out_dir, rank=1)
    os.kill(victim, signal.SIGKILL)
    until(lambda: (new := workers(config.out_dir, rank=1)) and victim not in new, job)
    before = rows(config)[-1]["step"]
    until(lambda: rows(config)[-1]["step"] > before + 3, job)  # all workers have begun again, and train
    job.send_signal(signal.SIGUSR1)
    _, said = job.communicate(timeout=LIMIT_S)
    assert job.returncode == 0, said[-2000:]
    assert "SIGUSR1: step" in said
    assert (place / "requeued").read_text() == "requeue 7\n"
    last = rows(config)[-1]["step"]

    again = dataclasses.replace(config, max_steps=last + 2)
    job = submit(place, again, 1)
    _, said = job.communicate(timeout=LIMIT_S)
    assert job.returncode == 0, said[-2000:]
    assert "resuming" in said
    steps = [row["step"] for row in rows(again) if "train_loss" in row]
    assert steps == list(range(1, last + 3))
    undisturbed = train_here(again, out_dir=str(place / "undisturbed"), data_dir=str(place / "data0"), checkpoint_interval=9999)
    hashes = [[row["data_hash"] for row in rows(run) if "train_loss" in row] for run in (again, undisturbed)]
    assert hashes[0] == hashes[1]


def test_the_script_is_one_that_bash_and_sbatch_read() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    text = SCRIPT.read_text()
    first_command = next(i for i, line in enumerate(text.splitlines()) if line and not line.startswith("#"))
    directives = [i for i, line in enumerate(text.splitlines()) if line.startswith("#SBATCH")]
    assert directives
    assert max(directives) < first_command, "sbatch reads no directive behind the first command"
    assert {"--nodes=2", "--ntasks-per-node=1", "--signal=B:USR1@180", "--requeue"} <= set(re.findall(r"#SBATCH (\S+)", text))
