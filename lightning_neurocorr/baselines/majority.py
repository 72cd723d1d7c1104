"""The most frequent class as a baseline."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.baselines.batch import Field, check_field, count_samples, read_target


class MajorityBaseline:
    """Always the same class: the most frequent one of the training labels, or a given one.

    Args:
        class_id: The class; ``None`` counts the training labels (of equally frequent classes the
            smallest id).
        target: Where the class ids are in a batch. ``None`` reads the y of an ``(x, y)`` or dict
            batch.

    Example:
        >>> import torch
        >>> MajorityBaseline(2)((torch.rand(3, 4), torch.tensor([0, 1, 2])))
        tensor([2, 2, 2])
    """

    def __init__(self, class_id: int | None = None, *, target: Field | None = None) -> None:
        if class_id is not None and (isinstance(class_id, bool) or not isinstance(class_id, int)):
            raise TypeError(f"Expected `class_id` to be an integer or None, but got {class_id!r}.")
        if target is not None:
            check_field(target, "target")
        self.class_id = class_id
        self.target = target
        self._counted: int | None = None

    @property
    def needs_fit(self) -> bool:
        """True while the class is not known."""
        return self.class_id is None and self._counted is None

    def fit(self, batches: Iterable[Any]) -> None:
        """Count the labels."""
        counts: Counter[int] = Counter()
        for batch in batches:
            labels = read_target(batch, self.target)
            if labels.ndim != 1 or (
                labels.is_floating_point() and bool((labels != labels.round()).any())
            ):
                raise ValueError(
                    f"Expected the labels to be (N,) class ids, but got {labels.dtype} of shape "
                    f"{tuple(labels.shape)}. Give `class_id=`, or `target=`, a function of the "
                    "batch that returns ids."
                )
            counts.update(labels.long().tolist())
        if not counts:
            raise ValueError("Expected `fit` to be given training batches, but got none.")
        self._counted = min(counts, key=lambda label: (-counts[label], label))

    def __call__(self, batch: Any) -> Tensor:
        """``(N,)`` times the class id."""
        class_id = self.class_id if self.class_id is not None else self._counted
        if class_id is None:
            raise RuntimeError(
                f"Expected {self!r} to know its class, but it has counted no labels yet: call "
                "`fit(batches)` or give `class_id=`."
            )
        samples, tensor = count_samples(batch, self.target)
        return torch.full((samples,), class_id, dtype=torch.int64, device=tensor.device)

    def renew(self) -> None:
        """Forget the labels of an earlier run."""
        self._counted = None

    def state_dict(self) -> dict[str, Any]:
        """The class that was counted."""
        return {} if self._counted is None else {"class_id": self._counted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the counted class back; a given one stays."""
        self._counted = state_dict.get("class_id")

    def __repr__(self) -> str:
        return (
            "MajorityBaseline()" if self.class_id is None else f"MajorityBaseline({self.class_id})"
        )
