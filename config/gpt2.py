"""nanoGPT's GPT-2 124M on OpenWebText: 8 A100 for about four days, validation loss 2.85."""

from config.schema import Config

config = Config(
    activation="gelu",
    n_layer=12,
    n_head=12,
    n_embd=768,
    block_size=1024,
    bias=False,
    data_dir="data/openwebtext",
    # 480 sequences * 1024 tokens = 491,520 tokens a step; on 8 processes that is 5 micro-batches of 12 each.
    global_batch_size=480,
    micro_batch_size=12,
    max_steps=600_000,
    eval_interval=1000,
    checkpoint_interval=1000,
    learning_rate=6e-4,
    min_lr=6e-5,
    warmup_steps=2000,
    weight_decay=0.1,
    beta2=0.95,
)
