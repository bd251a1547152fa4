"""The two forms of the suite: some cases of each kind in `make test`, all of them in `make faults`."""

from collections.abc import Sequence
from typing import Any

import pytest


def some(cases: Sequence[tuple[Any, ...]], short: slice | Sequence[int]) -> list[Any]:
    """Parameters of a test, named by their first values; the cases whose places are not in `short` are marked `long`."""
    places = set(range(len(cases))[short]) if isinstance(short, slice) else set(short)
    return [
        pytest.param(*case, marks=() if place in places else pytest.mark.long, id=f"{case[0]} {place}")
        for place, case in enumerate(cases)
    ]
