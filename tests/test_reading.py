"""How a module was called, read from one batch and found again in another."""

from typing import NamedTuple
from unittest.mock import ANY

import pytest
import torch
from torch import Tensor

from lightning_neurocorr.validation.reading import argument_reader

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


class Pair(NamedTuple):
    image: Tensor
    label: Tensor


@pytest.mark.parametrize(
    ("batch", "arguments"),
    [
        (lambda x, y: (x, y), lambda b: ((b[0],), {})),
        (lambda x, y: x, lambda b: ((b,), {})),
        (lambda x, y: {"image": x, "more": [y]}, lambda b: ((b["image"],), {"y": b["more"][0]})),
        (lambda x, y: {"a": {"b": (x, y)}}, lambda b: ((), {"pair": b["a"]["b"]})),
        (Pair, lambda b: ((b.label, b.image), {})),
        (lambda x, y: [x, y], lambda b: ((b,), {})),
        (lambda x, y: (x, y), lambda b: ((b[0], 3), {"train": False, "names": ["a", None]})),
    ],
)
def test_arguments_are_found_again_in_another_batch(batch, arguments) -> None:
    first, second = batch(X, Y), batch(X + 1, Y + 1)
    read = argument_reader(first, arguments(first))
    assert read is not None
    same_parts(read(second), arguments(second))
    same_parts(read(first), arguments(first))


def same_parts(found: object, expected: object) -> None:
    """The very same tensors in the same places."""
    if expected is ANY:
        assert isinstance(found, Tensor)
    elif isinstance(expected, Tensor):
        assert found is expected
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same_parts(found[key], expected[key])
    elif isinstance(expected, (tuple, list)):
        assert len(found) == len(expected)
        for part, other in zip(found, expected, strict=True):
            same_parts(part, other)
    else:
        assert found == expected


@pytest.mark.parametrize(
    "arguments",
    [((X + 1,), {}), ((), {"x": X.flatten()}), ((X, [X * 2]), {}), (({"x": X * 2},), {})],
)
def test_arguments_that_were_computed_cannot_be_found_again(arguments) -> None:
    assert argument_reader((X, Y), arguments) is None


def test_weights_are_the_same_for_every_batch_and_containers_are_filled_anew() -> None:
    table = torch.randn(20, 3)
    call = ((X, table), {"more": {"labels": [Y, 2]}})
    read = argument_reader((X, Y), call, [table])
    assert read is not None
    same_parts(read((X + 1, Y)), ((ANY, table), {"more": {"labels": [Y, 2]}}))
    assert argument_reader((X, Y), call) is None
