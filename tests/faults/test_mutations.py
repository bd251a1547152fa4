"""The search can fail: a field that was ignored, or came out as another value, is found."""

import pytest

from config.schema import field_types
from faults.mutations import good, ignored

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
