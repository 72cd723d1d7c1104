"""What the callback asks of a baseline: one call; everything else is optional.

A class has a capability when it has the methods of that protocol; nothing needs to be inherited or
registered.
"""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, device, nn


@runtime_checkable
class Baseline(Protocol):
    """Anything that can be called with a batch; a function or a lambda will do."""

    def __call__(self, batch: Any) -> Any:
        """Class ids ``(N,)`` or scores ``(N, C)`` for the ``N`` samples of the batch.

        Scores are logits, log-probabilities or probabilities, column ``c`` for class ``c``.
        """
        ...


@runtime_checkable
class Positional(Protocol):
    """A baseline that may need to know where in the data set a sample stands."""

    needs_positions: bool
    """Whether it cannot answer without positions."""

    def predict_at(self, batch: Any, positions: Tensor | None) -> Tensor:
        """Like ``__call__``; ``positions`` is ``(N,)`` int64, or ``None`` if they are not known."""
        ...


@runtime_checkable
class Watching(Protocol):
    """A baseline that wants to know which data set a batch was taken from."""

    def watch(self, dataset: Any) -> None:
        """See the data set (or what stands for one) of the batch that comes next."""
        ...


@runtime_checkable
class Fittable(Protocol):
    """A baseline that learns from the training batches before the first validation."""

    needs_fit: bool
    """True until ``fit`` has been called; then ``fit`` is not called again in the same run."""

    def fit(self, batches: Iterable[Any]) -> None:
        """Learn from the training batches, in an order that is the same in every process."""
        ...


@runtime_checkable
class Networked(Protocol):
    """A baseline that is a network: its layers can be listened to while it is asked."""

    def network(self) -> nn.Module:
        """The module that answers."""
        ...


@runtime_checkable
class Snapshotting(Protocol):
    """A baseline that looks at the model itself before the first batch of each validation."""

    ready: bool
    """Whether it can answer; while False no report is made."""

    def observe(self, module: nn.Module, epoch: int) -> None:
        """See the module whose output is the prediction, with the weights that are validated."""
        ...


@runtime_checkable
class Movable(Protocol):
    """A baseline with tensors that should be where the model is."""

    def to(self, device: device) -> Any:
        """Move to ``device`` and return the baseline."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A baseline whose state goes into the checkpoint and comes back on resume."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dicts: what ``weights_only=True`` can read."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take the state back."""
        ...


@runtime_checkable
class Renewable(Protocol):
    """A baseline that a run teaches, and that can be for another run as it was made."""

    def renew(self) -> None:
        """Forget what was learned since it was made; called only where a run has taught it."""
        ...


@runtime_checkable
class Checkable(Protocol):
    """A baseline that can tell before training starts that it will not work."""

    def check(self, num_samples: int | None) -> None:
        """Raise a ``ValueError`` if it cannot answer for so many samples (``None``: unknown)."""
        ...


def check_baseline(baseline: Any) -> None:
    """Raise a ``TypeError`` that says what to write unless ``baseline`` takes a batch."""
    instead = _instead(baseline)
    if instead is None and callable(baseline) and _takes_one_argument(baseline):
        return
    what = repr(baseline) if isinstance(baseline, (str, Path)) else f"a {type(baseline).__name__}"
    if isinstance(baseline, type):
        what = f"the class {baseline.__name__}"
    elif callable(baseline) and instead is None:
        what = f"{baseline!r}, which cannot be called with one argument"
    raise TypeError(
        "Expected `baseline` to be callable with a batch and to return class ids or scores, "
        f"but got {what}. "
        f"{instead or 'Give a function of the batch or one of the built-in baselines.'}"
    )


def _instead(baseline: Any) -> str | None:
    """What to write instead of a thing that is nearly a baseline."""
    if isinstance(baseline, type):
        return f"Give an instance: {baseline.__name__}(...)."
    if isinstance(baseline, nn.Module):
        return (
            "Wrap it: ModuleBaseline(module), with `inputs=` if it does not take the x of (x, y)."
        )
    if isinstance(baseline, (str, Path)):
        return (
            f"For a file write CheckpointBaseline({str(baseline)!r}, ModelClass) or TableBaseline."
        )
    if callable(baseline):
        return None
    if hasattr(baseline, "predict"):
        return "Wrap it: EstimatorBaseline(estimator)."
    if isinstance(baseline, (Tensor, list, tuple, Mapping)) or hasattr(baseline, "__array__"):
        return "Wrap stored predictions: TableBaseline(table)."
    return None


def _takes_one_argument(baseline: Any) -> bool:
    """Whether ``baseline(batch)`` fits the signature; True where Python cannot tell."""
    try:
        inspect.signature(baseline).bind(None)
    except TypeError:
        return False
    except ValueError:  # some built-in functions have no signature
        return True
    return True
