"""The one place where a user's module is run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import aside, eager
from lightning_neurocorr.activations.sharing import storage_of
from lightning_neurocorr.isolation import ordinary_tensors, without_checkpointing
from lightning_neurocorr.isolation.swapping import preserved_buffers
from lightning_neurocorr.isolation.torch_private import version_of
from lightning_neurocorr.validation.rerun.arguments import (
    Arguments,
    Layout,
    apart_from,
    fits,
    is_known,
    keep_whole,
    learn_layout,
    take,
    tensors_in,
)
from lightning_neurocorr.validation.rerun.judged import JudgedLogits, learn, too_many
from lightning_neurocorr.validation.rerun.learnt import Learnt, Trial
from lightning_neurocorr.validation.same_numbers import shares

NOT_THE_PREDICTION = (
    "the prediction that was judged does not follow from what the module named by `output` "
    "returned, so its logits may be those of something else; name with `output` the module that "
    "returns the prediction"
)
NOT_AGAIN = (
    "samples that are run again do not get the prediction that was judged: their arguments cannot "
    "be told from what is the same for all samples, or the module answers by more than these"
)

WEIGHED = 2  # samples of a forward that shows what one takes

T = TypeVar("T")
Weigh = Callable[[Callable[[], Any]], int]  # runs a forward: bytes that it holds on to


class Rerun:
    """A module that can be run again on samples of a validation, once it is known how.

    Args:
        module: The module whose output is the prediction.
        find: From what it returns to its likeliest logits.
        autocast: Opens the precision that the user's forward runs in.
        around: Opened around every run: our own randomness, hooks that look for token masks.
        learnt: In an earlier validation of the same model.

    Attributes:
        refused: Why it cannot be run again, or empty.
        judged: How the judged prediction follows from what the module returns.
        autocast: Opens the precision that the user's forward runs in.
        layout: Where the samples lie in its arguments.
        sample_bytes: What a forward that can be differentiated holds on to, for each sample; None
            where that is not known.
        learnt: For later validations; None where there is nothing.
    """

    def __init__(
        self,
        module: nn.Module,
        find: Callable[[Any], Tensor],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        around: Sequence[Callable[[], AbstractContextManager[Any]]] = (),
        learnt: Learnt | None = None,
    ) -> None:
        self.module = module
        self.refused = ""
        self.judged: JudgedLogits | None = None
        self.layout: Layout | None = None
        self.sample_bytes: float | None = None
        self.autocast = autocast
        self.learnt = learnt
        self._find, self._around = find, around
        self._differ: Tensor | None = None
        self._heard = 0
        self._writes: bool | None = None  # into its inputs, once that was seen

    def anew(self) -> Rerun:
        """One for the same module that has heard nothing yet."""
        return Rerun(self.module, self._find, self.autocast, self._around, self.learnt)

    def hear(self, output: Any, prediction: Tensor) -> None:
        """A batch as it was validated: learn from the first, compare with every other.

        Args:
            output: What the module returned.
            prediction: What was judged, with a row per sample.
        """
        if self.refused:
            return
        try:
            if self.judged is None:
                self.judged = learn(output, prediction, self._find)
                if self.judged is None:
                    self.refuse(NOT_THE_PREDICTION)
                return
            self._heard += len(prediction)
            logits = self.judged.logits(output)
            if not shares(logits, prediction):  # else it is the model's own output
                differs = self.judged.differs(logits, prediction).sum()
                self._differ = differs if self._differ is None else self._differ + differs
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            self.refuse(f"{NOT_THE_PREDICTION} ({type(error).__name__}: {error})")

    def judge(self) -> str:
        """Why the module cannot be run again, after all batches; empty where it can."""
        if self._differ is not None and too_many(self._differ, self._heard):
            self.refuse(NOT_THE_PREDICTION)
        return self.refused

    def prepare(
        self,
        arguments: Arguments,
        batch: Any,
        prediction: Tensor,
        weigh: Weigh,
        tried: Trial | None = None,
    ) -> bool:
        """Whether samples can be taken from this call, whose layout is learnt from the first one.

        Args:
            arguments: What the module was called with.
            batch: The batch.
            prediction: What was judged, with a row per sample.
            weigh: Runs a forward and says how many bytes it holds on to.
            tried: Samples of this call that were run again.
        """
        n = len(prediction)
        if self.layout is None and not self.refused:
            known = self.learnt
            if known is not None and known.is_about(self.module, arguments, n):
                self.layout, self.sample_bytes = known.layout, known.sample_bytes
            else:
                self.layout = self._layout(arguments, batch, prediction, weigh, tried)
                self.learnt = None
                if self.layout is not None and self.sample_bytes is not None:
                    self.learnt = Learnt.of(self.module, arguments, self.layout, self.sample_bytes)
            if self.layout is None:
                self.refuse(NOT_AGAIN)
        if self.layout is not None and not fits(arguments, self.layout, n):
            self.refuse("what the module is called with has another shape than in the first batch")
        return not self.refused

    def _layout(
        self,
        arguments: Arguments,
        batch: Any,
        prediction: Tensor,
        weigh: Weigh,
        tried: Trial | None,
    ) -> Layout | None:
        """Where the samples lie in a call, as what was judged of some of them says."""

        def agree(logits: Tensor, rows: Tensor) -> bool:
            return not bool(self.differs(logits, prediction[rows]).any())

        def agrees(some: Arguments, rows: Tensor) -> bool:
            try:
                logits = self.weigh(lambda: self.logits(some).detach(), len(rows), weigh)
                return agree(logits, rows)
            except Exception:  # noqa: BLE001 -- another way to take rows may work
                return False

        if tried is not None and tried.logits is not None and agree(tried.logits, tried.rows):
            return tried.layout
        with self.undisturbed(), torch.no_grad():
            return learn_layout(arguments, batch, len(prediction), self.held(), agrees)

    def weigh(self, forward: Callable[[], T], n: int, weigh: Weigh) -> T:
        """What a forward of ``n`` samples says; what one holds on to is ``sample_bytes`` then."""
        found: list[T] = []
        try:
            self.sample_bytes = weigh(lambda: found.append(forward())) / n
        except Exception:  # noqa: BLE001 -- as `torch.func` in a model: nothing can be counted
            self.sample_bytes = None
            return forward()
        return found[-1]

    def square(self, arguments: Arguments, n: int) -> bool:
        """Whether samples lie on the second axis of an argument whose first is as long."""
        layout = self.layout or ()
        if not any(place is not None and place.axis == 1 for place in layout):
            return False
        pairs = zip(tensors_in(arguments), layout, strict=False)
        return any(
            place is not None and place.axis == 1 and len(tensor) == n == tensor.shape[1]
            for tensor, place in pairs
        )

    def rows(self, arguments: Arguments, rows: Tensor | None) -> Arguments:
        """Copies of the arguments for some samples, or all; :meth:`prepare` comes first."""
        layout = self.layout or ()
        return keep_whole(take(arguments, layout, rows), layout, self._weights)

    def size_of(self, arguments: Arguments, before: Arguments | None = None) -> int:
        """Bytes of the arguments of some samples; not of weights, nor of what ``before`` has."""
        if None not in (self.layout or (None,)):  # nothing is shared
            return sum(tensor.nbytes for tensor in tensors_in(arguments))
        shared = {id(tensor) for tensor in tensors_in(before)}
        return sum(
            tensor.numel() * tensor.element_size()
            for tensor in tensors_in(arguments)
            if id(tensor) not in shared and not is_known(tensor, self._weights)
        )

    def logits(self, arguments: Arguments) -> Tensor:
        """Run the module: the logits of the prediction that was judged."""
        return self.read(self.run(arguments))

    def run(self, arguments: Arguments) -> Any:
        """What the module returns."""
        args, kwargs = given = apart_from(arguments, tensors=self._writes is not False)
        tensors = tensors_in(given)
        before = [version_of(tensor) for tensor in tensors]
        with self.autocast():
            found = self.module(*args, **kwargs)
        written = before != [version_of(tensor) for tensor in tensors]
        if written and self._writes is False:
            self._writes = True
            raise RuntimeError("the module writes into its inputs, but only sometimes")
        self._writes = self._writes or written
        return found

    def read(self, output: Any) -> Tensor:
        """The logits of the judged prediction in what the module returned."""
        return self._find(output) if self.judged is None else self.judged.logits(output)

    def differs(self, logits: Tensor, prediction: Tensor) -> Tensor:
        """Which samples that were run again have another prediction than was judged, ``(N,)``."""
        return (self.judged or JudgedLogits(self._find)).differs(logits, prediction)

    def refuse(self, reason: str) -> None:
        """Say why it cannot be run again; the first reason stays."""
        self.refused = self.refused or reason

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Inside, forwards of the module leave no trace, and its tensors can carry gradients."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(eager(self.module))
            stack.enter_context(aside())
            for opened in self._around:
                stack.enter_context(opened())
            stack.enter_context(without_checkpointing())
            stack.enter_context(preserved_buffers(self.module))
            stack.enter_context(ordinary_tensors(self.module))
            yield

    def held(self) -> list[Tensor]:
        """Weights and buffers, which are no samples."""
        return [*self.module.parameters(), *self.module.buffers()]

    @cached_property
    def _weights(self) -> dict[int, tuple[Tensor, Tensor]]:
        """These by id and by storage: a walk through them takes long, so it is made once.

        While both are kept here, no argument can come to lie where one of them was.
        """
        held = [(tensor, tensor.detach()) for tensor in self.held()]
        return {key: pair for pair in held for key in (id(pair[0]), storage_of(pair[1]))}
