"""Spec strings: every combination of options round-trips, everything else is one line that helps."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import activations
from activations import registry


@st.composite
def specs(draw: st.DrawFn) -> tuple[str, dict[str, object]]:
    name = draw(st.sampled_from(registry.names()))
    options = registry.family(name).options
    keys = draw(st.lists(st.sampled_from(sorted(options)), unique=True)) if options else []
    chosen = {key: draw(st.sampled_from(options[key].allowed)) for key in keys}
    text = ",".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in chosen.items())
    return name + (":" + text if text else ""), chosen


@given(specs())
def test_options_round_trip_through_the_canonical_spec(drawn: tuple[str, dict[str, object]]) -> None:
    spec, chosen = drawn
    canonical = registry.check(spec)
    assert registry.check(canonical) == canonical
    name, options = registry.parse(canonical)
    assert options == {key: option.default for key, option in registry.family(name).options.items()} | chosen


@given(st.text(max_size=30))
@example(".py")
@example("none.py:Swish")
def test_any_text_is_a_spec_or_a_one_line_error(text: str) -> None:
    try:
        found = registry.check(text)
    except ValueError as error:
        found = str(error)
    assert found.partition(":")[0].partition(";")[0] in registry.names() or (
        found.startswith("activation ") and "\n" not in found
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gelo", "activation 'gelo' is not known; did you mean 'gelu'? allowed: gelu, relu"),
        ("hermite:degre=3", "'degre' is not an option of hermite; did you mean 'degree'?"),
        ("hermite:degree=30", "degree='30' is not allowed; allowed: 1 to 16, for example hermite:degree=3"),
        ("hermite:degree=3.0", "degree='3.0' is not allowed"),
        ("hermite:degree", "degree='' is not allowed"),
        ("hermite:init=unt", "did you mean 'unit'?"),
        ("relu:degree=3", "it takes none: type relu"),
        ("hermite:degree=3,degree=3", "degree is given twice; keep one"),
        ("", "activation '' is not known"),
    ],
)
def test_messages_say_given_allowed_and_what_to_type(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        registry.check(spec)


def test_a_spec_for_each_part_of_the_depth() -> None:
    spec = registry.check("tpgu:degree=5 ; gelu;relu")
    assert spec == f"{registry.check('tpgu:degree=5')};gelu:exact=false;relu" == registry.check(spec)
    assert [registry.of_layer(spec, layer, 6) for layer in range(6)] == [part for part in spec.split(";") for _ in (0, 1)]
    assert registry.of_layer("relu", 3, 5) == "relu"
    assert registry.check("relu;relu") == "relu", "one spelling for one activation"
    with pytest.raises(ValueError, match="names 3 parts of the depth, and 4 layers have no 3 equal parts; give n_layer a"):
        registry.of_layer(spec, 0, 4)
    with pytest.raises(ValueError, match="names one for each part of the depth; here is one layer"):
        activations.build(spec, 8)
    with pytest.raises(ValueError, match="did you mean 'gelu'"):
        registry.check("relu;gelo")
    with pytest.raises(ValueError, match="9 parts of the depth; allowed are 8"):
        registry.check(";".join(["relu"] * 9))


def test_spaces_do_not_matter() -> None:
    assert registry.check(" hermite: degree = 5 , per=channel ") == registry.check("hermite:degree=5,per=channel")


@pytest.mark.parametrize(("channels", "std"), [(0, 1.0), (4, 0.0), (4, -1.0), (4, float("nan")), (4, float("inf"))])
def test_bad_sizes_are_named(channels: int, std: float) -> None:
    with pytest.raises(ValueError, match=r"channels=0|input_std="):
        activations.build("hermite", channels, std)
