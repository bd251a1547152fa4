"""The benchmark of activations runs end to end on a small shape."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import activations as bench


def test_it_prints_ratios_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = bench.main(
        [
            "--activations",
            "hermite:degree=3",
            "--shape",
            "4",
            "64",
            "--dtypes",
            "float32",
            "--rounds",
            "2",
            "--device",
            "cpu",
            "--json",
            str(tmp_path / "x.json"),
        ]
    )
    assert code == 0
    assert "hermite" in capsys.readouterr().out
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert {row["mode"] for row in rows} >= {"eager", "compiled"}
    if find_spec("torchortho"):
        assert rows[-1]["mode"] == "torchortho"
        assert rows[-1]["ours_against_this"] > 0
