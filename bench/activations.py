"""Forward plus backward of every activation, all coefficient gradients included, against GELU, torchortho and the memory.

    python -m bench.activations [--device D] [--activations SPEC ...] [--json PATH] [--against OLD.json] [--chart PATH.png]

eager: outside torch.compile, against F.gelu(approximate="tanh"), eager. compiled: in one graph of its own, against the faster
of GELU's two forms, compiled. floor: what moving the bytes takes at this machine's measured copying speed: the forward reads
x and writes y, the backward reads x and dy and writes dx. saved: bytes kept for backward, GELU's being 1.
"""

import argparse
import math
import statistics
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import activations
from activations import registry
from bench import harness
from bench.harness import Row
from data.files import write_atomically
from runtime.hardware import pick_device, retain_memory, why_not_compile

MORE_SPECS = ["hermite:degree=8", "tropical_rational:degree=6", "rational", "xielu"]
SHAPES = {"cpu": [(4, 256, 1536), (8, 1024, 3072)], "cuda": [(8, 1024, 3072), (16, 1024, 3072)]}
GELU = {"gelu": "tanh", "gelu:exact=true": "none"}  # F.gelu's approximate=
KEYS = ("activation", "mode", "dtype", "shape")


def main(argv: list[str] | None = None) -> int:
    """Print the tables and write the files asked for."""
    parser = argparse.ArgumentParser(description="Time of activations against GELU.")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--activations", nargs="+", metavar="SPEC", help=f"default: {' '.join(harness.LEARNABLE)}; on a GPU all families"
    )
    parser.add_argument("--shape", type=int, nargs="+", action="append", metavar="N", help="may be given several times")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=61, help="turns that each contender gets, time permitting")
    parser.add_argument("--seconds", type=float, default=20, help="a table: start no further turn after this many")
    parser.add_argument("--threads", type=int, help="CPU threads; fewer than the cores where other programs run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--against", type=Path, metavar="OLD.json", help="show what changed since that file")
    parser.add_argument("--chart", type=Path, metavar="PATH.png")
    options = parser.parse_args(argv)
    device = pick_device(options.device)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    retained = retain_memory()
    specs = [registry.check(spec) for spec in options.activations or harness.LEARNABLE + MORE_SPECS * (device.type != "cpu")]
    bandwidth = harness.copy_bandwidth(device)
    print(f"copying: {bandwidth / 1e9:.1f} GB/s read and written; freed memory is {'kept' if retained else 'returned'}")
    shapes = [tuple(shape) for shape in options.shape] if options.shape else SHAPES.get(device.type, SHAPES["cpu"])
    rows = []
    for shape in shapes:
        for dtype in options.dtypes:
            rows += measure(specs, shape, getattr(torch, dtype), device, options.rounds, bandwidth, options.seconds)
    if device.type == "cpu" and find_spec("torchortho"):
        smallest = min(shapes, key=math.prod)  # 18 s a pass at 8 x 1024 x 3072
        for dtype in options.dtypes:
            rows += measure_peers(specs, smallest, getattr(torch, dtype), device, options.rounds, bandwidth, options.seconds)
    show(rows)
    if options.json:
        harness.save(options.json, rows, device, copy_bytes_per_second=bandwidth, memory_retained=retained)
    if options.against:
        print("\n".join(harness.compare(options.against, rows, KEYS, "ms")) or f"{options.against} holds none of these rows")
    if options.chart:
        draw(rows, options.chart)
    return 0


