"""A plan names every run once, says how to make it again, and is refused before anything is trained."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import activations
from comparison.plan import Sweep, plan
from config.command_line import parse
from config.tiny import config as tiny

TINY = Path(__file__).parents[2] / "config" / "tiny.py"
SPECS = ["gelu", "hermite:degree=3"]


def test_jobs_are_every_activation_at_every_seed_and_differ_in_nothing_else() -> None:
    sweep = plan(TINY, SPECS, 2, {"n_layer": 2})
    jobs = sweep.jobs(sweep.seeds, sweep.rates)
    assert [(job.config.activation, job.config.seed) for job in jobs] == [
        (spec, seed)
        for seed in (tiny.seed, tiny.seed + 1)
        for spec in ("gelu:exact=false", "hermite:degree=3,per=layer,init=unit,learnable=true")
    ]
    plain = {name: value for name, value in asdict(jobs[0].config).items() if name not in ("activation", "seed", "out_dir")}
    assert all(plain.items() <= asdict(job.config).items() for job in jobs)
    assert len({job.folder for job in jobs}) == len(jobs)
    assert jobs[0].folder == Path("runs/compare_tiny/gelu-seed=1337")


def test_every_family_can_be_planned_by_its_name_alone() -> None:
    families = activations.names()  # rational's groups=8 divides a layer's channels, not one channel
    assert len(plan(TINY, families, 1, {}).activations) == len(families)


def test_an_arm_may_be_gated_beside_plain_ones() -> None:
    sweep = plan(TINY, ["gelu", "swiglu", "gated(rational)"], 1, {"n_layer": 2}, baseline="gated(silu)", rates=(1e-3,))
    jobs = sweep.jobs(sweep.seeds, sweep.rates)
    assert [job.arm for job in jobs] == ["gelu", "swiglu", "gated(rational:p=5,q=4)"]
    assert [(job.config.mlp, job.config.activation) for job in jobs[:2]] == [("plain", "gelu:exact=false"), ("gated", "silu")]
    assert sweep.settings.baseline == "gated(silu)"
    assert all(parse(list(job.arguments)) == job.config for job in jobs)
    assert "--mlp" not in jobs[0].arguments
    assert jobs[2].folder == Path("runs/compare_tiny/gated-rational-p=5-q=4-lr=0.001-seed=1337")


def test_an_arm_may_differ_by_depth_or_share_its_coefficients() -> None:
    sweep = plan(TINY, ["gelu", "hermite:degree=3;relu", "hermite:per=model"], 1, {"n_layer": 2})
    jobs = sweep.jobs(sweep.seeds, sweep.rates)
    assert [job.arm for job in jobs] == ["gelu", "hermite:degree=3;relu", "hermite:degree=3,per=model"]
    assert jobs[1].folder == Path("runs/compare_tiny/hermite-degree=3+relu-seed=1337")
    assert all(parse(list(job.arguments)) == job.config for job in jobs)
    with pytest.raises(ValueError, match="3 layers have no 2 equal parts"):
        plan(TINY, ["gelu", "hermite;relu"], 1, {"n_layer": 3})


def test_a_preset_may_gate_all_arms() -> None:
    for arms in (["gelu", "swiglu"], ["gated(gelu)", "silu"]):
        sweep = plan(TINY, arms, 1, {"mlp": "gated"}, baseline="silu")
        assert sweep.settings.activations == ("gated(gelu:exact=false)", "gated(silu)")
        assert sweep.settings.baseline == "gated(silu)"
        assert all(job.config.mlp == "gated" and parse(list(job.arguments)) == job.config for job in sweep.jobs([1], ()))


def test_arguments_make_the_same_config() -> None:
    sweep = plan(
        TINY, SPECS, 2, {"bias": True, "weight_decay": 0.01}, varied={"mlp_init": ("gpt2", "unit")}, rates=(1e-3, 3e-3)
    )
    jobs = sweep.jobs(sweep.seeds, sweep.rates)
    assert len(jobs) == 2 * 2 * 2 * 2
    for job in jobs:
        assert parse(list(job.arguments)) == job.config


def test_a_sweep_is_a_group_of_weights_and_biases() -> None:
    (job,) = plan(TINY, SPECS[:1], 1, {"wandb": "offline"}).jobs([1], ())
    assert job.config.wandb_group == "compare_tiny"
    (job,) = plan(TINY, SPECS[:1], 1, {"wandb": "offline", "wandb_group": "mine"}).jobs([1], ())
    assert job.config.wandb_group == "mine"
    (job,) = plan(TINY, SPECS[:1], 1, {}).jobs([1], ())
    assert "--wandb_group" not in job.arguments


def test_min_lr_keeps_its_proportion() -> None:
    sweep = plan(TINY, SPECS, 1, {}, rates=(1e-3,))
    (job, _) = sweep.jobs(sweep.seeds, sweep.rates)
    assert job.config.min_lr / job.config.learning_rate == pytest.approx(tiny.min_lr / tiny.learning_rate)


def test_telemetry_is_on_unless_asked_otherwise() -> None:
    first = plan(TINY, SPECS, 1, {"max_steps": 1000}).jobs([1], ())[0].config
    assert 6 <= 1000 // first.telemetry_interval <= 9
    assert plan(TINY, SPECS, 1, {"telemetry_interval": 0}).jobs([1], ())[0].config.telemetry_interval == 0


def test_settings_tell_the_report() -> None:
    sweep = plan(TINY, SPECS, 3, {}, baseline="hermite:degree=3", rates=(2e-3, 1e-3), num_rate_seeds=1, command="x")
    assert sweep.settings.baseline.startswith("hermite:degree=3")
    assert sweep.settings.rates == (1e-3, 2e-3)
    assert sweep.rate_seeds == sweep.settings.rate_seeds == (tiny.seed,)
    assert sweep.settings.commands == ("x",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: plan(TINY, [], 1, {}), "no --activations given"),
        (lambda: plan(TINY, ["gelu", "gelu:exact=false"], 1, {}), "names gelu twice"),
        (lambda: plan(TINY, ["gelo"], 1, {}), "did you mean 'gelu'"),
        (lambda: plan(TINY, ["swiglu", "gated(silu)"], 1, {}), "names swiglu twice"),
        (
            lambda: plan(TINY, SPECS, 1, {}, varied={"mlp": ("plain", "gated")}),
            r"name gated\(SPEC\) or swiglu in --activations",
        ),
        (lambda: plan(TINY, ["gated(rational)"], 1, {"n_embd": 64}), "groups=8 do not divide 172 channels"),
        (lambda: plan(TINY, SPECS, 0, {}), "--seeds 0"),
        (lambda: plan(TINY, SPECS, 2, {}, num_rate_seeds=3), "--lr_seeds 3 must lie in 0"),
        (lambda: plan(TINY, SPECS, 2, {}, baseline="relu"), "--baseline relu is not among"),
        (lambda: plan(TINY, SPECS, 1, {}, varied={"seed": (1, 2)}), "seed is varied by --seeds already"),
        (
            lambda: plan(TINY, SPECS, 1, {}, varied={"learning_rate": (1.0,)}, rates=(1.0,)),
            "learning_rate is varied by --lr already",
        ),
        (
            lambda: plan(TINY, SPECS, 1, {"n_layer": 2}, varied={"n_layer": (1, 2)}),
            "n_layer is given to --vary and as --n_layer",
        ),
        (lambda: plan(TINY, SPECS, 1, {"activation": "gelu"}), "name all of them in --activations"),
        (lambda: plan(TINY, SPECS, 1, {"eval_only": True}), "--eval_only True trains nothing"),
        (lambda: plan(TINY, SPECS, 1, {}, varied={"n_head": (5, 6)}), "not a multiple of n_head=5"),
        (lambda: plan(TINY.with_name("nope.py"), SPECS, 1, {}), "is not a preset file"),
    ],
)
def test_what_cannot_be_run_is_refused(change: Callable[[], Sweep], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change()


def test_jobs_compare_by_value() -> None:
    sweep: Any = plan(TINY, SPECS, 1, {})
    assert sweep.jobs([1], ()) == sweep.jobs([1], ())
    assert replace(sweep.jobs([1], ())[0], name="x") != sweep.jobs([1], ())[0]
