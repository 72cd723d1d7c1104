"""PyTorch's private names are touched in one file, so that a new version breaks one file."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import lightning_neurocorr
from lightning_neurocorr.isolation import torch_private

PRIVATE = re.compile(
    r"\._(parameters|buffers|modules|version|compiled_call_impl|forward_\w+|backward_\w+)\b"
    r"|\"_(forward|backward)_(pre_)?hooks\"|_torchdynamo|_compiled_call_impl|torch\._\w"
    r"|from torch[\w.]*\._|from torch[\w.]* import _"
)
ROOMS = ("isolation", "visualization", "edit")


def touches(text: str) -> list[str]:
    """Lines that touch a private name of PyTorch; ``self._name`` is the writer's own."""
    return [line for line in text.splitlines() if PRIVATE.search(line.replace("self._", ""))]


@pytest.mark.parametrize("room", ROOMS)
def test_no_other_file_of_these_rooms_touches_a_private_name(room: str) -> None:
    files = sorted((Path(lightning_neurocorr.__file__).parent / room).rglob("*.py"))
    found = {f.name: touches(f.read_text()) for f in files if f.stem != "torch_private"}
    assert len(found) > 1
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from torch.utils import _pytree as pytree",
        "from torch.utils._python_dispatch import TorchDispatchMode",
        "for name in module._parameters:",
        "count = buffer._version",
        "torch._C.do()",
        'getattr(part, "_forward_hooks")',
    ],
)
def test_a_private_name_is_noticed(line: str) -> None:
    assert touches(line)
    assert not touches("self._buffers = torch.zeros(3)")


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