def measure(
    specs: list[str],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    bandwidth: float,
    seconds: float,
) -> list[Row]:
    """Rows of one shape and dtype: every activation eager and compiled, all in turns."""
    torch._dynamo.reset()  # one code object may have eight graphs only
    x, dy = _inputs(shape, dtype, device)
    steps: dict[tuple[str, str], Step] = {}
    for mode in ("eager",) if why_not_compile(device) else ("eager", "compiled"):
        for spec in [*GELU, *specs]:
            steps[spec, mode] = Step(spec, x, dy, compiled=mode == "compiled")
    names = {" ".join(key): step for key, step in steps.items()}
    times = harness.interleaved(names, rounds, device, seconds)
    fastest_gelu = min(GELU, key=lambda spec: statistics.median(times.get(f"{spec} compiled", [0.0])))
    bases = {"eager": "gelu eager", "compiled": f"{fastest_gelu} compiled"}
    return [
        _row(spec, mode, times, bases[mode], x, bandwidth)
        | {"saved_against_gelu": step.saved_bytes() / steps["gelu", "eager"].saved_bytes()}
        | step.checks()
        for (spec, mode), step in steps.items()
    ]


def measure_peers(
    specs: list[str],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    bandwidth: float,
    seconds: float,
) -> list[Row]:
    """A row for each activation that torchortho has too: GELU, ours and theirs in turns, eager.

    After `measure`: among theirs, which take gigabytes, our Hermite 3 took 1.2 times as long (where memory lies; LOG.md).
    """
    x, dy = _inputs(shape, dtype, device)
    shared = [spec for spec in specs if spec.partition(":")[0] in PEERS]
    steps: dict[str, Step] = {f"{spec} eager": Step(spec, x, dy, compiled=False) for spec in ("gelu", *shared)}
    steps |= {f"{spec} torchortho": Peer(spec, x, dy) for spec in shared}
    times = harness.interleaved(steps, rounds, device, seconds)
    return [
        _row(spec, "torchortho", times, "gelu eager", x, bandwidth)
        | {
            "ours_against_this": harness.ratio(times[f"{spec} eager"], times[f"{spec} torchortho"]),
            "saved_against_gelu": steps[f"{spec} torchortho"].saved_bytes() / steps["gelu eager"].saved_bytes(),
        }
        for spec in shared
    ]


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    return x, dy


def _row(spec: str, mode: str, times: dict[str, list[float]], base: str, x: Tensor, bandwidth: float) -> Row:
    own = times[f"{spec} {mode}"]
    return {
        "activation": spec,
        "mode": mode,
        "dtype": str(x.dtype).removeprefix("torch."),
        "shape": "x".join(map(str, x.shape)),
        "ms": 1e3 * statistics.median(own),
        "rounds": len(own),
        "base": base,
        "against_base": harness.ratio(own, times[base]),
        "against_floor": statistics.median(own) * bandwidth / (5 * x.nbytes),
    }


class Step:
    """One forward and backward of an activation, all of its gradients asserted present."""

    def __init__(self, spec: str, x: Tensor, dy: Tensor, compiled: bool) -> None:
        self.spec, self.x, self.dy = spec, x.detach().requires_grad_(), dy
        self.function: torch.nn.Module = _module(spec, x)
        self.parameters = list(self.function.parameters())
        if compiled:
            self.function.compile(fullgraph=True, dynamic=False)

    def __call__(self) -> list[Tensor]:
        y = self.function(self.x)
        leaves = [self.x, *self.parameters]
        gradients = torch.autograd.grad(y, leaves, self.dy)
        assert all(g.shape == leaf.shape for g, leaf in zip(gradients, leaves, strict=True)), "a gradient is missing"
        return [y, *gradients]

    def saved_bytes(self) -> int:
        """Bytes of the tensors kept for backward, each storage once; parameters and buffers are there anyway."""
        saved: dict[int, int] = {}
        held = {t.untyped_storage().data_ptr() for t in (*self.function.parameters(), *self.function.buffers())}

        def note(t: Tensor) -> Tensor:
            if (place := t.untyped_storage().data_ptr()) not in held:
                saved[place] = t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            self.function(self.x)
        return sum(saved.values())

    def checks(self) -> Row:
        """On a GPU: whether the bits repeat, and ||ours - float64|| / ||float64||, the largest over output and gradients."""
        if self.x.device.type != "cuda":
            return {}
        first, second = self(), self()
        wide = Step(self.spec, self.x.double(), self.dy.double(), compiled=False)
        wide.function.double()
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(first, wide(), strict=True)]
        return {"repeatable": all(map(torch.equal, first, second)), "error": max(errors)}


