"""Whether two commits train to the same bits: `python -m tests.identical BASE`, or `make identical BASE=COMMIT`.

A refactor must not change a number. This trains small models at BASE and in the working tree, on the same data and seed,
and compares weights, metrics and sampled text. Exit code 0 means equal to the bit; 1 names the first difference.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
PRESETS = ("tiny", "tiny_hermite", "tiny_fourier", "tiny_tropical", "tiny_tropical_rational", "tiny_tpgu")
SIZE = "--n_layer 2 --n_embd 64 --block_size 32 --max_steps 12 --log_interval 1 --eval_interval 6 --eval_tokens 4000"
CLOCK = {
    "tokens_per_second",
    "ms_per_step",
    "mfu",
    "elapsed_s",
    "data_ms_per_step",
    "communication_ms_per_step",
}  # what two equal runs may differ in


def main(argv: list[str] | None = None) -> int:
    """0 where all presets agree, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="tests.identical", description="Compare the training of two commits to the bit.")
    parser.add_argument("base", help="the commit to compare the working tree with")
    parser.add_argument("--compile", action="store_true", help="train with the compiler (some ten seconds more a preset)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        before = work / "before"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", before, options.base], cwd=ROOT, check=True)
        try:
            prepare = [sys.executable, "-m", "data.prepare", "pystdlib", "--out", work / "data"]
            subprocess.run(prepare, cwd=before, check=True, stdout=subprocess.DEVNULL)
            different = 0
            for preset in PRESETS:
                outcomes = [outcome(tree, work, preset, options.compile) for tree in (before, ROOT)]
                found = difference(*outcomes)
                print(f"{preset}: {found or 'equal to the bit'}", flush=True)
                different += bool(found)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    return 1 if different else 0


def outcome(tree: Path, work: Path, preset: str, compiled: bool) -> dict[str, Any]:
    """What the code in `tree` makes of a preset: weights by name, metrics rows without the clock, sampled text."""
    out = work / f"{tree.name}-{preset}"
    train = [
        sys.executable, "train.py", f"config/{preset}.py", *SIZE.split(), "--checkpoint_interval", "12", "--compile",
        str(compiled), "--data_dir", work / "data", "--out_dir", out,
    ]  # fmt: skip
    sample = [sys.executable, "sample.py", out, "--prompt", "def ", "--max_new_tokens", "40"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(train, cwd=tree, env=environment, check=True, capture_output=True)
    text = subprocess.run(sample, cwd=tree, env=environment, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    weights = load_file(next((out / "checkpoints").glob("step_00000012")) / "model.safetensors")
    return {"weights": weights, "rows": [{k: v for k, v in row.items() if k not in CLOCK} for row in rows], "text": text}


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The first difference in words; empty where there is none. A key that only one side's rows have is no difference."""
    if before["weights"].keys() != after["weights"].keys():
        return f"names of weights differ: {sorted(before['weights'].keys() ^ after['weights'].keys())}"
    for name, tensor in before["weights"].items():
        if not torch.equal(tensor, after["weights"][name]):
            return f"{name} differs by {float((tensor - after['weights'][name]).abs().max()):.2g}"
    if len(before["rows"]) != len(after["rows"]):
        return f"{len(before['rows'])} metrics rows before, {len(after['rows'])} after"
    for first, second in zip(before["rows"], after["rows"], strict=True):
        for key in first.keys() & second.keys():
            if first[key] != second[key]:
                return f"{key} at step {first['step']} was {first[key]} and is {second[key]}"
    return "" if before["text"] == after["text"] else "sampled text differs"


if __name__ == "__main__":
    sys.exit(main())
