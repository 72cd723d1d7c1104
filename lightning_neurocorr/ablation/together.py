"""Many silenced sets in few forwards: side by side in a batch, from what comes before the layer on.

Whether a model allows it is seen, not assumed: on the first samples it must say what it says to one
set alone. It does not where samples are mixed, as by a norm over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from lightning_neurocorr.ablation.halves import Chunk, Take
from lightning_neurocorr.ablation.replay import Prelude
from lightning_neurocorr.ablation.silencing import Fill, silence
from lightning_neurocorr.ablation.variants import silence_variants
from lightning_neurocorr.activations import Place
from lightning_neurocorr.isolation.room import free_bytes

_LEARNT_FROM = 2  # samples
_FULL = {"cuda": 1024}  # samples that keep a device busy
_FULL_ELSEWHERE = 256
_SEVERAL = 3  # operands of the largest operation that are there at once, about
_EXACT = 1e-5  # of the largest logit: what other samples in a batch make of the same arithmetic
_COARSE = {torch.float64: 1e-9, torch.float32: 2e-3}  # the most of it; TF32 has so few digits
_COARSEST = 5e-2  # half precision
_NOISE = 8  # times what the batch alone changes

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
        self._checked = False
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
        groups = -(-len(sets) // max(1, self._most // length))
        at_once = -(-len(sets) // groups)
        rows = torch.arange(length).repeat(at_once)
        args, kwargs = self._take(chunk, rows, length)
        untouched, replay = None, None
        if groups > 1 or not self._checked:
            untouched, replay = self._prelude.capture(lambda: self._forward(*args, **kwargs))
        for start in range(0, len(sets), at_once):
            some = sets[start : start + at_once]
            full = [*some, *[some[-1]] * (at_once - len(some))]
            silent = silence_variants(self._place, full, length, self._fill, self._value, seed)
            with silent, nullcontext() if replay is None else replay():
                logits = self._forward(*args, **kwargs)
            logits = logits.detach().unflatten(0, (at_once, length))[: len(some)]
            if untouched is not None and not self._checked:
                self._check(chunk, some, logits, untouched.detach(), seed)
            yield logits

    def _learn(self, chunk: Chunk, length: int) -> Prelude:
        """What comes before the layer, and how many samples there is room for."""
        rows = torch.arange(min(length, _LEARNT_FROM))
        args, kwargs = self._take(chunk, rows, length)
        said: list[Tensor] = []
        prelude = Prelude(
            self._model, self._place, lambda: said.append(self._forward(*args, **kwargs))
        )
        device = said[0].device
        room = free_bytes(device) if self._room is None else self._room
        each = (_SEVERAL * prelude.operation_bytes + prelude.kept_bytes) / len(rows)
        most = _FULL.get(device.type, _FULL_ELSEWHERE)
        self._most = max(1, min(most, int(room / max(each, 1))))
        return prelude

    def _check(
        self,
        chunk: Chunk,
        sets: Sequence[tuple[int, ...]],
        logits: Tensor,
        untouched: Tensor,
        seed: int,
    ) -> None:
        """Compare the first and the last set of a group with each of them alone.

        Raises:
            ValueError: If they differ by more than the batch alone makes of equal arithmetic.
        """
        args, kwargs = chunk
        alone = self._forward(*args, **kwargs).detach()
        scale = _largest(alone)
        noise = _largest(untouched.unflatten(0, (-1, len(alone))) - alone)
        most = _COARSE.get(alone.dtype, _COARSEST) * scale
        for at in dict.fromkeys((0, len(sets) - 1)):
            apart = _largest(logits[at] - self._alone(chunk, sets[at], seed))
            # NaN, which a number that was not kept would give, is not below anything.
            if not (noise <= most and apart <= max(_EXACT * scale, _NOISE * noise)):
                raise ValueError("it answers otherwise, so samples are mixed or answers random")
        self._checked = True

    def _alone(self, chunk: Chunk, units: Sequence[int], seed: int) -> Tensor:
        args, kwargs = chunk
        values = None if self._value is None else {self._name: self._value}
        with silence({self._name: self._place}, {self._name: units}, self._fill, values, seed):
            return self._forward(*args, **kwargs).detach()


def _largest(logits: Tensor) -> float:
    return float(logits.abs().max()) if logits.numel() else 0.0
