"""The built-in studies together, on a world with planted knowledge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    Groups,
    Matches,
    NeuronReport,
    Readout,
    Slices,
    Words,
    compare,
)
from tests.asked import asked, net
from tests.worlds import world

pytest.importorskip("sklearn")


def test_sets_of_labels_have_no_class_to_compare_in() -> None:
    found = world()
    several = nn.functional.one_hot(found.y, 4) + nn.functional.one_hot((found.y + 1) % 4, 4)
    loader = DataLoader(TensorDataset(found.x, several.float()), 128)
    for study in (Words(), Slices(), Groups(), Readout()):
        with pytest.raises(ValueError, match="one true class per sample"):
            compare(
                found.model, loader, lambda batch: batch[1].flip(1), target=1, studies=[study],
                advantage="exact_match", attribution=False, metadata=found.metadata,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("studies", "more", "said"),
    [
        ([Words()], {"metadata": None}, "Expected `metadata` for the study Words"),
        ([Slices(without_words=False)], {"metadata": None}, "Expected `metadata` for Slices"),
        ([Matches()], {}, "Expected a network to compare with"),
        ([Words(), Words()], {}, "a `name` of its own"),
        *(
            ([study], {"advantage": lambda p, b, t: p.mean(1) - b.float()}, "right or wrong")
            for study in (Words(), Slices(), Groups(), Readout())
        ),
    ],
)
def test_what_cannot_work_is_refused_early(
    studies: list[Any], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        asked(studies, **more)


def test_each_study_takes_as_many_samples_as_it_wants() -> None:
    alone = asked([Readout(max_samples=400)])["readout"].to_dataframe()
    both = asked([Readout(max_samples=400), Words(), Slices()])["readout"].to_dataframe()
    pd.testing.assert_frame_equal(alone, both)


def test_the_untrained_copy_runs_once_for_all() -> None:
    found, seen = world(), []

    def count(*_: Any) -> None:
        seen.append(1)

    numbers = []
    for studies in ([], [Readout()], [Matches(net())], [Readout(), Matches(net())]):
        seen.clear()
        handle = found.model.register_forward_hook(count)
        asked(studies, metadata=None)
        handle.remove()
        numbers.append(len(seen))
    plain, one, other, together = numbers
    assert other > one > plain
    assert together == one


def test_too_little_to_tell_is_said() -> None:
    found = world()
    right = asked([Slices(), Groups(), Readout()], baseline=lambda batch: batch[1])
    for name in ("slices", "groups", "readout"):
        assert right[name].state == "refused", name
        assert "validation set" in right[name].why or "right for the model" in right[name].why
    words = [Words(), Slices(without_words=False)]
    same = asked(words, metadata={"same": np.ones(len(found.y))})
    assert "the same for every sample" in " ".join(same["words"].notes)
    assert len(same["slices"].to_dataframe()) == 0


def test_the_file_keeps_all_of_it(tmp_path: Path) -> None:
    found = world()
    report = compare(
        found.model, found.loader, found.baseline, target=1, attribution=False,
        metadata=found.metadata, studies=[Words(), Slices(), Readout(untrained=False)],
    )  # fmt: skip
    again = NeuronReport.load(report.save(tmp_path / "report.npz"))
    for name, finding in report.studies.items():
        assert repr(again.studies[name]) == repr(finding)
