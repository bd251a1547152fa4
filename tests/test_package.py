"""The package activations as pip builds it: it holds nothing else, needs torch alone, and carries its types."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import activations
from tests.runs import ROOT

TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
USER = """\
import torch
import activations

act: activations.Activation = activations.build("hermite:degree=3", channels=4)
second, slope = activations.gains(act)
report: activations.FitReport = activations.fit(act, torch.tanh)
groups: list[dict[str, object]] = activations.parameter_groups(act, 1e-3, 0.1)
reveal_type(second)
activations.build(3, channels="4")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist, built offline from a copy of the tracked files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in TRACKED:
        if not path.startswith("results/"):
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, source / path)
    code = f"from setuptools import build_meta as b; b.build_wheel({str(out)!r}); b.build_sdist({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, as pip would into site-packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def test_wheel_and_sdist_hold_the_package_alone(built: Path, installed: Path) -> None:
    ours = {path for path in TRACKED if path.startswith("activations/") and path.endswith((".py", "py.typed"))}
    inside = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {path for path in inside if ".dist-info/" not in path} == ours
    assert any(path.endswith("licenses/LICENSE") for path in inside)
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        files = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
    others = {path for path in files if not path.startswith(("activations/", "learnable_activations.egg-info/"))}
    assert others == {"LICENSE", "MANIFEST.in", "PKG-INFO", "pyproject.toml", "setup.cfg"}
    assert ours <= files


def test_the_wheel_asks_for_torch_alone_and_has_the_version_of_the_package(installed: Path) -> None:
    (path,) = installed.glob("*.dist-info/METADATA")
    said = HeaderParser().parsestr(path.read_text(encoding="utf-8"))
    required = [line for line in said.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [re.split(r"[>=]", line)[0] for line in required] == ["torch"]
    assert (said["Name"], said["Version"]) == ("learnable-activations", activations.__version__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project, "the version stands in activations/__init__.py"


def test_it_works_and_imports_nothing_but_torch_s_own(installed: Path, tmp_path: Path) -> None:
    """Away from the checkout, with what torch itself needs and nothing more."""
    code = f"""
import sys, importlib.abc
import torch
before = set(sys.modules)
sys.path.insert(0, {str(installed)!r})
import activations
tops = {{name.partition('.')[0] for name in set(sys.modules) - before}}
assert activations.__file__.startswith({str(installed)!r}), activations.__file__
print(sorted(top for top in tops if top not in sys.stdlib_module_names and top not in ('activations', 'torch')))
missing = [name for name in ('config', 'data', 'model', 'runtime') if importlib.util.find_spec(name)]
assert not missing, missing
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('scipy', 'matplotlib', 'transformers', 'safetensors'):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
for name in activations.names():
    act = activations.build(name, 8)
    act(torch.randn(3, 8)).sum().backward() if list(act.parameters()) else act(torch.randn(3, 8))
    activations.gains(act)
activations.fit(activations.build('hermite:degree=3', 4), torch.tanh)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.slow  # mypy reads all of torch: a minute without its cache
def test_mypy_sees_the_types_in_a_user_s_file(installed: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "env").glob("lib/*/site-packages")
    shutil.copytree(installed, site, dirs_exist_ok=True)
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "shared.pth").write_text("\n".join(here) + "\n")
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(tmp_path / "env" / "bin" / "python")]
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    done = subprocess.run([*command, "user.py"], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    told = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if line.startswith("user.py")]
    assert told == [
        'note: Revealed type is "float"',
        'error: Argument 1 to "build" has incompatible type "int"; expected "str"  [arg-type]',
        'error: Argument "channels" to "build" has incompatible type "str"; expected "int"  [arg-type]',
    ], done.stdout + done.stderr
