"""One word names an activation and the MLP that it is in."""

import pytest

from config import arm


@pytest.mark.parametrize(
    ("given", "canonical", "fields"),
    [
        ("gelu", "gelu:exact=false", {"activation": "gelu:exact=false"}),
        ("swiglu", "gated(silu)", {"activation": "silu", "mlp": "gated"}),
        (" gated(silu) ", "gated(silu)", {"activation": "silu", "mlp": "gated"}),
        ("geglu", "gated(gelu:exact=false)", {"activation": "gelu:exact=false", "mlp": "gated"}),
    ],
)
def test_a_name_and_its_fields(given: str, canonical: str, fields: dict[str, str]) -> None:
    assert arm.check(given) == arm.check(canonical) == canonical
    assert arm.fields(given) == fields
    assert arm.of({"mlp": "plain"} | fields) == canonical
    assert arm.join(*arm.split(canonical)) == canonical


def test_families_and_folders_tell_gates_apart() -> None:
    assert arm.family("gated(hermite:degree=3)") == "gated(hermite)" != arm.family("hermite:degree=3")
    assert arm.file_name("gated(hermite:degree=3,per=channel)") == "gated-hermite-degree=3-per=channel"
    assert arm.of({"activation": "silu"}) == "silu"
    assert arm.family("hermite:degree=3;hermite:degree=5") == "hermite"
    assert arm.family("gated(gelu;hermite)") == "gated(gelu;hermite)"
    assert arm.file_name("gated(relu;hermite:degree=3)") == "gated-relu+hermite-degree=3"


@pytest.mark.parametrize(
    ("name", "told"), [("gated(silu", "no closing bracket"), ("gated(selu)", "did you mean 'silu'"), ("gated()", "''")]
)
def test_what_is_no_arm_is_refused_in_one_line(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        arm.check(name)
    assert "\n" not in str(caught.value)
