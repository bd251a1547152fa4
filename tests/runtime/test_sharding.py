"""FSDP is another way to hold the same model: the losses, weights and files of DDP and of one process.

One spawn a world size does all that needs it, in processes that import once.
"""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import train
from config.schema import Config
from model import GPT
from runtime import checkpoint, sharding
from runtime import weights as starts
from runtime.run import Run
from tests.runs import PRESET, arguments, free_port, in_processes, metrics, rows, train_here, weights

CPU = torch.device("cpu")
CHANGES: dict[str, Any] = {
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "max_steps": 4,
    "lr_decay_steps": 4,
    "eval_interval": 2,
}
CHANGES |= {"activation": "tpgu:degree=5", "telemetry_interval": 2}  # a table of coefficients per channel, which stays whole


@pytest.fixture(scope="module")
def base(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One process without sharding, to its end."""
    from tests.runs import small_config

    folder = tmp_path_factory.mktemp("one")
    return train_here(dataclasses.replace(small_config(data_dir, folder / "run"), **CHANGES))


def _work(rank: int, count: int, ports: list[int], runs: list[list[str]], notes: str) -> None:
    """One run after another, as a rank of `count`; what a rank holds at the end of set-up is noted."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    whole = train.train
    held: list[dict[str, int]] = []

    def note(run: Run) -> int:
        held.append(
            {name: p.to_local().numel() if sharding.is_part(p) else -p.numel() for name, p in run.gpt.named_parameters()}
        )
        return whole(run)

    train.train = note
    for port, argv in zip(ports, runs, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        code = train.main([PRESET, *argv])
        if code:
            raise AssertionError(f"rank {rank} of {argv} ended with {code}")
    Path(f"{notes}.{rank}").write_text(json.dumps(held))


def together(count: int, configs: list[Config], folder: Path) -> list[list[dict[str, int]]]:
    """Train with each config in `count` processes; per rank and run: parameter -> how many numbers, negative where all."""
    ports = [free_port() for _ in configs]
    in_processes(_work, (count, ports, [arguments(config) for config in configs], str(folder / "notes")), count)
    return [json.loads(Path(f"{folder / 'notes'}.{rank}").read_text()) for rank in range(count)]


def alike(a: Config, b: Config, tolerance: float) -> None:
    """Equal data, and numbers that differ by the order of sums alone."""
    first, second = metrics(a), metrics(b)
    assert [row["step"] for row in first] == [row["step"] for row in second]
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, float):
                assert other[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
            else:
                assert other[name] == value
    mine, theirs = weights(a, a.max_steps), weights(b, b.max_steps)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_losses_weights_and_files_are_those_of_one_process_and_of_ddp(base: Config, tmp_path: Path, count: int) -> None:
    sharded = dataclasses.replace(base, parallelism="fsdp", out_dir=str(tmp_path / "fsdp"))
    ddp = dataclasses.replace(base, out_dir=str(tmp_path / "ddp"))
    early = dataclasses.replace(sharded, max_steps=2, out_dir=str(tmp_path / "early"), recompute="blocks")
    late = dataclasses.replace(early, max_steps=4, parallelism="ddp" if count == 4 else "fsdp", reshard_after_forward=False)
    held = together(count, [sharded, *([ddp] if count == 2 else []), early, late], tmp_path)
    alike(base, sharded, 2e-5)
    alike(base, late, 2e-5)  # went on from a sharded checkpoint, as ddp where there are four
    if count == 2:
        alike(ddp, sharded, 2e-5)
    first = json.loads((Path(base.out_dir) / "run.json").read_text())
    second = json.loads((Path(sharded.out_dir) / "run.json").read_text())
    assert (first["init_hash"], first["activation_init_hash"]) == (second["init_hash"], second["activation_init_hash"])

    folder = checkpoint.find(sharded.out_dir, "last")
    assert checkpoint.verify(folder)
    gpt, _ = checkpoint.load_model(sharded.out_dir)
    assert gpt.generate(torch.tensor([[1, 2]]), 3, temperature=0).shape == (1, 5)
    moments = checkpoint.load_state(folder)["optimizer"]["state"]
    assert {tuple(entry["exp_avg"].shape) for entry in moments.values()} == {tuple(p.shape) for p in gpt.parameters()}

    for name, parameter in gpt.named_parameters():
        counts = [ranks[0][name] for ranks in held]
        if parameter.dim() < 2 or "act." in name:
            assert counts == [-parameter.numel()] * count, f"{name} is exact on every rank"
        else:
            assert sum(counts) == parameter.numel(), f"{name} is shared out"
            assert max(counts) <= math.ceil(parameter.shape[0] / count) * parameter.shape[1]

    # Another world size, and back to one process without sharding.
    longer = dataclasses.replace(base, out_dir=late.out_dir, max_steps=6, lr_decay_steps=4)
    assert rows(train_here(longer))[-1]["step"] == 6


def test_what_goes_together_with_it(base: Config, tmp_path: Path) -> None:
    """muP, a gated MLP, an activation for each part of the depth, a start from other weights, recomputing and branches."""
    fields: dict[str, Any] = {"activation": "tpgu:degree=5;fourier:degree=1", "mlp": "gated", "mup_base_width": 16}
    start = train_here(dataclasses.replace(base, **fields, out_dir=str(tmp_path / "start")))

    def runs(place: str, **changes: Any) -> list[Config]:
        begun = dataclasses.replace(base, **fields, **changes, init_from=start.out_dir, lr_decay_steps=0)
        trunk = dataclasses.replace(
            begun, lr_schedule="constant", max_steps=3, checkpoint_steps="2", out_dir=str(tmp_path / place / "trunk")
        )
        branch = dataclasses.replace(
            begun, lr_schedule="wsd", branch_from=f"{trunk.out_dir}@2", out_dir=str(tmp_path / place / "branch")
        )
        other = dataclasses.replace(
            begun, activation="hermite:degree=3;gelu", block_size=16, max_steps=2, out_dir=str(tmp_path / place / "other")
        )
        return [trunk, branch, other]

    one, two = runs("one"), runs("two", parallelism="fsdp", recompute="blocks")
    for config in one:
        train_here(config)
    together(2, two, tmp_path)
    for whole, parts in zip(one, two, strict=True):
        alike(whole, parts, 2e-5)


def test_a_start_from_other_weights_makes_no_second_model(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a process of many copies its part of a mapped file, and never holds the whole."""
    config = dataclasses.replace(base, vocab_size=257, init_from=base.out_dir, out_dir=base.out_dir + "_next")
    gpt, copied = GPT(config.gpt(257)), list[str]()
    monkeypatch.delattr(starts, "GPT")
    starts.start_from(gpt, config, None, lambda own, value: copied.append(str(tuple(value.shape))))  # type: ignore[arg-type]
    assert len(copied) == len(gpt.gpt2_state_dict())


def test_bfloat16_gathers_what_autocast_would_round(base: Config, tmp_path: Path) -> None:
    """The first losses are DDP's to the bit; later ones differ by the order of sums of gradients in bfloat16."""
    ddp = dataclasses.replace(base, dtype="bfloat16", telemetry_interval=0, out_dir=str(tmp_path / "ddp"))
    sharded = dataclasses.replace(ddp, parallelism="fsdp", out_dir=str(tmp_path / "fsdp"))
    together(2, [ddp, sharded], tmp_path)
    one, other = ([row["train_loss"] for row in metrics(config) if "train_loss" in row] for config in (ddp, sharded))
    assert other[0] == one[0]  # the same weights, rounded alike
    assert other == pytest.approx(one, rel=1e-3)


def test_values_are_drawn_one_after_another_as_ever(base: Config) -> None:
    """What a sharded model is filled with is what a whole one has, and a meta model has nothing."""
    config = dataclasses.replace(base, vocab_size=257)
    gpt = GPT(config.gpt(257), seed=5)
    drawn = dict(gpt.initial_values(5))
    assert drawn
    assert all(torch.equal(gpt.get_parameter(name), value) for name, value in drawn.items())
    assert all(parameter.is_meta for parameter in sharding.make(config).parameters())


@pytest.mark.parametrize(
    ("changes", "dtype", "told"),
    [
        ({"optimizer": "muon"}, torch.float32, "optimizer 'muon' needs whole matrices.*--parallelism ddp or --optimizer adamw"),
        ({"activation": "hermite:per=model"}, torch.float32, "has per=model.*or per=layer"),
        ({"dtype": "float16"}, torch.float16, "dtype float16 needs one gradient scale.*or --dtype bfloat16"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    base: Config, changes: dict[str, Any], dtype: torch.dtype, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        sharding.check(dataclasses.replace(base, parallelism="fsdp", **changes), CPU, dtype)
    sharding.check(dataclasses.replace(base, **changes), CPU, dtype)


def test_clipping_without_parts_is_pytorch_s() -> None:
    layer = nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    assert sharding.clip_gradients(layer, 1e9) == pytest.approx(math.sqrt(8))
