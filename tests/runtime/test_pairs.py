"""Fields that change what is computed, together: what holds of each alone holds of all of them at once.

A pair of fields is tested where both stand in one of the BUNDLES, or where one does and the other is a way to run: in pieces,
with blocks computed again, as a branch, from another run's weights, in several processes. test_sharding.py has those of FSDP.
What does not go together is refused by name: here, in test_sharding.py and in tests/config/test_schema.py.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from config.schema import Config
from model import GPT
from runtime.setup import set_up
from tests.runs import assert_same, rows, train_here, weights
from tests.runtime.test_sharding import alike, together

EVERY: dict[str, Any] = {"mlp": "gated", "mlp_init": "unit", "preactivation_std": 0.8, "mup_base_width": 16, "bias": True}
BUNDLES = {
    "adamw": EVERY | {"activation": "tpgu:degree=5;fourier:degree=1", "grad_clip": 0.5, "activation_lr_scale": 2.0},
    "muon": EVERY | {"activation": "hermite:degree=3,per=model;rational:groups=5,per=model", "optimizer": "muon"},
}
NO_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
NAMES = [pytest.param(name, marks=[NO_MUON] if name == "muon" else []) for name in BUNDLES]


@pytest.mark.parametrize("name", NAMES)
def test_pieces_branches_and_blocks_computed_again_are_the_whole_run(small: Config, tmp_path: Path, name: str) -> None:
    """To the bit, dropout included; and another run starts where this one ends."""
    base = dataclasses.replace(small, **BUNDLES[name], dropout=0.1, lr_schedule="wsd", telemetry_interval=6)
    whole = train_here(base, lr_decay_fraction=1 / 3, out_dir=str(tmp_path / "whole"))
    pieces = dataclasses.replace(whole, lr_decay_steps=12, recompute="blocks", out_dir=str(tmp_path / "pieces"))
    train_here(pieces, max_steps=6)
    assert_same(train_here(pieces), whole)
    trunk = train_here(
        base, lr_schedule="constant", max_steps=9, checkpoint_steps="8", recompute="blocks", out_dir=str(tmp_path / "trunk")
    )
    assert_same(train_here(base, branch_from=f"{trunk.out_dir}@8"), whole)
    last = Path(whole.out_dir) / "checkpoints" / "step_00000012"
    further = train_here(base, init_from=str(last), max_steps=1, recompute="blocks", out_dir=str(tmp_path / "further"))
    ends, begins = rows(whole)[-1], next(row for row in rows(further) if "val_loss" in row)
    assert (begins["step"], begins["val_loss"]) == (0, ends["val_loss"])


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_as_one(small: Config, tmp_path: Path, name: str) -> None:
    base = dataclasses.replace(small, **BUNDLES[name], micro_batch_size=3, max_steps=4, eval_interval=2, telemetry_interval=2)
    one = train_here(base, out_dir=str(tmp_path / "one"))
    two = dataclasses.replace(base, recompute="blocks", out_dir=str(tmp_path / "two"))
    together(2, [two], tmp_path)
    # Muon orthogonalises in bfloat16, which makes the order of sums visible.
    alike(one, two, 2e-5 if name == "adamw" else 2e-3)


def test_other_activations_for_each_part_of_the_depth_take_the_place_of_what_init_from_has(
    small: Config, tmp_path: Path
) -> None:
    """Each is made for what its layer is fed; a layer keeps its number, which `draw=layer` draws by."""
    gelu = GPT(dataclasses.replace(small, activation="gelu").gpt(257), 3).eval()
    gelu.save_pretrained(tmp_path / "gelu")
    parts = "fourier:degree=5,init=fit-gelu;tpgu:init=paper,draw=layer"
    config = dataclasses.replace(small, activation=parts, init_from=str(tmp_path / "gelu"))
    run = set_up(config)
    run.resources.close()
    first, second = (block.mlp.act for block in run.gpt.transformer.h)
    fresh = GPT(config.gpt(257), config.seed)
    assert float(first.input_std) != pytest.approx(float(fresh.transformer.h[0].mlp.act.input_std))
    assert torch.equal(second.coefficients, fresh.transformer.h[1].mlp.act.coefficients)
    assert torch.equal(run.gpt.transformer.wte.weight, gelu.transformer.wte.weight)
    x = torch.linspace(-0.2, 0.2, 128).expand(2, -1)
    assert (first(x) - torch.nn.functional.gelu(x)).abs().max() < 0.01


def test_one_set_of_coefficients_cannot_be_made_for_layers_of_different_inputs(small: Config, tmp_path: Path) -> None:
    GPT(dataclasses.replace(small, activation="gelu").gpt(257), 3).save_pretrained(tmp_path / "gelu")
    config = dataclasses.replace(small, activation="hermite:per=model", init_from=str(tmp_path / "gelu"))
    with pytest.raises(ValueError, match=r"has per=model.*type per=layer, or --input_scale 1"):
        set_up(config)
    started = train_here(config, input_scale="1", max_steps=1)
    assert "transformer.h.0.mlp.act.coefficients" in weights(started, 1)
