"""An activation outside the checkout: `path/to/mine.py:Swish` is the class Swish in that file.

The file's code runs when the class is first built, and only as it was when it was named: its SHA-256 goes into the name,
`path/to/mine.py@SHA256:Swish`. A config or checkpoint from elsewhere thus names code, and never brings it along.
"""

import ast
import copy
import difflib
import hashlib
import importlib.util
import inspect
import logging
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from activations.activation import Activation
from activations.engine import working_dtype
from activations.moments import Moments

log = logging.getLogger(__name__)

_NAMED = re.compile(r"(?P<path>[^:@]*\.py)(@(?P<sha256>[^:,@]*))?(:(?P<kind>[^:,]*))?([:,](?P<options>.*))?", re.DOTALL)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_named(spec: str) -> bool:
    """Whether a spec or name is that of a class in a file."""
    return _NAMED.fullmatch(spec.strip()) is not None


def is_fixed(spec: str) -> bool:
    """Whether the spec says by SHA-256 which code it means: what was read from a file of others has to."""
    found = _NAMED.fullmatch(spec.strip())
    return found is not None and bool(found["sha256"])


def short(name: str) -> str:
    """`mine.py:Swish` for `path/to/mine.py@SHA256:Swish`."""
    found = _NAMED.fullmatch(name)
    assert found, name
    return f"{Path(found['path']).name}:{found['kind']}"


def split(spec: str) -> tuple[str, str]:
    """(`path@SHA256:Class`, its options as text). Reads the file where the spec has no SHA-256, and runs nothing.

    ValueError, in one line, for a file or class that is not there.
    """
    found = _NAMED.fullmatch(spec.strip())
    assert found, spec
    path, kind, sha256 = found["path"], (found["kind"] or "").strip(), found["sha256"]
    if sha256 is None:
        code = _read(path)
        if not kind or not kind.isidentifier():
            raise ValueError(f"activation {spec!r} names no class of the file; type {path}:{_classes(code)[0]}")
        sha256 = hashlib.sha256(code).hexdigest()
    elif not _SHA256.fullmatch(sha256) or not kind.isidentifier():
        raise ValueError(f"activation {spec!r} is not path/to/file.py@SHA256:Class; type {path}:{kind or 'Class'}")
    return f"{path}@{sha256}:{kind}", found["options"] or ""


def load(name: str) -> type[Activation]:
    """The class, from a file with the SHA-256 that `name` has; a plain nn.Module comes as an `Activation` that wraps it.

    ValueError, in one line, for another file than that, a file that fails, and what is not an activation.
    """
    found = _NAMED.fullmatch(split(name)[0])
    assert found, name
    path, kind = found["path"], found["kind"]
    code = _read(path)
    if hashlib.sha256(code).hexdigest() != found["sha256"]:
        raise ValueError(
            f"activation {path}:{kind}: {path} has changed since (its SHA-256 is not {found['sha256'][:12]}...); "
            f"put back the file as it was, or name the present one, {path}:{kind}, in a run of its own"
        )
    return _class(code, path, kind)


def _read(path: str) -> bytes:
    if not Path(path).is_file():
        raise ValueError(
            f"activation {path!r}: there is no file there, seen from {Path.cwd()}; give the path of the file with the class"
        )
    return Path(path).read_bytes()


def _classes(code: bytes) -> list[str]:
    """Names of the classes that the text defines."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return ["Class"]
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)] or ["Class"]


@lru_cache(maxsize=64)
def _class(code: bytes, path: str, kind: str) -> type[Activation]:
    module = _module(code, path)
    found = getattr(module, kind, None)
    if found is None:
        there = _classes(code)
        nearest = (difflib.get_close_matches(kind, there, n=1, cutoff=0.0) or there)[0]
        raise ValueError(f"activation {path}:{kind}: the file has no {kind!r}; type {path}:{nearest}")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"activation {path}:{kind}: it is no class of activations.Parametric or nn.Module; derive it from one")
    if not issubclass(found, Activation):
        log.warning(
            "%s:%s is a plain nn.Module: it is trained and compared as it is, without gains, exact initialisation, fits and "
            "the options per, init and learnable; derive it from activations.Parametric to have them",
            path,
            kind,
        )
        return type(kind, (Wrapped,), {"kind": found, "__doc__": found.__doc__})
    if not _takes(found, 1, 1.0, **{key: option.default for key, option in found.options.items()}):
        raise ValueError(
            f"activation {path}:{kind}: its constructor is called as {kind}(channels, input_std, **options), and takes "
            f"{inspect.signature(found)}"
        )
    return found


@lru_cache(maxsize=64)
def _module(code: bytes, path: str) -> Any:
    """The file as a module, run once a process for each text that it had."""
    log.info("running the code of %s (SHA-256 %s)", path, hashlib.sha256(code).hexdigest())
    name = f"_activation_{hashlib.sha256(code + path.encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=path)
    assert spec
    module = importlib.util.module_from_spec(spec)
    module.__file__ = path
    sys.modules[name] = module  # where compilers and pickle look for the class
    try:
        exec(compile(code, path, "exec"), vars(module))
    except Exception as error:  # whatever a user's file raises is told in one line, with its place
        del sys.modules[name]
        raise ValueError(f"activation: {path} cannot be run: {_place(error, path)}") from error
    return module


def _place(error: Exception, path: str) -> str:
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == path else line
        trace = trace.tb_next
    text = str(error.msg if isinstance(error, SyntaxError) else error).split("\n")[0]
    return (f"line {line}: " if line else "") + f"{type(error).__name__}: {text}"


def _takes(function: Any, *args: Any, **kwargs: Any) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


class Wrapped(Activation):
    """A plain nn.Module as an activation: `inner`, built as kind() or kind(channels=...). F is not a function of x / s.

    Its parameters are trained as coefficients are, without weight decay, and stay float32. It has no gains and no fit.
    """

    degrees = ()
    kind: ClassVar[type[nn.Module]]
    inner: nn.Module

    def __init__(self, channels: int, input_std: float = 1.0) -> None:
        super().__init__(channels, input_std)
        self.inner = self._built()
        self._mark()
        x = torch.zeros(2, channels, device=self.input_std.device)
        with torch.no_grad():
            y = self.inner(x)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            made = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"activation {self.kind.__name__}: an activation keeps the shape, and it made {made} of {tuple(x.shape)}"
            )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.to(working_dtype(x)).movedim(self.channel_dim, -1))
        return y.movedim(-1, self.channel_dim).to(x.dtype)

    def reference(self, x: Tensor) -> Tensor:
        y: Tensor = copy.deepcopy(self.inner).to(x.device).double()(x.double().movedim(self.channel_dim, -1))
        return y.movedim(-1, self.channel_dim)

    def moments(self, values: dict[str, Tensor], std: float) -> Moments:
        raise ValueError(f"{self.kind.__name__} is a plain nn.Module without gains; derive it from activations.Parametric")

    def constants(self) -> dict[str, Tensor]:
        return {}

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.inner.load_state_dict(self._built().state_dict())

    def _built(self) -> nn.Module:
        given = {"channels": self.channels} if "channels" in inspect.signature(self.kind).parameters else {}
        if not _takes(self.kind, **given):
            raise ValueError(
                f"activation {self.kind.__name__}: its constructor takes {inspect.signature(self.kind)}; it is called without "
                "arguments, or with channels=... where it has that"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.kind(**given)

    def _mark(self) -> None:
        for parameter in self.parameters():
            parameter.is_coefficient = True  # type: ignore[attr-defined]
