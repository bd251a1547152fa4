"""`make identical` must see a single changed bit."""

from typing import Any

import pytest
import torch

from tests.identical import difference


def outcome() -> dict[str, Any]:
    return {"weights": {"w": torch.ones(2)}, "rows": [{"step": 1, "train_loss": 2.0}], "text": "def "}


def test_equal_outcomes_have_no_difference() -> None:
    assert difference(outcome(), outcome()) == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weights": {"w": torch.ones(2).nextafter(torch.tensor(2.0))}}, "w differs by"),
        ({"weights": {"v": torch.ones(2)}}, "names of weights differ"),
        ({"rows": [{"step": 1, "train_loss": 2.0000001}]}, "train_loss at step 1"),
        ({"rows": []}, "1 metrics rows before, 0 after"),
        ({"text": "def f"}, "sampled text differs"),
    ],
)
def test_every_difference_is_told(change: dict[str, Any], told: str) -> None:
    assert told in difference(outcome(), outcome() | change)
