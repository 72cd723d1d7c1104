"""On every device the same: tried on tensors that only say that they lie on one."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_neurocorr
from lightning_neurocorr import (
    Ablation,
    Attribution,
    BatchBaseline,
    FeatureVisualizer,
    Matches,
    compare,
)
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


def _loader(net, known):
    x, guess = torch.randn(200, 3, 12, 12), torch.randint(0, 4, (200,))
    target = net(x).argmax(1)
    data = TensorDataset(x, target, torch.where(guess > 1, target, guess))
    loader = DataLoader(data, batch_size=64)
    return loader if known else list(loader)


def _compared(first, last, settings=dict, known=False, default="cpu"):
    torch.manual_seed(1)
    net, other = Split().eval(), Split().eval()
    loader, options = _loader(net, known), {"baseline": BatchBaseline(2), **settings()}
    if options.pop("matches", False):
        options["studies"] = [Matches(other)]
    for one in (net, other):
        for part, device in ((one.features, first), (one.head, last)):
            if device != "cpu":
                pretend_device.move(part, device)
    with torch.device(default):
        return compare(net, loader, target=1, **options)


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
        found = _compared(first, last)
    _same(found, expected, 1e-6)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_an_advantage_may_be_worked_out_on_the_host(device):
    def on_the_host(prediction, baseline, target):
        prediction, baseline, target = prediction.cpu(), baseline.cpu(), target.cpu()
        return (prediction.argmax(1) == target).float() - (baseline == target).float()

    def settings():
        return {"advantage": on_the_host, "num_classes": 4}

    expected = _compared("cpu", "cpu", settings)
    with pretend_device.pretended():
        found = _compared(device, device, settings)
    _same(found, expected, 1e-6)


SETTINGS = {
    "ablation": lambda: {"ablation": Ablation(time_budget_s=None)},
    "max": lambda: {"pooling": "max"},
    "path": lambda: {"attribution": Attribution(method="path", path_steps=2)},
    "pictures": lambda: {"visualizer": FeatureVisualizer(steps=2, cuda_graph=False)},
    "matches": lambda: {"matches": True},
}


@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.parametrize("places", [("mps", "mps"), ("cpu", "cuda:1")])
def test_studies_find_the_same_on_every_device(setting, places):
    if setting == "pictures" and places[0] != "mps":
        pytest.skip("a picture is made on one device")
    found, known = [], setting == "ablation"
    for first, last in (("cpu", "cpu"), places):
        with pretend_device.pretended():
            found.append(_compared(first, last, SETTINGS[setting], known))
    one, other = found
    _same(other, one, 1e-5)
    assert other.studies.keys() == one.studies.keys()
    for name, study in other.studies.items():
        here, there = (x.to_dataframe().select_dtypes("number") for x in (study, one.studies[name]))
        np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("device", pretend_device.KINDS)
@pytest.mark.parametrize("known", [True, False])
def test_tensors_may_be_made_on_a_device_by_default(device, known):
    """``torch.set_default_device`` is for the user's tensors."""
    settings = SETTINGS["ablation" if known else "max"]
    expected = _compared("cpu", "cpu", settings, known)
    with pretend_device.pretended():
        found = _compared(device, device, settings, known, default=device)
    _same(found, expected, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tensors_may_have_another_type_by_default(dtype):
    settings, before = SETTINGS["pictures"], torch.get_default_dtype()
    net, loader = Split().eval(), _loader(Split().eval(), known=False)
    expected = compare(net, loader, BatchBaseline(2), target=1, **settings())
    torch.set_default_dtype(dtype)
    try:
        found = compare(net, loader, BatchBaseline(2), target=1, **settings())
    finally:
        torch.set_default_dtype(before)
    _same(found, expected, 1e-6)


FACTORIES = {
    *("zeros", "ones", "arange", "tensor", "full", "empty", "eye"),
    *("rand", "randn", "randint", "randperm"),
}


def test_we_say_where_a_tensor_is_made():
    """Or it would be where the user makes tensors by default, beside others on the host."""
    root = Path(lightning_neurocorr.__file__).parent
    silent = [
        f"{path.relative_to(root).as_posix()}:{node.lineno}: {ast.unparse(node)}"
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in FACTORIES
        and not {keyword.arg for keyword in node.keywords} & {"device", None}
    ]
    assert not silent, "Say `device=`: " + "; ".join(silent)


def _always_0(batch):
    return torch.zeros_like(batch[1])


@pytest.mark.parametrize("device", pretend_device.KINDS)
def test_what_is_constant_within_class_has_no_correlation_there(device):
    """Float32 must not leave a spread to an advantage that has none."""
    with pretend_device.pretended():
        report = _compared(device, device, lambda: {"baseline": _always_0})
    assert np.isfinite(report.rows[0].r)
    assert all(np.isnan(row.r_within_class) for row in report.rows)


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
