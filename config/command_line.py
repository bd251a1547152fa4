"""`CONFIG.py [--field value ...]` -> `Config`, what train.py and compare.py read; and the parser of all other options.

A preset is Python that its author wrote and is run as such. Command-line values are data: each is checked against
its field's type here, so that all problems come in one message; tyro, where it is installed, renders `--help`.
"""

import argparse
import dataclasses
import difflib
import importlib.util
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from config.schema import Config, field_types, unknown_field

_LONGEST_NUMBER = 20  # characters; int() of a million digits takes minutes


def parse(argv: list[str], command: str = "train.py") -> Config:
    """The preset `argv[0]` with the overrides in `argv[1:]`; `out_dir` defaults to runs/<preset file name>.

    Raises ValueError with all problems in one line; SystemExit(0) after printing `--help`.
    """
    if not argv or (argv[0].startswith("-") and not {"-h", "--help"} & set(argv)):
        raise ValueError(f"no preset given; type: {command} config/tiny.py [--field value ...]")
    if argv[0].startswith("-"):
        argv = [str(Path(__file__).with_name("tiny.py")), "--help"]
    path, rest = Path(argv[0]), argv[1:]
    preset = load_preset(path)
    if {"-h", "--help"} & set(rest):
        _print_help(preset, f"{command} {path}")
        raise SystemExit(0)
    values = overrides(rest)
    values.setdefault("out_dir", preset.out_dir or f"runs/{path.stem}")
    return dataclasses.replace(preset, **values)


def load_preset(path: Path) -> Config:
    """The object named `config` in a preset file. Raises ValueError if there is none."""
    if path.suffix != ".py" or not path.is_file():
        presets = sorted(
            p.name
            for p in Path(__file__).parent.glob("*.py")
            if p.stem not in ("__init__", "schema", "command_line", "foreign", "arm")
        )
        raise ValueError(f"{str(path)!r} is not a preset file; in config/ there are {', '.join(presets)}")
    found = runpy.run_path(str(path)).get("config")
    if not isinstance(found, Config):
        raise ValueError(f"{path} defines no `config = replace(base, ...)` of type config.schema.Config")
    return found


def overrides(arguments: list[str]) -> dict[str, Any]:
    """`--field value` or `--field=value` pairs as typed values. Raises ValueError naming every wrong one."""
    types = field_types()
    values: dict[str, Any] = {}
    problems: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            problems.append(f"{word!r} stands where --field should")
            continue
        name, equals, text = word[2:].partition("=")
        if name not in types:
            problems.append(unknown_field(name))
            if not equals and rest and not rest[0].startswith("--"):
                rest.pop(0)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                problems.append(f"--{name} has no value")
                continue
            text = rest.pop(0)
        if name in values:
            problems.append(f"--{name} is given twice")
        try:
            values[name] = _convert(types[name], text)
        except ValueError as error:
            problems.append(f"--{name} {text!r}: {error}")
    if problems:
        raise ValueError("; ".join(problems))
    return values


def _convert(kind: Any, text: str) -> Any:
    """One value of type `kind` from its text. Raises ValueError that says what is allowed."""
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(f"allowed are {', '.join(repr(a) for a in get_args(kind))}")
        return text
    if kind is bool:
        if text not in ("True", "False"):
            raise ValueError("allowed are True and False")
        return text == "True"
    if kind is int and len(text) > 20:  # int() of a million digits takes minutes
        raise ValueError("expected an integer of at most 20 characters")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError("expected an integer" if kind is int else "expected a number") from None
    return text


def _print_help(preset: Config, command: str) -> None:
    if importlib.util.find_spec("tyro"):
        import tyro

        tyro.cli(
            Config, prog=command, default=preset, args=["--help"], config=(tyro.conf.FlagConversionOff,), use_underscores=True
        )
    print(f"usage: {command} [--field value ...]\n")  # tyro.cli has exited; without it the fields and their values must do
    for field in dataclasses.fields(Config):
        print(f"  --{field.name:<22} {getattr(preset, field.name)!r}")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a ValueError, so that a script prints them as one line with exit code 2."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Every error of argparse ends here."""
        raise ValueError(message.removeprefix("argument ") + f"; {self.prog} --help lists all")

    def refuse_unknown(self, words: Sequence[str], fields: Sequence[str] = ()) -> None:
        """An error for the first of `words`, with the nearest name; where there are `fields`, for an unknown --name alone."""
        known = [option for option in [*self._option_string_actions, *(f"--{field}" for field in fields)] if option > "--"]
        for name in (word.partition("=")[0] for word in words):
            if not fields or (name.startswith("--") and name not in known):
                nearest = difflib.get_close_matches(name, known, n=1)
                self.error(f"unknown option {name!r}" + (f", did you mean {nearest[0]}?" if nearest else ""))


class Once(argparse.Action):
    """Stores one value, and refuses a second one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Raises argparse.ArgumentError where the option was given before."""
        given = vars(namespace).setdefault("given", set())
        if self.dest in given:
            raise argparse.ArgumentError(self, "is given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def whole(word: str) -> int:
    """An integer. Raises argparse.ArgumentTypeError."""
    if len(word) > _LONGEST_NUMBER or not word.removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{word[:40]!r} is not an integer")
    return int(word)
