"""The day of the GPU, on the CPU at tiny shapes: every part gives rows, a part that is late or fails leaves a result."""

import json
from pathlib import Path

import pytest
import torch

from bench import gpu, gradients


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> gpu.Place:
    """Tiny shapes, uncompiled, on the CPU."""
    return gpu.Place(torch.device("cpu"), True, tmp_path_factory.mktemp("gpu"))


@pytest.fixture(scope="module")
def parts(place: gpu.Place) -> dict[str, list[gpu.Row]]:
    """The rows of every part, in this process, which has imported already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "STEPS", 2)
        patch.setattr("bench.activations.why_not_compile", lambda device: "the test has no time for it")
        patch.setattr("bench.generate.reading_bandwidth", lambda matvec, device, dtype: 1e9)
        for name in gpu.PARTS:
            gpu.run_part(name, place)
    return {name: json.loads((place.folder / f"{name}.json").read_text()) for name in gpu.PARTS}


def test_every_part_has_rows_and_finds_nothing_wrong(parts: dict[str, list[gpu.Row]]) -> None:
    assert parts.keys() == gpu.LIMITS.keys()
    assert all(parts.values())
    assert [row for rows in parts.values() for row in rows if not row.get("good", True)] == []
    engines = {row["name"]: row["engine"] for row in parts["sharding"]}
    assert engines == {"ddp": "DistributedDataParallel", "fsdp": "FSDPGPT", "one process": "GPT", "recompute": "GPT"}
    assert parts["step"][0]["name"] == parts["step"][-1]["name"] == "gelu"
    assert all(row["mfu"] > 0 and row["tokens_per_second"] > 0 for row in parts["step"])
    assert {row["name"] for name in ("determinism", "resume") for row in parts[name]} == {"two runs", "a resume"}
    assert sum(gpu.LIMITS.values()) <= 9 * 60


def test_a_chart_is_drawn_of_what_there_is(parts: dict[str, list[gpu.Row]], tmp_path: Path) -> None:
    for name, found in (("all", parts), ("none", {})):
        document = {"machine": {"device": "A GPU"}, "parts": {part: {"rows": rows} for part, rows in found.items()}}
        gpu.draw(document, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_late_part_is_stopped_and_the_others_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users type it, in processes: the first part has no time, the second a limit that it keeps."""
    monkeypatch.setattr(gpu, "LIMITS", gpu.LIMITS | {"activations": 0.01, "determinism": 600})
    code = gpu.main(["--device", "cpu", "--small", "--parts", "activations", "determinism", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*-small.json")
    found = json.loads(path.read_text())["parts"]
    assert found["activations"]["ended"] == "stopped at its limit"
    assert found["determinism"]["ended"] == "done"
    assert found["determinism"]["rows"][0]["different_tensors"] == 0
    assert code == 0
    assert path.with_suffix(".png").exists()


def test_what_a_failed_part_said_last_is_told() -> None:
    assert gpu.last_line("a line\nValueError: no room\n") == "ValueError: no room"
    assert gpu.last_line("") == "it said nothing"


def test_every_degree_of_every_family_is_in_the_batches() -> None:
    first = next(gradients.batches(8))
    assert {spec.partition(":")[0] for spec in first} == set(gradients.families()[:8])
    every = [spec for batch in gradients.batches(8) for spec in batch]
    assert len(every) == len(set(every)) == sum(len(gradients.specs_of(name)) for name in gradients.families())
    assert {f"hermite:degree={degree},per=channel" for degree in (1, 3, 8)} <= set(every)


@pytest.mark.parametrize("against", ["exact", "eager"])
def test_a_wrong_gradient_is_found(against: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail, with either."""
    right = getattr(gradients, against)
    monkeypatch.setattr(gradients, against, lambda *given: [t * 1.001 for t in right(*given)])
    rows = list(gradients.compare(["hermite:degree=2"], torch.device("cpu"), "eager"))
    assert [row["good"] for row in rows] == [False]
