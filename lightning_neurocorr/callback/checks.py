"""What can be said before the first batch: wrong options, and trainers that cannot work."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from lightning_neurocorr import baselines, functional
from lightning_neurocorr.ablation import Ablation
from lightning_neurocorr.activations import Layers, check_pooling, choose_layers
from lightning_neurocorr.attribution import Attribution
from lightning_neurocorr.callback.wiring import output_module
from lightning_neurocorr.ranks import SecondPass
from lightning_neurocorr.visualization import Visualizer

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

# Strategies that spread one model over processes: a forward on one of them waits for the others.
_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")


def check_options(
    *,
    baseline: Any,
    advantage: Any,
    pooling: Any,
    predictions: Any,
    output: Any,
    visualizer: Any,
    name: Any,
    attribution: Any = None,
    ablation: Any = None,
    second_pass: Any = None,
    to_image: Any = None,
    dataloaders: Any = None,
    num_classes: Any = None,
    **counts: Any,
) -> None:
    """Raise for options of the callback that can never work; ``counts`` are integers >= 1."""
    baselines.check_baseline(baseline)
    functional.check_advantage(advantage)
    check_pooling(pooling)
    for option, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"Expected `{option}` to be an integer of at least 1, but got {value!r}."
            )
    if predictions is not None and not callable(predictions):
        raise TypeError(
            "Expected `predictions` to be a callable (outputs, batch) -> (prediction, target), but "
            f"got {predictions!r}."
        )
    for option, value in (("output", output), ("name", name)):
        if not isinstance(value, str) or (option == "name" and not value):
            raise TypeError(f"Expected `{option}` to be a string, but got {value!r}.")
    _check_evidence(attribution, ablation, second_pass)
    if to_image is not None and not callable(to_image):
        raise TypeError(
            f"Expected `to_image` to be a callable from an image (C, H, W), but got {to_image!r}."
        )
    indices = dataloaders if isinstance(dataloaders, (list, tuple)) else [dataloaders]
    if dataloaders is not None and (
        not isinstance(dataloaders, (list, tuple)) or not all(type(i) is int for i in indices)
    ):
        raise TypeError(
            f"Expected `dataloaders` to be a list of indices such as [0], but got {dataloaders!r}."
        )
    if num_classes is not None and (type(num_classes) is not int or num_classes < 2):
        raise ValueError(
            f"Expected `num_classes` to be an integer of at least 2, but got {num_classes!r}."
        )
    if visualizer is not None and not isinstance(visualizer, Visualizer):
        raise TypeError(
            "Expected `visualizer` to be None or to have a `render` method, such as "
            f"FeatureVisualizer(), but got {visualizer!r}."
        )


def _check_evidence(attribution: Any, ablation: Any, second_pass: Any) -> None:
    """Settings of evidence: their own class, or nothing."""
    if not isinstance(attribution, (bool, Attribution)) and attribution is not None:
        raise TypeError(
            f"Expected `attribution` to be a bool or Attribution(...), but got {attribution!r}."
        )
    for option, value, kind in (
        ("ablation", ablation, Ablation),
        ("second_pass", second_pass, SecondPass),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeError(
                f"Expected `{option}` to be None or {kind.__name__}(...), but got {value!r}."
            )
    if ablation is not None and ablation.by == "attribution" and not attribution:
        raise ValueError(
            "Expected `by` of Ablation to be a column that is measured, but got 'attribution' with "
            f"attribution={attribution!r}. Pass Ablation(by='r'), or attribution=True."
        )


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


def check_loaders(trainer: Trainer, stage: str) -> None:
    """Raise where batches of several loaders come side by side, so that a sample has no position.

    Loaders of a data module are not known in ``setup``; each validation asks again.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop if stage == "fit" else trainer.validate_loop
    given = getattr(getattr(loop, "_data_source", None), "instance", None)
    for loaders in (given, getattr(loop, "_combined_loader", None)):
        mode = getattr(loaders, "_mode", "sequential")
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


def check_trainer(trainer: Trainer, stage: str, *, alone: bool) -> None:
    """Raise if this trainer will never validate, or spreads the model over processes.

    Args:
        trainer: The trainer.
        stage: ``"fit"`` or ``"validate"``.
        alone: Whether evidence is asked for that runs the model on one process alone.
    """
    if stage == "fit" and trainer.limit_val_batches == 0:
        warnings.warn("limit_val_batches=0: NeuronAdvantage has nothing to do.", stacklevel=3)
    elif stage == "fit" and not trainer.enable_validation:
        raise ValueError(
            "Expected a validation loader and a validation_step, but the trainer has none, and "
            "NeuronAdvantage reports on validations. Pass `val_dataloaders` to trainer.fit or give "
            "the data module a val_dataloader."
        )
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
    mesh = getattr(strategy, "_device_mesh", None)
    axes = getattr(mesh, "mesh_dim_names", None) or ()
    if mesh is not None and "tensor_parallel" in axes and mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"Expected `tensor_parallel_size` of {name} to be 1, but got "
            f"{mesh['tensor_parallel'].size()}: each process would see a part of the neurons of "
            "a layer, and the same samples. Shard over data_parallel_size instead."
        )
