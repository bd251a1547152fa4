"""The high-precision vectors that several test modules compare with."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def reference() -> dict[str, Any]:
    """The parsed activation_reference.json."""
    parsed: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "activation_reference.json").read_text())
    return parsed
