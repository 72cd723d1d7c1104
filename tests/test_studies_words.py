"""Words and slices on a world with planted knowledge."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_neurocorr import (
    Slices,
    Words,
)
from lightning_neurocorr.functional.vocabulary import Vocabulary
from lightning_neurocorr.studies.slices import _best_word
from tests.asked import asked, shuffled
from tests.worlds import world

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def planted() -> Any:
    return asked([Words(), Slices()])


@pytest.fixture(scope="module")
def placebo() -> Any:
    return asked([Words(), Slices()], baseline=shuffled(world()))


def test_the_word_of_the_advantage_is_the_planted_one(planted: Any) -> None:
    frame = planted["words"].to_dataframe()
    assert len(frame) == 24 + 16 + 4
    said = frame.advantage_word.dropna()
    assert len(said) >= 5
    assert set(said) == {"turned"}
    assert (frame.score > frame.null).mean() > 0.5
    assert "colour" not in " ".join(frame.word.dropna())


def test_a_neurons_score_is_pearsons_r(planted: Any) -> None:
    frame, found = planted["words"].to_dataframe(), world()
    with torch.no_grad():
        hidden = found.model[:2](found.x).numpy()
    rows = frame[(frame.layer == "0") & (frame.word == "turned")]
    assert len(rows)
    for row in rows.itertuples():
        r = np.corrcoef(hidden[:, row.unit], found.turned)[0, 1]
        assert row.score == pytest.approx(r, abs=1e-5)


def test_no_word_of_the_advantage_against_a_placebo(placebo: Any) -> None:
    frame = placebo["words"].to_dataframe()
    assert frame.advantage_word.notna().mean() <= 0.05


def test_the_planted_slice_is_found_and_measured(planted: Any) -> None:
    frame, found = planted["slices"].to_dataframe(), world()
    first = frame.iloc[0]
    assert (first["slice"], first.direction, first.found_by) == ("turned", "only_model", "words")
    with torch.no_grad():
        model = (found.model(found.x).argmax(1) == found.y).numpy()
    baseline = (found.baseline((found.x,)) == found.y).numpy()
    inside = model.astype(int)[found.turned] - baseline.astype(int)[found.turned]
    assert first.low - 0.1 <= inside.mean() <= first.high + 0.1
    assert first.wins - first.losses == pytest.approx(first.advantage * first.n)
    assert set(map(int, first.examples.split(", "))) <= set(np.flatnonzero(found.turned))
    assert not frame["slice"].str.contains("red|green|blue|light").any()


def test_no_slice_against_a_placebo(placebo: Any) -> None:
    finding = placebo["slices"]
    assert finding.state == "measured"
    assert len(finding.to_dataframe()) == 0
    assert "No slice holds" in finding.headline


def test_slices_without_words_are_described_by_them() -> None:
    found = asked([Slices()], metadata=None)["slices"].to_dataframe()
    assert len(found)
    assert set(found.found_by) == {"activations"}
    positions = [int(p) for p in found.iloc[0].examples.split(", ")]
    assert world().turned[positions].mean() >= 0.8


def test_words_of_other_samples_are_not_given() -> None:
    found, draw, slices = world(), np.random.default_rng(3), 0
    for _ in range(6):
        order = draw.permutation(len(found.y))
        mixed = {name: values[order] for name, values in found.metadata.items()}
        findings = asked([Words(formulas=0), Slices(without_words=False)], metadata=mixed)
        frame = findings["words"].to_dataframe()
        assert (frame.word.isna() | frame.word.str.startswith("class")).mean() >= 0.95
        assert frame.advantage_word.isna().mean() >= 0.95
        slices += len(findings["slices"].to_dataframe())
    assert slices <= 2  # each run may err once in twenty


def test_a_word_that_few_samples_have_is_not_said_of_a_part() -> None:
    """Of ten samples that have a value, six may be in the part by luck."""
    draw = np.random.default_rng(0)
    members, classes = draw.random(2000) < 0.3, draw.integers(3, size=2000)
    noise = (draw.random((2000, 40)) < 0.5).astype(np.float32)
    for column in noise.T:
        column[draw.permutation(2000)[14:]] = np.nan
    true = (members ^ (draw.random(2000) < 0.3)).astype(np.float32)
    part = SimpleNamespace(members=members)
    samples = SimpleNamespace(target=classes)

    def best(values: np.ndarray) -> str | None:
        names = tuple(f"word {i}" for i in range(values.shape[1]))
        words = Vocabulary(names, ("boolean",) * len(names), names, values)
        return _best_word(part, words, samples)  # type: ignore[arg-type]

    assert best(noise) is None
    assert best(np.column_stack([true, noise])) == "word 0"
