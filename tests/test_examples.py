"""The examples at a tiny size, each in this process as `python -m` would run it."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import activations
from config.schema import Config
from runtime import checkpoint
from tests.runs import train_here

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What an example prints, with these arguments, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_module(f"examples.{name}", run_name="__main__")
        return capsys.readouterr().out

    return call


def test_finetune_gpt2_keeps_the_function_and_then_learns(run, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    printed = run("finetune_gpt2", "--steps", "3", "--out", "tuned")
    first, swapped, trained = (float(loss) for loss in re.findall(r"^(\d+\.\d+) (?:at|after)", printed, re.MULTILINE))
    assert "2 activations were replaced" in printed
    assert abs(swapped - first) < 1e-3
    assert trained < first - 0.1
    model = activations.load_swapped(tmp_path / "tuned")
    assert sum(isinstance(module, activations.Activation) for module in model.modules()) == 2


def test_digits_compares_five_activations(run) -> None:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    printed = run("digits", "--seeds", "2", "--steps", "2", "--rates", "1e-2").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed if line.startswith("|")][2:]
    assert [row[0].partition(":")[0] for row in rows] == ["gelu", "hermite", "fourier", "tropical", "tpgu"]
    assert rows[0][3] == rows[0][5] == "+0.000 (+0.000 to +0.000)"
    losses = [float(row[2]) for row in rows]
    for row, loss in zip(rows[1:], losses[1:], strict=True):
        middle, low, high = (float(number) for number in re.findall(r"[+-]\d+\.\d+", row[3]))
        assert low < middle < high
        assert middle == pytest.approx(loss - losses[0], abs=2e-3), "the difference of the printed means"


def test_an_interval_is_students(run) -> None:
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    interval = runpy.run_module("examples.digits")["interval"]
    assert interval(torch.tensor([1.0, 2.0, 3.0])) == "+2.000 (-0.484 to +4.484)"  # 2 +- 4.3027 / sqrt(3)


def test_walkthrough_says_what_it_shows(run, tmp_path: Path) -> None:
    printed = run("walkthrough")
    gains = re.search(r"gains at input_std 0.5: \(([\d.]+), ([\d.]+)\)", printed)
    assert gains
    assert [float(gain) for gain in gains.groups()] == pytest.approx([0.25, 1], abs=1e-6)
    errors = [float(error) for error in re.findall(r"value RMS (\S+),", printed)]
    assert errors == sorted(errors, reverse=True)
    losses = [float(loss) for loss in re.findall(r"step \d+: loss (\S+)", printed)]
    assert losses[-1] < losses[0] / 10
    assert (tmp_path / "walkthrough.png").read_bytes().startswith(b"\x89PNG")


def test_own_activation_has_unit_gain_and_trains(run, small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES[0].parents[1])
    printed = run("own_activation")
    gains = re.search(r"gains: \(([\d.]+), ([\d.]+)\)", printed)
    assert gains
    assert [float(gain) for gain in gains.groups()] == pytest.approx([0.25, 1], abs=1e-5)
    config = train_here(small, activation="examples/own_activation.py:Snake", max_steps=2)
    model, _ = checkpoint.load_model(config.out_dir)
    assert sum(type(module).__name__ == "Snake" for module in model.modules()) == config.n_layer


def test_parts_of_a_cosine_differ_in_their_shape_and_not_in_their_gain(run) -> None:
    gains = re.findall(r"\(([\d.]+), ([\d.]+)\)$", run("parts_of_a_cosine"), re.MULTILINE)
    assert len(gains) == 5
    assert [float(gain) for pair in gains for gain in pair] == pytest.approx([1] * 10, abs=1e-6)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_short_and_run_here(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
    assert f'run("{path.stem}"' in Path(__file__).read_text()
