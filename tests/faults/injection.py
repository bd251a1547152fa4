"""What goes wrong inside a process: it dies, the system refuses it something, or a number is not what it was."""

import ctypes
import os
import platform
import resource
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import train
from runtime.run import Run

AT = 5  # the step before whose update a number goes wrong
WRITING = ("fsync", "replace", "unlink", "rmdir", "mkdir")
WRITE_CALLS = {"x86_64": (1, 18), "aarch64": (64, 68)}  # the numbers of write and pwrite64


@dataclass(frozen=True)
class DieAt:
    """SIGKILL before, or after, the `call`-th of the system calls by which files are made whole and removed."""

    call: int
    after: bool = False

    def __call__(self) -> None:
        count = 0

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == self.call and not self.after:
                    os.kill(os.getpid(), signal.SIGKILL)
                value = original(*arguments, **named)
                if count == self.call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return value

            return call

        for name in WRITING:
            setattr(os, name, counted(getattr(os, name)))


@dataclass(frozen=True)
class FailAt:
    """From the `call`-th on, a function of `os` raises OSError with this error number."""

    function: str
    call: int
    error: int

    def __call__(self) -> None:
        original, count = getattr(os, self.function), 0

        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count >= self.call:
                raise OSError(self.error, os.strerror(self.error))
            return original(*arguments, **named)

        setattr(os, self.function, call)


@dataclass(frozen=True)
class ReplaceFails:
    """os.replace onto a path that ends so raises OSError with this error number, or kills the process where that is 0."""

    ending: str
    error: int

    def __call__(self) -> None:
        original = os.replace

        def replace(source: Any, target: Any, **named: Any) -> None:
            if str(target).endswith(self.ending):
                if not self.error:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(self.error, os.strerror(self.error), str(target))
            original(source, target, **named)

        os.replace = replace  # type: ignore[assignment]


@dataclass(frozen=True)
class LimitFiles:
    """No file of this process may grow beyond this size: the system refuses it in whatever library writes."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@dataclass(frozen=True)
class FailWrites:
    """write(2) of `size` bytes or more fails with this error, in whatever library calls it: a filter of Linux's seccomp."""

    size: int
    error: int

    def __call__(self) -> None:
        write, pwrite = WRITE_CALLS[platform.machine()]
        load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06  # of the classic BPF instruction set
        number, count = 0, 32  # offsets in struct seccomp_data: the call, and the low half of its third argument
        program = (
            (load, 0, 0, number),
            (equal, 1, 0, write),
            (equal, 0, 3, pwrite),
            (load, 0, 0, count),
            (at_least, 0, 1, self.size),
            (answer, 0, 0, 0x0005_0000 | self.error),  # SECCOMP_RET_ERRNO
            (answer, 0, 0, 0x7FFF_0000),  # SECCOMP_RET_ALLOW
        )
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
        buffer = ctypes.create_string_buffer(code, len(code))
        filters = struct.pack("@HP", len(program), ctypes.addressof(buffer))
        libc, no_new_privileges, set_seccomp, by_filter = ctypes.CDLL(None, use_errno=True), 38, 22, 2
        for arguments in ((no_new_privileges, 1, 0, 0, 0), (set_seccomp, by_filter, ctypes.c_char_p(filters), 0, 0)):
            if libc.prctl(*arguments):
                raise OSError(ctypes.get_errno(), "this kernel filters no system calls")


@dataclass(frozen=True)
class Poison:
    """In the child: a number of the second layer's coefficients, of their gradient, or the loss, is this at step AT alone."""

    where: str
    value: float

    def __call__(self) -> None:
        if self.where == "weight":
            before_step(AT, lambda run: fill(run, self.value))
            return

        def arm(run: Run) -> None:
            parameter = run.gpt.get_parameter(coefficient(run))
            if self.where == "gradient":
                handle = parameter.register_hook(lambda gradient: gradient + self.value)
                after_step(run, handle.remove)
            else:
                original = run.model
                run.model = Scaled(original, self.value)
                after_step(run, lambda: setattr(run, "model", original))

        before_step(AT, arm)


class Scaled(torch.nn.Module):
    """A model whose loss is multiplied by a number."""

    def __init__(self, model: torch.nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, *arguments: Any) -> torch.Tensor:
        loss: torch.Tensor = self.model(*arguments)
        return loss * self.factor


@dataclass(frozen=True)
class Grow:
    """In the child: before step AT the second layer's coefficients, or all matrices, are multiplied."""

    factor: float
    matrices: bool = False

    def __call__(self) -> None:
        before_step(AT, self.grow)

    def grow(self, run: Run) -> None:
        """Multiply, in place."""
        with torch.no_grad():
            if self.matrices:
                run.gpt.transformer.wte.weight.mul_(self.factor)
            else:
                run.gpt.get_parameter(coefficient(run)).mul_(self.factor)


def before_step(at: int, act: Callable[[Run], object]) -> None:
    """Call act(run) when the run is about to take the step that follows `step` updates."""
    original = train.take_step

    def take_step(run: Run, step: int, batch: Any) -> Any:
        if step == at:
            act(run)
        taken = original(run, step, batch)
        for undo in _after.pop(id(run), []):
            undo()
        return taken

    train.take_step = take_step


_after: dict[int, list[Callable[[], object]]] = {}


def after_step(run: Run, undo: Callable[[], object]) -> None:
    """Call undo() when the step is taken."""
    _after.setdefault(id(run), []).append(undo)


def coefficient(run: Run) -> str:
    """The name of the second layer's first coefficients."""
    return next(name for name, _ in run.gpt.named_parameters() if name.startswith("transformer.h.1.mlp.act."))


def fill(run: Run, value: float) -> None:
    """One bad number among the coefficients."""
    with torch.no_grad():
        run.gpt.get_parameter(coefficient(run)).view(-1)[0] = value
