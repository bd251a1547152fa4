"""Commands of the documentation at a small size: all that tests/test_docs.py and tests/test_examples.py change in them.

`python` and `torchrun` in a documented block are this file. It replaces the sizes below, adds those that are missing, and runs
the rest of the command as it stands, in a process that tests/forked.py forks.
"""

import sys

import forked  # it lies beside this file, which runs as a program

FIELDS = {
    "n_layer": "1", "n_head": "2", "n_embd": "32", "block_size": "32", "max_steps": "2", "global_batch_size": "4",
    "micro_batch_size": "2", "warmup_steps": "1", "eval_tokens": "256", "eval_interval": "2", "checkpoint_interval": "2",
    "compile": "False", "device": "cpu", "dtype": "float32", "data_dir": "data/pystdlib", "tokenizer": "bytes",
}  # fmt: skip
SIZES = {
    "train.py": FIELDS,
    "compare.py": FIELDS | {"seeds": "1"},
    "sample.py": {"max_new_tokens": "5"},
    "examples.digits": {"seeds": "2", "steps": "2", "rates": "1e-2"},
    "examples.finetune_gpt2": {"steps": "3"},
}
CHOSEN = {"coordinates": "n_embd"}  # what a command of compare.py chooses itself
UNSIZED = ("report", "eval", "shapes", "depth")  # what compare.py does beside training


def shrink(words: list[str]) -> list[str]:
    """The words after `python` or `torchrun` at the sizes of this file."""
    words = ["--nproc_per_node=1" if word.startswith("--nproc_per_node=") else word for word in words]
    program = next((word for word in words if word in SIZES), "")
    if not program or words[words.index(program) + 1 :][:1] in [[command] for command in UNSIZED]:
        return words
    if "--activations" in words:  # two of them
        first = words.index("--activations") + 1
        rest = next((i for i in range(first, len(words)) if words[i].startswith("--")), len(words))
        words = [*words[:first], *words[first:rest][:2], *words[rest:]]
    varied = {word.partition("=")[0] for word in words if "=" in word}  # by --vary, which has their values
    sizes = {name: size for name, size in SIZES[program].items() if name not in {*varied, *(CHOSEN.get(w) for w in words)}}
    kept, dropping = [], False
    for word in words:
        dropping = word[2:] in sizes if word.startswith("--") else dropping
        kept += [] if dropping else [word]
    return kept + [part for name, size in sizes.items() for part in (f"--{name}", size)]


if __name__ == "__main__":
    server, program, *words = sys.argv[1:]
    before = ["-m", "torch.distributed.run"] if program == "torchrun" else []
    sys.exit(forked.ask(server, [*before, *shrink(words)]))
