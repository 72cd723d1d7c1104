"""The sanity check leaves no trace in a baseline of the user's, or it is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_neurocorr import BatchBaseline
from lightning_neurocorr.validation.asking import ask_without_positions
from tests.paper_model import fit, paper_data, watch

CHANGES = "Asked twice about the same batch"


class Counting:
    """Answers stored readings in the order in which it is called, over and over."""

    def __init__(self) -> None:
        self.readings, self.next = paper_data()[2], 0

    def __call__(self, batch: Any) -> Tensor:
        rows = torch.arange(self.next, self.next + len(batch[0])) % len(self.readings)
        self.next = int(rows[-1]) + 1
        return self.readings[rows]

    def answer(self, batch: Any) -> Tensor:
        return self(batch)


def heard(callback: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(callback, max_epochs=2, **options)
    return [str(one.message) for one in caught if CHANGES in str(one.message)]


def notes(callback: Any) -> list[str]:
    return [note for note in callback.report.notes if CHANGES in note]


def outcomes(callback: Any) -> list[Any]:
    return [callback.report.outcomes, [entry.outcomes for entry in callback.history]]


@pytest.mark.parametrize("sanity", [2, 0, -1])
@pytest.mark.parametrize("form", ["object", "method"])
def test_a_counting_object_is_not_moved_on_by_the_sanity_check(form: str, sanity: int) -> None:
    known = watch(baseline=BatchBaseline(2))
    assert not heard(known, num_sanity_val_steps=sanity)
    counting = Counting()
    callback = watch(baseline=counting if form == "object" else counting.answer)
    assert not heard(callback, num_sanity_val_steps=sanity)
    assert outcomes(callback) == outcomes(known)
    assert not notes(callback)


def test_nor_by_a_look_for_the_number_of_classes() -> None:
    counting = Counting()
    answer = ask_without_positions(counting, [torch.zeros(10, 3)])
    assert len(answer) == 10
    assert counting.next == 0


def generator() -> Callable[[Any], Any]:
    readings = cycle(paper_data()[2].tolist())
    return lambda batch: [next(readings) for _ in batch[0]]


def own_numbers() -> Callable[[Any], Any]:
    drawn = np.random.default_rng(0)
    return lambda batch: drawn.integers(0, 2, len(batch[0]))


@pytest.mark.parametrize("make", [generator, own_numbers])
def test_what_cannot_be_copied_is_said(make: Callable[[], Any]) -> None:
    callback = watch(baseline=make())
    assert len(heard(callback, num_sanity_val_steps=2)) == 1
    assert len(notes(callback)) == 1
    callback = watch(baseline=make())
    assert not heard(callback, num_sanity_val_steps=0)  # nobody else has asked
    assert not notes(callback)


def test_a_generator_is_right_without_the_sanity_check() -> None:
    known, callback = watch(baseline=BatchBaseline(2)), watch(baseline=generator())
    for one in (known, callback):
        fit(one, max_epochs=2, num_sanity_val_steps=0)
    assert outcomes(callback) == outcomes(known)


@pytest.mark.parametrize(
    "draw",
    [
        lambda batch: torch.randint(0, 2, (len(batch[0]),)),
        lambda batch: np.random.randint(0, 2, len(batch[0])),  # noqa: NPY002
        lambda batch: torch.rand(len(batch[0]), 2),
        lambda batch: batch[2],
    ],
)
def test_global_random_numbers_are_no_counting(draw: Callable[[Any], Any]) -> None:
    callback = watch(baseline=draw)
    assert not heard(callback, num_sanity_val_steps=2)


def test_an_object_that_cannot_be_copied_is_asked_itself() -> None:
    class Stubborn(Counting):
        def __copy__(self) -> Counting:
            raise RuntimeError("one of a kind")

    assert len(heard(watch(baseline=Stubborn()), num_sanity_val_steps=2)) == 1
