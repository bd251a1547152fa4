import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.lock import locked

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from data.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_has_it(tmp_path: Path) -> None:
    message = rf"is in use by process {os.getpid()} on .* since \d{{4}}-\d\d-\d\d .*; wait until it ends"
    with locked(tmp_path), pytest.raises(ValueError, match=message), locked(tmp_path):
        pytest.fail("two hold one lock")
    with locked(tmp_path), locked(tmp_path, ".other"):
        pass


def test_it_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), locked(tmp_path):
        raise OSError("full")
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text()
    assert (tmp_path / ".lock").read_text() == ""


def test_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=f"in use by process {owner.pid}"), locked(tmp_path):
            pytest.fail("two hold one lock")
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert f"process {owner.pid}" in (tmp_path / ".lock").read_text()
    with locked(tmp_path):
        pass


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(ValueError, match="symbolic link"), locked(tmp_path):
        pass
    assert victim.read_text() == "mine"
