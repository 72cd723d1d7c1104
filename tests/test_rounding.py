"""Neurons whose activations differ between samples by nothing but rounding have no r."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr import BatchBaseline, compare
from lightning_neurocorr.activations.pooling import rounding_error
from lightning_neurocorr.validation.batches import Batch
from lightning_neurocorr.validation.finished import report_of
from lightning_neurocorr.validation.one_pass import ValidationPass
from tests.neurons import seeded

N, C = 240, 5


class Normed(nn.Module):
    """A block that ends in a norm over positions, a usual layer, and a head."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.before, self.norm = nn.Conv2d(2, C, 1), norm
        self.after, self.head = nn.Conv2d(C, C, 2), nn.Linear(9 * C, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.norm(self.before(x))).flatten(1))


def scaled(norm: Any) -> Any:
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-2, 3, C))
        norm.bias.copy_(torch.linspace(1, 40, C))
    return norm


NORMS = {
    "instance": nn.InstanceNorm2d(C),
    "instance, affine": scaled(nn.InstanceNorm2d(C, affine=True)),
    "group of one channel": scaled(nn.GroupNorm(C, C)),
}


def of_network(model: nn.Module, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Bright images, which the baseline gets wrong."""
    draw = seeded()
    bright = torch.arange(N) % 3 == 0
    x = torch.randn(N, 2, 4, 4, generator=draw) + 3.0 * bright[:, None, None, None]
    model, x = model.to(dtype).eval(), x.to(dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
    answer = torch.where(bright, (y + 1) % 3, y)
    batches = list(zip(x.split(60), y.split(60), answer.split(60), strict=True))
    return compare(model, batches, BatchBaseline(2), target=1, **options)


WIDE = (torch.float32, torch.float64)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*product(NORMS, WIDE), ("group of one channel", torch.bfloat16)],
)
def test_a_mean_that_a_norm_fixes_has_no_r(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    report = of_network(Normed(NORMS[name]), dtype)
    assert report.layers == ("before", "after", "head")  # none is left out for another reason
    assert report.read_at[0] == "norm"
    layer = report.layout.span("before")
    for column in ("r", "r_low", "q_value", "r_within_class", "contrast_t", "r_replicated"):
        assert np.isnan(report.column(column)[layer]).all(), column
        assert np.isfinite(report.column(column)[report.layout.span("after")]).all(), column
    assert not report.column("std")[layer].any()
    assert np.isfinite(report.column("mean")).all()
    assert any("Every neuron of before has the same" in note for note in report.notes)


def test_other_poolings_tell_samples_apart() -> None:
    torch.manual_seed(0)
    report = of_network(Normed(nn.InstanceNorm2d(C)), pooling="max")
    assert np.isfinite(report.column("r")).all()
    assert not any("Every neuron of" in note for note in report.notes)


def obvious(x: np.ndarray, units: int, eps: float) -> list[float]:
    """Eight roundings of the root mean square."""
    return [8 * eps * float(np.sqrt((x.take(j, units) ** 2).mean())) for j in range(x.shape[units])]


@pytest.mark.parametrize(
    ("layer", "shape", "units"),
    [
        (nn.Conv2d(1, C, 1), (4, C, 3, 2), 1),
        (nn.Linear(1, C), (4, 6, C), 2),
        (nn.Linear(1, C), (4, C), 1),
    ],
)
def test_the_rounding_error_is_that_of_a_mean(layer: nn.Module, shape: Any, units: int) -> None:
    x = torch.randn(*shape, generator=seeded(), dtype=torch.float64) * 7
    for dtype in (torch.float32, torch.float64):
        found = rounding_error(x.to(dtype), layer)
        assert found is not None
        np.testing.assert_allclose(found, obvious(x.numpy(), units, torch.finfo(dtype).eps), 1e-5)
    half = rounding_error(x.bfloat16(), layer)
    positions = x.numel() // (4 * C)
    wanted = obvious(x.bfloat16().double().numpy(), units, 2**-7 / 16 / positions**0.5)
    np.testing.assert_allclose(half, wanted, 1e-3)  # type: ignore[arg-type]


def test_it_is_estimated_from_a_few_samples() -> None:
    """A pass over a whole batch of feature maps would cost as much as their means."""
    x = torch.randn(40, C, 3, 2, generator=seeded())
    few = rounding_error(x[:16], nn.Conv2d(1, C, 1))
    x[16:] = torch.nan
    assert few is not None
    assert few.equal(rounding_error(x, nn.Conv2d(1, C, 1)))  # type: ignore[arg-type]


@pytest.mark.parametrize("spread", [1e-8, 1e-4])
def test_a_single_neuron_that_hardly_moves_is_constant(spread: float) -> None:
    """About 1, float32 cannot tell 1e-8; it can tell 1e-4."""
    draw = seeded()
    a = torch.randn(200, 2, generator=draw, dtype=torch.float64)
    a[:, 1] = 1 + spread * a[:, 0]
    target = torch.arange(200) % 2
    model = torch.where(a[:, 0] > 0, target, 1 - target)
    number = torch.arange(200)
    running = ValidationPass(num_classes=2)
    running.rounding = {"a": 8 * 2**-23 * a.square().mean(0).sqrt()}
    running.add(Batch(model, 1 - target, target, number), {"a": a}, {})
    report = report_of(running.finish(torch.device("cpu")))
    first, second = report.column("r")
    assert np.isnan(second) if spread < 1e-6 else abs(first - second) < 1e-6
    assert np.isfinite(first)
    assert not any("Every neuron of" in note for note in report.notes)  # the other one speaks
