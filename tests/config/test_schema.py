"""A Config is right or not made, and says all that is wrong at once."""

import dataclasses
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import schema
from config.schema import Config, GPTConfig, from_dict, names
from config.tiny import config as tiny


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ValueError, match="; ") as error:
        dataclasses.replace(tiny, n_head=5, dropout=1.0, min_lr=1.0, micro_batch_size=5, activation="hermit", device="gpu")
    text = str(error.value)
    for part in (
        "n_embd=192 is not a multiple of n_head=5", "dropout=1.0 must be in [0, 1)", "min_lr=1.0 is above learning_rate",
        "global_batch_size=12 is not a multiple of micro_batch_size=5", "did you mean 'hermite'", "device='gpu'",
    ):  # fmt: skip
        assert part in text, part
    assert "\n" not in text


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("n_layer", 2.0, "n_layer=2.0 is not an integer"),
        ("n_layer", True, "n_layer=True is not an integer"),
        ("compile", 1, "compile=1 is not True or False"),
        ("learning_rate", "1e-3", "learning_rate='1e-3' is not a number"),
        ("learning_rate", math.nan, "learning_rate=nan is not finite"),
        ("dtype", "bf16", "dtype='bf16' is not one of 'auto', 'float32', 'bfloat16', 'float16'"),
        ("data_dir", "", "data_dir is empty; python -m data.prepare pystdlib"),
        ("max_steps", -1, "max_steps=-1 must not be negative"),
        ("eval_interval", 0, "eval_interval=0 must be at least 1"),
        ("n_embd", 1 << 30, "n_embd=1073741824 is above"),
        ("mup_base_width", -1, "mup_base_width=-1 must not be negative"),
        ("mup_base_heads", 2, "mup_base_heads=2 has no effect without mup_base_width"),
        ("mup_base_width", 50, "mup_base_width=50 is not a multiple of n_head=4; give the base model's as --mup_base_heads"),
    ],
)
def test_what_was_given_and_what_is_allowed(field: str, value: object, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        dataclasses.replace(tiny, **{field: value})


def test_one_spelling_for_one_setting() -> None:
    assert (
        dataclasses.replace(tiny, activation="hermite").activation
        == dataclasses.replace(tiny, activation="hermite:degree=3").activation
    )
    assert isinstance(dataclasses.replace(tiny, grad_clip=1).grad_clip, float)


def test_a_config_is_never_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.n_layer = 3  # type: ignore[misc]


def test_from_dict_takes_back_what_asdict_gave_and_nothing_else() -> None:
    assert from_dict(dataclasses.asdict(tiny), "here") == tiny
    values = dataclasses.asdict(tiny) | {"n_layers": 3}
    del values["n_layer"]
    with pytest.raises(ValueError, match=r"^here: unknown field 'n_layers', did you mean 'n_layer'\?; n_layer is missing$"):
        from_dict(values, "here")


@given(
    st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(Config)]),
        st.none() | st.integers() | st.floats() | st.text(max_size=9),
    )
)
def test_strange_data_is_a_value_error_or_a_config(values: dict[str, object]) -> None:
    try:
        made = from_dict(dataclasses.asdict(tiny) | values, "here")
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert isinstance(made, Config)


def test_the_model_s_part_has_the_run_s_values() -> None:
    part = tiny.gpt(257)
    assert part.vocab_size == 257
    assert all(getattr(part, f.name) == getattr(tiny, f.name) for f in dataclasses.fields(GPTConfig) if f.name != "vocab_size")


def test_a_field_that_nobody_declared_is_refused() -> None:
    """A forgotten field fails closed: the class cannot be made."""
    made = dataclasses.dataclass(frozen=True, kw_only=True)
    plain = made(type("Config", (), {"__annotations__": {"momentum": float}, "momentum": 0.9}))
    with pytest.raises(TypeError, match=r"Config\.momentum is not declared; write momentum = setting\("):
        schema.declared(plain)
    field = schema.setting(2, resume="free", compare="same")
    forgotten = made(type("Config", (), {"__annotations__": {"n_layer": int}, "n_layer": field}))
    with pytest.raises(TypeError, match=r"Config\.n_layer has model=''; GPTConfig says otherwise"):
        schema.declared(forgotten)
    with pytest.raises(TypeError, match="resume"):
        schema.setting(0.9, compare="same")  # type: ignore[call-arg]


def test_what_follows_from_the_declarations() -> None:
    """The lists that resume, comparisons and the model go by, as users rely on them."""
    assert {"activation", "seed", "learning_rate", "lr_decay_steps", "global_batch_size"} <= set(names(resume="fixed"))
    assert not {"max_steps", "micro_batch_size", "device", "out_dir", "compile"} & set(names(resume="fixed"))
    assert set(names(compare="free")) == {
        "out_dir", "resume", "wandb", "wandb_project", "wandb_run_name", "wandb_group", "tensorboard", "keep_checkpoints",
            "checkpoint_interval", "checkpoint_steps", "timeout_s", "recompute",
            "reshard_after_forward", "compile_cache", "profile_steps",
    }  # fmt: skip
    assert set(names(compare="own")) == {"activation", "mlp", "seed"}
    assert set(names(model=("shape", "other"))) <= {field.name for field in dataclasses.fields(GPTConfig)}
    assert names(ranks="free") == ("data_dir", "tokenizer", "device", "compile_cache", "out_dir", "init_from", "branch_from")
    assert not {"learning_rate", "min_lr", "activation"} & set(names(start=True))
    assert tiny.values(resume="fixed")["lr_decay_steps"] == tiny.max_steps  # left open: the decay ends with the run
    constant = dataclasses.replace(tiny, lr_schedule="constant")
    assert constant.values(resume="fixed")["lr_decay_steps"] == 0  # no decay: it may be trained on
    branch = dataclasses.replace(tiny, branch_from="runs/trunk@800", max_steps=1000)
    assert branch.values(resume="fixed")["branch_from"] == 800  # its trunk may lie elsewhere, or be gone
    assert set(names(schedule=True)) == {
        "learning_rate", "min_lr", "warmup_steps", "lr_schedule", "lr_decay_steps", "lr_decay_fraction", "branch_from",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr_decay_fraction": 0.0, "lr_schedule": "wsd"}, "lr_decay_fraction=0.0 must be above 0 and at most 1"),
        ({"lr_decay_fraction": 0.1}, "lr_decay_fraction=0.1 has no effect without --lr_schedule wsd"),
        ({"lr_schedule": "constant", "lr_decay_steps": 5}, "lr_decay_steps=5 has no effect with lr_schedule='constant'"),
        ({"branch_from": "runs/a"}, r"branch_from='runs/a' is not RUN@STEP, as in runs/study@800"),
        ({"branch_from": "runs/a@0"}, "is not RUN@STEP"),
        ({"branch_from": "runs/a@500", "max_steps": 500}, "max_steps=500 is not above the step of branch_from=runs/a@500"),
        ({"branch_from": "a@500", "max_steps": 900, "lr_decay_steps": 400}, "lr_decay_steps=400 is not above the step of"),
        ({"checkpoint_steps": "800, 900"}, "is not steps apart by commas"),
    ],
)
def test_schedules_that_make_no_sense(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(tiny, **changes)


def test_every_field_is_documented() -> None:
    import ast
    import inspect

    tree = next(n for n in ast.parse(inspect.getsource(schema)).body if isinstance(n, ast.ClassDef) and n.name == "Config")
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{ast.unparse(field.target)} has no docstring below it"
