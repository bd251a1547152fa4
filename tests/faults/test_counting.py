"""The search can fail: a field that was ignored is found. And what the table says of faults of each end."""

from typing import Any

import pytest

from config.schema import field_types
from tests.faults.conftest import results, table
from tests.faults.test_mutations import good, ignored

WRITTEN = {"seed": 7, "bias": True, "activation": "hermite:degree=3,per=layer", "vocab_size": 257, "min_lr": 0.001}


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--seed", "7", "--bias", "True", "--min_lr", "1e-3"], ""),
        (["--activation", "hermite:per=layer"], ""),
        (["--activation", "hermite:degree=5"], "--activation 'hermite:degree=5' became"),
        (["--activation", "gelu"], "--activation 'gelu' became"),
        (["--vocab_size", "0"], ""),
        (["--vocab_size", "300"], "--vocab_size '300' became 257"),
        (["--seed", "7", "--bias", "False"], "--bias 'False' became True"),
        (["--min_lr", "0"], "--min_lr '0' became 0.001"),
    ],
)
def test_an_ignored_field_is_found(argv: list[str], told: str) -> None:
    found = ignored(["preset.py", *argv], WRITTEN)
    assert found.startswith(told) if told else not found


def test_every_field_has_a_value_that_fits() -> None:
    assert {name for name, _ in good()} == field_types().keys() - {"out_dir", "data_dir"}


def test_the_table_counts_survived_lost_and_planned_faults() -> None:
    def report(outcome: Any, properties: list[Any], longrepr: Any = None, part: str = "kill") -> pytest.TestReport:
        name = f"tests/faults/test_{part}.py::test_it"
        told: Any = {"user_properties": properties, "duration": 1.0}
        return pytest.TestReport(name, (name, 0, ""), {"fault": 1}, outcome, longrepr, "call", **told)

    found = results([
        report("passed", [("faults", 4), ("note", "so it was")]),
        report("failed", [("faults", 2), ("lost", 1)], "a row is gone"),
        report("skipped", [], ("", 0, "there was no time left")),
        report("passed", [], part="disk"),
    ])  # fmt: skip
    kill = found[0]
    assert [kill[key] for key in ("planned", "injected", "survived", "data_lost", "seconds")] == [7, 6, 4, 1, 3.0]
    assert kill["failures"] == ["test_it: a row is gone"]
    assert kill["notes"] == ["so it was", "test_it: there was no time left"]
    assert table(found).splitlines()[2].endswith("| 6 of 7 | 4 | 1 |")
    assert table(found).splitlines()[3:] == ["| disk | " + found[1]["faults"] + " | 1 | 1 | 0 |", "| all | | 7 | 5 | 1 |"]
