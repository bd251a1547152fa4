"""The dtype that formulas are evaluated in."""

import pytest
import torch

from activations.kernels.formula import working_dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float64_stays_and_everything_else_is_float32(dtype):
    assert working_dtype(torch.zeros(1, dtype=dtype)) == (torch.float64 if dtype == torch.float64 else torch.float32)
