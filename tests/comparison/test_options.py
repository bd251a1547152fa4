"""compare.py's options: typed, each once, the rest passed on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comparison.options import Options, read_options

KNOWN = {"activations": None, "seeds": 1, "flag": 0}


def test_options_are_told_from_fields() -> None:
    options, rest = read_options(
        ["--activations", "gelu", "relu", "--n_layer", "2", "--seeds=3", "--flag", "--bias", "True", "--activations", "silu"],
        KNOWN,
        more=True,
    )
    assert options.words("activations") == ["gelu", "relu", "silu"]
    assert options.number("seeds", 1) == 3
    assert "flag" in options
    assert rest == ["--n_layer", "2", "--bias", "True"]
    assert options.word("baseline") == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seeds"], "--seeds has no value"),
        (["--seeds", "1", "--seeds", "2"], "--seeds is given twice"),
        (["--flag=3"], "--flag takes no value"),
        (["--seed", "1"], "unknown option --seed, did you mean --seeds?"),
        (["--activations", "--flag"], "--activations has no value"),
        (["--zzz", "--seeds"], "unknown option --zzz; --help lists them; --seeds has no value"),
    ],
)
def test_every_problem_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("?", r"\?") + "$"):
        read_options(argv, KNOWN)


def test_numbers_and_rates() -> None:
    options = Options(
        {"seeds": ["3.5"], "jobs": ["9" * 10_000], "lr": ["1e-3,2e-3", "1e-3"], "bad": ["x"], "huge": ["1e999"], "zero": ["0"]}
    )
    assert options.rates("lr") == (1e-3, 2e-3)
    assert options.rates("none") == ()
    for name in ("seeds", "jobs"):
        with pytest.raises(ValueError, match=f"--{name} .* is not an integer"):
            options.number(name, 1)
    for name in ("bad", "huge", "zero"):
        with pytest.raises(ValueError, match=f"--{name}"):
            options.rates(name)


@given(st.lists(st.text(max_size=8), max_size=8))
def test_any_words_are_options_or_one_line(argv: list[str]) -> None:
    try:
        options, rest = read_options(argv, KNOWN, more=True)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        assert set(rest) <= set(argv)
        assert len(rest) + len(options.words("activations")) <= len(argv) + 1
    assert message == "" or message.startswith("--")
