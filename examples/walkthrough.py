"""Fit, gains and plots, cell by cell: open it as a notebook (VS Code, Jupytext), or run it.

python -m examples.walkthrough              # writes walkthrough.png; needs matplotlib
"""

# %% An activation is a module. Its parameters live in z = x / input_std.
from pathlib import Path

import torch
from torch import nn

import activations
from activations import plot, telemetry

act = activations.build("hermite:degree=3", channels=64, input_std=0.5)
print(act, "has", sum(p.numel() for p in act.parameters()), "coefficients")

# %% It starts at unit gain for the inputs that it was built for: E F(x)^2 = 0.25 and E F'(x)^2 = 1 for x ~ N(0, 0.25).
print("gains at input_std 0.5:", activations.gains(act))
print("gains at three times that:", activations.gains(act, std=1.5))

# %% GELU has no such property: at small inputs it halves its input.
for std in (0.1, 0.5, 1.0, 2.0):
    second, slope = activations.gains(activations.build("gelu", channels=64), std=std)
    print(f"gelu at {std}: E F^2 / std^2 = {second / std**2:.3f}, E F'^2 = {slope:.3f}")

# %% Fit a function in value and derivative. The degree decides how well.
for degree in (3, 8, 12):
    report = activations.fit(activations.build(f"hermite:degree={degree}", channels=64), nn.functional.gelu)
    print(f"hermite {degree}: value RMS {report.value_rms:.2g}, derivative RMS {report.slope_rms:.2g} on |x| <= 3")

# %% Put activations into a model: fitted to what they replace, under the inputs that they really get.
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
x = torch.randn(512, 2)
before = model(x)
activations.swap(model, nn.GELU, "hermite:degree=8,init=fit", telemetry.input_stds(model, x, nn.GELU))
print(f"the swap moved the output by at most {(model(x) - before).abs().max():.2g}")

# %% Train. The coefficients take no weight decay: it would undo their gain.
optimizer = torch.optim.AdamW(activations.parameter_groups(model, lr=1e-2, weight_decay=0.1))
target = torch.sin(3 * x[:, :1]) * x[:, 1:]
for step in range(201):
    optimizer.zero_grad()
    loss = (model(x) - target).square().mean()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: loss {float(loss.detach()):.4f}")

# %% What the layers see and do now, and a picture of the learned shapes over their inputs.
for name, value in telemetry.observe(model, x).items():
    if name.endswith(("input_std", "second_moment", "slope_moment")):
        print(f"{name}: {value:.3f}")
Path("walkthrough.png").write_bytes(plot.shapes(model))
