"""Sets silenced side by side, from what comes before the layer on, against one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_neurocorr.ablation.filling import Fill
from lightning_neurocorr.ablation.halves import Chunk
from lightning_neurocorr.ablation.replay import Prelude
from lightning_neurocorr.ablation.silencing import silence
from lightning_neurocorr.ablation.together import Together
from lightning_neurocorr.activations import TokenMasks
from tests.ablation_models import (
    C,
    Chain,
    Clipped,
    Drawing,
    InPlaceAfterwards,
    Masked,
    Mixing,
    Model,
    N,
    OneByOne,
    Recurrent,
    Residual,
    Rounding,
    SequenceFirst,
    Shared,
    Sometimes,
    Tokens,
    TwoInputs,
    Unheard,
    made,
)

SETS = [(0,), (1, 2), (3,), (0, 1, 2, 3), (2,)]


MODELS: list[type[Model]] = [
    Chain, Residual, InPlaceAfterwards, Shared, Tokens, Recurrent, SequenceFirst, TwoInputs,
]  # fmt: skip


VALUE = torch.linspace(-1, 1, 12).double()


def slow(
    model: Model, forward: Callable[..., Tensor], chunk: Chunk, take: Any, units: tuple[int, ...]
) -> Tensor:
    """One sample at a time, with a hook that overwrites the units of the layer."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        said = (output[0] if isinstance(output, tuple) else output).clone()
        axis = 1 if said.ndim == 4 else -1
        for unit in units:
            said.select(axis, unit).fill_(VALUE[unit])
        return (said, *output[1:]) if isinstance(output, tuple) else said

    handle = model.layer.register_forward_hook(hook)
    rows = []
    for i in range(N):
        args, kwargs = take(chunk, torch.tensor([i]), N)
        rows.append(forward(*args, **kwargs)[0])
    handle.remove()
    return torch.stack(rows)


