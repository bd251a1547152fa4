"""Targets are sampled in the family's unit, with weights that sum to one."""

import pytest
import torch

from activations.target import Target, Weight, gelu


@pytest.mark.parametrize("law", [Weight("normal", 0.5), Weight("uniform", 6.0)])
def test_values_and_slopes_are_those_of_g(law: Weight) -> None:
    target = Target.sample(gelu, law, unit=0.5)
    x = 0.5 * target.z
    torch.testing.assert_close(target.value, gelu(x) / 0.5)
    torch.testing.assert_close(target.slope, torch.special.ndtr(x) + x * torch.exp(-x.square() / 2) / (2 * torch.pi) ** 0.5)
    assert float(target.weight.sum()) == pytest.approx(1)
    second = law.width**2 if law.law == "normal" else law.width**2 / 3
    assert float((target.weight * x.square()).sum()) == pytest.approx(second, rel=1e-12)


def test_targets_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not finite on U\[-1, 1\]"):
        Target.sample(torch.log, Weight("uniform", 1.0))
