"""The short form of every part: each kind of fault, into real processes, in seconds; and what the suite makes of it."""

import json
from pathlib import Path

import pytest

from faults import __main__ as command
from faults import suite
from faults.tally import Tally


@pytest.mark.parametrize("name", suite.PARTS)
def test_the_short_form_is_survived(name: str, tmp_path: Path) -> None:
    (result,) = suite.run([name], full=False, minutes=4.0, folder=tmp_path)
    assert not result.tally.failures
    assert result.tally.injected == result.tally.survived > 0
    assert result.tally.lost == 0


def test_the_table_says_what_was_not_injected() -> None:
    tally = Tally(planned=100, injected=30, survived=29, lost=1)
    results = [suite.Result("kill", tally, 1.0), suite.Result("disk", Tally(planned=2, injected=2, survived=2), 1.0)]
    lines = suite.table(results).splitlines()
    assert lines[2].endswith("| 30 of 100 | 29 | 1 |")
    assert lines[3].endswith("| 2 | 2 | 0 |")
    assert lines[4] == "| all | | 32 | 31 | 1 |"


def test_the_command_writes_json_and_fails_where_a_fault_was_not_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = Tally(planned=1, injected=1, failures=["it was silent"])
    monkeypatch.setattr(suite, "run", lambda *_: [suite.Result("kill", failed, 1.0)])
    assert command.main(["--only", "kill", "--json", str(tmp_path / "a" / "b.json")]) == 1
    assert "| kill |" in capsys.readouterr().out
    written = json.loads((tmp_path / "a" / "b.json").read_text())
    assert written["parts"][0]["failures"] == ["it was silent"]
    assert {"commit", "dirty", "command", "hardware", "date"} <= written.keys()
