"""A GELU GPT on the Python standard library's sources, small enough for two CPU cores: what config/tiny_*.py compare with."""

from config.schema import Config

config = Config(
    activation="gelu",
    n_layer=3,
    n_head=4,
    n_embd=192,
    block_size=128,
    bias=False,
    data_dir="data/pystdlib",
    global_batch_size=12,
    micro_batch_size=12,
    max_steps=1000,
    eval_interval=500,
    checkpoint_interval=500,
    learning_rate=4e-3,
    min_lr=1e-4,
    warmup_steps=50,
    weight_decay=0.1,
    beta2=0.99,  # few tokens a step: a longer memory for the second moment, as in nanoGPT's character model
)
