"""Padding that no mask tells of: a note says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr import NeuronReport
from lightning_neurocorr.activations import PaddedEnds
from tests.padded import N, T, Text, against, lengths, real_tokens, texts

pytestmark = pytest.mark.filterwarnings("ignore:.*nested.*:UserWarning")


def noted(found: NeuronReport) -> bool:
    return any("Padding may count as tokens" in note for note in found.notes)


def test_where_lengths_may_differ_a_note_says_so() -> None:
    model = Text(told=False).eval()
    whole: dict[str, Any] = {"collate_fn": torch.utils.data.default_collate}
    assert noted(against(model, texts()))  # batches of several lengths
    assert noted(against(model, texts(), N, **whole))  # one id repeats at the ends
    assert not noted(against(Text().eval(), texts(), N, **whole))
    full = [(torch.randint(1, 30, (T,)), i % 2, i // 2 % 2) for i in range(N)]
    assert not noted(against(model, full, N, **whole))


def test_images_are_not_nagged() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.attend = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.patch(x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).flatten(1, 3))
            return self.head(self.attend(hidden, hidden, hidden)[0].mean(1))

    data = [(torch.zeros(1, 4, 4), i % 2, i // 2 % 2) for i in range(N)]  # equal at all ends
    model, whole = Patches().eval(), torch.utils.data.default_collate
    found = against(model, data, collate_fn=whole)
    assert not noted(found)
    assert "patch" in found.layers


@pytest.mark.parametrize("left", [False, True])
def test_padded_ends_of_ids_and_of_numbers(left: bool) -> None:
    real = real_tokens(lengths(), left)
    real[0] = real[0] & (real[0].cumsum(0) < 3) if not left else real[0]
    real[1] = torch.arange(T) < 2 if not left else torch.arange(T) >= T - 2
    ids = torch.randint(1, 10**6, (N, T))
    frames = torch.randn(N, T, 3)
    cases = [(ids * real, True), (ids, False), (frames * real[..., None], True), (frames, False)]
    for values, expected in cases:
        for arguments in (values, values.transpose(0, 1)):
            ends = PaddedEnds()
            for part in (slice(0, 20), slice(20, N)):
                at = values[part] if arguments is values else values[part].transpose(0, 1)
                ends.add(((at,), {}), len(values[part]))
            assert ends.found() is expected
    zeros_inside = ids * real
    zeros_inside[5:9, 2:4] = 0
    zeros_inside[5:9, [1, 4, 5, 0]] = 3
    ends = PaddedEnds()
    ends.add(((zeros_inside,), {}), N)
    assert not ends.found()
