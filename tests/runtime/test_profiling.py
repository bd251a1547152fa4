"""The profile of a run's steps: each part is there, the parts are the whole step, and rows say what waiting cost."""

import gzip
import json
from pathlib import Path

import pytest

from config.schema import Config
from runtime import profiling
from tests.runs import rows, train_here


@pytest.fixture(scope="module")
def profiled(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of six steps, three of them profiled."""
    from tests.runs import small_config

    config = small_config(data_dir, tmp_path_factory.mktemp("profiled"))
    return train_here(config, max_steps=6, lr_decay_steps=6, profile_steps=3)


def test_the_table_has_every_part_and_adds_up(profiled: Config) -> None:
    lines = (Path(profiled.out_dir) / "profile" / "table.txt").read_text().splitlines()[1:]
    found = {line[:18].strip(): [float(number.rstrip("%")) for number in line[18:].split()] for line in lines}
    assert found.keys() == {*profiling.PARTS, profiling.OTHER, profiling.WAITING, "all"}
    all_ms, _ = found.pop("all")
    assert sum(ms for ms, _ in found.values()) == pytest.approx(all_ms, abs=0.1)
    assert sum(share for _, share in found.values()) == pytest.approx(100, abs=1)
    for part in ("matrix products", "attention", "activations", "optimizer", "waiting"):
        assert found[part][0] > 0, part
    assert found["communication"][0] == 0  # one process
    steps = [row["ms_per_step"] for row in rows(profiled) if "train_loss" in row]
    assert all_ms == pytest.approx(sum(steps[2:5]) / 3, rel=0.02)  # the profiled steps themselves


def test_the_trace_is_one_that_viewers_read(profiled: Config) -> None:
    trace = json.loads(gzip.decompress((Path(profiled.out_dir) / "profile" / "trace.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"aten::mm", "aten::_fused_adamw_"} <= names


def test_rows_say_what_waiting_for_data_and_for_others_cost(profiled: Config) -> None:
    for row in rows(profiled):
        if "train_loss" in row:
            assert 0 <= row["data_ms_per_step"] <= row["ms_per_step"]
            assert row["communication_ms_per_step"] == 0


@pytest.mark.parametrize(("steps", "told"), [(2, "no profile: the run ended"), (3, "profile of 1 steps in ")])
def test_a_run_that_is_too_short_ends_its_profile(
    small: Config, capsys: pytest.CaptureFixture[str], steps: int, told: str
) -> None:
    """A profiler that was never stopped crashed the process when it ended."""
    config = train_here(small, max_steps=steps, lr_decay_steps=2, profile_steps=9)
    assert told in capsys.readouterr().err
    assert (Path(config.out_dir) / "profile" / "table.txt").exists() == (steps == 3)


def test_a_run_without_a_profile_has_none(small: Config) -> None:
    config = train_here(small, max_steps=2)
    assert not (Path(config.out_dir) / "profile").exists()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("aten::addmm", "matrix products"), ("mkldnn::_linear_pointwise", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matrix products"), ("nvjet_hsh_128x256", "matrix products"),
        ("flash_fwd_kernel", "attention"), ("aten::baddbmm", "attention"),
        ("aten::gelu_backward", "activations"), ("_Differentiable", "activations"),
        ("triton_poi_fused_add_mul_0", "fused kernels"), ("Optimizer.step#AdamW.step", "optimizer"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "communication"), ("gloo:all_reduce", "communication"),
        ("aten::embedding", ""),
    ],
)  # fmt: skip
def test_names_tell_the_part(name: str, part: str) -> None:
    assert profiling.part_of(name) == part
