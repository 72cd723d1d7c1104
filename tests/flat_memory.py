"""Two hundred validations in a process of their own: what stays alive, how memory grows.

``python -m tests.flat_memory FOLDER`` prints JSON. In the process of a whole test suite resident
memory moves by megabytes with what earlier tests left to the allocator.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from lightning_neurocorr import Ablation, FeatureVisualizer, NeuronAdvantage
from tests.one_module import Trained, answer, cnn, loaders, pictures
from tests.paper_model import paper_trainer

VALIDATIONS, EVERY = 200, 10
STATM = Path("/proc/self/statm")


class Watched(Trained):
    """Remembers every validation batch and activation weakly; looks at memory every ten epochs."""

    def __init__(self) -> None:
        super().__init__(cnn())
        self.seen: list[weakref.ref[Tensor]] = []
        self.alive: list[int] = []
        self.tensors: list[int] = []
        self.resident: list[int] = []

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        hidden = self.net[:4](batch[0])  # type: ignore[index]
        logits = self.net[4:](hidden)  # type: ignore[index]
        self.seen += [weakref.ref(t) for t in (*batch, hidden, logits)]
        super().validation_step(batch, batch_idx)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch % EVERY:
            return
        gc.collect()
        self.alive.append(sum(ref() is not None for ref in self.seen))
        self.tensors.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
        if STATM.exists():
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:  # or what is free counts too
                trim(0)
            self.resident.append(int(STATM.read_text().split()[1]) * 4096)


def main() -> None:
    """Attribution each time; pictures and ablation at every tenth; TensorBoard throughout."""
    torch.manual_seed(0)
    module = Watched()
    callback = NeuronAdvantage(
        answer,
        "net.4",
        target=1,
        top_k=1,
        visualizer=FeatureVisualizer(steps=1, every_n_validations=EVERY),
        ablation=Ablation(random_sets=1, sizes=(1,), singles=1, every_n_validations=EVERY),
    )
    logger = TensorBoardLogger(sys.argv[1])
    trainer = paper_trainer(
        callback,
        max_epochs=VALIDATIONS,
        limit_train_batches=1,
        logger=logger,
        log_every_n_steps=1,
    )
    trainer.fit(module, *loaders(pictures(48)))
    logger.finalize("success")
    found = {name: getattr(module, name) for name in ("alive", "tensors", "resident")}
    print(json.dumps(found | {"history": len(callback.history), "seen": len(module.seen)}))


if __name__ == "__main__":
    main()
