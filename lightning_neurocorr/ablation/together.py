"""Many silenced sets in few forwards: side by side in a batch, from what comes before the layer on.

Whether a model allows it is seen, not assumed: in every forward, beside silenced sets, it must say
of untouched samples what it says of them alone; of all samples once for every chunk, of a few each
time. It does not where samples are mixed, as by a norm over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from lightning_neurocorr.ablation.filling import Fill
from lightning_neurocorr.ablation.halves import Chunk, Take
from lightning_neurocorr.ablation.replay import Prelude
from lightning_neurocorr.ablation.silencing import silence
from lightning_neurocorr.ablation.variants import silence_variants
from lightning_neurocorr.activations import Place
from lightning_neurocorr.isolation.room import pass_bytes

_LEARNT_FROM = 2  # samples
_WITNESSES = 2  # untouched samples at the end of every forward
_FULL = {"cuda": 1024}  # samples that keep a device busy
_FULL_ELSEWHERE = 256
_SEVERAL = 3  # operands of the largest operation that are there at once, about
_EXACT = 1e-5  # of the gap between answers: what others in a batch make of the same arithmetic
_ROUNDED = {torch.float64: 1e-15, torch.float32: 5e-7}  # of a logit, besides
_COARSE = {torch.float64: 1e-9, torch.float32: 2e-3}  # the most of it; TF32 has so few digits
_COARSEST = 5e-2  # half precision
_NOISE = 8  # times what the batch alone changes

_OTHERWISE = "it answers otherwise, so samples are mixed or answers random"
_ONE_BY_ONE = "neurons were silenced one set at a time: side by side in a batch {}"


class Together:
    """Runs a model with sets of one layer silenced, as many at once as the model and memory allow.

    Args:
        forward: Runs the model on the arguments of a chunk, and returns logits.
        model: Its module, whose calls can be answered from memory; None runs all of it.
        name: The layer's name.
        place: Where it is read.
        fill: See :func:`silence`.
        value: Of each unit for ``"mean"``, ``(D,)``.
        seed: See :func:`silence`.
        take: See :class:`AblationSamples`.
        room: Bytes that a forward may take; None is what is free.

    Attributes:
        note: Why sets are silenced one at a time, or empty.
    """

    def __init__(
        self,
        forward: Callable[..., Tensor],
        model: nn.Module | None,
        name: str,
        place: Place,
        fill: Fill,
        value: Tensor | None,
        seed: int,
        take: Take,
        room: int | None = None,
    ) -> None:
        self.note = ""
        self._forward, self._model = forward, model
        self._name, self._place, self._value = name, place, value
        self._fill: Fill = fill
        self._seed, self._take, self._room = seed, take, room
        self._prelude: Prelude | None = None
        self._noise = 0.0  # the most that the batch alone changes
        self._looked: set[int] = set()  # at chunks of these lengths: kernels differ with the batch
        self._most = 0  # samples of a forward

    def run(
        self, chunk: Chunk, length: int, sets: Sequence[tuple[int, ...]], which: int = 0
    ) -> Iterator[Tensor]:
        """Logits ``(v, n, ...)`` of some of the sets after the other.

        Args:
            chunk: The samples.
            length: How many they are, ``n``.
            sets: Units to silence.
            which: The number of the chunk, from which follows how samples are paired.
        """
        done, seed = 0, self._seed + which
        while not self.note and len(sets) - done > 1:
            try:
                for logits in self._side_by_side(chunk, length, sets[done:], seed):
                    yield logits
                    done += len(logits)
            except torch.OutOfMemoryError:
                if self._most <= 2 * length:
                    self.note = _ONE_BY_ONE.format("they need more memory than there is")
                self._most //= 2
            except Exception as error:  # noqa: BLE001 -- a model may take one sample in its own way
                text = str(error).strip().split("\n")[0][:200]
                self.note = _ONE_BY_ONE.format(f"the model says {type(error).__name__}: {text}")
        for units in sets[done:]:
            yield self._alone(chunk, units, seed)[None]

    def _side_by_side(
        self, chunk: Chunk, length: int, sets: Sequence[tuple[int, ...]], seed: int
    ) -> Iterator[Tensor]:
        if self._prelude is None:
            self._prelude = self._learn(chunk, length)
        sets = [(), *sets]  # beside others, nothing silenced must say what it says alone
        groups = -(-len(sets) // max(1, self._most // length))
        at_once = -(-len(sets) // groups)
        every = torch.arange(length, device="cpu")
        witnesses = every[:_WITNESSES]
        rows = torch.cat([every.repeat(at_once), witnesses])
        args, kwargs = self._take(chunk, rows, length)
        replay = nullcontext
        if groups > 1 or length not in self._looked:
            untouched, replay = self._prelude.capture(lambda: self._forward(*args, **kwargs))
            untouched = untouched.detach()
        alone = self._forward(*chunk[0], **chunk[1]).detach()

        def said(some: Sequence[tuple[int, ...]]) -> Tensor:
            full = [*some, *[some[-1]] * (at_once - len(some))]
            silent = silence_variants(
                self._place, full, length, self._fill, self._value, seed, len(witnesses)
            )
            with silent, replay():
                logits = self._forward(*args, **kwargs).detach()
            self._compare(logits[at_once * length :], alone)
            return logits[: at_once * length].unflatten(0, (at_once, length))[: len(some)]

        if length not in self._looked:
            self._hear(untouched, alone[rows.to(alone.device)])
            if not self._looked:
                self._look(chunk, alone, said, sets, at_once, seed)
            self._looked.add(length)
        for start in range(0, len(sets), at_once):
            some = sets[start : start + at_once]
            logits = said(some)
            if start == 0:
                self._compare(logits[0], alone)
                logits = logits[1:]
            if len(logits):
                yield logits

    def _learn(self, chunk: Chunk, length: int) -> Prelude:
        """What comes before the layer, and how many samples there is room for."""
        rows = torch.arange(min(length, _LEARNT_FROM), device="cpu")
        args, kwargs = self._take(chunk, rows, length)
        said: list[Tensor] = []
        prelude = Prelude(
            self._model, self._place, lambda: said.append(self._forward(*args, **kwargs))
        )
        device = said[0].device
        room = pass_bytes(device) if self._room is None else self._room
        each = (_SEVERAL * prelude.operation_bytes + prelude.kept_bytes) / len(rows)
        most = _FULL.get(device.type, _FULL_ELSEWHERE)
        self._most = max(1, min(most, int(room / max(each, 1))))
        return prelude

    def _hear(self, untouched: Tensor, alone: Tensor) -> None:
        """What the batch alone changes, with nothing silenced.

        Raises:
            ValueError: If that is more than rounding.
        """
        noise = float(_apart(untouched, alone).max())
        size = float(_best(alone).abs().max())
        if not noise <= _COARSE.get(alone.dtype, _COARSEST) * size:  # NaN is not below anything
            raise ValueError(_OTHERWISE)
        self._noise = max(self._noise, noise)

    def _look(
        self,
        chunk: Chunk,
        alone: Tensor,
        said: Callable[[Sequence[tuple[int, ...]]], Tensor],
        sets: Sequence[tuple[int, ...]],
        at_once: int,
        seed: int,
    ) -> None:
        """Compare what differs most: all units that are ever silenced beside none.

        A few sets may be of units that the model hardly minds, and tell nothing of mixed samples.

        Raises:
            ValueError: If they answer otherwise than alone.
        """
        everything = tuple(sorted({unit for units in sets for unit in units}))
        logits = said([everything, ()] * (at_once // 2) + [everything] * (at_once % 2))
        self._compare(logits[0], self._alone(chunk, everything, seed))
        if len(logits) > 1:
            self._compare(logits[1], alone)

    def _compare(self, logits: Tensor, alone: Tensor) -> None:
        """Raise unless logits differ by no more than the batch alone makes of equal arithmetic.

        Args:
            logits: Of the first samples of those that were run alone.
            alone: Of these.
        """
        best = _best(alone)
        gap = (best[:, 0] - best[:, 1]) if best.shape[1] == 2 else best[:, 0].abs()
        alone = alone[: len(logits)]
        most = torch.maximum(
            _ROUNDED.get(alone.dtype, 0.0) * alone.abs() + _EXACT * gap.median(),
            torch.as_tensor(_NOISE * self._noise, device=alone.device),
        )
        # NaN, which a number that was not kept would give, is not below anything.
        if not bool((_apart(logits, alone) <= most).all()):
            raise ValueError(_OTHERWISE)

    def _alone(self, chunk: Chunk, units: Sequence[int], seed: int) -> Tensor:
        args, kwargs = chunk
        values = None if self._value is None else {self._name: self._value}
        with silence({self._name: self._place}, {self._name: units}, self._fill, values, seed):
            return self._forward(*args, **kwargs).detach()


def _best(logits: Tensor) -> Tensor:
    """The best two answers: a masked class, of -1e9, is no measure of what others say."""
    return logits.reshape(len(logits), -1).topk(min(2, logits[0].numel()), 1).values


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """How far logits differ; infinite ones, and those that are no number in both, do not."""
    same = (one == other) | (one.isnan() & other.isnan())
    return (one - other).abs().masked_fill(same, 0)
