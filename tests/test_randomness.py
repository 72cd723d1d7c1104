"""Random streams of our own, and the user's untouched."""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch

from lightning_neurocorr.isolation.randomness import PrivateRandomness, preserved_randomness

pytestmark = pytest.mark.keeps_rng  # conftest compares all three states before and after


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


@pytest.mark.parametrize("enter", [PrivateRandomness(), preserved_randomness], ids=["own", "kept"])
def test_what_is_drawn_inside_is_not_seen_outside(
    enter: Callable[[], AbstractContextManager],
) -> None:
    with enter():
        draw()
    with pytest.raises(KeyboardInterrupt), enter():
        raise KeyboardInterrupt(draw())


def test_a_stream_goes_on_where_it_stopped() -> None:
    whole, parts = PrivateRandomness(3), PrivateRandomness(3)
    with whole():
        expected = [draw(), draw(), draw()]
    found = []
    for _ in range(2):
        with parts():
            found.append(draw())
    with pytest.raises(ValueError, match="stop"), parts():  # noqa: PT012
        found.append(draw())
        raise ValueError("stop")
    assert found == expected
    with PrivateRandomness(4)():
        assert draw() != expected[0]
    with parts():
        assert draw() not in expected


def test_the_second_of_a_pair_of_normal_numbers_is_kept() -> None:
    """NumPy makes two at a time."""
    own, found = PrivateRandomness(), []
    with preserved_randomness(seed=5):
        expected = np.random.standard_normal(4)  # noqa: NPY002
    with preserved_randomness(seed=5):
        for _ in range(4):
            found.append(np.random.standard_normal())  # noqa: NPY002
            with own():
                np.random.standard_normal(3)  # noqa: NPY002
    assert found == expected.tolist()


def test_streams_nest() -> None:
    outer, inner = PrivateRandomness(1), PrivateRandomness(1)
    with outer():
        first = draw()
        with inner():
            assert draw() == first
        second = draw()
    assert first != second


def test_a_seed_of_any_size_inside_preserved_states() -> None:
    for seed in (0, 7, 2**40):
        with preserved_randomness(seed=seed):
            first = draw()
        with preserved_randomness(torch.device("cpu"), seed):
            assert draw() == first
    with preserved_randomness():
        here = draw()
    with preserved_randomness():
        assert draw() == here  # without a seed the user's states go on inside


@pytest.mark.gpu
def test_generators_of_a_gpu() -> None:
    device = torch.device("cuda", 0)
    before = torch.cuda.get_rng_state(device)
    own = PrivateRandomness()
    with own(device):
        first = torch.rand(2, device=device)
    with own(device):
        assert not torch.rand(2, device=device).equal(first)
    with preserved_randomness(device, 3):
        torch.rand(2, device=device)
    assert torch.cuda.get_rng_state(device).equal(before)


def test_the_generator_of_apples_gpu_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    apple = torch.Generator().manual_seed(3)
    for name, call in (
        ("get_rng_state", apple.get_state),
        ("set_rng_state", apple.set_state),
        ("manual_seed", apple.manual_seed),
    ):
        monkeypatch.setattr(torch.mps, name, call)
    before, device, ours = apple.get_state(), torch.device("mps"), PrivateRandomness(7)
    drawn = []
    for _ in range(2):
        with ours(device):
            drawn.append(torch.rand(2, generator=apple))
        torch.testing.assert_close(apple.get_state(), before, rtol=0, atol=0)
    with preserved_randomness(device, 7):
        torch.testing.assert_close(torch.rand(2, generator=apple), drawn[0])
    torch.testing.assert_close(apple.get_state(), before, rtol=0, atol=0)
    assert not torch.equal(*drawn)  # the second goes on
