"""From a trainer to what the rooms take: modules, loaders, positions, training batches."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lightning_neurocorr import baselines as B
from lightning_neurocorr.callback.lightning_private import batch_of_step
from lightning_neurocorr.callback.runs import Run, learners, must_learn, parts_of, teach
from lightning_neurocorr.callback.training_data import training_batches
from lightning_neurocorr.isolation.randomness import PrivateRandomness
from lightning_neurocorr.samples import LoaderPositions
from lightning_neurocorr.studies.subject import Subject
from lightning_neurocorr.validation.asking import describe
from lightning_neurocorr.validation.batches import SampleTable
from lightning_neurocorr.validation.collector import Collector
from lightning_neurocorr.validation.padding import with_token_mask
from lightning_neurocorr.validation.reading import Arguments

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

# Numbers of a loader whose length says nothing about them: it has so many of its own.
_ROOM = 1 << 40

SEEN_BY_ALL = (
    "Every process saw the same samples: each counts once per process, so that "
    "p and q are too small and intervals too narrow. r is right. Leave use_distributed_sampler of "
    "the Trainer on, or give the loader a DistributedSampler. An iterable data set has to share "
    "its samples out itself."
)

PERHAPS_SEEN_BY_ALL = (
    "No distributed sampler shares the samples out among processes, and their classes do not tell "
    "whether all saw the same ones. If so, each counts once per process, so that p and q are too "
    "small and intervals too narrow."
)

IN_TRAINING_MODE = (
    "The model was validated in training mode: its answers may depend on random numbers and on the "
    "other samples of a batch. A snapshot, and samples that are run again, are in evaluation mode."
)

PADDED = (
    "A distributed sampler of its own kind gives samples to processes: NeuronAdvantage cannot tell "
    "duplicates that it pads with, and they count. Use torch.utils.data.DistributedSampler itself."
)


def validation_loaders(
    trainer: Trainer, chosen: Sequence[int] | None
) -> dict[int, LoaderPositions]:
    """The validation loaders to use, by index; several count as one concatenation."""
    loaders = _flat(trainer.val_dataloaders)
    found: dict[int, LoaderPositions] = {}
    offset = 0
    for i in range(len(loaders)) if chosen is None else chosen:
        if not 0 <= i < len(loaders):
            raise ValueError(
                f"Expected `dataloaders` to be indices of the {len(loaders)} validation loaders, "
                f"but got {i}."
            )
        found[i] = LoaderPositions(loaders[i], offset, trainer.global_rank, trainer.world_size)
        if trainer.world_size > 1 and not found[i].shared_out:
            found[i].offset = (i + 1) * _ROOM  # processes may count further than its length
        offset += found[i].length or _ROOM
    return found


def samples_seen_twice(
    loaders: Mapping[int, LoaderPositions], samples: SampleTable, processes: int
) -> str | None:
    """What to say where all processes saw, or may have seen, the same samples of a loader."""
    found = {
        samples.between(loader.offset, loader.offset + _ROOM).seen_by_each(processes)
        for loader in loaders.values()
        if processes > 1 and not loader.shared_out
    }
    if True in found:
        return SEEN_BY_ALL
    return PERHAPS_SEEN_BY_ALL if None in found else None


def _flat(loaders: Any) -> list[Any]:
    """Loaders in the order in which Lightning counts them: a list or dict of them may nest."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return [one for part in loaders for one in _flat(part)]
    return [loaders]


def total_length(loaders: Sequence[LoaderPositions]) -> int | None:
    """Samples in all loaders, where all say so."""
    lengths = [loader.length for loader in loaders]
    known = [length for length in lengths if length is not None]
    return sum(known) if len(known) == len(lengths) else None


def look_at(
    collector: Collector,
    loaders: dict[int, LoaderPositions],
    trainer: Trainer,
    inputs: B.Field | None,
) -> Subject:
    """Model and data as evidence needs them after the validation."""
    indices = list(loaders)

    def arguments(batch: Any) -> Arguments:
        if inputs is not None:
            found: Arguments = (B.read_field(batch, inputs, "inputs"),), {}
        else:
            found = collector.arguments_of(batch)
        return with_token_mask(found, batch, collector.settings.options.token_mask)

    def move(batch: Any, loader: int) -> Any:
        return batch_of_step(trainer, batch, indices[loader])

    settings = collector.settings
    return Subject(
        settings.module, settings.layers, list(loaders.values()), arguments, move, collector.rerun
    )


