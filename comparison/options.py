"""compare.py's own command-line options, apart from the configuration's fields, which pass through to train.py."""

import difflib
import math
from collections.abc import Mapping, Sequence

_LONGEST_NUMBER = 20  # characters; int() of a million digits takes minutes


class Options:
    """Option -> the words given to it. Every getter raises ValueError that says what is allowed."""

    def __init__(self, given: Mapping[str, Sequence[str]]) -> None:
        self._given = given

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def words(self, name: str) -> list[str]:
        """All words; none where the option is not given."""
        return list(self._given.get(name, ()))

    def word(self, name: str) -> str:
        """The one word; empty where the option is not given."""
        return self._given[name][0] if name in self._given else ""

    def number(self, name: str, default: int) -> int:
        """The one word as an integer."""
        word = self.word(name) or str(default)
        if len(word) > _LONGEST_NUMBER or not word.removeprefix("-").isdecimal():
            raise ValueError(f"--{name} {word[:40]!r} is not an integer")
        return int(word)

    def rates(self, name: str) -> tuple[float, ...]:
        """All words, apart by spaces or commas, as positive numbers, each once."""
        found = []
        for word in " ".join(self.words(name)).replace(",", " ").split():
            try:
                found.append(float(word))
            except ValueError:
                raise ValueError(f"--{name} {word!r} is not a number") from None
            if not 0 < found[-1] < math.inf:
                raise ValueError(f"--{name} {word} is not a learning rate above 0")
        return tuple(dict.fromkeys(found))


def read_options(argv: Sequence[str], known: Mapping[str, int | None], more: bool = False) -> tuple[Options, list[str]]:
    """`--name word ...` or `--name=word` for the `known` ones, and the words left over.

    `known` says how many words follow a name; None: one or more, and the option may be repeated. With `more`, unknown
    options are left over with their words; otherwise they are a ValueError with the nearest name.
    """
    given: dict[str, list[str]] = {}
    rest: list[str] = []
    problems = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word[2:].partition("=")
        if not word.startswith("--") or (name not in known and more):
            rest.append(word)
            continue
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            problems.append(
                f"unknown option --{name}" + (f", did you mean --{nearest[0]}?" if nearest else "; --help lists them")
            )
            continue
        count = known[name]
        if name in given and count is not None:
            problems.append(f"--{name} is given twice")
        taken = [value] if equals else []
        while words and not words[0].startswith("--") and (count is None or len(taken) < count):
            taken.append(words.pop(0))
        if len(taken) < (1 if count is None else count) or (count == 0 and taken):
            problems.append(f"--{name} takes no value" if count == 0 else f"--{name} has no value")
        given.setdefault(name, []).extend(taken)
    if problems:
        raise ValueError("; ".join(problems))
    return Options(given), rest