def together(kind: type[Model], **more: Any) -> tuple[Model, Together, Tensor, list[Tensor]]:
    """What is said side by side, ``(V, N, C)``, and what the slow loop says of each set."""
    model, forward = made(kind)
    chunk, take = model.data()
    size = 12 if kind is Tokens else 6
    expected = [slow(model, forward, chunk, take, units) for units in SETS]
    if hasattr(model.front, "samples"):
        model.front.samples = 0  # type: ignore[assignment]
    options: dict[str, Any] = {"fill": "mean", "value": VALUE[:size], "model": model, **more}
    tried = Together(
        forward, options.pop("model"), "layer", model.layer, seed=0, take=take, **options
    )
    with torch.no_grad():
        said = torch.cat(list(tried.run(chunk, N, SETS)))
    return model, tried, said, expected


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_sets_side_by_side_say_what_each_says_alone(kind: type[Model], known: bool) -> None:
    _, tried, said, expected = together(kind, **({} if known else {"model": None}))
    assert tried.note == ""
    torch.testing.assert_close(said, torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", MODELS)
def test_in_groups_what_comes_before_is_computed_once(
    kind: type[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_neurocorr.ablation.together._FULL_ELSEWHERE", 2 * N)
    model, tried, said, expected = together(kind)
    assert tried.note == ""
    torch.testing.assert_close(said, torch.stack(expected), rtol=1e-9, atol=1e-9)
    if kind in (Chain, Residual, InPlaceAfterwards):
        # Two samples to learn from, a full batch with witnesses; untouched and all units alone.
        assert model.front.samples == 2 + (2 * N + 2) + 2 * N
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(("kind", "channels"), [(Chain, [0, 6]), (Residual, [6, 6, 6])])
def test_of_what_comes_before_only_what_others_read_is_kept(
    kind: type[Model], channels: list[int]
) -> None:
    model, forward = made(kind)
    (x,), _ = model.data()[0]
    with torch.no_grad():
        prelude = Prelude(model, model.layer, lambda: forward(x))
    # A chain goes on from its layer. Sums over a skip read what front and norm returned.
    places = 6 * 6 if kind is Chain else 8 * 8
    assert [6 * sum(call.needed) for call in prelude.calls] == channels
    assert prelude.kept_bytes == sum(channels) * places * N * 8


@pytest.mark.parametrize("fill", ["zero", "resample"])
@pytest.mark.parametrize("kind", MODELS)
def test_other_fills_are_those_of_each_set_alone(kind: type[Model], fill: Fill) -> None:
    model, forward = made(kind)
    chunk, take = model.data()
    tried = Together(forward, model, "layer", model.layer, fill, None, 3, take)
    with torch.no_grad(), TokenMasks(model):
        said = torch.cat(list(tried.run(chunk, N, SETS, 2)))
        for units, row in zip(SETS, said, strict=True):
            with silence({"layer": model.layer}, {"layer": units}, fill, seed=3 + 2):
                torch.testing.assert_close(
                    row, forward(*chunk[0], **chunk[1]), rtol=1e-9, atol=1e-9
                )
    assert tried.note == ""
    assert (said[0] - said[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [Mixing, Drawing, OneByOne])
def test_models_that_mix_samples_or_draw_are_run_one_set_at_a_time(kind: type[Model]) -> None:
    model, forward = made(kind)
    chunk, take = model.data()
    tried = Together(forward, model, "layer", model.layer, "mean", VALUE[:6], 0, take)
    with torch.no_grad():
        said = torch.cat(list(tried.run(chunk, N, SETS)))
    assert tried.note.startswith("neurons were silenced one set at a time: side by side in a batch")
    assert said.shape == (len(SETS), N, C)
    if kind is Mixing:
        expected = [alone(model, forward, chunk, units) for units in SETS]
        torch.testing.assert_close(said, torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("later", [N, 4])
@pytest.mark.parametrize("kind", [Masked, Unheard, Sometimes])
def test_mixed_samples_are_seen_in_whatever_chunk_or_set(
    kind: type[Model], later: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_neurocorr.ablation.together._FULL_ELSEWHERE", 2 * N)
    model, forward = made(kind)
    (args, kwargs), take = model.data()
    sets = [(0,), (1,), (0, 1), (2,), (3, 5), (4,)]
    tried = Together(forward, model, "layer", model.layer, "mean", VALUE[:6], 0, take)
    for which, sign in enumerate((-1, 1)):
        x = args[0][: later if which else N].clone()
        x[0, 0, 0, 0] = sign
        chunk = ((x,), kwargs)
        with torch.no_grad():
            said = torch.cat(list(tried.run(chunk, len(x), sets, which)))
        expected = torch.stack([alone(model, forward, chunk, units) for units in sets])
        torch.testing.assert_close(said, expected, rtol=1e-9, atol=1e-9)
    assert "samples are mixed" in tried.note


def test_mixed_samples_are_seen_in_whatever_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only beside unit 4, and not with all units silent: no look at the first forward shows it."""
    monkeypatch.setattr("lightning_neurocorr.ablation.together._FULL_ELSEWHERE", 2 * N)
    model, forward = made(Clipped)
    chunk, take = model.data()
    sets = [(0,), (1,), (2,), (3,), (5,), (4,), (1, 2)]
    value = torch.tensor([50.0, 0, 0, 0, 50, 0]).double()
    tried = Together(forward, model, "layer", model.layer, "mean", value, 0, take)
    with torch.no_grad():
        said = torch.cat(list(tried.run(chunk, N, sets)))
        for units, found in zip(sets, said, strict=True):
            with silence({"layer": model.layer}, {"layer": units}, values={"layer": value}):
                torch.testing.assert_close(found, forward(*chunk[0]), rtol=1e-9, atol=1e-9)
    assert "samples are mixed" in tried.note


def test_a_short_chunk_that_is_rounded_otherwise_mixes_no_samples() -> None:
    model, forward = made(Rounding)
    model.float()
    (args, _), take = model.data()
    tried = Together(forward, model, "layer", model.layer, "mean", VALUE[:6].float(), 0, take)
    for which, length in enumerate((N, 2, N, 2)):
        chunk = ((args[0][:length].float(),), {})
        with torch.no_grad():
            said = torch.cat(list(tried.run(chunk, length, SETS, which)))
        expected = torch.stack([alone(model, forward, chunk, units) for units in SETS])
        torch.testing.assert_close(said, expected, rtol=1e-5, atol=0)
    assert tried.note == ""


def alone(
    model: Model, forward: Callable[..., Tensor], chunk: Chunk, units: tuple[int, ...]
) -> Tensor:
    def hook(_: Any, __: Any, output: Tensor) -> Tensor:
        said = output.clone()
        said[:, list(units)] = VALUE[list(units)][:, None, None].to(said)
        return said

    handle = model.layer.register_forward_hook(hook)
    found = forward(*chunk[0], **chunk[1])
    handle.remove()
    return found


def test_out_of_memory_fewer_sets_go_side_by_side() -> None:
    model, forward = made(Chain)
    chunk, take = model.data()
    sizes: list[int] = []

    def tight(x: Tensor) -> Tensor:
        sizes.append(len(x))
        if len(x) > 3 * N:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x)

    expected = torch.stack([slow(model, forward, chunk, take, units) for units in SETS])
    tried = Together(tight, model, "layer", model.layer, "mean", VALUE[:6], 0, take)
    with torch.no_grad():
        said = torch.cat(list(tried.run(chunk, N, SETS)))
    assert tried.note == ""
    torch.testing.assert_close(said, expected, rtol=1e-9, atol=1e-9)
    assert max(sizes[2:]) == 6 * N + 2  # five sets, and none; witnesses
    tried = Together(tight, model, "layer", model.layer, "mean", VALUE[:6], 0, take, room=1)
    sizes.clear()
    with torch.no_grad():
        list(tried.run(chunk, N, SETS))
    assert max(sizes) == N + 2
