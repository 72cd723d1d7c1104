"""Read prediction and target of every batch, all in the way that the first batch showed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lightning_neurocorr import baselines as B
from lightning_neurocorr.activations import Call, Judging
from lightning_neurocorr.baselines import returned as R
from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.validation.compared import check_judged
from lightning_neurocorr.validation.module_output import ModuleOutput
from lightning_neurocorr.validation.same_numbers import check_order
from lightning_neurocorr.validation.same_way import SameWay
from lightning_neurocorr.validation.targets import TargetReader

Predictions = Callable[[Any, Any], tuple[Tensor, Tensor]]

# The dict of a validation step is made for reading: there ids are meant where ids are given.
_ANSWERS_FIRST = (*R.ANSWER_NAMES[:1], *R.SCORE_NAMES[:1], *R.ANSWER_NAMES[1:], *R.SCORE_NAMES[1:])


class Read(NamedTuple):
    """What was read from a batch.

    Attributes:
        prediction: The model's, ``N`` rows.
        target: The truth, ``N`` rows.
        call: The call of the module ``output`` that the prediction was made in, None if it was
            not called.
    """

    prediction: Tensor
    target: Tensor
    call: Call | None


class Reader:
    """Finds prediction and target in the first batch, and takes them from there in every other.

    In order: the callable ``predictions``; a known name in the dict that ``validation_step``
    returned; the output of the module named by ``output``
    (:func:`~lightning_neurocorr.baselines.returned.prediction_path`). The target is where
    ``target`` says, else in the same dict, else where the batch shows it
    (:func:`~lightning_neurocorr.baselines.batch.target_field`).

    Args:
        predictions: ``(outputs, batch) -> (prediction, target)``.
        target: Where the target is in a batch.
        output: Dotted name of the module whose output is the prediction, for words.
        step: Whether batches come with what a validation step returned; else it is the module's.
        scores: Prefer scores to class ids where a dict has both.
        classifies: Whether predictions are of classes.
        num_classes: Number of classes, where it is known.

    Attributes:
        provenance: In words, what ``"prediction"`` and ``"target"`` were read from.
        remarks: What a reader of the report must know.
        written: Where in a batch the validation step writes into tensors; None is not known yet.
    """

    def __init__(
        self,
        predictions: Predictions | None = None,
        target: B.Field | None = None,
        *,
        output: str = "",
        step: bool = True,
        scores: bool = False,
        classifies: bool = True,
        num_classes: int | None = None,
    ) -> None:
        self._predictions = predictions
        self._same_way = SameWay()
        self._target = TargetReader(target, self._same_way)
        self._module = ModuleOutput(
            output, self._same_way, classifies=classifies, num_classes=num_classes
        )
        self._step = step
        self._names = R.PREDICTION_NAMES if scores else _ANSWERS_FIRST
        self._classifies = classifies
        self._in_order = False
        self._chosen = bool(output)
        self.written: frozenset[Any] | None = None
        self.provenance: dict[str, str] = {}
        self.remarks: list[str] = []

    def read(
        self,
        outputs: Any,
        batch: Any,
        calls: Sequence[Call] = (),
        answer: Callable[[], Any] = lambda: None,
        left: Any = None,
    ) -> Read:
        """Prediction and target of a batch.

        Args:
            outputs: What ``validation_step`` returned.
            batch: The batch.
            calls: Calls of the module named by ``output``.
            answer: Asks the baseline, for the number of classes, where nothing else tells.
            left: The batch as ``validation_step`` left it, where that is something else.

        Raises:
            ValueError: If it is not known which tensors these are; says what to do.
        """
        if self._predictions is not None:
            prediction, target = self._said(
                self._predictions(outputs, batch if left is None else left)
            )
            call = self._call_of(prediction, calls)
        else:
            step = self._returned(outputs)
            target = self._target.read(step, batch)
            if left is not None:
                self._target.check_left(target, step, left)
            self.provenance["target"] = self._target.provenance
            prediction, call = self._prediction_of(outputs, calls, target, answer)
        for name, value in (("prediction", prediction), ("target", target)):
            _check_rows(name, value)
        if prediction.shape[0] != target.shape[0]:
            raise ValueError(
                f"Expected prediction and target to have the same length, but got "
                f"{len(prediction)} and {len(target)} ({self.provenance['prediction']}; "
                f"{self.provenance['target']}). Say with `predictions` or `target` how to read "
                "them."
            )
        if self._classifies:
            shape = prediction.shape[1:]
            self._same_way.check(
                "shape", shape, f"predictions of shape (N, {', '.join(map(str, shape))})"
            )
        if not self._in_order:  # once: looking waits for the device
            self._in_order = True
            check_order(prediction, target, batch, None if call is None else call.output)
        if call is not None:
            self._module.learn_scores(call, prediction, target, answer)
        return Read(prediction.detach(), sent(target.detach(), prediction.device), call)

    def check_final(self, into: str | None, other_class: bool = False) -> None:
        """Raise if a prediction that nobody has named is none: the model goes on with it.

        Args:
            into: The module that does, ``""`` where it has no name; None if nothing does.
            other_class: Whether the class was chosen by other numbers.

        Raises:
            ValueError: Says how to name the prediction.
        """
        if self._named or not self._classifies or (into is None and not other_class):
            return
        what = f"goes on with it{f' in {into!r}' if into else ''}, as with features"
        if into is None:
            what = "chooses the class by other numbers, which it makes of these"
        raise ValueError(
            f"Expected the output of {self._module.name} to be the prediction, but validation_step "
            f"{what}. Return the prediction as 'logits' from validation_step, or name with "
            f"`output` the module that returns it{f' (output={into!r})' if into else ''}."
        )

    def check_judged(
        self, judging: Judging | None, outputs: Any, read: Read, prediction: Tensor, target: Tensor
    ) -> None:
        """See :func:`~lightning_neurocorr.validation.compared.check_judged`.

        Args:
            judging: What the validation step compared; None where it was not looked at.
            outputs: What it returned.
            read: What was read.
            prediction: The prediction as it is judged.
            target: The target as it is judged.
        """
        if judging is None or not self._classifies or self._predictions is not None:
            return
        names = {"prediction": self._named, "target": self._target.said}
        said = {what for what, named in names.items() if named}
        returned = outputs if self._step else None
        self.remarks += check_judged(
            judging, returned, read.prediction, prediction, target, words=self.provenance, said=said
        )

    def scores(self, returned: Any) -> Tensor:
        """The prediction in what the module returns again: the part that was judged.

        Where class ids were judged, or something that was computed from the output, the scores in
        the output.

        Raises:
            ValueError: If it is not known which part that is.
        """
        return self._module.scores(returned)

    @property
    def has_read(self) -> bool:
        """Whether a batch was read that the user does not read otherwise."""
        return "prediction" in self.provenance and self._predictions is None

    # --- the prediction --------------------------------------------------------------------------

    @property
    def _named(self) -> bool:
        """Whether somebody has named the prediction."""
        path = self._module.path
        return path is None or self._chosen or bool(set(path) & set(R.PREDICTION_NAMES))

    def _said(self, found: Any) -> tuple[Any, Any]:
        if not (isinstance(found, (tuple, list)) and len(found) == 2):
            raise ValueError(
                "Expected `predictions(outputs, batch)` to return (prediction, target), but got "
                f"{type(found).__name__}."
            )
        self.provenance |= {"prediction": "by `predictions`", "target": "by `predictions`"}
        return found[0], found[1]

    def _prediction_of(
        self, outputs: Any, calls: Sequence[Call], target: Tensor, answer: Callable[[], Any]
    ) -> tuple[Any, Call | None]:
        step = self._returned(outputs)
        name = next((name for name in self._names if step.get(name) is not None), None)
        where = f"output of {self._module.name}" if name is None else f"{name!r} of validation_step"
        self._same_way.check("prediction", name, f"the prediction as {where}")
        if name is not None:
            prediction = step[name]
            self.provenance["prediction"] = f"{name!r} of what validation_step returned"
            return prediction, self._call_of(prediction, calls)
        if not calls:
            raise ValueError(_nothing_found(outputs))
        call = self._module.only(calls)
        prediction = self._module.prediction(call, target, answer)
        path = self._module.path
        part = f"{R.shown(path)} of the output of" if path else "output of"
        self.provenance["prediction"] = f"{part} {self._module.name}"
        return prediction, call

    def _call_of(self, prediction: Any, calls: Sequence[Call]) -> Call | None:
        """The call that a prediction was made in."""
        call, way = self._module.call_of(prediction, calls)
        self.provenance["prediction"] += way
        if self._module.remark and not self.remarks:
            self.remarks.append(self._module.remark)
        return call

    def _returned(self, outputs: Any) -> Mapping[str, Any]:
        """The dict that a validation step returned, empty where there is none."""
        return outputs if self._step and isinstance(outputs, Mapping) else {}


def _check_rows(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.ndim == 0:
        raise ValueError(
            f"Expected the {name} to be a tensor with one row per sample, but got "
            f"{'a number' if isinstance(value, Tensor) else type(value).__name__}. "
            "Say with `predictions=lambda outputs, batch: (prediction, target)` how to read it."
        )


def shape_words(values: Tensor) -> str:
    """``(N, 10)`` of a tensor with rows."""
    return f"({', '.join(['N', *map(str, values.shape[1:])])}{',' if values.ndim == 1 else ''})"


def _nothing_found(outputs: Any) -> str:
    keys = f" with the keys {list(outputs)}" if isinstance(outputs, Mapping) else ""
    return (
        "Expected to find the model's prediction, but the forward of the module named by `output` "
        f"was not called and validation_step returned {type(outputs).__name__}{keys}. Either "
        "return {'preds': ..., 'target': ...} from validation_step, or name with `output` the "
        'submodule whose output is the prediction (`output="model"` for `self.model(x)`), or '
        "pass `predictions=lambda outputs, batch: (prediction, target)`."
    )
