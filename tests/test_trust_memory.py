"""Memory is flat: batches and activations die, and nothing but the history grows."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr import Ablation, BatchBaseline, FeatureVisualizer, NeuronAdvantage
from tests.one_module import Trained, answer, cnn, loaders, pictures
from tests.paper_model import PaperModule, PaperSet, paper_loader, paper_trainer

VALIDATIONS, WARM = 200, 80
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
        if self.current_epoch % 10:
            return
        gc.collect()
        self.alive.append(sum(ref() is not None for ref in self.seen))
        self.tensors.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
        if STATM.exists():
            self.resident.append(int(STATM.read_text().split()[1]) * 4096)


def test_memory_is_flat_over_two_hundred_validations(tmp_path: Path) -> None:
    """Attribution each time; pictures and ablation at every tenth; TensorBoard throughout."""
    from pytorch_lightning.loggers import TensorBoardLogger

    module = Watched()
    callback = NeuronAdvantage(
        answer,
        "net.4",
        top_k=1,
        visualizer=FeatureVisualizer(steps=1, every_n_validations=10),
        ablation=Ablation(random_sets=1, sizes=(1,), singles=1, every_n_validations=10),
    )
    logger = TensorBoardLogger(tmp_path)
    trainer = paper_trainer(
        callback,
        max_epochs=VALIDATIONS,
        limit_train_batches=1,
        logger=logger,
        log_every_n_steps=1,
    )
    trainer.fit(module, *loaders(pictures(48)))
    logger.finalize("success")
    assert len(callback.history) == VALIDATIONS
    assert len(module.seen) >= VALIDATIONS * 2 * 5
    # Lightning itself may hold on to the last batch; nothing piles up.
    assert max(module.alive) <= 10
    assert len(set(module.tensors[1:])) == 1
    if module.resident:
        late = module.resident[WARM // 10 :]
        growth = np.polyfit(10 * np.arange(len(late)), late, 1)[0]
        assert growth < 24_000  # bytes per validation, of which history takes about 500


def test_loaders_and_model_are_let_go_after_a_run() -> None:
    callback = NeuronAdvantage(BatchBaseline(2), "model.detector", visualizer=None)

    def run() -> tuple[Any, Any]:
        module, data = PaperModule(), PaperSet()
        loader = torch.utils.data.DataLoader(data, 10)
        paper_trainer(callback, max_epochs=1).fit(module, paper_loader(), loader)
        return weakref.ref(module), weakref.ref(data)

    refs = run()
    for name in ("log", "log_dict"):  # Lightning hangs the module's own on every callback
        vars(callback).pop(name)
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
