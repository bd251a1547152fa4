"""GPT-2 124M with its GELUs replaced by Hermite polynomials fitted to them (value and derivative), then fine-tuned.

Each layer's polynomial is fitted under the law that the model is measured to feed it. Swapping costs some loss at first;
2,000 steps at a tenth of the pre-training rate are there to win it back.
"""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(
    base,
    activation="hermite:degree=8,init=fit-gelu",
    bias=True,
    init_from="openai-community/gpt2",
    global_batch_size=32,
    micro_batch_size=4,
    max_steps=2000,
    eval_interval=200,
    checkpoint_interval=200,
    learning_rate=6e-5,
    min_lr=6e-6,
    warmup_steps=100,
)
