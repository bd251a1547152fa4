"""Blocks and tables give the values of the whole formula."""

import logging

import pytest
import torch

from activations.kernels import hermite, paths
from activations.kernels.fourier import fourier

CHANNELS = 96


def gradients(kernel, x, coefficients, dy):
    y = kernel(x, *coefficients)
    return [y, *torch.autograd.grad(y, [x, *coefficients], dy)]


def test_blocks_give_the_values_of_one_block(case, monkeypatch):
    x, dy = torch.randn(50, CHANNELS, dtype=torch.float64, requires_grad=True), torch.randn(50, CHANNELS, dtype=torch.float64)
    for rows in (None, 3):
        coefficients = case.coefficients(rows)
        whole = gradients(case.kernel, x, coefficients, dy)
        monkeypatch.setattr(paths, "BLOCK", 7 * CHANNELS + 5)
        blocked = gradients(case.kernel, x, coefficients, dy)
        monkeypatch.undo()
        for own, other in zip(blocked, whole, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_give_the_values_of_blocks(case, dtype, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, CHANNELS, generator=generator).to(dtype).requires_grad_()
    dy = torch.randn(200, CHANNELS, generator=generator).to(dtype)
    coefficients = case.coefficients(dtype=torch.float32)
    expected = gradients(case.kernel, x, coefficients, dy)
    monkeypatch.setattr(paths, "TABLE_PAYS_FROM", 1)
    y, dx, *sums = gradients(case.kernel, x, coefficients, dy)
    assert torch.equal(y, expected[0])
    torch.testing.assert_close(dx, expected[1])
    for own, other in zip(sums, expected[2:], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4 * float(other.abs().max() + 1))


def test_the_path_depends_on_dtype_size_and_rows(monkeypatch):
    small, large = torch.zeros(1, 1, 8), torch.zeros(paths.TABLE_PAYS_FROM // 8, 1, 8)
    dear, cheap = hermite._RECURRENCE, hermite._POWER_BASIS
    assert paths.choose(dear, large.bfloat16()) == paths.choose(dear, large.half()) == "table"
    assert paths.choose(cheap, large.bfloat16()) == "blocks"
    assert paths.choose(dear, large) == paths.choose(dear, small.bfloat16()) == "blocks"
    assert paths.choose(dear, large.bfloat16().view(-1, 8, 1)) == "blocks"
    assert paths.choose(dear, large.to("meta")) == "whole"


def test_the_path_is_announced_once(caplog):
    paths._announce.cache_clear()
    with caplog.at_level(logging.DEBUG, logger=paths.log.name):
        for _ in range(3):
            fourier(torch.zeros(2), torch.zeros(1), torch.zeros(1))(torch.zeros(2, 4))
    assert [record.getMessage() for record in caplog.records] == ["activations of torch.float32 run eagerly on the CPU: blocks"]
