"""What can be said before the first batch: names and trainers that cannot work."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from lightning_neurocorr.activations import Layers, choose_layers, output_module
from lightning_neurocorr.callback import lightning_private

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

# Strategies that spread one model over processes: a forward on one of them waits for the others.
_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")


def check_names(pl_module: LightningModule, layers: Layers, output: str) -> None:
    """Raise for names of layers or of the output that the model does not have.

    Where ``configure_model`` builds the model, which comes later, the rehearsal finds them.
    """
    try:
        choose_layers(pl_module, layers)
        output_module(pl_module, output)
    except ValueError:
        if type(pl_module).configure_model.__module__.endswith(".core.hooks"):  # Lightning's own
            raise


def _check_validation_can_come(pl_module: LightningModule) -> None:
    """A fit without validation leaves nothing to report; ``trainer.validate`` may follow it."""
    if getattr(pl_module.validation_step, "__module__", "").endswith(".core.module"):  # Lightning's
        raise ValueError(
            f"Expected a validation_step, but {type(pl_module).__name__} has none, and "
            "NeuronAdvantage reports on validations. Write one, and pass `val_dataloaders` to "
            "trainer.fit or give the data module a val_dataloader."
        )
    warnings.warn(
        "This fit has no validation loader, so NeuronAdvantage has nothing to report on yet. Pass "
        "`val_dataloaders` to trainer.fit, or call trainer.validate afterwards.",
        stacklevel=3,
    )


def check_loaders(trainer: Trainer, stage: str) -> None:
    """Raise where batches of several loaders come side by side, so that a sample has no position.

    Loaders of a data module are not known in ``setup``; each validation asks again.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop if stage == "fit" else trainer.validate_loop
    given = lightning_private.data_source(loop)
    for loaders in (given, lightning_private.combined_loader(loop)):
        mode = lightning_private.combination_mode(loaders)
        if type(loaders).__name__ == "CombinedLoader" and mode != "sequential":
            raise ValueError(
                "Expected validation loaders to be gone through one after the other, but got "
                f"CombinedLoader(mode={mode!r}). Pass a list of loaders, or, for batches that "
                "belong together, one DataLoader of a torch.utils.data.StackDataset."
            )


def check_name(trainer: Trainer, key: str, name: str) -> None:
    """Raise if two callbacks of one trainer keep their state under the same key."""
    callbacks = getattr(trainer, "callbacks", [])
    if [getattr(callback, "state_key", None) for callback in callbacks].count(key) > 1:
        raise ValueError(
            "Expected every NeuronAdvantage of a trainer to have a `name` of its own, but got "
            f"several named {name!r}: they would log and save over each other. Pass name='...' to "
            "each."
        )


def check_trainer(trainer: Trainer, pl_module: LightningModule, stage: str, *, alone: bool) -> None:
    """Raise if the model can never be validated, or is spread over processes.

    Args:
        trainer: The trainer.
        pl_module: What it runs.
        stage: ``"fit"`` or ``"validate"``.
        alone: Whether evidence is asked for that runs the model on one process alone.
    """
    if stage == "fit" and trainer.limit_val_batches == 0:
        warnings.warn("limit_val_batches=0: NeuronAdvantage has nothing to do.", stacklevel=3)
    elif stage == "fit" and not trainer.enable_validation:
        _check_validation_can_come(pl_module)
    check_loaders(trainer, stage)
    strategy = trainer.strategy
    name = type(strategy).__name__
    if not any(part in name for part in _SHARDED):
        return
    if alone:
        raise ValueError(
            f"Expected a strategy that keeps the whole model in each process, but got {name}: "
            "attribution, ablation, the second pass and pictures run the model on one process "
            "alone, which would wait forever for the others. Pass attribution=False, "
            "ablation=None, second_pass=None and visualizer=None; the correlation works."
        )
    mesh = lightning_private.device_mesh(strategy)
    axes = getattr(mesh, "mesh_dim_names", None) or ()
    if mesh is not None and "tensor_parallel" in axes and mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"Expected `tensor_parallel_size` of {name} to be 1, but got "
            f"{mesh['tensor_parallel'].size()}: each process would see a part of the neurons of "
            "a layer, and the same samples. Shard over data_parallel_size instead."
        )
