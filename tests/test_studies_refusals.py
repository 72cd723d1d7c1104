"""What a study needs of the data is what it says when it has less."""

from __future__ import annotations

import pytest
import torch

from lightning_neurocorr import Groups, Readout, Slices, Words
from lightning_neurocorr.functional.hashing import folds
from lightning_neurocorr.studies import Study
from tests.asked import asked
from tests.worlds import World, world

pytest.importorskip("sklearn")


@pytest.mark.parametrize(
    ("study", "needs"), [(Words(), 100), (Slices(), 200), (Groups(), 100), (Readout(), 200)]
)
def test_a_validation_that_is_too_small_is_called_so(study: Study, needs: int) -> None:
    w = world()
    few = World(w.model, w.x[:20], w.y[:20], w.turned[:20], w.pictures)
    metadata = {name: values[:20] for name, values in w.metadata.items()}
    found = asked([study], few, metadata=metadata)[study.name]
    assert found.state == "refused"
    assert found.why == (
        f"It needs {needs} samples, but the validation had 20. Take a larger validation set."
    )


@pytest.mark.parametrize(("study", "least"), [(Groups(), 50), (Readout(), 25)])
def test_wins_are_counted_in_each_half(study: Study, least: int) -> None:
    w = world()
    right, half = w.model(w.x).argmax(1) == w.y, folds(torch.arange(len(w.y)))
    won = torch.zeros(len(w.y), dtype=torch.bool)
    for which, n in enumerate((300, least - 1)):
        won[(right & (half == which)).nonzero()[:n, 0]] = True
    answers = torch.where(won, (w.y + 1) % 4, w.y)
    found = asked([study], baseline=lambda batch: answers[batch[2]])[study.name]
    assert found.state == "refused"
    assert found.why == (
        f"Each half needs {least} samples that only the model gets right, but they have "
        f"300 and {least - 1} of 1,500 together. Take a larger validation set, or a larger "
        "`max_samples`."
    )
