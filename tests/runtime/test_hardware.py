"""The device and the types are what was asked for, or one line says why not."""

import os
import types
from pathlib import Path

import pytest
import torch

from runtime import hardware
from runtime.hardware import autocast, peak_flops, pick_device, pick_dtype


def test_devices_that_are_not_there_are_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert pick_device("auto").type in ("cpu", "mps")
    with pytest.raises(ValueError, match=r"device 'cuda' .* there are 0 CUDA devices; type --device cpu"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="'cuda:3'"):
        pick_device("cuda:3")


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_follows_the_cpu(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(hardware, "_cpu_computes_in_bfloat16", lambda: has_bfloat16)
    assert pick_dtype("auto", torch.device("cpu")) == expected
    assert pick_dtype("float16", torch.device("cpu")) == torch.float16


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 0), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_auto_dtype_follows_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_dtype("auto", torch.device("cuda", 0)) == expected


def test_autocast_computes_in_the_type_asked_for() -> None:
    a = torch.ones(2, 2)
    with autocast(torch.device("cpu"), torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), torch.float32):
        assert (a @ a).dtype == torch.float32


def test_peak_is_the_data_sheet_s_where_the_device_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert peak_flops(torch.device("cuda", 0), torch.bfloat16) == (312e12, "data sheet")
    peak, source = peak_flops(torch.device("cpu"), torch.float32)
    assert source == "measured matrix product"
    assert 1e8 < peak < 1e14


@pytest.mark.parametrize(("flops", "largest"), [(0.4e9, 128), (40e9, 512)])
def test_a_cpu_is_measured_within_half_a_second(monkeypatch: pytest.MonkeyPatch, flops: float, largest: int) -> None:
    """By a clock of its own; in float16 (0.4 GFLOP/s) forty large products took half a minute, and other ranks waited."""
    now, sizes = [0.0], []

    class Matrix:
        def __init__(self, n: int, *_: int, device: torch.device) -> None:
            self.n = n

        def to(self, dtype: torch.dtype) -> "Matrix":
            return self

        def __matmul__(self, other: "Matrix") -> torch.Tensor:
            sizes.append(self.n)
            now[0] += 2 * self.n**3 / flops
            return torch.ones(1, 1)

    monkeypatch.setattr(hardware.torch, "randn", Matrix)
    monkeypatch.setattr(hardware, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    assert hardware.measured_peak_flops.__wrapped__(torch.device("cpu"), torch.float16) == pytest.approx(flops)
    assert max(sizes) == largest
    assert now[0] <= 0.5


@pytest.mark.parametrize(("given", "used"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_determinism_is_strict_and_covers_cublas(monkeypatch: pytest.MonkeyPatch, given: str | None, used: str) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what the function sets is taken back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    if given:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    hardware.set_determinism(True)
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    hardware.set_determinism(False)
    assert strict
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == used


def test_a_workspace_that_does_not_repeat_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ValueError, match=r"CUBLAS_WORKSPACE_CONFIG=':0:0' .* unset it"):
        hardware.set_determinism(True)
    assert not torch.are_deterministic_algorithms_enabled()
    hardware.set_determinism(False)  # which asks nothing of cuBLAS


def test_no_compiler_is_found_out_before_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert "no C++ compiler" in hardware.why_not_compile(torch.device("cpu"))
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
    assert hardware.why_not_compile(torch.device("cuda")) == "Triton is not installed"


@pytest.mark.parametrize("name", ["toaster", "cuda:", "cuda:x", "cuda:-1", "", "meta"])
def test_a_device_of_another_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not auto, cpu, cuda, cuda:N or mps"):
        hardware.pick_device(name)


def test_compiled_code_is_kept_where_the_user_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "what it was comes back after the test")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hardware.use_compile_cache("auto")
    folder = tmp_path / "learnable-activations"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    hardware.use_compile_cache("")
    assert torch.compiler.config.force_disable_caches
    hardware.use_compile_cache(str(tmp_path / "mine"))
    assert not torch.compiler.config.force_disable_caches
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mine")
    hardware.use_compile_cache("auto")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mine")  # what is set already stays


def test_compiled_code_of_others_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it is")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"compile_cache .* cannot be made \(.*\); type --compile_cache FOLDER, or"):
        hardware.use_compile_cache(str(tmp_path / "file"))
    monkeypatch.setattr(os, "getuid", lambda: -1)
    with pytest.raises(ValueError, match="belongs to another user, whose code it may hold; type --compile_cache FOLDER"):
        hardware.use_compile_cache(str(tmp_path))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "as it is"
