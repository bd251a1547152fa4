"""What the documentation says is typed here: every block of commands and of Python runs, or says why not; links lead somewhere.

A line `<!-- not run: REASON -->` before a block exempts it. A Python block after a line that ends in "`NAME.py`:" is that file
too. Sizes are those of tests/shrunk.py. Blocks find what the quick start leaves: prepared data and a trained runs/tiny_hermite.
Commands in a line of text are not run: what they name has to exist.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from config.schema import Config
from tests.test_house import ROOT, TRACKED

PAGES = [
    path for path in TRACKED if re.fullmatch(r"(README|CONTRIBUTING|activations/README|docs/[\w/]+|examples/\w+)\.md", path)
]
RUN = {"sh", "bash", "python"}
TEXT = {"text", "json", "bibtex", "yaml"}  # fences that hold no command
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
OPTIONS_OF_OTHERS = {
    "--shutdown-timeout",
    "--max-restarts",
    "--signals-to-handle",
    "--nproc_per_node",
    "--standalone",
    "--model_args",
    "--tasks",
}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    before: str  # the line before

    @property
    def reason(self) -> str:
        """Why it is not run; empty where it is."""
        found = re.fullmatch(r"<!-- not run: (.+) -->", self.before)
        return found[1] if found else ""

    @property
    def file(self) -> str:
        """The file that the text says it is."""
        found = re.search(r"`([\w/]+\.py)`:$", self.before)
        return found[1] if found else ""


def blocks(page: str, text: str) -> Iterator[Block]:
    for found in FENCE.finditer(text):
        before = text[: found.start()].rstrip().rpartition("\n")[2].strip()
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[2], textwrap.dedent(found[3]), before)


BLOCKS = [block for page in PAGES for block in blocks(page, (ROOT / page).read_text())]
TO_RUN = [block for block in BLOCKS if block.language in RUN and not block.reason]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the checkout in which the quick start was followed; `python` and `torchrun` are tests/shrunk.py there."""
    server = Path(tempfile.mkdtemp()) / "server"  # a socket's path has a hundred characters at most
    place = tmp_path_factory.mktemp("checkout")
    for path in TRACKED:
        if path and not path.startswith(("results/", "bench/results/")) and (ROOT / path).is_file():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, place / path)
    (place / ".bin").mkdir()
    (place / ".bin" / "make").write_text("#!/bin/sh\necho make takes minutes: mark the block as not run >&2\nexit 1\n")
    (place / ".bin" / "make").chmod(0o755)
    for name in ("python", "torchrun"):
        command = f'exec "{sys.executable}" "{ROOT}/tests/shrunk.py" "{server}" {name} "$@"'
        (place / ".bin" / name).write_text(f"#!/bin/sh\n{command}\n")
        (place / ".bin" / name).chmod(0o755)
    for block in BLOCKS:
        if block.file:
            (place / block.file).write_text(block.text)
    serving = [sys.executable, str(ROOT / "tests" / "forked.py"), str(server)]
    with subprocess.Popen(serving, cwd=place, stdin=subprocess.PIPE, env=environment(place)) as process:
        while not server.exists():
            assert process.poll() is None, "the server of forks has ended"
            time.sleep(0.02)
        shell(place, "python -m data.prepare pystdlib && python train.py config/tiny_hermite.py")
        yield place
    shutil.rmtree(server.parent)


def environment(place: Path) -> dict[str, str]:
    path = f"{place / '.bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(place), "HF_HUB_OFFLINE": "1"}


def shell(place: Path, text: str) -> None:
    script = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(script, cwd=place, env=environment(place), capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("block", TO_RUN, ids=lambda block: f"{block.page}:{block.line}")
def test_block_runs(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.language != "python":
        shell(place, block.text)
        return
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(place / ".hf_modules"))
    monkeypatch.chdir(place)
    exec(compile(block.text, f"{block.page}:{block.line}", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    text = (ROOT / page).read_text()
    for block in blocks(page, text):
        assert block.language in RUN | TEXT, f"{page}:{block.line}: a block is one of {sorted(RUN | TEXT)}"
    fences = len(re.findall(r"^ *```", text, re.MULTILINE))
    assert fences == 2 * len(list(blocks(page, text))), f"{page}: a fence that is not closed, or opened in another way"
    assert text.count("<!-- not run") == sum(bool(block.reason) for block in blocks(page, text)), (
        f"{page}: a mark before no block"
    )


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_tracked_files(page: str) -> None:
    prose = FENCE.sub("", (ROOT / page).read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"https?://|#", target):
            path = os.path.normpath(os.path.join(os.path.dirname(page), target.partition("#")[0]))
            assert path in TRACKED or any(one.startswith(f"{path}/") for one in TRACKED), f"{page}: {target} is not there"


@pytest.mark.parametrize("page", PAGES)
def test_what_commands_in_text_name_is_there(page: str) -> None:
    prose = FENCE.sub("", (ROOT / page).read_text())
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    options = {f"--{name}" for name in Config.__dataclass_fields__} | OPTIONS_OF_OTHERS
    for path in TRACKED:
        if path.endswith(".py") and not path.startswith("tests/"):
            options |= set(re.findall(r"--\w[\w-]*", (ROOT / path).read_text()))
    for code in re.findall(r"`([^`\n]+)`", prose):
        for option in re.findall(r"(?<!\S)--\w[\w-]*", code):
            assert option in options, f"{page}: no program has {option}"
        if found := re.match(r"make (?:\w+=\S+ )*([a-z]+)", code):
            assert found[1] in targets, f"{page}: {code}"
        elif found := re.match(r"python (?:-m ([\w.]+)|([\w/]+\.py))", code):
            name = found[2] or found[1].replace(".", "/")
            assert {name, f"{name}.py", f"{name}/__main__.py"} & {*TRACKED}, f"{page}: {code}"


def test_python_blocks_are_python() -> None:
    """Those that are not run too."""
    for block in BLOCKS:
        if block.language == "python":
            ast.parse(block.text)


def test_marks_and_files_are_found() -> None:
    text = (
        "A `mine.py`:\n\n```python\nx = 1\n```\n<!-- not run: days -->\n```sh\nls\n```\n- in a list\n\n  ```sh\n  ls\n  ```\n"
    )
    found = list(blocks("page", text))
    assert [(block.line, block.language, block.text, block.file, block.reason) for block in found] == [
        (3, "python", "x = 1\n", "mine.py", ""), (7, "sh", "ls\n", "", "days"), (12, "sh", "ls\n", "", ""),
    ]  # fmt: skip
