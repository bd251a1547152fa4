"""Swap the activations of a Hugging Face GPT-2 for Hermite polynomials fitted to them, and fine-tune it with the Trainer.

    python -m examples.finetune_gpt2 --out /tmp/tuned                               # a tiny random GPT-2 on bytes, no network
    python -m examples.finetune_gpt2 --model gpt2 --text my.txt --rate 5e-5         # not run: downloads GPT-2

Prints the loss before the swap, after it and after training. Needs transformers and accelerate.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation

import activations
from activations.telemetry import input_stds

OLD = (NewGELUActivation, GELUTanh, GELUActivation)


def load(name: str, text: str) -> tuple[Any, Tensor]:
    """The model, and the text as its token ids: bytes where the model is our own."""
    if name:
        words = AutoTokenizer.from_pretrained(name)
        return AutoModelForCausalLM.from_pretrained(name), torch.tensor(words(text).input_ids)
    torch.manual_seed(0)
    size = GPT2Config(vocab_size=256, n_positions=64, n_embd=64, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
    return GPT2LMHeadModel(size), torch.tensor([*text.encode()])


def loss(model: Any, rows: Tensor) -> float:
    with torch.no_grad():
        return float(model.eval()(rows, labels=rows).loss)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="", help="of the hub or in a folder")
    parser.add_argument("--text", type=Path, default=Path(json.__file__), help="default: a file of Python's library")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", default="tuned")
    args = parser.parse_args()
    model, ids = load(args.model, args.text.read_text(encoding="utf-8"))
    rows = ids[: len(ids) // 64 * 64].view(-1, 64)
    print(f"{loss(model, rows[:8]):.4f} at first")
    count = activations.swap(model, OLD, "hermite:degree=8,init=fit", input_stds(model, rows[:8], OLD), example_inputs=rows[:1])
    print(f"{loss(model, rows[:8]):.4f} after {count} activations were replaced")
    adamw = torch.optim.AdamW(activations.parameter_groups(model, lr=args.rate, weight_decay=0.1))  # no decay of coefficients
    settings = TrainingArguments(args.out, max_steps=args.steps, per_device_train_batch_size=8, save_strategy="no")
    data = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(model, settings, train_dataset=data, optimizers=(adamw, None)).train()
    model.save_pretrained(args.out)  # from_pretrained alone would refuse this folder
    print(f"{loss(activations.load_swapped(args.out), rows[:8]):.4f} after training; saved to {args.out}")
