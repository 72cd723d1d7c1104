"""Where the prediction lies in what a module returns, and in which of its calls it was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightning_neurocorr import baselines as B
from lightning_neurocorr.activations import Call
from lightning_neurocorr.baselines import returned as R
from lightning_neurocorr.validation.same_numbers import holds, made_from, shares
from lightning_neurocorr.validation.same_way import SameWay

_MOST_SEEN = 1 << 16  # larger labels are ids of something else


class ModuleOutput:
    """What the module returns whose output is the prediction; the first batch shows it.

    Args:
        output: Dotted name of the module, for words.
        same_way: Refuses later batches that show something else.
        classifies: Whether predictions are of classes.
        num_classes: Number of classes, where it is known.

    Attributes:
        name: The module, in words.
        path: Where the prediction lies; None until it was looked for.
        remark: What a reader of the report must know of several calls.
    """

    def __init__(
        self,
        output: str,
        same_way: SameWay,
        *,
        classifies: bool = True,
        num_classes: int | None = None,
    ) -> None:
        self.name = f"`{output}`" if output else "`forward`"
        self._same_way = same_way
        self._classifies, self._num_classes = classifies, num_classes
        self.path: R.Path | None = None
        self.remark = ""
        self._scores: R.Path | str | None = None  # where scores lie, or why that is not known
        self._made_in: int | None = None

    # --- the part of the output -------------------------------------------------------------------

    def prediction(self, call: Call, target: Tensor, answer: Callable[[], Any]) -> Tensor:
        """The prediction in what a call returned.

        Args:
            call: The call.
            target: The truth, for the number of classes.
            answer: Asks the baseline, for the same.

        Raises:
            ValueError: If it is not known which part that is, or a batch does not have it.
        """
        if self.path is None:
            self.path = self._path(call.output, lambda: self._classes(target, answer))
        return self._followed(call.output, self.path)

    def learn_scores(
        self, call: Call, prediction: Tensor, target: Tensor, answer: Callable[[], Any]
    ) -> None:
        """Where the scores lie in what the module returns, for those who run it again."""
        if self._scores is not None:
            return
        held = [p for p, part in R.tensors_in(call.output) if shares(part, prediction)]
        if held and prediction.is_floating_point():
            self._scores = held[0]
            return
        try:
            self._scores = self._path(call.output, lambda: self._classes(target, answer))
        except (ValueError, TypeError) as error:
            self._scores = str(error)

    def scores(self, returned: Any) -> Tensor:
        """The scores in what the module returns again; see :meth:`learn_scores`.

        Raises:
            ValueError: If it is not known which part that is.
        """
        if self._scores is None:
            return R.follow(returned, self._path(returned, lambda: None))
        if isinstance(self._scores, str):
            raise ValueError(self._scores)
        return self._followed(returned, self._scores)

    def _path(self, returned: Any, classes: Callable[[], int | None]) -> R.Path:
        """Where the prediction is in what the module returned."""
        names = R.PREDICTION_NAMES
        what = f"the module whose output is the prediction, {self.name},"
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
                f"Expected {self.name} to return the prediction as {R.shown(path)} in every "
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

    def only(self, calls: Sequence[Call]) -> Call:
        """The only call.

        Raises:
            ValueError: If there are several.
        """
        if len(calls) > 1:
            raise ValueError(self._several(calls))
        return calls[0]

    def call_of(self, prediction: Any, calls: Sequence[Call]) -> tuple[Call | None, str]:
        """The call whose output a prediction is part of, or was made from; which of several.

        Raises:
            ValueError: If there are several, and it is not known which it was.
        """
        if len(calls) < 2 or not isinstance(prediction, Tensor):
            return calls[0] if calls else None, ""
        held = [call for call in calls if holds(call.output, prediction)]
        if len(held) != 1:
            held = self._possible(prediction, calls)
        if len(held) != 1:
            raise ValueError(self._several(calls))
        index = held[0].index
        way = f"call {index + 1} of {len(calls)}"
        self._same_way.check("call", way, f"the prediction from {way} of {self.name}")
        self.remark = self.remark or (
            f"{self.name} was called {len(calls)} times in each validation step: prediction "
            f"and activations are those of call {index + 1}, whose output was returned."
        )
        return held[0], f", {way} of {self.name}"

    def _possible(self, prediction: Tensor, calls: Sequence[Call]) -> list[Call]:
        """Calls that a prediction can have been made from; after the first batch the same one.

        Later batches are looked at where that does not wait for a device.
        """
        known = self._made_in
        if known is not None and known < len(calls):
            there = [calls[known]]
            free = prediction.device.type == "cpu"
            return there if not free or made_from(prediction, there[0].output) else []
        found = [call for call in calls if made_from(prediction, call.output)]
        if len(found) == 1:
            self._made_in = found[0].index
        return found

    def _several(self, calls: Sequence[Call]) -> str:
        return (
            f"Expected {self.name} to be called once in a validation step, but got "
            f"{len(calls)} calls, and which of them is the prediction is not known. Return its "
            "output as 'logits' from validation_step, or name with `output` a module that makes "
            "one prediction in one call. A call in the LightningModule's own "
            "on_validation_batch_start counts, too."
        )
