"""Activations of a bounded number of samples, kept while a validation passes by.

Which samples depends on their hashes alone: any number of processes keeps the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.functional.hashing import hashed
from lightning_neurocorr.studies.heard import Heard
from lightning_neurocorr.studies.protocol import Listener
from lightning_neurocorr.validation.metadata_protocol import MetadataSource, SamplesOfBatch

STORE_BYTES = 1 << 28
DRAWN = 5  # seed of the hashes by which samples are chosen
_SLACK = 1.5  # kept at most, in parts of what is wanted, until the rest is thrown away


class Store(Listener):
    """The activations, float32, of the samples with the smallest hashes, and what is known of them.

    Args:
        most: How many samples, at most.
        budget: Bytes that activations may take; with many neurons fewer samples are kept.
        source: Where metadata come from; None where there are none.
        strict: Metadata that cannot be read are an error; else ``unknown`` says why they are
            missing.

    Attributes:
        numbers: Of the samples kept, ``(n,)``.
        parts: Activations by layer: pieces ``(., D)`` that make ``(n, D)`` together.
        metadata: Values by column: pieces that make ``(n,)`` together.
        unknown: Why there are no metadata; empty where there are.
    """

    stays = ("_source",)  # may be a large table

    def __init__(
        self,
        most: int,
        budget: int = STORE_BYTES,
        source: MetadataSource | None = None,
        *,
        strict: bool = True,
    ) -> None:
        self.most, self.budget = most, budget
        self.metadata: dict[str, list[Any]] = {}
        self.unknown = "" if source is not None else "no `metadata` was given"
        self._source, self._strict = source, strict
        self.numbers = torch.zeros(0, dtype=torch.int64, device="cpu")
        self.draws = torch.zeros(0, dtype=torch.int64, device="cpu")
        self.parts: dict[str, list[Tensor]] = {}
        self._begun = False

    def add(self, heard: Heard) -> None:
        """Keep those of the batch that are drawn; what is drawn is known on the CPU."""
        if not self._begun:
            self._begin({name: part.shape[1] for name, part in heard.activations.items()})
        draws = hashed(heard.keys, seed=DRAWN)
        rows = torch.arange(len(draws), device="cpu")
        if len(self.numbers) >= self.most:
            rows = (draws < self.draws.max()).nonzero().squeeze(1)
        self.numbers = torch.cat([self.numbers, heard.numbers[rows]])
        self.draws = torch.cat([self.draws, draws[rows]])
        for name in list(self.parts):
            part = heard.activations.get(name)
            if part is None:  # a layer that failed has no column in the report either
                del self.parts[name]
            elif len(rows):
                chosen = sent(rows, part.device)
                self.parts[name].append(part.detach().float()[chosen])
        self._read(heard, rows)
        if len(self.numbers) > _SLACK * self.most:
            self.trim()

    def merge(self, other: Self) -> None:
        """The samples of both, of which those with the smallest hashes stay."""
        if not other._begun:
            return
        if not self._begun:
            vars(self).update(vars(other))
            return
        self.most = min(self.most, other.most)
        self.numbers = torch.cat([self.numbers, other.numbers])
        self.draws = torch.cat([self.draws, other.draws])
        for mine, others in ((self.parts, other.parts), (self.metadata, other.metadata)):
            for name in list(mine):
                mine[name] = [*mine[name], *others[name]] if name in others else []
            for name in [name for name in mine if name not in others]:
                del mine[name]
        self.unknown = self.unknown or other.unknown
        self.trim()

    def trim(self) -> None:
        """Throw away what is too much, and make one piece of each layer."""
        order = self.draws.argsort(stable=True)[: self.most]
        self.numbers, self.draws = self.numbers[order], self.draws[order]
        for name, parts in self.parts.items():
            whole = torch.cat(parts)
            self.parts[name] = [whole[sent(order, whole.device)]]
        for name, pieces in self.metadata.items():
            self.metadata[name] = [_rows(_joined(pieces), order)]

    def columns(self) -> dict[str, Sequence[Any]]:
        """The metadata, ``(n,)`` values by column."""
        return {name: _joined(pieces) for name, pieces in self.metadata.items()}

    def _read(self, heard: Heard, rows: Tensor) -> None:
        """The metadata of the samples that are kept."""
        if self._source is None or self.unknown:
            return
        asked = SamplesOfBatch(
            heard.batch, heard.rows, len(heard), heard.numbers, heard.located, heard.ids
        )
        try:
            found: Mapping[str, Any] = self._source.read(asked)
            for name, values in found.items():
                if len(values) != len(heard):
                    raise ValueError(
                        f"Expected `metadata` {name!r} to have one value for each of {len(heard)} "
                        f"samples, but got {len(values)}."
                    )
            if self.metadata and set(found) != set(self.metadata):
                raise ValueError(
                    f"Expected `metadata` to have the columns {sorted(self.metadata)} in every "
                    f"batch, but got {sorted(found)}."
                )
        except Exception as error:
            if self._strict:
                raise
            self.unknown, self.metadata = f"{type(error).__name__}: {error}", {}
            return
        for name, values in found.items():
            self.metadata.setdefault(name, []).append(_rows(values, rows))

    def _begin(self, sizes: dict[str, int]) -> None:
        self._begun = True
        self.parts = {name: [] for name in sizes}
        self.most = min(self.most, room(sum(sizes.values()), self.budget))


def room(neurons: int, budget: int = STORE_BYTES) -> int:
    """Of how many samples the activations of so many neurons are kept, at most."""
    return int(budget / _SLACK) // (4 * max(1, neurons))


def of_control(samples: int) -> int:
    """On how many of a validation's samples an untrained copy of the model runs, at most.

    A fifth of them, which is a fifth of an epoch; a control needs 500, and no more than 4,000.
    """
    return min(4_000, max(500, samples // 5))


def _rows(values: Any, rows: Tensor) -> Any:
    """Some of the values of a column."""
    if isinstance(values, Tensor):
        return values.detach()[sent(rows, values.device)]
    return [values[i] for i in rows.tolist()]


def _joined(pieces: Sequence[Any]) -> Any:
    """Pieces of a column as one."""
    if pieces and all(isinstance(piece, Tensor) for piece in pieces):
        return torch.cat([piece.to(pieces[0].device) for piece in pieces])
    return [value for piece in pieces for value in piece]
