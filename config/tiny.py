"""A GELU GPT on the Python standard library's sources, small enough for two CPU cores: what config/tiny_*.py compare with."""

from config.schema import Config

config = Config(
    activation="gelu",
    n_layer=4,
    n_head=6,
    n_embd=192,
    block_size=256,
    bias=False,
    data_dir="data/pystdlib",
    global_batch_size=16,
    micro_batch_size=16,
    max_steps=500,
    eval_interval=250,
    checkpoint_interval=250,
    learning_rate=2e-3,
    min_lr=2e-4,
    warmup_steps=50,
    weight_decay=0.1,
    beta2=0.99,  # few tokens a step: a longer memory for the second moment, as in nanoGPT's character model
)
