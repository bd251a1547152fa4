"""ConvNeXt on scikit-learn's digits (8 x 8 pixels) with five activations: paired seeds, 95 % intervals.

    python -m examples.digits              # five minutes on one core; needs transformers, scikit-learn and scipy

A seed draws the split (997 images to train, 300 to choose the rate, 500 to test), weights and batches for all activations.
The weights' initial standard deviation gives every activation, GELU too, inputs of standard deviation about 1.
"""

import argparse

import torch
from scipy.stats import t
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from transformers import ConvNextConfig, ConvNextForImageClassification
from transformers.activations import GELUActivation

import activations
from activations.telemetry import input_stds


def train(spec: str, rate: float, seed: int, steps: int) -> torch.Tensor:
    """[[loss in nats, error in %] on the images that choose the rate, the same on the test images]."""
    torch.manual_seed(seed)
    digits, order = load_digits(), torch.randperm(1797)
    x, y = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 8 - 1, torch.tensor(digits.target)[order]
    size = {"num_channels": 1, "num_labels": 10, "num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1], "patch_size": 2}
    model = ConvNextForImageClassification(ConvNextConfig(**size, initializer_range=0.2, layer_scale_init_value=1.0))
    if spec != "gelu":
        activations.swap(model, GELUActivation, spec, input_stds(model, x[:997], GELUActivation), example_inputs=x[:2])
    optimizer = torch.optim.AdamW(activations.parameter_groups(model, lr=rate, weight_decay=0.05))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], steps)
    for batch in torch.randint(997, (steps, 32), generator=torch.Generator().manual_seed(seed)):
        optimizer.zero_grad()
        cross_entropy(model(x[batch]).logits, y[batch]).backward()
        optimizer.step()
        schedule.step()
    parts = [(model.eval()(x[part]).logits.detach(), y[part]) for part in (slice(997, 1297), slice(1297, None))]
    return torch.tensor([[cross_entropy(f, true), (100.0 * (f.argmax(1) != true)).mean()] for f, true in parts])


def interval(x: torch.Tensor) -> str:
    middle, half = float(x.mean()), float(t.ppf(0.975, len(x) - 1) * x.std() / len(x) ** 0.5)
    return f"{middle:+.3f} ({middle - half:+.3f} to {middle + half:+.3f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5, help="0 to this - 1; the rate is chosen on 100 and 101")
    parser.add_argument("--steps", type=int, default=300, help="of 32 images")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-3, 1.2e-2, 3e-2])
    args = parser.parse_args()
    tested = {}
    print("| activation | rate | loss | loss - GELU's | error in % | error - GELU's |\n|---|---|---|---|---|---|")
    for spec in ("gelu", "hermite:degree=3", "fourier:degree=5", "tropical:degree=6", "tpgu:degree=5"):
        rate = min(args.rates, key=lambda r: sum(float(train(spec, r, seed, args.steps)[0, 0]) for seed in (100, 101)))
        tested[spec] = torch.stack([train(spec, rate, seed, args.steps)[1] for seed in range(args.seeds)])
        (loss, error), (more_loss, more_error) = tested[spec].mean(0), (tested[spec] - tested["gelu"]).T
        print(f"| {spec} | {rate:g} | {loss:.3f} | {interval(more_loss)} | {error:.2f} | {interval(more_error)} |", flush=True)
