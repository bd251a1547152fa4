"""profile_steps=N: where the time of a training step goes, as a trace and a short table in the run's folder.

    profile/trace.json.gz   for Perfetto or chrome://tracing, rank 0's
    profile/table.txt       milliseconds and share of each part of a step

A part is known by the names of operators and kernels, on a GPU by what the device did, on a CPU by what the thread did. waiting
is the rest of the time: Python, reading data, launching, another rank. Compiled code fuses activations with their
neighbours: a fused kernel counts as activations where its name has an operator of theirs.
"""

import gzip
import importlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from data.files import write_bytes, write_text

SKIPPED = 2  # steps before the profile: the first ones allocate
PARTS = {
    "communication": r"c10d::|nccl|gloo|record_param_comms|all_?reduce|all_?gather|reduce_scatter|FSDP::",
    "optimizer": r"Optimizer\.|_fused_adam|multi_tensor_apply|_foreach_|clip_grad|fused_?adam",
    "loss": r"log_softmax|nll_loss|cross_entropy",
    "attention": r"scaled_dot_product|flash|fmha|softmax|aten::bmm|aten::baddbmm|attention",
    "matrix products": r"aten::(mm|addmm|linear)\b|mkldnn|gemm|cutlass|sm\d\d_|nvjet|cublas|matmul|linear",
    "activations": r"_Differentiable|gelu|silu|relu|aten::tanh|fused.*(_addcmul|_pow|_erf|_tanh|_sin|_amax|_maximum|_clamp)",
    "fused kernels": r"fused|triton_",
}
OTHER, WAITING = "other operators", "waiting"


class Profile:
    """Profiles steps SKIPPED + 1 to SKIPPED + N of this process; `step` is called after each."""

    def __init__(self, out_dir: Path, steps: int, device: torch.device) -> None:
        self._out_dir, self._steps, self._device = out_dir, steps, device
        self._seen, self._seconds = 0, 0.0
        self._profiler: Any = None

    def step(self, seconds: float) -> str:
        """Count a step that took so long; the line to say when the profile is written, else ""."""
        self._seen += 1
        if self._profiler:
            self._seconds += seconds
        if self._seen == SKIPPED and self._steps:
            self._profiler = start(self._device)
        if self._profiler and self._seen == SKIPPED + self._steps:
            return self._finish()
        return ""

    def close(self) -> str:
        """End a profile that the run was too short for: with the steps that there were; the line to say, else ""."""
        if not self._profiler:
            return ""
        if self._seen > SKIPPED:
            return self._finish()
        stop(self._profiler, self._device)  # one that is never stopped crashes the process at its end
        self._profiler = None
        return f"no profile: the run ended within its first {SKIPPED} steps, which are not profiled"

    def _finish(self) -> str:
        stop(self._profiler, self._device)
        steps = self._seen - SKIPPED
        milliseconds = parts(self._profiler, self._seconds, steps, self._device)
        folder = self._out_dir / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "trace.json.gz", trace(self._profiler))
        write_text(folder / "table.txt", table(milliseconds))
        self._profiler = None
        largest = sorted(milliseconds.items(), key=lambda item: -item[1])[:3]
        shares = ", ".join(f"{name} {value / sum(milliseconds.values()):.0%}" for name, value in largest)
        return f"profile of {steps} steps in {folder}: {shares}"


def name_kernels() -> None:
    """Let kernels that are compiled from now on for a CPU have a name in profiles, as those for a GPU have."""
    importlib.import_module("torch._inductor.config").cpp.enable_kernel_profile = True


def start(device: torch.device) -> Any:
    """A profiler that runs."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    profiler = profile(activities=activities)
    profiler.start()
    return profiler


def stop(profiler: Any, device: torch.device) -> None:
    """Let the device come to its end, and stop."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    profiler.stop()


def trace(profiler: Any) -> bytes:
    """The trace of a profiler that has stopped, compressed."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(plain))
        return gzip.compress(plain.read_bytes())


def parts(profiler: Any, seconds: float, steps: int, device: torch.device) -> dict[str, float]:
    """Milliseconds a step of each part, and of waiting; `seconds` is what the steps took in all."""
    found = dict.fromkeys([*PARTS, OTHER], 0.0)
    times = device_times(profiler) if device.type == "cuda" else thread_times(profiler)
    for name, nanoseconds in times:
        found[name] += nanoseconds / 1e6 / steps
    found[WAITING] = max(0.0, 1e3 * seconds / steps - sum(found.values()))
    return found


def part_of(name: str) -> str:
    """The part that the name of an operator or kernel belongs to; "" where it says nothing."""
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name)), "")


def device_times(profiler: Any) -> Iterator[tuple[str, float]]:
    """(part, nanoseconds) of each kernel and copy on the device."""
    for event in profiler.events():
        if event.device_type.name == "CUDA":
            yield part_of(event.name) or OTHER, 1e3 * event.time_range.elapsed_us()


def thread_times(profiler: Any) -> Iterator[tuple[str, float]]:
    """(part, nanoseconds) of each operator without those inside it; one whose name says nothing belongs to what it is in."""
    left = [(event, "") for event in profiler.profiler.kineto_results.experimental_event_tree()]
    while left:
        event, outer = left.pop()
        inner = [child for child in event.children if child.name != "[memory]"]
        part = outer if outer in ("communication", "optimizer") else part_of(event.name) or outer
        left += [(child, part) for child in inner]
        known = part or event.name.startswith(("aten::", "autograd::", "torch::"))
        if known and event.duration_time_ns > 0:
            yield part or OTHER, max(0, event.duration_time_ns - sum(child.duration_time_ns for child in inner))


def table(milliseconds: dict[str, float]) -> str:
    """The short table, largest part first."""
    return "\n".join(lines(milliseconds)) + "\n"


def lines(milliseconds: dict[str, float]) -> Iterable[str]:
    """The lines of the table."""
    total = sum(milliseconds.values())
    yield f"{'part':18} {'ms a step':>10} {'share':>6}"
    for name, value in sorted(milliseconds.items(), key=lambda item: -item[1]):
        yield f"{name:18} {value:10.2f} {value / total:6.1%}"
    yield f"{'all':18} {total:10.2f} {1:6.1%}"
