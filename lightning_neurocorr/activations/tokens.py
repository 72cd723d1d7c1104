"""Which tokens of a batch are real, from masks by their documented meaning: padding is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Parameters of PyTorch's transformers: True is padding, and so is what is added to scores.
PADDING_NAMES = ("src_key_padding_mask", "tgt_key_padding_mask", "key_padding_mask")
# Parameters of Hugging Face's models: 1 is a real token.
REAL_NAMES = ("attention_mask", "decoder_attention_mask")

SAY_IT = "say with `token_mask` which tokens are real"

_HIDES = -1e4  # so much, or less, is added to the score of a token that must not be seen


class UnreadableError(ValueError):
    """Why a layer is left out, in words for its reader."""


Doubt = tuple[Tensor, str]  # whether it applies, known without waiting for a device, and a reason


@dataclass(frozen=True, eq=False)
class TokenMask:
    """Real tokens of a batch.

    Attributes:
        real: True for real tokens, ``(N, T)``.
        source: What it was read from.
        doubts: Why it may be none, to be read when a validation ends.
    """

    real: Tensor
    source: Tensor
    doubts: tuple[Doubt, ...] = ()


def read_mask(name: str, value: Any) -> TokenMask | None:
    """The mask in an argument of that name; None where it does not say which tokens are real."""
    if not isinstance(value, Tensor) or value.is_nested:
        return None
    if value.ndim == 4 and value.shape[1:3] == (1, 1):  # the same for all heads and queries
        value = value[:, 0, 0]
    if value.ndim != 2:
        return None
    doubts: list[Doubt] = []
    if not value.is_floating_point():
        real = value == 0 if name in PADDING_NAMES else value != 0
    else:
        added = value > _HIDES
        between = (value.abs() < -_HIDES) & (value != 0)  # more is a token that all must see
        if name in REAL_NAMES:
            # 1 and 0, or 0 and what is added: the first would hide everything where nothing is 1.
            adds = ~((value.abs() < -_HIDES).all() & (value > 0).any())
            real, between = torch.where(adds, added, value != 0), between & adds
        else:
            real = added
        doubts.append(
            (between.any(), f"`{name}` holds numbers that hide a token in part: {SAY_IT}")
        )
    if name in REAL_NAMES and value.shape[0] == value.shape[1] > 2:
        sees = (real == torch.ones_like(real).tril()).all()
        doubts.append((sees, f"`{name}` is what each token sees, not its padding: {SAY_IT}"))
    return TokenMask(real.detach(), value, tuple(doubts))


def read_token_mask(value: Any) -> tuple[TokenMask, ...]:
    """What the user's ``token_mask`` gave for a batch: one mask, or several of different lengths.

    Raises:
        TypeError: If it is no tensor, nor a list or dict of them.
        ValueError: If one is not ``(N, T)`` of bools, or of whole numbers where 0 is padding.
    """
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)) and value:
        return tuple(mask for part in value for mask in read_token_mask(part))
    if not isinstance(value, Tensor):
        raise TypeError(
            "Expected `token_mask` to give a tensor (N, T), True for real tokens, or a list of "
            f"them for layers of several lengths, but got {type(value).__name__}."
        )
    if value.ndim != 2 or value.is_floating_point():
        raise ValueError(
            "Expected `token_mask` to give bools (N, T), True for real tokens, but got "
            f"{value.dtype} of shape {tuple(value.shape)}. Pass a function of the batch such as "
            "`lambda batch: batch['ids'] != 0`."
        )
    return (TokenMask(value.detach() != 0, value),)


def one_of(masks: Sequence[TokenMask]) -> TokenMask:
    """One mask for a layer that several fit; that they are not the same is a doubt."""
    first, *others = {id(mask.source): mask for mask in masks}.values()
    reason = f"token masks of shape {tuple(first.real.shape)} differ: {SAY_IT}"
    differ = [((mask.real.to(first.real.device) != first.real).any(), reason) for mask in others]
    return TokenMask(first.real, first.source, (*first.doubts, *differ))
