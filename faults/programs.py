"""Bad input of the programs beside train.py: binary prompts, huge numbers, missing folders, names in other scripts."""

import dataclasses
from pathlib import Path
from typing import Any

from config.schema import Config
from faults.process import PRESET, Child, one_line, trainer
from faults.tally import Tally, expect


def answer(tally: Tally, folder: Path, config: Config) -> None:
    """Each case is a process: exit code 0, or 2 and one line that says what is needed."""
    child = trainer(dataclasses.replace(config, max_steps=2, out_dir=str(folder / "dünn 模型")), folder / "unicode.log")
    expect(child.finish() == 0, f"a run in a folder of another script: {child.said[-500:]}")
    (folder / "binary").write_bytes(bytes(range(256)) * 20)
    (folder / "texts.jsonl").write_text("".join(f'{{"text": "tëxt {i} \\ud83d"}}\n' for i in range(30)))
    (folder / "a file").write_text("x")
    cases = [(program, *case) for program, found in cases_of(folder).items() for case in found]
    for number, (program, argv, code, *needed) in enumerate(cases if tally.full else cases[::9]):
        tally.plan(1, 1)
        with tally.fault(f"{program} {' '.join(argv)[:100]!r}"):
            child = Child(program, argv, folder / f"other-{number}.log", environment={"HF_HUB_OFFLINE": "1"})
            if code:
                one_line(child, code, *needed)
            else:
                expect(child.finish() == 0 and "Traceback" not in child.said, child.said[-600:])


def cases_of(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """program -> (arguments, exit code, what the line must say)."""
    model, texts = str(folder / "dünn 模型"), str(folder / "texts.jsonl")
    short = ["--max_new_tokens", "5", "--device", "cpu"]
    tiny = [PRESET, "--data_dir", str(folder / "data"), "--tokenizer", "bytes"]
    prepare = ["text", "--tokenizer", "bytes", "--input"]
    return {
        "sample": [
            ([model, *short, "--prompt_file", str(folder / "binary")], 0),
            ([model, *short, "--prompt", "日本語 🙂 \udcff"], 0),
            ([model, *short, "--prompt", ""], 0),
            ([model, *short, "--prompt_file", str(folder / "none")], 2, "is not a file"),
            ([model, *short, "--prompt_file", str(folder)], 2, "is not a file"),
            ([model, *short, "--temperature", "1e400"], 2, "temperature"),
            ([model, *short, "--temperature", "nan"], 2, "temperature"),
            ([model, *short, "--top_k", "9" * 5000], 2, "top_k"),
            ([model, *short, "--num_samples", "9999999"], 2, "num_samples"),
            ([model, *short, "--seed", "-1"], 2, "seed"),
            ([model, *short, "--checkpoint", "../../etc"], 2, "give best, last or one of the steps"),
            ([model, *short, "--checkpoint", "9" * 5000], 2, "give best, last or one of the steps"),
            ([model, *short, "--device", "cuda:99"], 2, "cuda:99"),
            ([model, *short, "--device", "toaster"], 2, "toaster"),
            ([str(folder / "none"), *short, "--prompt", "a"], 2, "none"),
            ([str(folder / "a file"), *short, "--prompt", "a"], 2, "a file"),
            ([str(folder), *short, "--prompt", "a"], 2, "neither a run nor a GPT-2 folder"),
            (["", *short, "--prompt", "a"], 2, ""),
            ([], 2, "RUN"),
        ],
        "compare": [
            ([*tiny, "--activations", "gelu", "no_such", "--seeds", "1"], 2, "no_such"),
            ([*tiny, "--activations", "gelu", "--seeds", "-3"], 2, "seeds"),
            ([*tiny, "--activations", "gelu", "--seeds", "9" * 5000], 2, "seeds"),
            ([*tiny, "--activations", "--seeds", "1"], 2, "activations"),
            ([*tiny, "--activations", "gelu", "--seeds", "1", "--n_layers", "3"], 2, "did you mean 'n_layer'"),
            ([*tiny, "--activations", "gelu", "--seeds", "1", "--out_dir", "/proc/x"], 2, "cannot be made"),
            ([*tiny, "--activations", "gelu", "--seeds", "1", "--lr", "nan"], 2, "lr"),
            ([*tiny, "--activations", "gelu", "--seeds", "1", "--vary", "n_layer"], 2, "has no values"),
            ([*tiny, "--activations", "gelu", "--seeds", "1", "--jobs", "0"], 2, "jobs"),
            (["report", str(folder / "none")], 2, "none"),
            (["report", str(folder)], 2, ""),
            (["eval", str(folder)], 2, "holds no checkpoint"),
            (["eval", model, "--data_dir", str(folder / "none")], 2, "none"),
            (["eval", model, "--checkpoint", "77"], 2, "give best, last or one of the steps"),
            (["shapes", str(folder / "none")], 2, "holds no checkpoint"),
            (["no such command"], 2, "neither a preset"),
        ],
        "data.prepare": [
            ([*prepare, texts, "--out", str(folder / "øut 数据")], 0),
            ([*prepare, str(folder / "none"), "--out", str(folder / "o1")], 2, "does not exist"),
            ([*prepare, str(folder / "binary"), "--out", str(folder / "o2")], 2, "is not UTF-8"),
            ([*prepare, texts, "--out", "/proc/x"], 2, "/proc/x"),
            ([*prepare, texts, "--out", str(folder / "a file")], 2, "a file"),
            ([*prepare, texts, "--out", str(folder / "o3"), "--val_fraction", "nan"], 2, "val_fraction"),
            ([*prepare, texts, "--out", str(folder / "o3"), "--val_fraction", "2"], 2, "val_fraction"),
            ([*prepare, texts, "--out", str(folder / "o3"), "--shard_tokens", "0"], 2, "shard_tokens"),
            ([*prepare, texts, "--out", str(folder / "o3"), "--shard_tokens", "9" * 5000], 2, "shard_tokens"),
            ([*prepare, texts, "--out", str(folder / "o3"), "--workers", "-1"], 2, "workers"),
            ([*prepare, texts, "--out", "x" * 5000], 2, "File name too long"),
            ([*prepare, texts, "--out", "a\0b"], 2, "null"),
            (["text", "--tokenizer", "klingon", "--input", texts, "--out", str(folder / "o4")], 2, "klingon"),
            (["verify", str(folder / "none")], 2, "is no folder"),
            (["verify", str(folder)], 2, "holds no"),
            (["frobnicate"], 2, "frobnicate"),
            ([], 2, ""),
        ],
    }  # fmt: skip
