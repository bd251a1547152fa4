"""`CONFIG.py [--field value ...]` becomes a Config or one line."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import train
from config.command_line import load_preset, overrides, parse
from config.schema import Config
from config.tiny import config as tiny
from model import GPT
from tests.runs import ROOT, rows, train_here

NO_PRESETS = ("__init__", "schema", "command_line", "foreign", "arm")
PRESETS = sorted(path for path in (ROOT / "config").glob("*.py") if path.stem not in NO_PRESETS)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_builds_its_model(path: Path) -> None:
    config = load_preset(path)
    if config.n_embd > 768:  # the shapes are the same code; one layer of the larger ones is enough memory for a test
        config = dataclasses.replace(config, n_layer=1)
    gpt = GPT(dataclasses.replace(config.gpt(50257), n_layer=min(config.n_layer, 2)))
    assert gpt.num_parameters() > 0


@pytest.mark.parametrize("path", [path for path in PRESETS if path.stem.startswith("tiny")], ids=lambda path: path.stem)
def test_every_tiny_preset_takes_a_step(path: Path, small: Config) -> None:
    """The preset's own activation and schedule, on a smaller model and the small data."""
    config = dataclasses.replace(small, activation=load_preset(path).activation, max_steps=1)
    assert "train_loss" in rows(train_here(config))[1]


def test_gpt2_presets_have_the_published_shapes() -> None:
    sizes = {"gpt2": 124_439_808, "gpt2_medium": 354_823_168, "gpt2_large": 774_030_080, "gpt2_xl": 1_557_611_200}
    for name, parameters in sizes.items():
        c = load_preset(ROOT / "config" / f"{name}.py")
        n, layers = c.n_embd, c.n_layer
        assert (50257 + 1024) * n + layers * (12 * n * n + 13 * n) + 2 * n == parameters  # with biases, as published
        assert c.tokens_per_step == (983_040 if name == "gpt2_xl" else 491_520)
        assert c.max_steps * c.tokens_per_step == 600_000 * 491_520


def test_out_dir_is_the_preset_s_name() -> None:
    assert parse([str(ROOT / "config" / "tiny_hermite.py")]).out_dir == "runs/tiny_hermite"


def test_values_override_in_both_forms() -> None:
    config = parse(
        [str(ROOT / "config" / "tiny.py"), "--max_steps", "7", "--warmup_steps=3", "--compile", "False", "--learning_rate", "1"]
    )
    assert (config.max_steps, config.warmup_steps, config.compile, config.learning_rate) == (7, 3, False, 1.0)


def test_all_problems_in_one_line() -> None:
    with pytest.raises(ValueError, match="; ") as error:
        overrides(
            ["--max_step", "7", "--compile", "yes", "--seed", "1", "--seed", "2", "loose", "--dtype", "bf16", "--n_layer"]
        )
    assert str(error.value).split("; ") == [
        "unknown field 'max_step', did you mean 'max_steps'?",
        "--compile 'yes': allowed are True and False",
        "--seed is given twice",
        "'loose' stands where --field should",
        "--dtype 'bf16': allowed are 'auto', 'float32', 'bfloat16', 'float16'",
        "--n_layer has no value",
    ]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "no preset given"),
        (["nowhere.py"], "'nowhere.py' is not a preset file; in config/ there are eval_gpt2.py"),
        ([str(ROOT / "config" / "schema.py")], "defines no `config = replace(base, ...)`"),
        ([str(ROOT / "config" / "tiny.py"), "--n_head", "5"], "n_embd=192 is not a multiple of n_head=5"),
        (
            [str(ROOT / "config" / "tiny.py"), "--data_dir", "/nowhere"],
            "data_dir '/nowhere' does not exist; type: python -m data.prepare",
        ),
    ],
)
def test_bad_input_is_exit_2_and_one_line(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(argv) == 2
    assert told in (errors := capsys.readouterr().err)
    assert errors.count("\n") == 1


@given(st.lists(st.sampled_from([f"--{f.name}" for f in dataclasses.fields(Config)]) | st.text(max_size=12), max_size=6))
def test_any_command_line_is_values_or_a_value_error(arguments: list[str]) -> None:
    try:
        values = overrides(arguments)
    except ValueError as error:
        assert str(error)  # noqa: PT017
    else:
        assert values.keys() <= {f.name for f in dataclasses.fields(tiny)}


def test_help_lists_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse([str(ROOT / "config" / "tiny.py"), "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{field.name}" in text for field in dataclasses.fields(Config))
