"""An activation in a file of one's own: Snake, z + sin(a z)^2 / a (Ziyin, Hartwig and Ueda 2020, arXiv 2006.08195).

    python train.py config/tiny.py --activation examples/own_activation.py:Snake
    python compare.py config/tiny.py --activations gelu examples/own_activation.py:Snake --seeds 3
    python -m examples.own_activation              # its gains, and how well it fits GELU

The class states a formula in plain PyTorch and its parameters' starting values. Exact unit gain, fits, options, telemetry and
plots follow from these. `python -m data.prepare pystdlib` prepares the data of config/tiny.py.
"""

import torch

import activations


class Snake(activations.Parametric):
    """z + sin(a z)^2 / a, with a learnable frequency a."""

    start = {"a": 1.0}  # noqa: RUF012 as every family's: read, never changed

    def formula(self, z: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return z + torch.sin(a * z) ** 2 / a


if __name__ == "__main__":
    act = activations.build("examples/own_activation.py:Snake", channels=64, input_std=0.5)
    print(act)
    print("gains:", activations.gains(act))  # E F(x)^2 = 0.25 and E F'(x)^2 = 1 for x ~ N(0, 0.25)
    print(activations.fit(act, torch.nn.functional.gelu))
