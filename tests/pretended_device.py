"""Where reading a batch would wait for a CUDA device, found out without one.

Fake tensors claim to lie on CUDA and compute nothing; a dispatch mode sees each operation. Those
wait that bring a number to Python, choose rows by a mask, or copy between devices without
``non_blocking``. Prints a line per batch.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_neurocorr import BatchBaseline
from lightning_neurocorr.activations import choose_layers
from lightning_neurocorr.collector import Collector, Settings
from lightning_neurocorr.samples import LoaderPositions

NUMBERS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim"}


class Waits(TorchDispatchMode):
    """Names what would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result, name = func(*args, **kwargs), func.overloadpacket.__name__
        tensors = [value for value in (*args, result) if isinstance(value, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        waiting = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,)))
        if name in ("_to_copy", "copy_") and len(devices) > 1 and waiting:
            self.found.add("Tensor.to")
        masked = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if "cuda" in devices and (name in NUMBERS or masked):
            self.found.add(name)
        return result


def main() -> None:
    warnings.simplefilter("ignore")
    torch.__future__.set_swap_module_params_on_conversion(False)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.cache_enabled = False  # it mixes up devices after a module was moved
    with mode:
        with torch.device("cuda"):
            model = nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
            ).eval()  # fmt: skip
        settings = Settings(BatchBaseline(2), choose_layers(model, None), model, total=48)
        settings.randomness = lambda _=None: nullcontext()  # type: ignore[assignment] -- asks CUDA
        positions = LoaderPositions(torch.utils.data.DataLoader(range(48), batch_size=16))
        with Collector(model, settings) as collector, torch.no_grad():
            for i in range(3):
                labels = torch.zeros(16, dtype=torch.long, device="cuda")
                batch = (torch.randn(16, 3, 12, 12, device="cuda"), labels, labels)
                outputs = model(batch[0])
                with Waits() as waits:
                    collector.update(outputs, batch, positions)
                print(f"batch {i}: {', '.join(sorted(waits.found)) or 'none'}")


if __name__ == "__main__":
    main()
