"""What is heard again is read as if it were heard for the first time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import (
    ActivationRecorder,
    SiteRecorder,
    TokenMasks,
    aside,
    choose_layers,
    read_token_mask,
)
from lightning_neurocorr.activations.again import HeardLast
from lightning_neurocorr.activations.axes import Axes
from tests.helpers import seeded
from tests.launches import Launches


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeded()).to(dtype)


class Own(Tensor):
    """A tensor of a class of its own."""


# One after the other: each is like some before it, and unlike the one before.
SAID: dict[str, Callable[[], Any]] = {
    "maps": lambda: maps(4, 3, 2, 5),
    "maps again": lambda: maps(4, 3, 2, 5) * 2,
    "a smaller batch": lambda: maps(3, 3, 2, 5),
    "of half precision": lambda: 300 * maps(4, 3, 2, 5, dtype=torch.float16),
    "of double precision": lambda: maps(4, 3, 2, 5, dtype=torch.float64),
    "of whole numbers": lambda: maps(4, 3, 2, 5).mul(9).long(),
    "of complex numbers": lambda: maps(4, 3, 2, 5, dtype=torch.complex64),
    "channels last": lambda: maps(4, 3, 2, 5).to(memory_format=torch.channels_last),
    "with gradients": lambda: maps(4, 3, 2, 5).requires_grad_(),
    "of another class": lambda: maps(4, 3, 2, 5).as_subclass(Own),
    "in a tuple": lambda: (maps(4, 3, 2, 5), None),
    "vectors": lambda: maps(4, 3),
    "vectors again": lambda: maps(4, 3) + 1,
    "tokens": lambda: maps(4, 7, 3),
    "volumes": lambda: maps(4, 3, 2, 2, 2),
    "one sample": lambda: maps(1, 3, 2, 5),
    "nested": lambda: torch.nested.nested_tensor([maps(2, 3), maps(5, 3)]),
    "numbers": lambda: maps(4),
    "nothing": lambda: None,
}


class Layer(nn.Module):
    """Says what it is told to."""

    def forward(self, said: Any) -> Any:
        return said


def heard(recorder: ActivationRecorder, layer: nn.Module, *said: Any) -> tuple[Any, ...]:
    """What is taken after calls that say these."""
    for value in said:
        layer(value)
        if isinstance(value, Tensor) and not value.requires_grad and not value.is_nested:
            value.zero_()  # as an operation in place behind the layer
    taken, problems = recorder.take()
    return taken, problems, recorder.over_positions


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert found[1] == expected[1]
    assert found[0].keys() == expected[0].keys()
    for name, values in expected[0].items():
        assert found[0][name].dtype == values.dtype
        assert not found[0][name].requires_grad
        assert found[0][name].equal(values)
        assert found[2].keys() == expected[2].keys()
        for one, other in zip(found[2][name], expected[2][name], strict=True):
            assert one.equal(other) if isinstance(one, Tensor) else one == other


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_every_kind_after_every_other(pooling: str) -> None:
    layer = nn.Sequential(Layer())
    with ActivationRecorder({"0": layer[0]}, pooling, masks=TokenMasks(layer)) as recorder:
        for name in [*SAID, *SAID, *reversed(SAID), *[n for n in SAID for _ in range(3)]]:
            found = heard(recorder, layer, SAID[name]())
            fresh = nn.Sequential(Layer())
            with ActivationRecorder({"0": fresh[0]}, pooling, masks=TokenMasks(fresh)) as other:
                expected = heard(other, fresh, SAID[name]())
            assert_same(found, expected)


def test_several_calls_count_as_further_positions() -> None:
    layer = nn.Sequential(Layer())
    with ActivationRecorder({"0": layer[0]}, masks=TokenMasks(layer)) as recorder:
        first, second = maps(4, 3, 2, 5), maps(4, 3, 4, 4) + 1
        for _ in range(3):
            taken, _, over = heard(recorder, layer, first.clone(), first.clone(), second.clone())
            means = [x.mean((2, 3)) for x in (first, first, second)]
            torch.testing.assert_close(taken["0"], sum(means) / 3)
            assert over["0"][1] == 10 + 10 + 16


def test_a_mask_that_comes_later_is_heeded() -> None:
    """Which of two axes of positions it is about cannot be known: no batch is read past it."""
    layer = nn.Sequential(Layer())
    masks = TokenMasks(layer)
    with ActivationRecorder({"0": layer[0]}, masks=masks) as recorder:
        for _ in range(2):
            assert not heard(recorder, layer, maps(4, 3, 2, 5))[1]
        masks.clear(read_token_mask(torch.ones(4, 5, dtype=torch.bool)))
        _, problems, _ = heard(recorder, layer, maps(4, 3, 2, 5))
        assert "a token mask has one axis only" in problems["0"]


def test_neither_asides_nor_transforms_are_read() -> None:
    layer = nn.Sequential(Layer())
    with ActivationRecorder({"0": layer[0]}, masks=TokenMasks(layer)) as recorder:
        for _ in range(2):
            heard(recorder, layer, maps(4, 3, 2, 5))
        with aside():
            layer(maps(4, 3, 2, 5))
        assert heard(recorder, layer)[1] == {"0": "its forward was not called"}
        torch.func.vmap(layer)(maps(6, 4, 3, 2, 5))
        assert "inside a transform of torch.func" in recorder.take()[1]["0"]


# --- the same tensor at several doors -------------------------------------------------------------


class Handed(nn.Module):
    """A block whose output is that of its last part, and the input of the next block."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(inplace))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_tensor_that_is_handed_on_is_averaged_once(inplace: bool) -> None:
    """Looking for where layers are read asks for one mean of each: conv, norm and ReLU.

    How far that may be off by rounding takes two norms, over positions and over samples.
    """
    model = nn.Sequential(*(Handed(inplace=inplace) for _ in range(4))).eval()
    x, alone = maps(5, 3, 2, 2), {}
    with torch.no_grad(), SiteRecorder(model, choose_layers(model)) as recorder:
        with Launches() as launches:
            model(x)
        found, problems = recorder.take(5)
    assert launches.found["mean"] == 3 * 4
    assert launches.found["linalg_vector_norm"] == 2 * 3 * 4
    for name, block in model.named_children():
        x = block(x)
        alone[f"{name}.parts.0"] = x.detach().clone()
    assert not problems
    assert {site.name for site in recorder.places.values()} == {f"{i}.parts.2" for i in range(4)}
    for name, values in found.items():
        torch.testing.assert_close(values, alone[name].mean((2, 3)))


@pytest.mark.parametrize("inference", [False, True])
def test_a_tensor_that_was_written_to_is_read_again(inference: bool) -> None:
    last, axes, other = HeardLast(), Axes(0, 1, (2, 3)), Axes(0, 3, (1, 2))
    with torch.inference_mode(inference):
        x = maps(4, 3, 2, 5)
        for _ in range(2):
            for make in (torch.mean, torch.amax) * 2:
                assert last.once(make, x, axes, (2, 3)).equal(make(x, (2, 3)))
            x.mul_(-3)
        assert last.once(torch.mean, x, other, (1, 2)).shape == (4, 5)
        y = x + 1
        assert last.once(torch.mean, y, other, (1, 2)).equal(y.mean((1, 2)))
