"""Sweeps of several sizes and lengths together: a known law is foretold, what does not belong together is refused."""

import json
import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compare
from comparison import results
from comparison.plan import Settings
from comparison.scaling import report, study

WIDTHS, STEPS, TOKENS = (32, 64, 128), (100, 200, 400), 12 * 64
PARAMETERS = {32: 60_000, 64: 220_000, 128: 830_000}
TARGET = (5e6, 2e6)


def loss_of(arm: str, parameters: float, tokens: float, seed: int = 0) -> float:
    """relu leads by its B: a lead that shrinks with tokens. Seeds move all arms of a size alike, and each a little."""
    A, B = {"gelu": (60.0, 40.0), "relu": (60.0, 36.0)}[arm]
    alike = 0.01 * math.sin(seed) if seed else 0.0
    own = 2e-4 * math.sin(7 * seed + len(arm) + parameters + tokens) if seed else 0.0
    return 1.2 + A * parameters**-0.4 + B * tokens**-0.3 + alike + own * (arm == "relu")


@pytest.fixture
def folders(make_run: Any, tmp_path: Path) -> list[Path]:
    """Three seeds of two arms at three sizes and lengths."""
    for arm, width, steps, seed in product(("gelu", "relu"), WIDTHS, STEPS, (1337, 1338, 1339)):
        fields = {"n_embd": width, "max_steps": steps, "global_batch_size": 12, "micro_batch_size": 12, "block_size": 64}
        loss = loss_of(arm, PARAMETERS[width], steps * TOKENS, seed)
        make_run(arm, seed, loss, run={"parameters": PARAMETERS[width], "init_hash": f"{seed} {width}"}, **fields)
    return [tmp_path / "runs"]


def true_difference(where: tuple[float, float]) -> float:
    return loss_of("relu", *where) - loss_of("gelu", *where)


def test_a_known_law_is_foretold(folders: list[Path]) -> None:
    found, runs = study.study(folders, "gelu", TARGET, draws=40)
    assert (found.baseline, found.arms, found.sizes) == ("gelu", ("gelu", "relu"), ("4 x 32", "4 x 64", "4 x 128"))
    assert (len(found.points), len(runs.records)) == (18, 54)
    shared = next(each for each in found.forecasts if each.law == "shared")
    assert shared.difference == pytest.approx(true_difference(TARGET), abs=0.002)
    assert shared.low is not None
    assert shared.high is not None
    assert shared.low < shared.difference < shared.high < shared.low + 0.005
    for point in found.points:
        if point.contrast:
            expected = true_difference((point.parameters, point.tokens))
            assert point.contrast.interval.mean == pytest.approx(expected, abs=5e-4)
    assert found.notes == ()
    assert found.missed == {}  # two sizes are too few to foretell the third


def test_the_interval_covers_what_is_true() -> None:
    """Of eight studies at 95 %, fewer than six would cover it once in 170 times."""
    covered, seeds = 0, 4
    for draw in range(8):
        generator = np.random.default_rng(draw)
        points = []
        for width in WIDTHS:
            alike = dict(enumerate(0.01 * generator.normal(size=seeds)))
            for arm, steps in product(("gelu", "relu"), STEPS):
                where = PARAMETERS[width], steps * TOKENS
                losses = {seed: loss_of(arm, *where) + alike[seed] + 1e-3 * generator.normal() for seed in alike}
                points.append(study.Point(arm, str(width), *where, losses, 1e-3, None))
        made = study.Scaling("gelu", tuple(points), {}, (), {}, TARGET, ())
        (found,) = study._forecasts(made, "shared", study._fitted(made, "shared"), draws=40)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= true_difference(TARGET) <= found.high
    assert covered >= 6


def test_the_draws_move_all_arms_of_a_size_alike(folders: list[Path]) -> None:
    """The seeds' common part, fifty times the difference's spread, cancels: the interval is narrow."""
    found, _ = study.study(folders, "gelu", TARGET, draws=1)
    means = [study._drawn_means(found, np.random.default_rng(i)) for i in range(20)]
    index = {(point.arm, point.size, point.tokens): i for i, point in enumerate(found.points)}
    pairs = [(i, index["gelu", size, tokens]) for (arm, size, tokens), i in index.items() if arm == "relu"]
    alone = np.std([m[0] for m in means])
    apart = np.mean([np.std([m[i] - m[j] for m in means]) for i, j in pairs])
    assert alone > 1e-3 > 10 * apart


