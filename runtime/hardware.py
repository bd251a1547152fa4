"""What this machine can do: its device, the type it computes in, whether it can compile, and how fast it could be."""

import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.util
import logging
import math
import os
import platform
import re
import shutil
import time
from typing import Any, Literal

import torch
from torch import nn

# Dense bf16/fp16 tensor-core peaks in FLOP/s, by a part of the device's name: NVIDIA's data sheets (no sparsity).
_DATASHEET_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "V100": 125e12}

log = logging.getLogger(__name__)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `name` (auto, cpu, cuda, cuda:N, mps) means for this process. Raises ValueError if it is not there."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,4})?", name, re.ASCII):
        raise ValueError(f"device {name!r} is not auto, cpu, cuda, cuda:N or mps")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name[5:]) if name.startswith("cuda:") else local_rank
        if index >= count:
            raise ValueError(f"device {name!r} for process {local_rank}, but there are {count} CUDA devices; type --device cpu")
        return torch.device("cuda", index)
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not available here; type --device cpu")
    return torch.device(name)


def pick_dtype(name: Literal["auto", "float32", "bfloat16", "float16"], device: torch.device) -> torch.dtype:
    """The autocast type: for auto bfloat16 where the hardware computes in it, float16 on older GPUs, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if device.type == "cpu" and _cpu_computes_in_bfloat16():
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """Mixed precision: matrix products in `dtype`, weights and sums in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def set_determinism(wanted: bool) -> None:
    """Every operator repeats to the bit, or raises RuntimeError where it has no form that does; False: the fastest form.

    Not `warn_only`: under it the fused attentions only warn, and go on to add their gradients by atomics. cuBLAS repeats where
    its workspace is fixed, which it reads at its first product (docs.nvidia.com/cuda/cublas, results reproducibility).
    Raises ValueError where CUBLAS_WORKSPACE_CONFIG is set to anything else than the two values that allow it.
    """
    if wanted:
        workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if workspace not in (":4096:8", ":16:8"):
            raise ValueError(
                f"CUBLAS_WORKSPACE_CONFIG={workspace!r} does not repeat; deterministic=True takes :4096:8 or :16:8: unset it"
            )
    if wanted or torch.are_deterministic_algorithms_enabled():  # the call imports the compiler, which takes seconds
        torch.use_deterministic_algorithms(wanted)


def retain_memory() -> bool:
    """Make glibc keep what this process frees, so that no step pays for the system's zeroing of fresh pages; False elsewhere.

    By default it returns every allocation above 32 MiB at once, and smaller ones by luck: a compiled 6 x 384 step with
    Hermite 3 took 1.06 of GELU's time and 0.98 with this, GELU's own did not change (interleaved, 2 cores; LOG.md).
    An evaluation of a tiny Hermite model, 20,000 targets, took 10.4 s without it and 1.8 s with it (LOG.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    return bool(libc.mallopt(mmap_max, 0)) and bool(libc.mallopt(trim_threshold, 2**31 - 1))


def move(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Move a model to where it will compute. On a CPU this process keeps from now on what it frees (`retain_memory`)."""
    model.to(device, dtype)
    if device.type == "cpu":
        retain_memory()


def why_not_compile(device: torch.device) -> str:
    """Why `torch.compile` cannot work here; empty where it can."""
    if device.type == "mps":
        return "torch.compile on MPS is a prototype"
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        return "Triton is not installed"
    if device.type == "cpu" and not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        return "there is no C++ compiler (g++ or clang++)"
    return ""


def use_compile_cache(where: str) -> None:
    """Keep what `torch.compile` makes in a folder, so that a later run does not make it again; "" keeps nothing.

    auto: TORCHINDUCTOR_CACHE_DIR where that is set, else $XDG_CACHE_HOME/learnable-activations or the same in ~/.cache.
    PyTorch runs what it finds there as code, so the folder is made for the user alone. Raises ValueError where it cannot be
    made, or belongs to somebody else.
    """
    settings: Any = torch.compiler.config
    if not hasattr(settings, "force_disable_caches"):  # PyTorch 2.6
        settings = importlib.import_module("torch._inductor.config")
    if settings.force_disable_caches != (not where):
        settings.force_disable_caches = not where
    autograd: Any = importlib.import_module("torch._functorch.config")
    if hasattr(autograd, "autograd_cache_allow_custom_autograd_functions"):
        # Our kernels are such functions; the key holds their traced graphs: another degree is compiled anew (LOG.md).
        autograd.autograd_cache_allow_custom_autograd_functions = True
    if not where or (where == "auto" and "TORCHINDUCTOR_CACHE_DIR" in os.environ):
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(home, "learnable-activations") if where == "auto" else os.path.abspath(where)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"compile_cache {folder!r} cannot be made ({error.strerror}); type --compile_cache FOLDER, or --compile_cache ''"
        ) from None
    if hasattr(os, "getuid") and os.stat(folder).st_uid != os.getuid():
        raise ValueError(
            f"compile_cache {folder!r} belongs to another user, whose code it may hold; type --compile_cache FOLDER"
        )
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """(FLOP/s, where the number is from): the data sheet's for known GPUs, else a large matrix product timed here."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for part, peak in _DATASHEET_PEAKS.items():
        if part in name and dtype in (torch.bfloat16, torch.float16):
            return peak, "data sheet"
    return measured_peak_flops(device, dtype), "measured matrix product"


@functools.cache
def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of several matrix products; a product that would end after the time limit is not begun.

    A CPU that does not compute in `dtype` takes seconds for a large one (float16: 0.4 GFLOP/s), and other ranks may wait.
    """
    sizes, limit_s = ((8192,) * 4, 5.0) if device.type == "cuda" else ((128,) * 3 + (512,) * 40, 0.5)
    best, deadline = 0.0, math.inf
    for n in sizes:  # the first product warms up, and other programs take their share
        if best and time.perf_counter() + 2 * n**3 / best > deadline:
            break
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        started = time.perf_counter()
        deadline = min(deadline, started + limit_s)
        float((a @ b)[0, 0])  # waits for the device
        best = max(best, 2 * n**3 / (time.perf_counter() - started))
    return best


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not importlib.util.find_spec("resource"):  # Windows
        return 0
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak_memory() -> bool:
    """Give back what is free, and let `peak_memory_bytes` count from now on; False where the system keeps its own count."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # `retain_memory` keeps the pages of a run
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # Linux: the high-water mark of resident memory becomes what is resident (man 5 proc)
    except OSError:  # another system, or a container that allows it to nobody: the answer says so
        return False
    return True


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, for run.json and benchmark files."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "device_type": device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }


def _cpu_computes_in_bfloat16() -> bool:
    if platform.machine() in ("arm64", "aarch64"):
        return False  # no portable query; float32 is right everywhere
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _cpu_name() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