class Peer(Step):
    """torchortho's module of the same degree; its cost does not depend on its coefficients."""

    def __init__(self, spec: str, x: Tensor, dy: Tensor) -> None:
        import torchortho

        super().__init__("gelu", x, dy, compiled=False)
        name, degree = spec.partition(":")[0], int(spec.partition("degree=")[2].partition(",")[0])
        module = getattr(torchortho, PEERS[name])(degree)
        self.function = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]

    def __call__(self) -> list[Tensor]:
        y = self.function(self.x)
        return [y, *torch.autograd.grad(y, [self.x, *self.parameters], self.dy.to(y.dtype))]


PEERS = {"hermite": "HermiteActivation", "fourier": "FourierActivation", "tropical": "TropicalActivation"}


class Gelu(torch.nn.Module):
    """F.gelu in a module of our own: Dynamo refuses to compile torch's by itself."""

    def __init__(self, approximate: str) -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)


def _module(spec: str, x: Tensor) -> torch.nn.Module:
    """What `spec` names; GELU is torch's operator."""
    return Gelu(GELU[spec]) if spec in GELU else activations.build(spec, x.shape[-1]).to(x.device)


def show(rows: list[Row]) -> None:
    """A table for every shape and dtype."""
    for group in dict.fromkeys((row["shape"], row["dtype"]) for row in rows):
        members = [row for row in rows if (row["shape"], row["dtype"]) == group]
        print(f"\n{group[0]} {group[1]}")
        print(f"{'activation':58} {'mode':10} {'ms':>9} {'ratio':>7} {'of':16} {'/floor':>6} {'saved':>5}")
        for row in members:
            peer = f" ours is {row['ours_against_this']:.4f} of it" if "ours_against_this" in row else ""
            checks = f" repeatable={row['repeatable']} error={row['error']:.1e}" if "repeatable" in row else ""
            print(
                f"{row['activation']:58} {row['mode']:10} {row['ms']:9.3f} {row['against_base']:7.3f} {row['base']:16} "
                f"{row['against_floor']:6.2f} {row['saved_against_gelu']:5.2f}{peer}{checks}"
            )


def draw(rows: list[Row], path: Path) -> None:
    """Bars: time against GELU's, eager and compiled, the first shape, one panel a dtype."""
    from matplotlib.figure import Figure

    shape = rows[0]["shape"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure = Figure(figsize=(5 * len(dtypes), 3.2), layout="constrained")
    for axes, dtype in zip(figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0], dtypes, strict=True):
        members = [row for row in rows if row["shape"] == shape and row["dtype"] == dtype and row["activation"] not in GELU]
        names = list(dict.fromkeys(row["activation"].partition(",")[0] for row in members))
        for offset, (mode, color) in enumerate({"eager": "#0072B2", "compiled": "#E69F00", "torchortho": "#999999"}.items()):
            bars = {row["activation"].partition(",")[0]: row["against_base"] for row in members if row["mode"] == mode}
            places = [names.index(name) + 0.27 * (offset - 1) for name in bars]
            drawn = axes.barh(places, list(bars.values()), height=0.25, color=color, label=mode)
            axes.bar_label(drawn, fmt="%.2g", fontsize=7, padding=2)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", title=f"{shape} {dtype}", xlabel="time / GELU's, forward + backward")
        axes.set_yticks(range(len(names)), names)
        axes.margins(x=0.15)
    figure.axes[0].invert_yaxis()  # and with it all that share it
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


if __name__ == "__main__":
    sys.exit(main())
