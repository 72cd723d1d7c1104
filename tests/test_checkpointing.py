"""Activation checkpointing of every kind: the evidence is that of the same model without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    Ablation,
    BatchBaseline,
    FeatureVisualizer,
    NeuronAdvantage,
    NeuronReport,
)
from tests.helpers import seeded
from tests.paper_model import paper_trainer

N, C = 240, 3


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class Encoder(nn.Module):
    """Blocks in the manner of Hugging Face's models: a flag, and a function that is swapped in."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(3), Block(4)])
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor] | None = None

    def gradient_checkpointing_enable(self, kwargs: dict[str, Any]) -> None:
        """As ``PreTrainedModel`` does it."""
        self.gradient_checkpointing = True
        self._gradient_checkpointing_func = partial(checkpoint, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.gradient_checkpointing and self._gradient_checkpointing_func is not None:
                x = self._gradient_checkpointing_func(block.__call__, x)
            else:
                x = block(x)
        return x


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = Encoder(), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean((2, 3)))

    def validation_step(self, batch: list[Tensor]) -> dict[str, Tensor]:
        return {"logits": self(batch[0]), "target": batch[1]}


def hugging_face(reentrant: bool) -> Callable[[Module], None]:
    def enable(module: Module) -> None:
        module.encoder.gradient_checkpointing_enable({"use_reentrant": reentrant})

    return enable


def wrapped(kind: CheckpointImpl) -> Callable[[Module], None]:
    """What Lightning's FSDP strategy does with ``activation_checkpointing_policy``."""

    def wrap(module: Module) -> None:
        apply_activation_checkpointing(
            module,
            checkpoint_wrapper_fn=partial(checkpoint_wrapper, checkpoint_impl=kind),
            check_fn=lambda part: isinstance(part, Block),
        )

    return wrap


def in_sequence(module: Module) -> None:
    parts = [block.__call__ for block in module.encoder.blocks]

    def forward(x: Tensor) -> Tensor:
        return checkpoint_sequential(parts, 2, x, use_reentrant=True)

    module.encoder.forward = forward  # type: ignore[method-assign]


KINDS = {
    "Hugging Face, reentrant": hugging_face(True),
    "Hugging Face": hugging_face(False),
    "wrapped, reentrant": wrapped(CheckpointImpl.REENTRANT),
    "wrapped": wrapped(CheckpointImpl.NO_REENTRANT),
    "in sequence": in_sequence,
}


def reported(change: Callable[[Module], None] | None) -> NeuronReport:
    module = Module().eval()
    x = torch.randn(N, 3, 8, 8, generator=seeded())
    with torch.no_grad():
        module.head.bias -= module(x).mean(0)
        said = module(x).argmax(1)
    noise = torch.rand(N, generator=seeded(1))
    answer = torch.where(noise < 0.5, said, (said + 1) % C)
    if change is not None:
        change(module)
    callback = NeuronAdvantage(
        BatchBaseline(2),
        "encoder.blocks.*.conv",
        ablation=Ablation(by="r", sizes=(1,), singles=1, random_sets=2),
        visualizer=FeatureVisualizer(steps=4),
        top_k=2,
    )
    loader = DataLoader(TensorDataset(x, said, answer), batch_size=40)
    paper_trainer(callback).validate(module, loader, verbose=False)
    assert callback.report is not None
    return callback.report


def functions() -> dict[str, Any]:
    """What PyTorch's room of checkpointing has, but for its note of warnings."""
    known = vars(torch.utils.checkpoint)
    return {name: value for name, value in known.items() if name != "__warningregistry__"}


@pytest.fixture(scope="module")
def plain() -> NeuronReport:
    return reported(None)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # the step's own
@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_that_without_checkpointing(kind: str, plain: NeuronReport) -> None:
    before = functions()
    report = reported(KINDS[kind])
    assert functions() == before
    assert np.isfinite(plain.column("attribution")).all()
    assert np.isfinite(plain.column("ablation")).any()
    for name in ("r", "attribution", "attribution_contrast", "ablation", "ablation_control"):
        np.testing.assert_allclose(report.column(name), plain.column(name), rtol=1e-5, atol=1e-7)
    for one, other in zip(report.panels, plain.panels, strict=True):
        assert one.picture is not None
        assert other.picture is not None
        np.testing.assert_allclose(one.picture.image, other.picture.image, atol=1e-6)
