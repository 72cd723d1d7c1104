"""Every touch of a private name of Lightning: what its public surface does not tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def logging_step(trainer: Any) -> int:
    """The step at which the trainer logs scalars now.

    Lightning counts batches here, one less during a validation than ``global_step``, which counts
    the steps of every optimizer.
    """
    loop = getattr(trainer.fit_loop, "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))


def can_stop_early(trainer: Any) -> bool:
    """Whether a fit that should stop may: it has had its least epochs and steps."""
    return bool(getattr(trainer.fit_loop, "_can_stop_early", True))


def data_source(loop: Any) -> Any:
    """The loaders, data module or model that a loop gets its batches from; None if not known."""
    return getattr(getattr(loop, "_data_source", None), "instance", None)


def combined_loader(loop: Any) -> Any:
    """All loaders of a loop as one; None before it has set them up."""
    return getattr(loop, "_combined_loader", None)


def combination_mode(loaders: Any) -> str:
    """How a ``CombinedLoader`` goes through its loaders."""
    return getattr(loaders, "_mode", "sequential")


def batch_of_step(trainer: Any, batch: Any, loader: int = 0) -> Any:
    """A batch of loader ``loader`` as a step gets it: converted, through the hooks, and moved."""
    strategy = trainer.strategy
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=loader)
    return strategy.batch_to_device(batch, strategy.root_device, loader)


def overrides(module: Any, hook: str) -> bool:
    """Whether a LightningModule has a hook of its own, as a method of its class or as a function.

    Lightning's own do nothing.
    """
    own = getattr(getattr(module, hook), "__module__", "") or ""
    return not own.startswith(("lightning.", "pytorch_lightning."))


def around_step(
    trainer: Any, begin: Callable[[], None], end: Callable[[], None]
) -> Callable[[], None]:
    """Call ``begin`` and ``end`` around the next validation step, behind hooks and before hooks.

    Every strategy runs the step in a method of its own: it is replaced until the step begins.

    Returns:
        Takes that back where no step has come; harmless afterwards.
    """
    strategy = trainer.strategy
    step, before = strategy.validation_step, vars(strategy).get("validation_step")

    def back() -> None:
        if vars(strategy).get("validation_step") is not watched:
            return
        if before is None:
            del strategy.validation_step
        else:
            strategy.validation_step = before

    def watched(*args: Any, **kwargs: Any) -> Any:
        back()
        begin()
        try:
            return step(*args, **kwargs)
        finally:
            end()

    strategy.validation_step = watched
    return back


def device_mesh(strategy: Any) -> Any:
    """How a strategy spreads a model over devices; None if it does not."""
    return getattr(strategy, "_device_mesh", None)


def state_key(callback: Any, name: str) -> str:
    """What tells the state of one callback in a checkpoint from that of another."""
    return callback._generate_state_key(name=name)