def test_the_report_from_the_command_line(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    argv = ["scaling", *map(str, folders), "--baseline", "gelu", "--parameters", "5e6", "--tokens", "2e6", "--draws", "5"]
    assert compare.main([*argv, "--out_dir", str(out)]) == 0
    assert "54 runs of 2 arms at 3 sizes (4 x 32, 4 x 64, 4 x 128: layers x width)" in capsys.readouterr().out
    text = (out / "scaling.md").read_text()
    assert "What this is worth: an extrapolation holds only if the law holds" in text
    assert re.search(r"\| relu \| -\d\.\d\d % \([-+]\d\.\d\d to [-+]\d\.\d\d\) \|", text)
    told = json.loads((out / "scaling.json").read_text())
    assert told["target"] == {"parameters": 5e6, "tokens": 2e6}
    assert len(told["points"]) == 18
    assert told["laws"]["shared"]["a"] == pytest.approx([0.4, 0.4], abs=0.1)
    for name in ("scaling", "scaling_per_parameter"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    (first,) = (block for block in text.split("\n\n") if block.startswith("| arm | against gelu | size |"))
    assert re.fullmatch(
        r"\| \w+ \| [-+].* % \(.* to .*\) \| 4 x 32 \| 1.3 \| 0.0768M \| 60,000 \| [\d.]+ \|", first.splitlines()[2]
    )


def test_too_few_sizes_have_curves_and_no_law(folders: list[Path]) -> None:
    for run in folders[0].glob("*n_embd=128*"):
        for path in run.iterdir():
            path.unlink()
        run.rmdir()
    found, runs = study.study(folders, "gelu", TARGET)
    assert (found.laws, found.forecasts) == ({}, ())
    assert any("2 sizes are too few" in note for note in found.notes)
    text = str(report.compose(found, runs, ""))
    assert "What this is worth" not in text
    assert "2 sizes are too few" in text


def test_an_arm_that_lacks_points_is_left_out_of_the_laws(folders: list[Path], make_run: Any) -> None:
    fields = {"n_embd": 32, "max_steps": 100, "global_batch_size": 12, "micro_batch_size": 12, "block_size": 64}
    make_run("silu", 1337, 3.0, run={"parameters": 60_000, "init_hash": "1337 32"}, **fields)
    found, _ = study.study(folders, "gelu", TARGET, draws=2)
    assert {each.arm for each in found.forecasts} == {"relu"}
    assert any("lack sizes or lengths: silu" in note for note in found.notes)


def test_what_does_not_belong_together_is_refused(
    folders: list[Path], make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("gelu", 1337, 2.0, n_embd=256, weight_decay=0.5, global_batch_size=12, micro_batch_size=12, block_size=64)
    assert compare.main(["scaling", *map(str, folders)]) == 2
    assert "differ in weight_decay: 0.1 and 0.5; sizes and lengths alone may differ" in capsys.readouterr().err


def test_other_data_are_refused(folders: list[Path], make_run: Any) -> None:
    other = {"data": {"corpus_sha256": "c1"}}
    make_run("gelu", 1337, 2.0, run=other, n_embd=256, global_batch_size=12, micro_batch_size=12, block_size=64)
    with pytest.raises(ValueError, match="differ in corpus_sha256: their losses do not compare"):
        study.study(folders, "", TARGET)


def test_each_size_chooses_its_rates_by_its_own_seeds(make_run: Any, tmp_path: Path) -> None:
    """At width 64 three seeds ran both rates, and one of them is misleading; at 128 that one chose alone."""
    same = {"max_steps": 100, "global_batch_size": 12, "micro_batch_size": 12, "block_size": 64}
    for arm, rate, seed in product(("gelu", "relu"), (1e-3, 4e-3), (1337, 1338, 1339)):
        for width in (64, 128):
            if width == 128 and seed != 1337 and rate == 1e-3:
                continue
            loss = 2.0 if rate == 1e-3 else 1.9 if seed == 1337 else 3.0
            facts = {"parameters": PARAMETERS[width], "init_hash": f"{seed} {width}"}
            make_run(arm, seed, loss, run=facts, n_embd=width, learning_rate=rate, **same)
    records = results.gather([tmp_path / "runs"]).records
    for width, seeds in ((64, (1337, 1338, 1339)), (128, (1337,))):
        own = tuple(record for record in records if record.config["n_embd"] == width)
        settings = Settings(baseline="gelu:exact=false", rates=(1e-3, 4e-3), rate_seeds=seeds)
        (tmp_path / str(width)).mkdir()
        results.save(tmp_path / str(width) / results.FILE, results.Results(settings, own))
    found, _ = study.study([tmp_path / "64", tmp_path / "128"], "", TARGET)
    assert {(point.size, point.rate) for point in found.points} == {("4 x 64", 1e-3), ("4 x 128", 4e-3)}


@pytest.mark.parametrize(
    ("option", "told"),
    [(["--tokens", "0"], "--tokens: '0' is not a number above 0"), (["--draws", "-1"], "--draws -1 is no number")],
)
def test_bad_options(option: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["scaling", "nowhere", *option]) == 2
    assert told in capsys.readouterr().err
