"""Every family under Inductor itself: values, gradients of inputs and of coefficients against float64.

A gradient that a compiler loses shows here and nowhere else: `aot_eager` and eager code were right where Inductor returned
zeros (LOG.md, 2026-11-27). `bench.gradients` compiles and compares.

All degrees are several hundred modules at 3 to 25 seconds of one core each. They are marked slow, and CI runs them in a job of
their own for each family. `make test` has the degrees at which a kernel changes its kind.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import activations
from activations import engine
from bench import gradients
from bench.gradients import CHANNELS, both, families, specs_of

GRAPH = 4  # modules a graph: fewer pay the compiler's start more often, more pay its quadratic search for what to fuse

# The lowerings and the code generator are the users' own, and g++ does not optimise. What is used twice is computed once: by
# default Inductor writes it out again in every loop that reads it, and Fourier 8 by channel takes 36 s of CPU time, not 4.
QUICK = {"aot_inductor.debug_compile": True}
SHORT_LOOPS = QUICK | {"realize_opcount_threshold": 4}

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NO_CUDA])]


def wrong(specs: Sequence[str], device: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """Which modules, compiled in graphs of a few and short loops, give something else than `gradients.exact`."""
    parts = [specs[first : first + GRAPH] for first in range(0, len(specs), GRAPH)]
    rows = [row for part in parts for row in gradients.compare(part, torch.device(device), dtype=dtype, options=SHORT_LOOPS)]
    assert {row["activation"] for row in rows} >= set(specs)
    return [f"{row['activation']} on {device}: {row['worst']} {row['error']:.1e}" for row in rows if not row["good"]]


def ordinary(name: str) -> list[str]:
    """By layer and by channel, at a degree whose sums are made row by row: what differs from the least degree but in length.

    Coefficients of a Hermite series in powers of x are for degrees below; from there on they are those of a recurrence.
    The largest spline once saved more than its input, where 20 knots did not.
    """
    chosen = {"hermite": {"degree": 8}, "tropical": {"degree": 7}, "tpgu": {"degree": 8}, "spline": {"knots": 32}}
    return both(name, chosen.get(name, {}))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("device", DEVICES)
def test_least_degree_of_every_family(device: str) -> None:
    """In one graph: where single columns and empty slices arise, as users compile it."""
    specs = [*(specs_of(name)[0] for name in families()), "hermite:degree=1,per=channel", "hermite:clamp=true"]
    assert [row for row in gradients.compare(specs, torch.device(device), options=QUICK) if not row["good"]] == []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", families())
def test_ordinary_degree_of_every_family(name: str, device: str) -> None:
    assert wrong(ordinary(name), device) == []


def test_ordinary_degrees_are_of_the_row_by_row_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or `ordinary` would no longer be the other of the two engine."""
    counts: list[int] = []
    gather = engine._gather
    monkeypatch.setattr(engine, "_gather", lambda sums, count: (counts.append(count), gather(sums, count))[1])
    for name in families():
        x = torch.randn(3, CHANNELS, requires_grad=True)
        activations.build(ordinary(name)[0], CHANNELS)(x).sum().backward()
    assert counts == [count for count in counts if count > engine.FUSED_SUMS or count == 3]  # xIELU has three at most


@pytest.mark.slow
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", families())
def test_every_degree(name: str, device: str) -> None:
    """That the registry lists, for the whole layer and by channel."""
    assert wrong(specs_of(name), device) == []


def test_ci_has_a_job_for_every_degree_of_each_family() -> None:
    text = (Path(__file__).parents[2] / ".github" / "workflows" / "ci.yml").read_text()
    listed = re.search(r"family: \[(.*)\]", text)
    assert listed
    assert listed[1].split(", ") == families()
    assert '"tests/activations/test_compiled.py::test_every_degree[${{ matrix.family }}-cpu]"' in text


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision(device: str) -> None:
    assert wrong([spec for name in families() for spec in both(name, {})], device, torch.bfloat16) == []
