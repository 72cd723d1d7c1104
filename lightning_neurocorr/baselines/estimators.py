"""Scikit-learn-style estimators as baselines."""

import copy
import warnings
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.baselines.batch import (
    Field,
    check_field,
    default_inputs,
    described,
    read_field,
    read_target,
)
from lightning_neurocorr.baselines.prediction import as_tensor
from lightning_neurocorr.isolation.randomness import PrivateRandomness


class Estimator(Protocol):
    """What is asked of an estimator; scores are used where it has them."""

    def predict(self, X: Any) -> Any:  # noqa: N803
        """One answer for each row of ``X``."""
        ...


class _AnswerError(ValueError):
    """An answer cannot be read, which has nothing to do with the features."""


class EstimatorBaseline:
    """A scikit-learn-style estimator, fitted already or to be fitted on the training data.

    Its answer is ``predict_proba``, else ``decision_function``, else ``predict``. Columns are put
    in the place that ``classes_`` says; a class the estimator has not seen gets probability 0.
    Where ``predict`` names another class than that of the largest score (an SVM, a threshold of its
    own), the answer is ``predict`` from then on.

    Args:
        estimator: Anything with ``predict``.
        features: What the estimator sees: key, position, dotted attribute or a function of the
            batch that returns ``(N, F)``. ``None`` flattens the x of an ``(x, y)`` or dict batch.
        fit: Fit a copy of the estimator on the training batches before the first validation. All
            features of the training set are then in memory at once: pick few with ``features``.
        target: Where the class ids are in a batch, for ``fit=True``. ``None`` reads the y of an
            ``(x, y)`` or dict batch.
        num_classes: Columns of the scores, where the estimator may not have seen the last classes.
        scores: Whether scores are the answer, whatever ``predict`` says.
    """

    def __init__(
        self,
        estimator: Estimator,
        *,
        features: Field | None = None,
        fit: bool = False,
        target: Field | None = None,
        num_classes: int | None = None,
        scores: bool = False,
    ) -> None:
        if isinstance(estimator, type) or not hasattr(estimator, "predict"):
            raise TypeError(
                f"Expected `estimator` to be an object with `predict`, but got {estimator!r:.80}. "
                "A function of the batch is a baseline as it is."
            )
        if fit and not hasattr(estimator, "fit"):
            raise TypeError(
                f"Expected `estimator` to have `fit`, for fit=True, but got {estimator!r:.80}. "
                "Give fit=False."
            )
        for name, field in (("features", features), ("target", target)):
            if field is not None:
                check_field(field, name)
        if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 2):
            raise ValueError(
                f"Expected `num_classes` to be an integer of at least 2, but got {num_classes!r}."
            )
        self.estimator = estimator
        self.features = features
        self.target = target
        self.num_classes = num_classes
        self.scores = scores
        self._by_class = False  # whether `predict` was seen to say something else
        self.needs_fit = bool(fit)
        self._as_given = estimator, self.needs_fit
        self._randomness = PrivateRandomness()

    def fit(self, batches: Iterable[Any]) -> None:
        """Fit a copy of the estimator on all batches; ``estimator`` is the copy from then on."""
        rows, targets = [], []
        for batch in batches:
            rows.append(self._features(batch))
            targets.append(_checked_labels(read_target(batch, self.target)).cpu().numpy())
        if not rows:
            raise ValueError("Expected `fit` to be given training batches, but got none.")
        if all(isinstance(part, np.ndarray) for part in rows):
            rows = [np.concatenate(rows)]
        elif all(isinstance(part, list) for part in rows):
            rows = [[row for part in rows for row in part]]
        else:
            raise TypeError(
                "Expected `features` to return an array, a tensor or a list, to fit on, "
                f"but got a {type(rows[0]).__name__}."
            )
        fitted: Any = copy.deepcopy(self.estimator)  # the given one stays as it was
        with self._randomness():
            labels = _class_ids_of(np.concatenate(targets))
            if len(labels) != len(rows[0]):
                raise ValueError(
                    f"Expected a label for each of the {len(rows[0])} rows of features, but got "
                    f"{len(labels)}. Give `features=`, a function of the batch that returns (N, F)."
                )
            fitted.fit(rows[0], labels)
        self.estimator = fitted
        self.needs_fit = False

    def renew(self) -> None:
        """Be as given again: what an earlier run's data taught is forgotten."""
        self.estimator, self.needs_fit = self._as_given
        self._by_class = False

    def __call__(self, batch: Any) -> Tensor:
        """``(N, C)`` probabilities or decision values, or ``(N,)`` class ids, on the CPU."""
        if self.needs_fit:
            raise RuntimeError(
                f"Expected {self!r} to have been fitted, but it was not: call `fit(batches)`."
            )
        features = self._features(batch)
        try:
            with self._randomness():  # a DummyClassifier, for one, draws random numbers
                return self._predict(features)
        except Exception as error:
            if type(error).__name__ != "NotFittedError":
                if type(error) is not ValueError:
                    raise
                shape = getattr(features, "shape", None)
                raise ValueError(
                    f"Expected `estimator` ({type(self.estimator).__name__}) to answer for "
                    f"features{f' of shape {tuple(shape)}' if shape is not None else ''}, but got: "
                    f"{error}. Give `features=`, a function of the batch that returns the (N, F) "
                    "it was fitted on."
                ) from error
            raise ValueError(
                f"Expected `estimator` to be fitted, but got {type(self.estimator).__name__} that "
                "is not. Fit it, or give fit=True to fit it on the training data."
            ) from error

    def _features(self, batch: Any) -> Any:
        """What the estimator sees, ``(N, F)``."""
        found = (
            default_inputs(batch)
            if self.features is None
            else read_field(batch, self.features, "features")
        )
        if isinstance(found, Tensor):
            found = found.detach().cpu()
            found = (
                found.float() if found.is_floating_point() and found.itemsize < 4 else found
            ).numpy()
        elif hasattr(found, "__array__"):
            found = np.asarray(found)
        if self.features is not None:
            return found
        if not isinstance(found, np.ndarray) or found.ndim == 0:
            raise ValueError(
                f"Expected the x of the batch to be a tensor, but got {described(found)}. Give "
                "`features=`, a function of the batch that returns (N, F)."
            )
        return found.reshape(found.shape[0], -1).astype(
            np.float64 if found.dtype.itemsize > 4 else np.float32
        )

    @property
    def gives_labels(self) -> bool:
        """Whether the estimator gives each sample a set of labels, not one class."""
        known = getattr(self.estimator, "classes_", None)
        sets = isinstance(known, list) and all(
            np.ndim(one) == 1 and set(one) <= {0, 1} for one in known
        )
        return bool(getattr(self.estimator, "multilabel_", sets))

    def _predict_labels(self, features: Any) -> Tensor:
        """``(N, L)``: the probability of each label, else 1 where it is given."""
        estimator: Any = self.estimator
        if not hasattr(estimator, "predict_proba"):
            return as_tensor(estimator.predict(features), "`estimator.predict`")
        found = estimator.predict_proba(features)
        if isinstance(found, list):  # one (N, 2) for each label; (N, 1) of one that never varied
            given = [known[-1] == 1 for known in estimator.classes_]
            found = np.stack([p[:, -1] * known for p, known in zip(found, given, strict=True)], 1)
        return as_tensor(found, "`estimator.predict_proba`")

    def _predict(self, features: Any) -> Tensor:
        """Scores where the estimator has them for known class ids, else class ids."""
        if self.gives_labels:
            return self._predict_labels(features)
        for method, absent in (("predict_proba", 0.0), ("decision_function", -torch.inf)):
            usable = hasattr(self.estimator, method) and not self._by_class
            if usable and not _votes_by_pairs(self.estimator, method):
                scores = as_tensor(
                    getattr(self.estimator, method)(features), f"`estimator.{method}`"
                )
                placed = self._placed(scores, absent, method)
                if placed is not None:
                    return placed if self.scores else self._agreeing(placed, features, method)
        return self._predicted(features)

    def _predicted(self, features: Any) -> Tensor:
        """Class ids ``(N,)``."""
        ids = as_tensor(self.estimator.predict(features), "`estimator.predict`")
        return ids[:, 0] if ids.ndim == 2 and ids.shape[1] == 1 else ids

    def _agreeing(self, scores: Tensor, features: Any, method: str) -> Tensor:
        """Scores whose largest are the classes of ``predict``; else these, and a warning."""
        try:
            ids = self._predicted(features)
        except (TypeError, ValueError):  # names, say: columns are classes then
            return scores
        if ids.shape != scores.shape[:1]:
            return scores
        other = int((ids != scores.argmax(1)).sum())
        if not other or bool((self._predicted(features) != ids).any()):  # it answers at random
            return scores
        self._by_class = True
        warnings.warn(
            f"{self!r}: `predict` names another class than that of the largest of `{method}`, for "
            f"{other} of {len(ids)} samples. `predict` is taken. Give scores=True for `{method}`.",
            stacklevel=2,
        )
        return ids

    def _placed(self, scores: Tensor, absent: float, method: str) -> Tensor | None:
        """The columns of ``scores`` at their class ids; ``None`` where they have no such place."""
        classes = _class_ids(getattr(self.estimator, "classes_", None))
        if scores.ndim == 1 and classes is not None and len(classes) == 2:  # binary decision values
            scores = torch.stack([torch.zeros_like(scores), scores], dim=1)
        if classes is None and scores.ndim == 2 and scores.shape[1] > 1:
            classes = list(range(scores.shape[1]))
        if classes is None or scores.ndim != 2 or min(classes) < 0:
            return None
        if len(classes) != scores.shape[1]:
            raise _AnswerError(
                f"Expected `estimator.{method}` to return a column for each of its {len(classes)} "
                f"classes, but got shape {tuple(scores.shape)}."
            )
        columns = max(self.num_classes or 2, max(classes) + 1)
        placed = scores.new_full((scores.shape[0], columns), absent)
        placed[:, classes] = scores
        return placed

    def __repr__(self) -> str:
        shown = "" if self.features is None else f", features={self.features!r}"
        shown += ", fit=True" if self.needs_fit else ""
        return f"EstimatorBaseline({type(self.estimator).__name__}{shown})"


