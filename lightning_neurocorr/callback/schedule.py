"""Which validations are reported: every n-th of a fit, and always its last."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from types import CodeType
from typing import TYPE_CHECKING, Any

from lightning_neurocorr.callback import lightning_private
from lightning_neurocorr.validation.options import Options

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_STOP = "should_stop"  # what ends a fit before its time, in Lightning's words


class Plan(Enum):
    """What is done with a validation."""

    REPORT = "report"
    HOLD = "collect; report if the fit ends with it"
    SKIP = "leave alone"


@dataclass(frozen=True)
class When:
    """When a validation took place.

    Attributes:
        validation: Its number, from 0, over all that the callback has seen.
        step: The step at which the trainer logs.
        epoch: The epoch.
    """

    validation: int = 0
    step: int = 0
    epoch: int = 0


def is_nth(number: int, every: int | None) -> bool:
    """Whether validation ``number``, counted from 1, is one of ``every``, 2 ``every`` and so on."""
    return every is not None and number > 0 and number % every == 0


def looks_closer(options: Options, number: int) -> bool:
    """Whether the ``number``-th validation of a fit is one that is looked at more closely."""
    rooms = (options.visualizer, options.ablation, options.placebo, *options.studies)
    plans = [getattr(room, "every_n_validations", None) for room in rooms]
    return any(is_nth(number, every) for every in plans)


def plan(trainer: Trainer, pl_module: LightningModule, number: int, every: int | None) -> Plan:
    """What to do with the ``number``-th validation of a fit, counted from 1."""
    if is_nth(number, every):
        return Plan.REPORT
    last = is_last(trainer)
    if last:
        return Plan.REPORT
    return Plan.HOLD if last is None or may_be_stopped(trainer, pl_module) else Plan.SKIP


def is_last(trainer: Trainer) -> bool | None:
    """Whether the trainer's limits leave no room for another validation in this fit.

    Returns:
        None where its settings cannot tell.
    """
    if trainer.should_stop:
        return True if lightning_private.can_stop_early(trainer) else None
    to_go = _until_next(trainer)
    if to_go is None:
        return None
    epoch, batches = to_go
    if trainer.max_epochs not in (None, -1) and epoch >= trainer.max_epochs:
        return True
    if trainer.max_steps == -1:
        return False
    if not math.isfinite(batches) or not _steps_are_known(trainer):
        return None
    # The batch that the validation follows is run if the steps before it left some to take.
    return trainer.global_step + _steps(trainer, int(batches) - 1) >= trainer.max_steps


def _until_next(trainer: Trainer) -> tuple[int, float] | None:
    """The epoch of the next validation and how many batches away it is, if nothing ends before."""
    loop, every = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    if every is None:  # by the clock
        return None
    epoch, size = trainer.current_epoch, trainer.num_training_batches
    epochs = trainer.check_val_every_n_epoch
    if epochs is None:  # counted over epochs
        if not (math.isfinite(every) and math.isfinite(size)):
            return None
        done = loop.total_batch_idx + 1
        there = int((done // every + 1) * every)
        return int((there - 1) // size), there - done
    done = loop.batch_idx + 1
    there = (done // every + 1) * every if math.isfinite(every) else math.inf
    if there <= size and math.isfinite(there):
        return epoch, there - done
    following = ((epoch + 1) // epochs + 1) * epochs - 1
    return following, (size - done) + (following - epoch - 1) * size + min(every, size)


def _steps_are_known(trainer: Trainer) -> bool:
    """Whether every ``accumulate_grad_batches`` batches are a step."""
    changing = any(hasattr(callback, "scheduling") for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return trainer.lightning_module.automatic_optimization and not changing


def _steps(trainer: Trainer, batches: int) -> int:
    """Steps in the next batches: one for each full or last group of an epoch."""
    size, group = int(trainer.num_training_batches), trainer.accumulate_grad_batches
    whole = math.ceil(size / group)
    done = trainer.fit_loop.epoch_loop.batch_idx + 1
    epochs, rest = divmod(done + batches, size)
    so_far = whole if done == size else done // group
    return epochs * whole + rest // group - so_far


def may_be_stopped(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Whether a callback, the model or the data module has code that stops a fit early."""
    parts = [pl_module, getattr(trainer, "datamodule", None), *trainer.callbacks]  # type: ignore[attr-defined]
    return any(_STOP in _names(code) for part in parts for code in _code(part))


def _code(part: Any) -> Iterator[CodeType]:
    """The code of every method, and of functions that were handed over."""
    for owner in (*type(part).__mro__, part):
        for member in getattr(owner, "__dict__", {}).values():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            function = getattr(function, "__wrapped__", function)
            code = getattr(function, "__code__", None)
            if isinstance(code, CodeType):
                yield code


def _names(code: CodeType) -> set[str]:
    """Names and words in a piece of code and in the functions inside it."""
    words = {word for word in code.co_consts if isinstance(word, str)}
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return words.union(code.co_names, *inner)
