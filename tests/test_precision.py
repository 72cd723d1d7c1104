"""Sums of our own are exact, whatever the user allows PyTorch to round."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_neurocorr.functional.matching import CrossMoments
from lightning_neurocorr.isolation import precision
from lightning_neurocorr.isolation.precision import exact_arithmetic
from lightning_neurocorr.metric import NeuronAdvantageCorrelation
from lightning_neurocorr.studies import matches

CPU = torch.device("cpu")
_NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")


def _said(device="cpu"):
    if not _NEW:
        return torch.get_float32_matmul_precision()
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision


def _legacy():
    torch.set_float32_matmul_precision("medium")


def _own():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def _every():
    torch.backends.fp32_precision = "tf32"


@pytest.fixture(params=[_legacy, _own, _every] if _NEW else [_legacy])
def rounding(request):
    """Products of float32 matrices may be rounded, said in one of PyTorch's ways."""
    request.param()
    yield
    if _NEW:
        torch.backends.fp32_precision = "none"
        torch.backends.cuda.matmul.fp32_precision = "none"
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    else:
        torch.set_float32_matmul_precision("highest")


class Products(TorchDispatchMode):
    """What is allowed at each product of float32 matrices."""

    def __init__(self):
        super().__init__()
        self.allowed = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name in ("mm", "addmm", "bmm", "baddbmm") and args[-1].dtype == torch.float32:
            self.allowed.append(_said())
        return func(*args, **(kwargs or {}))


def test_products_of_the_metric_are_not_rounded(rounding):
    before, metric = _said(), NeuronAdvantageCorrelation(50, folds=2, count_active=True)
    with Products() as products:
        metric.update(torch.randn(64, 50), torch.randn(64), fold=torch.arange(64) % 2)
    assert products.allowed
    assert set(products.allowed) == {"ieee" if _NEW else "highest"}
    assert _said() == before


def test_products_of_two_networks_are_not_rounded(rounding):
    sums = CrossMoments(8, 9)
    with Products() as products:
        for _ in range(3):
            matches._add(sums, [torch.randn(300, 8)], [torch.randn(300, 9)])
        matches._correlations(sums)
    assert products.allowed
    assert set(products.allowed) == {"ieee" if _NEW else "highest"}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_what_the_user_allows_is_put_back_also_after_an_error(rounding, device):
    before = _said("cuda"), _said("cpu")

    def fail():
        with exact_arithmetic(torch.device(device)):
            assert _said(device) in ("ieee", "highest")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (_said("cuda"), _said("cpu")) == before


def test_before_torch_2_9_there_is_one_switch_for_all(monkeypatch):
    class Old:
        pass

    monkeypatch.setattr(torch.backends.cuda, "matmul", Old())
    monkeypatch.setattr(torch.backends.mkldnn, "matmul", Old(), raising=False)
    said = ["high"]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: said[-1])
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    precision._switch.cache_clear()
    try:
        with exact_arithmetic(CPU):
            assert said[-1] == "highest"
        assert said == ["high", "highest", "high"]
    finally:
        precision._switch.cache_clear()
