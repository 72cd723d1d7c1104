"""Sums over positions against loops in float64, and how little a layer asks for."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr.attribution.positions import sums_of_calls
from tests.launches import Launches

N, D, H = 5, 3, 4
LAYER = nn.Conv2d(1, D, 1)
DTYPES = [torch.bfloat16, torch.float32, torch.float16]


def call(dtype: torch.dtype, mean: float, seed: int) -> tuple[Tensor, Tensor]:
    """Activation and gradient of a layer, far from zero and with a mean gradient of its own."""
    generator = torch.Generator().manual_seed(seed)
    a, g = torch.randn(2, N, D, H, H, generator=generator)
    return (a + mean).to(dtype), (g + 0.5).to(dtype)


def slow(calls: list[tuple[Tensor, Tensor]], near: Tensor) -> tuple[Tensor, Tensor]:
    """Sample by sample, unit by unit and position by position."""
    product, total = torch.zeros(2, N, D, dtype=torch.float64)
    for a, g in calls:
        for i in range(N):
            for j in range(D):
                for x, y in zip(
                    a[i, j].flatten().tolist(), g[i, j].flatten().tolist(), strict=True
                ):
                    product[i, j] += (x - float(near[j])) * y
                    total[i, j] += y
    return product, total


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sums_over_positions_equal_loops(dtype: torch.dtype, count: int, told: bool) -> None:
    calls = [call(dtype, 30.0, seed) for seed in range(count)]
    near = torch.tensor([29.0, 30.5, 31.0]) if told else None
    found = sums_of_calls(LAYER, [(*one, (None, None)) for one in calls], N, near)
    assert found is not None
    half = dtype in (torch.bfloat16, torch.float16)
    assert (found.near is None) == half
    expected = slow(calls, torch.zeros(D) if found.near is None else found.near)
    if told and found.near is not None:
        torch.testing.assert_close(found.near.float(), near)
    assert found.product.dtype == torch.promote_types(dtype, torch.float32)
    for ours, theirs in zip(found[:2], expected, strict=True):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=1e-5, atol=1e-3 if half else 1e-3 / 30
        )
    u, v = found.from_zero()
    zero = slow(calls, torch.zeros(D))
    torch.testing.assert_close(u, zero[0], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(v, zero[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_read_in_few_operations(dtype: torch.dtype) -> None:
    """Each reads or writes whole feature maps on the device; what is small is done for all."""
    calls, near = [(*call(dtype, 1.0, 0), (None, None))], torch.zeros(D)
    with Launches() as launches:
        sums_of_calls(LAYER, calls, N, near, torch.zeros(1))
    large = {"addcmul": 1} if dtype == torch.bfloat16 else {"sub": 1, "mul_": 1}
    assert launches.found - Counter({"zeros": 1}) == {**large, "sum": 2}


def test_calls_in_half_and_in_single_precision_add_up() -> None:
    calls = [call(dtype, 30.0, seed) for seed, dtype in enumerate(DTYPES)]
    for order in (calls, calls[::-1]):
        found = sums_of_calls(LAYER, [(*one, (None, None)) for one in order], N, None)
        assert found is not None
        u, v = found.from_zero()
        zero = slow(calls, torch.zeros(D))
        torch.testing.assert_close(u, zero[0], rtol=1e-5, atol=2e-3)
        torch.testing.assert_close(v, zero[1], rtol=1e-5, atol=1e-5)
