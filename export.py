"""Write a run as a folder that transformers loads: `python export.py RUN OUT [--checkpoint best|last|STEP] [--hub REPO]`.

A model with an activation that transformers has becomes a plain GPT-2. One with a learnable activation or a gated MLP comes
with a small modelling file, which needs `pip install learnable-activations` and is loaded with trust_remote_code=True.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import activations
from config.command_line import Parser
from config.foreign import read_object
from config.schema import Config
from data import tokenizer
from data.files import reason, write_atomically, write_json, write_tensors, write_text
from data.tokenizer import Tokenizer
from model import GPT
from pretrained import folder, tokenizers
from runtime import checkpoint, log

MODELING = Path(__file__).with_name("pretrained") / "modeling_learnable_gpt2.py"


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0; 2 after one line on what is wrong with the input, 1 where a disk or the hub fails."""
    try:
        options = _parser().parse_args(argv)
        export(options.run, Path(options.out), options.checkpoint)
        if options.hub:
            upload(Path(options.out), options.hub)
    except ValueError as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # the hub's errors are OSErrors too
        print(f"export.py: {reason(error)}".splitlines()[0], file=sys.stderr)
        return 1
    print(f"{options.out} holds the model" + (f", and so does {options.hub} on the hub" if options.hub else ""))
    return 0


def export(run: str, out: Path, which: str) -> None:
    """Write the checkpoint `which` of a run to the new folder `out`. Raises ValueError."""
    if out.is_symlink() or out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{str(out)!r} is there already; give a new folder, or remove it")
    source = checkpoint.find(run, which)
    gpt, config = checkpoint.load_model(source)
    if activations.repeated_names(gpt):
        raise ValueError(
            f"activation {config.activation}: layers share coefficients (per=model), and transformers holds them by layer; "
            "sample.py and evaluate.py read the run, and a run with per=layer can be exported"
        )
    run_dir = source.parent.parent
    words = tokenizer_of(config, source, run_dir)
    card = model_card(gpt, config, words, run_dir, int(source.name[5:]))

    def write(place: Path) -> None:
        place.mkdir()
        write_model(gpt, words, place)
        if words:
            tokenizers.write(place, words, config.block_size)
        write_text(place / "README.md", card)

    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, write)


def tokenizer_of(config: Config, source: Path, run_dir: Path) -> Tokenizer | None:
    """The run's tokenizer; None, and said so, where its ids are nobody's text. Raises ValueError."""
    if config.tokenizer == tokenizer.NONE:
        print("export.py: the run has no tokenizer (--tokenizer none), and so the folder has none", file=sys.stderr)
        return None
    return tokenizer.load(config.tokenizer, source, run_dir, config.data_dir)


def write_model(gpt: GPT, words: Tokenizer | None, place: Path) -> None:
    """config.json, generation_config.json, model.safetensors and, where it is no plain GPT-2, the modelling file."""
    config, state = folder.standard(gpt.config, gpt.gpt2_state_dict())
    fields = folder.gpt2_fields(config)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), words.eot if words else None)
    state = folder.with_biases(state, config)
    if not folder.is_gpt2(config):
        fields |= folder.own_fields(config) | {
            "model_type": folder.EXPORTED,
            "architectures": ["LearnableGPT2LMHeadModel"],
            "auto_map": {
                "AutoConfig": f"{MODELING.stem}.LearnableGPT2Config",
                "AutoModel": f"{MODELING.stem}.LearnableGPT2Model",
                "AutoModelForCausalLM": f"{MODELING.stem}.LearnableGPT2LMHeadModel",
            },
        }
        state = {folder.exported_name(name): tensor for name, tensor in state.items()}
        shutil.copyfile(MODELING, place / MODELING.name)
    write_tensors(place / "model.safetensors", state)
    write_json(place / "config.json", fields | ends)
    write_json(place / "generation_config.json", ends)


def model_card(gpt: GPT, config: Config, words: Tokenizer | None, run_dir: Path, step: int) -> str:
    """README.md: how to load the model, what it was trained on, from which commit, and its loss."""
    record: dict[str, Any] = read_object(run_dir / "run.json") if (run_dir / "run.json").is_file() else {}
    rows = [row for row in log.read(run_dir / "metrics.jsonl") if row["step"] == step and "val_loss" in row]
    bits = rows[-1].get("val_bits_per_byte") if rows else None
    learnable = not folder.is_gpt2(gpt.config)
    facts = {
        "activation": f"`{config.activation}`",
        "MLP": f"{gpt.config.mlp}, {gpt.config.mlp_width} wide",
        "parameters": f"{gpt.num_parameters():,}",
        "steps": f"{step:,} of {config.max_steps:,}, {step * config.tokens_per_step:,} tokens",
        "validation loss": f"{rows[-1]['val_loss']:.4f} nats a token" if rows else "not measured at this step",
        "bits per byte": f"{bits:.4f}" if bits else "not measured at this step",
        "corpus": f"`{config.data_dir}`, SHA-256 `{record.get('data', {}).get('corpus_sha256', 'unknown')}`",
        "tokenizer": words.name if words else "none",
        "commit": f"`{record.get('commit') or 'unknown'}`" + (", with changes" if record.get("dirty") else ""),
    }
    remote = ", trust_remote_code=True" if learnable else ""
    gate = " as the gate of a gated MLP" if gpt.config.mlp == "gated" else ""
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation", "---", "",
        f"# {run_dir.name}", "", f"A GPT-2 with the MLP activation `{config.activation}`{gate}.", "",
        "```python",
        *(["# pip install learnable-activations transformers"] if learnable else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
        f'model = AutoModelForCausalLM.from_pretrained("FOLDER"{remote})',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")' if words else "# no tokenizer: the ids are somebody else's",
        "```", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), "",
    ]  # fmt: skip
    if learnable:
        lines += [
            "Weight decay would undo the activation's gain. The coefficients' names hold `bias`, so `Trainer` decays none.",
            "For another optimizer use `activations.parameter_groups(model, lr, weight_decay)`.", "",
        ]  # fmt: skip
    if config.mup_base_width:
        lines += [
            "It was trained with muP, whose factors are in the weights here; trained further, it is a standard model.",
            "",
        ]
    if not config.bias:
        lines += ["The model was trained without biases; GPT-2 has them, and here they are zero.", ""]
    values = json.dumps({name: getattr(config, name) for name in config.__dataclass_fields__}, indent=1)
    return "\n".join([*lines, "## Config", "", "```json", values, "```", ""])


def upload(out: Path, repo: str) -> None:
    """Put the folder on the hub, under the account that `hf auth login` knows. Raises ValueError for a bad name, OSError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=out)
    except HFValidationError as error:
        raise ValueError(f"--hub {repo!r} is no name on the hub: {str(error).splitlines()[0]}") from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="export.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a checkpoint's")
    parser.add_argument("out", metavar="OUT", help="the new folder")
    parser.add_argument("--checkpoint", default="best", metavar="best|last|STEP", help="which checkpoint (default best)")
    parser.add_argument("--hub", default="", metavar="REPO", help="upload it, too, under this name (user/name)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
