"""The coordinate check: with muP a few steps move activations as far at every width, without it farther the wider they are."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

import compare
from comparison.untrained import coordinates
from comparison.untrained.coordinates import KINDS, PLACES
from config.schema import Config
from config.study import config as study
from runtime import optim
from tests.runs import ROOT

WIDTHS = (64, 128, 256)
NARROW = (32, 64, 128)  # Muon orthogonalises in bfloat16, which takes a CPU ten times as long at 256
config = dataclasses.replace(
    study, n_layer=2, n_head=4, block_size=32, global_batch_size=8, micro_batch_size=8, mlp_init="unit",
    learning_rate=2e-3,
)  # fmt: skip


def found(changed: Config, steps: int = 4) -> dict[tuple[str, str], float]:
    widths = NARROW if changed.optimizer == "muon" else WIDTHS
    return coordinates.slopes(coordinates.measure(changed, widths, steps, seeds=1), steps)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mlp_init": "gpt2"},
        {"optimizer": "muon"},
        {"mlp": "gated", "activation": "hermite:degree=3,per=channel"},
        {"activation": "fourier:degree=1", "activation_lr_scale": 3.0},
    ],
    ids=["gelu", "gpt2", "muon", "gated", "coefficients"],
)
def test_changes_do_not_depend_on_the_width_with_mup_and_do_without(changes: dict[str, object]) -> None:
    """Logits fall slowly: what is random in them at the start goes with 1/sqrt(width), which is no part of what is learned."""
    slopes = found(dataclasses.replace(config, **changes))
    for place in PLACES:
        assert (-0.5 if place == "logits" else -0.35) < slopes["muP", place] < 0.2, (place, slopes)
    assert slopes["standard", "attention"] > 0.6
    assert slopes["standard", "MLP"] > 0.4
    assert slopes["standard", "logits"] > 0.4


def test_the_check_sees_a_rate_that_does_not_fall_with_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    make = optim.optimizer

    def without_rates(model, changed, device):  # type: ignore[no-untyped-def]
        return make(model, dataclasses.replace(changed, mup_base_width=0), device)

    monkeypatch.setattr(coordinates, "optimizer", without_rates)
    assert found(config)["muP", "MLP"] > 0.4


def test_the_command_writes_numbers_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = ROOT / "config" / "study.py"
    small = ["--n_layer", "1", "--n_head", "2", "--block_size", "8", "--global_batch_size", "2", "--micro_batch_size", "2"]
    argv = ["coordinates", str(preset), "--widths", "16", "32", "--steps", "2", "--seeds", "1", *small]
    assert compare.main([*argv, "--out_dir", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "| muP | residual stream |" in told
    rows = json.loads((tmp_path / "coordinates.json").read_text())["rows"]
    assert [(row["kind"], row["width"], row["step"]) for row in rows] == [
        (k, w, s) for k in KINDS for w in (16, 32) for s in (1, 2)
    ]
    first = {kind: next(row for row in rows if row["kind"] == kind) for kind in KINDS}
    assert [first["standard"][place] for place in PLACES] == [first["muP"][place] for place in PLACES], (
        "the base width is standard"
    )
    assert (tmp_path / "coordinates.png").stat().st_size > 5000
    assert b"muP: change" in (tmp_path / "coordinates.svg").read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--n_embd", "64"], "--n_embd is chosen here: give --widths"),
        (["--widths", "64"], "--widths 64 --steps 5 --seeds 2: allowed are at least two widths"),
        (["--widths", "64", "66"], "n_embd=66 is not a multiple of n_head=4"),
        (["--width", "64"], "unknown option '--width', did you mean --widths"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = ROOT / "config" / "study.py"
    assert compare.main(["coordinates", str(preset), *words, "--out_dir", str(tmp_path / "out")]) == 2
    assert told in (said := capsys.readouterr().err)
    assert said.count("\n") == 1


def test_numbers_that_are_not_finite_are_told() -> None:
    rows = [
        {"kind": k, "width": w, "seed": 0, "step": 1} | dict.fromkeys(PLACES, None if w == 32 else 1.0)
        for k in KINDS
        for w in (16, 32)
    ]
    assert math.isnan(coordinates.slopes(rows, 1)["muP", "MLP"])
    assert coordinates.table(rows).rows[0][2:] == ("1", "nan", "+nan")
