"""The house rules that a machine can check: who imports whom, sizes, no work at import, nothing that points outside."""

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
SOURCES = sorted(path for path in TRACKED if path.endswith(".py") and not path.startswith("tests/"))

# package or script -> what of ours it may import beside itself
MAY_IMPORT = {
    "activations": set(),
    "config": {"activations.registry"},
    "data": set(),
    "pretrained": {"activations", "config", "data", "pretrained"},
    "decoding": {"activations"},
    "model": {"activations", "config", "decoding", "pretrained.folder"},
    "runtime": {"activations", "config", "data", "model", "pretrained.folder"},
    "train": {"activations", "config", "data", "model", "runtime"},
    "evaluation": {"activations", "config", "data", "decoding", "model", "pretrained", "runtime"},
    "sample": {"activations", "config", "data", "decoding", "evaluation", "model", "runtime"},
    "export": {"activations", "config", "data", "model", "pretrained", "runtime"},
    "comparison": {"activations", "config", "data", "evaluation", "model", "runtime", "train"},
    "compare": {"activations", "comparison", "config", "data", "evaluation", "model", "runtime", "train"},
    "evaluate": {"comparison.document", "comparison.plan", "config", "data", "evaluation", "runtime"},
    "examples": {"activations"},
    "bench": {"activations", "bench", "config", "data", "decoding", "model", "runtime", "train", "sample"},
}
LONGEST = 500  # lines: a module may be long when it is one thing
MISSING_ELSEWHERE = {
    "tyro",
    "wandb",
    "datasets",
    "matplotlib",
    "scipy",
    "zstandard",
    "pyarrow",
    "tokenizers",
    "submitit",
    "transformers",
    "lm_eval",
    "torchortho",
    "triton",
}


@functools.cache
def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def imports(path: str, everywhere: bool = True) -> set[str]:
    """Dotted names that a file imports, function-local ones included unless `everywhere` is off."""
    found = set()
    for node in ast.walk(parsed(path)) if everywhere else parsed(path).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_go_downward_alone() -> None:
    wrong = []
    for path in SOURCES:
        me = path.split("/")[0].removesuffix(".py")
        assert me in MAY_IMPORT, f"{path}: say in MAY_IMPORT what {me} may import"
        for name in imports(path):
            top = name.split(".")[0]
            mine = top == me or any(name == allowed or name.startswith(allowed + ".") for allowed in MAY_IMPORT[me])
            if top == "tests" or (top in MAY_IMPORT and not mine):
                wrong.append(f"{path} imports {name}")
    assert wrong == []


def test_what_other_machines_lack_is_imported_where_it_is_used() -> None:
    for path in SOURCES:
        if not path.startswith(("bench/", "examples/", "pretrained/modeling_", "evaluation/harness")):
            tops = {name.split(".")[0] for name in imports(path, everywhere=False)}
            assert not tops & MISSING_ELSEWHERE, f"{path} imports {tops & MISSING_ELSEWHERE} at its top"


def test_no_file_is_longer_than_a_sitting() -> None:
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}


def test_every_module_begins_with_what_it_is_for() -> None:
    assert [path for path in SOURCES if not ast.get_docstring(parsed(path))] == []


def test_no_work_at_import() -> None:
    """Definitions, constants and the main guard: nothing else stands at the top of a file. A notebook is all work."""
    allowed = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
    for path in SOURCES:
        if path.startswith("examples/") and "\n# %%" in (ROOT / path).read_text():
            continue
        for node in parsed(path).body:
            documentation = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            main_guard = isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
            fine = isinstance(node, allowed) or documentation or main_guard
            assert fine, f"{path}:{node.lineno}: {ast.unparse(node)[:80]}"


def test_nothing_points_outside() -> None:
    for path in TRACKED:
        if path and (ROOT / path).suffix in (".py", ".md", ".toml", ".txt", "") and (ROOT / path).is_file():
            text = (ROOT / path).read_text(errors="replace")
            assert "../" + "shared" not in text, path
            assert not any(line.startswith(("<<<<<<< ", ">>>>>>> ")) for line in text.splitlines()), f"{path}: conflict markers"


# Where files are opened for writing, renamed or saved outside data/files.py, the one atomic writer, and why.
WRITES = {
    "data/files.py": "the writer",
    "runtime/checkpoint.py": "inside a temporary folder of the writer",
    "runtime/log.py": "appends rows; links are refused before",
    "data/lock.py": "the lock file; a link is refused",
    "data/hub.py": "a download under another name, renamed when whole",
    "data/writer.py": "shards under a partial name, renamed when whole",
    "comparison/plots.py": "a picture in memory",
    "activations/plot.py": "a picture in memory",
    "export.py": "inside a temporary folder of the writer",
    "bench/step.py": "shards in a temporary folder, and a switch of the kernel's",
    "bench/activations.py": "savefig, called by the writer",
    "bench/gpu.py": "savefig, called by the writer",
    "bench/scaling.py": "savefig, called by the writer",
    "runtime/terminal.py": "the null device",
    "comparison/worker.py": "standard output, which is a pipe",
    "runtime/hardware.py": "a switch of the kernel's",
    "examples/walkthrough.py": "a notebook, which has the package alone",
}
WRITERS = {
    "write_text", "write_bytes", "savefig", "to_csv", "to_parquet", "tofile", "savetxt", "savez", "save_file",
    "torch.save", "np.save", "numpy.save", "json.dump", "pickle.dump", "os.open", "os.rename", "os.replace", "os.link",
    "shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.move",
}  # fmt: skip


def writes(path: str) -> list[str]:
    """Calls in a file that write to the disk by something else than the functions of the writer."""
    tree = parsed(path)
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("data.files", "data.files")
        for alias in node.names
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            words = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
            modes = [word for word in words if isinstance(word, str) and word and set(word) <= set("rwaxbt+")]
            opens = last in ("open", "fdopen") and any(set(mode) & set("wax+") for mode in modes)
            if opens or ((name in WRITERS or last in WRITERS) and name not in ours and not name.startswith("files.")):
                found.append(f"{path}:{node.lineno}: {ast.unparse(node)[:80]}")
    return found


def test_every_write_goes_through_the_one_writer() -> None:
    found = {path: writes(path) for path in SOURCES}
    assert {path: calls for path, calls in found.items() if calls and path not in WRITES} == {}, "use data.files"


def test_the_files_that_write_by_themselves_still_do() -> None:
    assert [path for path in WRITES if path in SOURCES and not writes(path)] == []
