"""What is read of PyTorch's private names is what it is taken for."""

import torch
from torch import nn

from lightning_neurocorr.isolation import torch_private


def test_what_is_private_is_what_it_is_taken_for() -> None:
    model = nn.BatchNorm1d(2)
    assert dict(torch_private.parameters_of(model)) == dict(model.named_parameters())
    assert dict(torch_private.buffers_of(model)) == dict(model.named_buffers())
    assert not torch_private.has_hooks(model)
    for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
        handle = getattr(model, f"register_{kind}_hook")(lambda *_: None)
        assert torch_private.has_hooks(model)
        handle.remove()
        assert not torch_private.has_hooks(model)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert torch_private.has_hooks(model)
    handle.remove()
    assert not torch_private.is_compiled_in_place(model)
    model.compile(backend="eager")
    assert torch_private.is_compiled_in_place(model)
    assert torch_private.is_compiled_function(torch.compile(abs, backend="eager"))
    assert not torch_private.is_compiled_function(abs)
    values = torch.zeros(2)
    before = torch_private.version_of(values)
    values += 1
    assert torch_private.version_of(values) == before + 1
    with torch.inference_mode():
        assert torch_private.version_of(torch.zeros(2)) == 0


def test_operations_are_what_they_are_taken_for() -> None:
    aten = torch.ops.aten
    assert torch_private.operation_name(aten.relu_.default) == "aten::relu_"
    assert torch_private.is_mutable(aten.relu_.default)
    assert not torch_private.is_mutable(aten.relu.default)
    assert torch_private.composite_kernel(aten.relu.default) is None
    kernel = torch_private.composite_kernel(aten.flatten.using_ints)
    assert kernel is not None
    assert kernel(torch.zeros(2, 3)).shape == (6,)


class Rectified(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


def test_who_computes_what_a_layer_returns() -> None:
    own = [nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.ConvTranspose3d(2, 2, 1), nn.BatchNorm2d(2)]
    own += [nn.InstanceNorm1d(2), nn.SyncBatchNorm(2), nn.GroupNorm(1, 2), nn.LayerNorm(2)]
    assert all(map(torch_private.computes_as_torch, own))
    replaced = nn.Linear(2, 2)
    replaced.forward = torch.relu
    for layer in (Rectified(2, 2), Standardised(2, 2, 1), replaced):
        assert not torch_private.computes_as_torch(layer)
    renamed = type("Renamed", (nn.Linear,), {"size": 2})(2, 2)
    assert torch_private.computes_as_torch(renamed)
