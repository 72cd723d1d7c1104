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
from lightning_neurocorr.validation.same_numbers import check_order, holds, made_from, shares
from lightning_neurocorr.validation.same_way import SameWay
from lightning_neurocorr.validation.targets import TargetReader

Predictions = Callable[[Any, Any], tuple[Tensor, Tensor]]

# The dict of a validation step is made for reading: there ids are meant where ids are given.
_ANSWERS_FIRST = (*R.ANSWER_NAMES[:1], *R.SCORE_NAMES[:1], *R.ANSWER_NAMES[1:], *R.SCORE_NAMES[1:])
_MOST_SEEN = 1 << 16  # larger labels are ids of something else


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
        self._module = f"`{output}`" if output else "`forward`"
        self._step = step
        self._names = R.PREDICTION_NAMES if scores else _ANSWERS_FIRST
        self._classifies, self._num_classes = classifies, num_classes
        self._learnt: dict[str, Any] = {}
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
        if "order" not in self._learnt:  # once: looking waits for the device
            self._learnt["order"] = True
            check_order(prediction, target, batch, None if call is None else call.output)
        if call is not None:
            self._learn_scores(call, prediction, target, answer)
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
            f"Expected the output of {self._module} to be the prediction, but validation_step "
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
        path = self._learnt.get("scores")
        if path is None:
            return R.follow(returned, self._path(returned, R.PREDICTION_NAMES, lambda: None))
        if isinstance(path, str):
            raise ValueError(path)
        return self._followed(returned, path)

    @property
    def has_read(self) -> bool:
        """Whether a batch was read that the user does not read otherwise."""
        return "prediction" in self.provenance and self._predictions is None

    # --- the prediction --------------------------------------------------------------------------

    @property
    def _named(self) -> bool:
        """Whether somebody has named the prediction."""
        path = self._learnt.get("path")
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
        where = f"output of {self._module}" if name is None else f"{name!r} of validation_step"
        self._same_way.check("prediction", name, f"the prediction as {where}")
        if name is not None:
            prediction = step[name]
            self.provenance["prediction"] = f"{name!r} of what validation_step returned"
            return prediction, self._call_of(prediction, calls)
        if not calls:
            raise ValueError(_nothing_found(outputs))
        if len(calls) > 1:
            raise ValueError(self._several(calls))
        returned = calls[0].output
        if "path" not in self._learnt:
            names = R.PREDICTION_NAMES
            classes = lambda: self._classes(target, answer)  # noqa: E731
            self._learnt["path"] = self._path(returned, names, classes)
        path = self._learnt["path"]
        prediction = self._followed(returned, path)
        part = f"{R.shown(path)} of the output of" if path else "output of"
        self.provenance["prediction"] = f"{part} {self._module}"
        return prediction, calls[0]

    def _path(
        self, returned: Any, names: Sequence[str], classes: Callable[[], int | None]
    ) -> R.Path:
        """Where the prediction is in what the module returned."""
        what = f"the module whose output is the prediction, {self._module},"
        try:
            return R.prediction_path(returned, names=names, what=what)
        except ValueError:
            instead = (
                "Return the prediction as 'logits' from validation_step or the module, name with "
                "`output` a submodule that returns it alone, or give `num_classes`."
            )
            return R.prediction_path(
                returned, names=names, num_classes=classes(), what=what, instead=instead
            )

    def _followed(self, returned: Any, path: R.Path) -> Tensor:
        """The part at a path that was learnt."""
        try:
            found = R.follow(returned, path)
        except LookupError:
            found = None
        if not isinstance(found, Tensor):
            raise ValueError(
                f"Expected {self._module} to return the prediction as {R.shown(path)} in every "
                f"batch, as in the first, but got {R.listed(R.tensors_in(returned)) or 'none'}. "
                "Say with `predictions` how to read it."
            )
        return found

    def _classes(self, target: Tensor, answer: Callable[[], Any]) -> int | None:
        """The number of classes, where it is known: said, or seen in targets and baseline."""
        if not self._classifies or self._num_classes is not None:
            return self._num_classes
        seen = [target]
        given = answer()
        if given is not None:
            seen.append(B.as_tensor(given, "the answer of `baseline`"))
        widths = {part.shape[1] for part in seen if part.ndim == 2 and part.shape[1] > 1}
        if widths:
            return widths.pop() if len(widths) == 1 else None
        ids = {int(i) for part in seen if part.ndim == 1 for i in part.unique()[:_MOST_SEEN]}
        return len(ids) if len(ids) > 1 and ids == set(range(len(ids))) else None

    # --- the call it was made in ------------------------------------------------------------------

    def _call_of(self, prediction: Any, calls: Sequence[Call]) -> Call | None:
        """The call whose output a prediction is part of, or was made from."""
        if len(calls) < 2 or not isinstance(prediction, Tensor):
            return calls[0] if calls else None
        held = [call for call in calls if holds(call.output, prediction)]
        if len(held) != 1:
            held = self._made_in(prediction, calls)
        if len(held) != 1:
            raise ValueError(self._several(calls))
        index = held[0].index
        way = f"call {index + 1} of {len(calls)}"
        self._same_way.check("call", way, f"the prediction from {way} of {self._module}")
        self.provenance["prediction"] += f", {way} of {self._module}"
        if not self.remarks:
            self.remarks.append(
                f"{self._module} was called {len(calls)} times in each validation step: prediction "
                f"and activations are those of call {index + 1}, whose output was returned."
            )
        return held[0]

    def _made_in(self, prediction: Tensor, calls: Sequence[Call]) -> list[Call]:
        """Calls that a prediction can have been made from; after the first batch the same one.

        Later batches are looked at where that does not wait for a device.
        """
        known = self._learnt.get("made in")
        if known is not None and known < len(calls):
            there = [calls[known]]
            free = prediction.device.type == "cpu"
            return there if not free or made_from(prediction, there[0].output) else []
        found = [call for call in calls if made_from(prediction, call.output)]
        if len(found) == 1:
            self._learnt["made in"] = found[0].index
        return found

    def _several(self, calls: Sequence[Call]) -> str:
        return (
            f"Expected {self._module} to be called once in a validation step, but got "
            f"{len(calls)} calls, and which of them is the prediction is not known. Return its "
            "output as 'logits' from validation_step, or name with `output` a module that makes "
            "one prediction in one call. A callback that is listed before this one and calls it "
            "(in on_validation_batch_end, say) counts too: list it behind."
        )

    def _learn_scores(
        self, call: Call, prediction: Tensor, target: Tensor, answer: Callable[[], Any]
    ) -> None:
        """Where the scores lie in what the module returns, for those who run it again."""
        if "scores" in self._learnt:
            return
        held = [p for p, part in R.tensors_in(call.output) if shares(part, prediction)]
        if held and prediction.is_floating_point():
            self._learnt["scores"] = held[0]
            return
        try:
            path = self._path(
                call.output, R.PREDICTION_NAMES, lambda: self._classes(target, answer)
            )
        except (ValueError, TypeError) as error:
            path = str(error)
        self._learnt["scores"] = path

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
