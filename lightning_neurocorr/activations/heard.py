"""What layers gave in the forwards of one batch, and which of it belongs to the prediction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from lightning_neurocorr.activations.calls import Calls, OverPositions
from lightning_neurocorr.activations.outputs import Call, Moment, OutputRecorder

ALWAYS: Moment = (None, 0)
"""The moment of everything where no call of another module tells moments apart."""

_NEVER: Mapping[Moment, Calls] = {}
_NOT_CALLED = "its forward was not called"
_ELSEWHERE = "its forward was not called for the prediction, but for another call of `output`"
_SEVERAL = (
    "its forward was called {} times outside of the module whose output is the prediction, and "
    "which of them it was made from is not known; name with `output` the module that calls it"
)


class Heard:
    """Calls of layers, by layer and moment.

    Args:
        within: Tells moments apart: the calls of the module whose output is the prediction.
        largest: Several calls at one moment count by their maximum, else by their sum.

    Attributes:
        moments: What was heard, by layer.
        failed: Why that cannot be used, by layer.
        spoken: How often layers were called that are heard elsewhere than where they speak.
    """

    def __init__(self, within: OutputRecorder | None, *, largest: bool) -> None:
        self._within = within
        self._largest = largest
        self.moments: dict[str, dict[Moment, Calls]] = {}
        self.failed: dict[str, str] = {}
        self.spoken: dict[str, int] = defaultdict(int)

    @property
    def anything(self) -> bool:
        """Whether any layer was called."""
        return bool(self.moments or self.failed or self.spoken)

    def add(self, name: str, moment: Moment, pooled: Tensor, over: OverPositions | None) -> None:
        """Add a call of a layer.

        Args:
            name: The layer.
            moment: When it was called.
            pooled: What it gave, ``(N, D)``.
            over: Its mean over positions, where that is known.
        """
        moments = self.moments.get(name)
        if moments is None:  # nearly always
            self.moments[name] = {moment: Calls(pooled, over)}
            return
        seen = moments.get(moment)
        if seen is None:
            moments[moment] = Calls(pooled, over)
            return
        if seen.values.shape != pooled.shape:
            self.failed[name] = (
                f"its calls in one forward gave {tuple(seen.values.shape)} and "
                f"{tuple(pooled.shape)}"
            )
            return
        moments[moment] = seen.and_one(pooled, over, largest=self._largest)

    def of(self, name: str, call: Call | None) -> Calls | str:
        """What a layer gave inside of a call, else on the way to it, or why it is not known."""
        heard = self.moments.get(name, _NEVER)
        if self._within is None:
            return heard.get(ALWAYS, _NOT_CALLED)
        if call is not None and call.inside in heard:
            return heard[call.inside]
        found = [heard[moment] for moment in self._within.leading_to(call, heard)]
        if not found:
            return _NOT_CALLED if not heard else _ELSEWHERE
        if len(found) > 1 or found[0].calls > 1:
            return _SEVERAL.format(sum(part.calls for part in found))
        return found[0]

    def count(self, name: str) -> int:
        """How many calls of a layer were heard, at all moments."""
        return sum(part.calls for part in self.moments.get(name, _NEVER).values())
