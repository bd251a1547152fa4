"""A tokenizer.json such as somebody might have trained."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def train_byte_level(path: Path, end: str = "</s>", **changes: object) -> Path:
    """A byte-level BPE of 270 ids, padded and truncated as published files are."""
    library = Tokenizer(models.BPE(dropout=0.5))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(["the cat sat on the mat, the cat sat"] * 20, trainer)
    library.enable_truncation(3)
    library.enable_padding(length=100)
    spec = json.loads(library.to_str()) | changes
    path.write_text(json.dumps(spec), "utf-8")
    return path