def prepare_baseline(
    baseline: Any,
    trainer: Trainer,
    pl_module: LightningModule,
    module: nn.Module,
    loaders: Sequence[LoaderPositions],
    run: Run,
) -> None:
    """Bring a baseline to where it can be asked, when the weights that are validated are there."""
    if not trainer.sanity_checking:
        source = getattr(trainer, "datamodule", None) or pl_module
        fit_baseline(baseline, lambda: _training_loader(source), trainer, run)
    if isinstance(baseline, B.Checkable):
        baseline.check(total_length(loaders))
    if isinstance(baseline, B.Movable):
        baseline.to(trainer.strategy.root_device)
    if not trainer.sanity_checking:
        show_model(baseline, trainer, module, run)


def show_model(baseline: Any, trainer: Trainer, module: nn.Module, run: Run) -> None:
    """Let a baseline see the model with the weights that are validated, reported or not."""
    taught = learners(baseline)
    if isinstance(baseline, B.Snapshotting):
        baseline.observe(module, trainer.current_epoch)
    for part in taught:
        teach(part, run)


def fit_baseline(baseline: Any, loader: Any, trainer: Trainer, run: Run) -> None:
    """Let a baseline that needs it learn from the training data, the same in every process.

    A baseline that an earlier run has taught learns again.

    Args:
        baseline: Any baseline.
        loader: Gives the training loader, or None.
        trainer: The trainer.
        run: What the baseline is fitted in.
    """
    if not must_learn(baseline, run):
        return
    taught = [part for part in parts_of(baseline) if isinstance(part, B.Fittable)]
    found = loader()
    if found is None:
        raise ValueError(
            f"Expected `baseline` to be fitted, but {describe(baseline)} is not and there is no "
            "training loader here. Fit it beforehand, or give the data module a train_dataloader."
        )
    device = trainer.strategy.root_device
    with PrivateRandomness()(device):
        baseline.fit(training_batches(found, lambda b: batch_of_step(trainer, b)))
    for part in taught:
        teach(part, run)


def _training_loader(source: Any) -> Any:
    """The training loader of a module or data module outside of a fit; None if it has none."""
    try:
        return source.train_dataloader()
    except Exception:  # noqa: BLE001 -- Lightning's own placeholder raises
        return None


def log_scalars(pl_module: LightningModule, name: str, numbers: Mapping[str, float]) -> None:
    """Through the module, so that every logger and every monitoring callback gets them."""
    with warnings.catch_warnings():
        # Without a logger the numbers still are what trainer.validate returns.
        warnings.filterwarnings("ignore", ".*have no logger configured.*")
        # Every process has these numbers: nothing to reduce, and no advice to do so.
        named = {f"{name}/{tag}": value for tag, value in numbers.items()}
        pl_module.log_dict(named, on_epoch=True, batch_size=1, sync_dist=True, rank_zero_only=True)


def log_afterwards(trainer: Trainer, name: str, numbers: Mapping[str, float], step: int) -> None:
    """Past the module: once training has ended it logs no more."""
    named = {f"{name}/{tag}": value for tag, value in numbers.items()}
    trainer.callback_metrics.update(
        {tag: torch.tensor(value, device="cpu") for tag, value in named.items()}
    )
    for logger in trainer.loggers:
        logger.log_metrics(named, step)


def has_tensorboard(trainer: Trainer) -> bool:
    """Whether a logger is TensorBoard's, told by its class: the same in every process."""
    kinds = (kind for logger in trainer.loggers for kind in type(logger).__mro__)
    return any(kind.__name__ == "TensorBoardLogger" for kind in kinds)


def is_fitting(trainer: Trainer) -> bool:
    """Whether a validation is part of a fit."""
    return trainer.state.fn is not None and str(trainer.state.fn.value) == "fit"
