"""One base class for whichever of Lightning's two namespaces are installed.

``lightning.pytorch.Callback`` and ``pytorch_lightning.Callback`` are different classes; a trainer
or command line of one refuses a callback of the other in some places.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_lightning import Callback as Callback
else:

    def _installed() -> list[type]:
        found = []
        for package in ("pytorch_lightning", "lightning.pytorch"):
            try:
                found.append(import_module(package).Callback)
            except ModuleNotFoundError as error:
                if error.name not in (package, package.split(".")[0]):
                    raise
        if not found:
            raise ModuleNotFoundError(
                "NeuronAdvantage needs Lightning: pip install pytorch-lightning"
            )
        return found

    Callback = type("Callback", tuple(dict.fromkeys(_installed())), {})
