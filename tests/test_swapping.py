"""Other weights or another mode for one call; PyTorch's own ways corrupt some modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr import SnapshotBaseline
from lightning_neurocorr.isolation.swapping import call_with, evaluation_mode


class TwoNames(nn.Module):
    """A module with two names, a parameter in two modules, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.alias = self.head
        self.other = nn.Linear(3, 3, bias=False)
        self.other.weight = self.head.weight
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor, times: float = 1.0) -> Tensor:
        return (self.head(x) + self.alias(x) + self.other(x) + self.shift) * times


def by_hand(weight: Tensor, bias: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    return 3 * x @ weight.T + 2 * bias + shift


def test_ties_follow_and_nothing_stays() -> None:
    module, x = TwoNames(), torch.randn(4, 3)
    before = [(name, id(p)) for name, p in module.named_parameters(remove_duplicate=False)]
    weight, shift = torch.randn(3, 3), torch.randn(3)
    found = call_with(module, {"head.weight": weight, "shift": shift}, (x,), {"times": 2.0})
    expected = 2 * by_hand(weight, module.head.bias, shift, x)
    torch.testing.assert_close(found, expected)
    after = [(name, id(p)) for name, p in module.named_parameters(remove_duplicate=False)]
    assert before == after
    assert len(after) == 5
    torch.testing.assert_close(
        module(x), by_hand(module.head.weight, module.head.bias, module.shift, x)
    )


def test_what_raises_inside_leaves_the_weights() -> None:
    module = TwoNames()
    before = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        call_with(module, {"head.weight": torch.zeros(3, 5)}, (torch.zeros(2, 3),))
    assert before == {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}


def test_a_snapshot_does_not_stop_the_training_of_a_module_with_two_names() -> None:
    module, x = TwoNames(), torch.randn(4, 3)
    baseline = SnapshotBaseline()
    baseline.observe(module, 0)
    frozen = module(x).detach()
    with torch.no_grad():
        module.head.weight.add_(1)
    torch.testing.assert_close(baseline((x, None)), frozen)
    assert all(isinstance(p, nn.Parameter) for p in (module.head.weight, module.alias.bias))
    module(x).sum().backward()
    assert module.head.weight.grad is not None


class Stubborn(nn.Linear):
    """Never leaves evaluation mode by ``train()``, as frozen backbones are often written."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


def test_every_part_gets_its_own_mode_back_also_after_an_exception() -> None:
    module = nn.Sequential(nn.Dropout(), Stubborn(3, 3), nn.Sequential(nn.BatchNorm1d(3)))
    module[1].training = True
    module[2].eval()
    before = [part.training for part in module.modules()]
    with pytest.raises(KeyboardInterrupt), evaluation_mode(module):  # noqa: PT012
        assert not any(part.training for part in module.modules())
        module.train()  # a forward may set flags by itself
        raise KeyboardInterrupt
    assert [part.training for part in module.modules()] == before
    assert before == [True, True, True, False, False]
