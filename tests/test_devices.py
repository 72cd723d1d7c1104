"""On every device the same: tried on tensors that only say that they lie on one."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lightning_neurocorr
from lightning_neurocorr import BatchBaseline, compare
from tests import pretend_device

COLUMNS = ("r", "r_within_class", "contrast_t", "attribution", "mean_only_model", "mean_both")


class Split(nn.Module):
    """A network whose parts lie on two devices, as those that one cannot hold."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))

    def forward(self, x):
        features = self.features(x.to(self.features[0].weight.device))
        return self.head(features.to(self.head[-1].weight.device))


def _batches(net, device):
    x, guess = torch.randn(200, 3, 12, 12), torch.randint(0, 4, (200,))
    target = net(x).argmax(1)
    parts = (x, target, torch.where(guess > 1, target, guess))
    place = (lambda part: part) if device == "cpu" else lambda part: pretend_device.to(part, device)
    return [tuple(map(place, batch)) for batch in zip(*(p.split(64) for p in parts), strict=True)]


def _compared(first, last, data="cpu", **options):
    torch.manual_seed(1)
    net = Split().eval()
    batches = _batches(net, data)
    for part, device in ((net.features, first), (net.head, last)):
        if device != "cpu":
            pretend_device.move(part, device)
    return compare(net, batches, BatchBaseline(2), target=1, **options)


def _same(found, expected, tolerance):
    assert found.outcomes == expected.outcomes
    assert found.notes == expected.notes
    for name in COLUMNS:
        a, b = (np.array([getattr(row, name) for row in one.rows]) for one in (found, expected))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("cuda", "cuda"),
        ("cuda:1", "cuda:1"),
        ("mps", "mps"),
        ("cuda:0", "cuda:1"),
        ("cpu", "cuda"),
        ("cuda", "cpu"),
        ("cpu", "mps"),
        ("mps", "cpu"),
    ],
)
def test_where_a_model_lies_changes_nothing(first, last):
    expected = _compared("cpu", "cpu")
    with pretend_device.pretended():
        found = _compared(first, last, first)
    _same(found, expected, 1e-6)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_an_advantage_may_be_worked_out_on_the_host(device):
    def on_the_host(prediction, baseline, target):
        prediction, baseline, target = prediction.cpu(), baseline.cpu(), target.cpu()
        return (prediction.argmax(1) == target).float() - (baseline == target).float()

    options = {"advantage": on_the_host, "num_classes": 4}
    expected = _compared("cpu", "cpu", **options)
    with pretend_device.pretended():
        found = _compared(device, device, device, **options)
    _same(found, expected, 1e-6)


def test_only_copies_that_somebody_waits_for_are_made_without_waiting():
    """Elsewhere ``sent`` knows when that is safe."""
    allowed = {"functional/devices.py", "validation/arriving.py", "exemplars/passing.py"}
    root = Path(lightning_neurocorr.__file__).parent
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "non_blocking"
    }
    assert found == allowed
