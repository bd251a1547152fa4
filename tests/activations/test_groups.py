"""Optimizer groups partition any model's parameters."""

import torch
from torch import nn

import activations


def test_names_are_those_of_modules_whatever_they_are_called() -> None:
    model = nn.Sequential(nn.Linear(4, 8), activations.build("hermite", 8))
    model.add_module("act", nn.Linear(8, 4))
    state = model.state_dict()
    assert "1.coefficients" in activations.tensor_names(model) < set(state)
    assert not any(name.startswith(("0.", "act.")) for name in activations.tensor_names(model))
    assert activations.tensor_names(model[1]) == set(model[1].state_dict())


def test_groups_by_kind_and_in_order() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 8), activations.build("tpgu", 8), nn.Linear(8, 4))
    groups = activations.parameter_groups(model, lr=1e-2, weight_decay=0.1, activation_lr_scale=0.5)
    assert [(g["name"], g["lr"], g["weight_decay"], g["lr_scale"], len(g["params"])) for g in groups] == [
        ("decay", 1e-2, 0.1, 1.0, 3),
        ("no_decay", 1e-2, 0.0, 1.0, 4),
        ("activation", 0.5e-2, 0.0, 0.5, 2),
    ]
    assert [id(p) for g in groups for p in g["params"]] == [
        id(p) for g in activations.parameter_groups(model, 1e-2, 0.1, 0.5) for p in g["params"]
    ]


def test_tied_parameters_are_listed_once_and_empty_groups_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), activations.build("gelu", 4))
    model[1].weight = model[0].weight
    groups = activations.parameter_groups(model, lr=1.0, weight_decay=0.1)
    assert [(g["name"], len(g["params"])) for g in groups] == [("decay", 1)]


def test_a_family_may_ask_for_its_own_rate() -> None:
    fast = activations.build("hermite", 4)
    type.__setattr__(subclass := type("Fast", (type(fast),), {"lr_scale": 4.0}), "__module__", __name__)
    fast.__class__ = subclass
    model = nn.Sequential(activations.build("hermite", 4), fast)
    groups = activations.parameter_groups(model, lr=1.0, weight_decay=0.1)
    assert [(g["name"], g["lr_scale"]) for g in groups] == [("activation", 1.0), ("activation", 4.0)]


def test_optimizers_take_them() -> None:
    model = nn.Sequential(nn.Linear(4, 8), activations.build("hermite", 8), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(activations.parameter_groups(model, lr=1e-2, weight_decay=1.0))
    before = model[1].coefficients.detach().clone()
    optimizer.zero_grad()
    sum((p * 0).sum() for p in model.parameters()).backward()
    optimizer.step()
    assert torch.equal(model[1].coefficients, before), "decay reached the coefficients"
