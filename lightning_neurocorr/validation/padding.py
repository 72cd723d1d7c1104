"""Which tokens of a batch are real: masks that the user or a layer gives, and doubts about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_neurocorr import baselines as B
from lightning_neurocorr.activations import (
    TOKEN_MASK,
    Call,
    PaddedEnds,
    SiteRecorder,
    TokenMasks,
    read_token_mask,
)
from lightning_neurocorr.validation.reading import Arguments


class Padding:
    """The token masks of a validation, batch by batch.

    Args:
        model: The model; layers of it may be given masks.
        field: Where in a batch the user has its masks, as ``token_mask`` says.
    """

    def __init__(self, model: nn.Module, field: B.Field | None) -> None:
        self.masks = TokenMasks(model)
        self._field = field
        self._ends = PaddedEnds()

    def begin(self, batch: Any) -> None:
        """Read the masks of a batch that is about to go through the model.

        Raises:
            TypeError: If ``token_mask`` gives no tensors.
            ValueError: If they are no masks.
        """
        if self._field is not None:
            self.masks.clear(read_token_mask(B.read_field(batch, self._field, "token_mask")))

    def check(self, n: int, call: Call | None) -> None:
        """Look at the masks and the inputs of a batch of ``n`` samples.

        Raises:
            ValueError: If a mask is not of this batch.
        """
        wrong = next((mask for mask in self.masks.given if len(mask) != n), None)
        if wrong is not None:
            raise ValueError(
                f"Expected `token_mask` to give one row for each of {n} samples, but got "
                f"{tuple(wrong.shape)}."
            )
        self._ends.add(((), {}) if call is None else call.arguments, n)

    def handed_on(self, arguments: Arguments) -> Arguments:
        """Arguments of a call, with the masks of its batch where they are looked for."""
        if not self.masks.given:
            return arguments
        return arguments[0], {**arguments[1], TOKEN_MASK: self.masks.given}

    def remarks(self, recorder: SiteRecorder) -> list[str]:
        """What to know of the padding of sequences, once all batches have passed."""
        found = []
        lengths, padded = recorder.lengths, self._ends.found()
        if names := [name for name in lengths if padded or len(lengths[name]) > 1]:
            found.append(
                f"Padding may count as tokens in {_few(names)}: sequences seem to be of several "
                "lengths, and no mask says which tokens are real. Say it with `token_mask`."
            )
        if names := sorted(recorder.unheeded):
            found.append(
                f"Your `pooling` sees padding in {_few(names)}. Give it a parameter `mask`: True "
                "for real tokens (N, T), or None."
            )
        return found


def with_token_mask(arguments: Arguments, batch: Any, field: B.Field | None) -> Arguments:
    """Arguments that hand ``token_mask`` of a batch on where token masks are looked for."""
    if field is None:
        return arguments
    mask = B.read_field(batch, field, "token_mask")
    return arguments[0], {**arguments[1], TOKEN_MASK: mask}


def _few(names: Sequence[str]) -> str:
    """Five names, and how many there are besides."""
    more = f" and {len(names) - 5} more layers" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