def _checked_labels(target: Tensor) -> Tensor:
    """Labels that an estimator can be fitted on: class ids ``(N,)``, or label sets ``(N, L)``.

    Raises:
        ValueError: If they are soft (MixUp, label smoothing) or have more axes.
    """
    if target.ndim == 2 and target.shape[1] == 1:
        return target[:, 0]
    whole = target.ndim == 1 or (target.ndim == 2 and bool(((target == 0) | (target == 1)).all()))
    if not whole:
        raise ValueError(
            "Expected training labels to be class ids (N,), or zeros and ones (N, L), but got "
            f"{target.dtype} of shape {tuple(target.shape)}: soft labels of MixUp, say. Give "
            "`target=`, a function of the batch that returns class ids, or fit the estimator "
            "beforehand."
        )
    return target


def _class_ids_of(labels: np.ndarray) -> np.ndarray:
    """One-hot rows as class ids; sets of labels, where any row has several or none, as they are."""
    return labels.argmax(1) if labels.ndim == 2 and (labels.sum(1) == 1).all() else labels


def _votes_by_pairs(estimator: Any, method: str) -> bool:
    """Whether decision values stand for pairs of classes; for three classes the shape hides it."""
    steps = getattr(estimator, "steps", None)
    inner = steps[-1][1] if steps else getattr(estimator, "best_estimator_", None)
    if inner is not None:
        return _votes_by_pairs(inner, method)
    by_pairs = getattr(estimator, "decision_function_shape", None) == "ovo"
    return method == "decision_function" and by_pairs


def _class_ids(classes: Any) -> list[int] | None:
    """``classes_`` as integers, ``None`` if there are none."""
    if classes is None:
        return None
    if isinstance(classes, list) and classes and not np.isscalar(classes[0]):
        raise _AnswerError(
            "Expected `estimator` to predict one target, but got several (`classes_` is a list of "
            "arrays). Fit it on class ids."
        )
    array = np.asarray(classes)
    if array.dtype.kind not in "buif" or (array != np.round(array)).any():
        raise _AnswerError(
            "Expected `estimator.classes_` to be class ids, the integers the model predicts, but "
            f"got {array.ravel()[:3].tolist()}. Fit the estimator on the encoded labels."
        )
    return [int(value) for value in array.ravel()]
