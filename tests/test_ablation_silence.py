"""Silenced neurons against masks written by hand."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from lightning_neurocorr.ablation import (
    silence,
)

LAYERS = {
    "linear": (lambda: nn.Linear(4, 5), (6, 4), 1),
    "tokens": (lambda: nn.Linear(4, 5), (6, 3, 4), 2),
    "conv1d": (lambda: nn.Conv1d(2, 5, 3), (6, 2, 7), 1),
    "conv2d": (lambda: nn.Conv2d(2, 5, 3), (6, 2, 7, 7), 1),
    "conv3d": (lambda: nn.Conv3d(2, 5, 3), (6, 2, 4, 4, 4), 1),
    "norm": (lambda: nn.BatchNorm2d(2), (6, 2, 7, 7), 1),
    "lstm": (lambda: nn.LSTM(4, 5, batch_first=True), (6, 3, 4), 2),
}


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.keeps_rng
@pytest.mark.parametrize("kind", LAYERS)
def test_silenced_units_say_the_fill_and_others_what_they_said(kind: str) -> None:
    state = torch.get_rng_state()
    build, shape, axis = LAYERS[kind]
    model, x = nn.Sequential(build()).eval(), torch.randn(shape)
    torch.set_rng_state(state)
    before = first(model(x)).detach()
    size = before.shape[axis]
    units, rest = [0, size - 1], list(range(1, size - 1))
    values = torch.arange(float(size))
    for fill, given in (
        ("zero", None),
        ("mean", None),
        ("mean", {"0": values}),
        ("resample", None),
    ):
        with silence(model, {"0": units}, fill, given):
            output = model(x)
        assert type(output) is type(model(x))
        after = first(output).detach().movedim(axis, 0)
        for unit in rest:
            torch.testing.assert_close(after[unit], before.movedim(axis, 0)[unit])
        for unit in units:
            heard = before.movedim(axis, 0)[unit]
            if fill == "resample":
                same = [[torch.equal(a, b) for b in heard] for a in after[unit]]
                partners = [row.index(True) for row in same]
                assert sorted(partners) == list(range(6))
                assert all(i != j for i, j in enumerate(partners))
            else:
                said = 0.0 if fill == "zero" else heard.mean() if given is None else values[unit]
                torch.testing.assert_close(after[unit], torch.full_like(heard, float(said)))
    torch.testing.assert_close(first(model(x)), first(model(x)))
    assert not model[0]._forward_hooks
    torch.testing.assert_close(first(model(x)).detach(), before)


def test_nested_and_repeated() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.randn(5, 3)
    with silence(model, {"0": 1}, "zero"), silence(model, {"0": torch.tensor([2])}, "zero"):
        inner = model(x)
    assert (inner[:, 1:3] == 0).all()
    with silence(model, {"0": [1, 2]}, "zero"):
        torch.testing.assert_close(model(x), inner)
    seeds = [silenced(model, x, seed) for seed in (0, 0, 1)]
    torch.testing.assert_close(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])


def silenced(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    with silence(model, {"0": range(4)}, "resample", seed=seed):
        return model(x)


def test_an_in_place_activation_and_packed_sequences() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)), torch.randn(5, 3)
    with torch.inference_mode(), silence(model, {"0": [1]}, values={"0": torch.full((4,), 2.0)}):
        assert (model(x)[:, 1] == 2).all()
    packed = pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    rnn = nn.ModuleDict({"rnn": nn.GRU(4, 5)})
    with silence(rnn, {"rnn": [4]}, "zero"):
        output, _ = rnn["rnn"](packed)
    assert (pad_packed_sequence(output)[0][..., 4] == 0).all()
    message = "for packed sequences"
    with pytest.raises(ValueError, match=message), silence(rnn, {"rnn": [4]}, "resample"):
        rnn["rnn"](packed)


def test_a_layer_that_returns_its_input_leaves_it_alone() -> None:
    x = torch.ones(2, 3)
    model = nn.Sequential(nn.Identity())
    with silence(model, {"0": [1]}, "zero"):
        assert model(x).tolist() == [[1, 0, 1]] * 2
    assert (x == 1).all()


def test_compiled_models_are_silenced_too() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(5, 3)
    compiled = torch.compile(model, backend="eager")
    compiled(x)  # the graph is there, without our hook
    with silence(compiled, {"0": [1]}, "zero"):
        assert (compiled(x)[:, 1] == 0).all()


def test_wrong_arguments() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(1, 3)
    for units, options, message in [
        ({"O": [1]}, {}, "which matches none"),
        ({"*": [1]}, {}, r"Expected layers of \['0'\], but got '\*'"),
        ({"0": [4]}, {}, "units of layer '0' below 4, but got 4"),
        ({"0": [-1]}, {}, "units of layer '0' from 0 on, but got -1"),
        ({"0": [1]}, {"fill": "noise"}, "'mean', 'zero' or 'resample', but got 'noise'"),
        ({"0": [1]}, {"fill": "resample"}, "at least 2 samples"),
        ({"0": [1]}, {"fill": "zero", "values": {}}, "`values` only with fill='mean'"),
        ({"0": [1]}, {"values": {"0": torch.zeros(3)}}, r"of shape \(4,\), but got \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message), silence(model, units, **options):
            model(x)
        assert not model[0]._forward_hooks
    for units, message in [
        ({"0": "12"}, r"to be whole numbers, such as .* but got '12'"),
        ({"0": ["1"]}, "but got '1'"),
        ({"0": 1.5}, "but got 1.5"),
        ({"0": None}, "but got None"),
        ({"0": torch.tensor([True, False])}, "got True. Of a mask, pass mask.nonzero"),
        (["0"], r"`units` to be a dict such as .* but got \['0'\]"),
    ]:
        with pytest.raises(TypeError, match=message), silence(model, units):
            pass
    with pytest.raises(TypeError, match="`model` to be a module or layers by name"):
        silence([model], {"0": 1}).__enter__()
    with pytest.raises(TypeError, match="`values` to be a dict of means"):
        silence(model, {"0": 1}, values=torch.zeros(4)).__enter__()
    with pytest.raises(ValueError, match="`values` of layers of the model, but got 'x'"):
        silence(model, {"0": 1}, values={"x": torch.zeros(4)}).__enter__()


def test_units_may_be_any_whole_numbers() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(2, 3)
    for units in (1, np.int64(1), [np.int32(1)], np.array([1]), torch.tensor(1), range(1, 2), {1}):
        with silence(model, {"0": units}, "zero"):
            assert (model(x) == 0).tolist() == [[False, True, False, False]] * 2
    with silence(model, {"0": [1]}, values={"0": [1.0, 2.0, 3.0, 4.0]}):  # any numbers (D,)
        assert model(x)[:, 1].tolist() == [2, 2]


def test_a_layer_that_is_not_called_is_named() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    message = "Nothing was silenced in b: never called"
    with pytest.warns(UserWarning, match=message), silence(model, {"a": [0], "b": [0]}):
        model["a"](torch.zeros(1, 2))


def test_hooks_go_on_interrupts() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(KeyboardInterrupt), silence(model, {"0": [0]}):
        raise KeyboardInterrupt
    assert not model[0]._forward_hooks


def test_looking_ahead_leaves_no_trace() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(3, 2, 1)
    )
    x, calls = torch.randn(4, 1, 5, 5), []
    model[4].register_forward_hook(lambda *_: calls.append(1))
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    first = other[:3](x).clone()
    first[:, 1] = 0
    expected = other[4](other[3](first))
    torch.manual_seed(0)
    with silence(model, {"2": [1]}, "zero"):
        assert torch.equal(model(x), expected)
        before = len(calls)
        model(x)
        assert len(calls) == before + 1  # it looks once
    assert int(model[1].num_batches_tracked) == 2
    assert not model._forward_pre_hooks
