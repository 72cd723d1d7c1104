"""Sets silenced side by side, from what comes before the layer on, against one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Ablation, BatchBaseline, NeuronAdvantage
from lightning_neurocorr.ablation.halves import Chunk, take_rows
from lightning_neurocorr.ablation.plan import extent
from lightning_neurocorr.ablation.replay import Prelude
from lightning_neurocorr.ablation.silencing import Fill, silence
from lightning_neurocorr.ablation.together import Together
from lightning_neurocorr.activations import TokenMasks
from lightning_neurocorr.report import NeuronReport
from tests.neurons import seeded
from tests.paper_model import paper_trainer

N, C = 7, 3
SETS = [(0,), (1, 2), (3,), (0, 1, 2, 3), (2,)]


class Counting(nn.Module):
    """Counts the samples that it really computes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.samples = 0

    def forward(self, x: Tensor, *more: Any) -> Any:
        self.samples += len(x)
        return self.inner(x, *more)


class Model(nn.Module):
    """In front of the silenced ``layer`` stands ``front``."""

    front: nn.Module
    layer: nn.Module

    def data(self) -> tuple[Chunk, Callable[..., Any]]:
        return ((torch.randn(N, 3, 8, 8, generator=seeded()).double(),), {}), take_rows


class Chain(Model):
    def __init__(self) -> None:
        super().__init__()
        self.front = Counting(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(inplace=True)))
        self.layer = nn.Conv2d(5, 6, 3)
        self.rest = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 36, C))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.layer(self.front(x)))


class Residual(Model):
    """Skips from before the layer, sums in place, functions between modules."""

    def __init__(self) -> None:
        super().__init__()
        self.front = Counting(nn.Conv2d(3, 6, 3, padding=1))
        self.norm, self.layer = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.after, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, C)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        skip = self.norm(x)
        skip += x
        out = self.relu(self.layer(torch.relu(skip)))
        out = self.after(out)
        out += skip * x.sigmoid()
        return self.head(self.relu(out).mean((2, 3)))


class InPlaceAfterwards(Model):
    """What a module in front returned is written into once the layer has spoken."""

    def __init__(self) -> None:
        super().__init__()
        self.front = Counting(nn.Conv2d(3, 6, 3, padding=1))
        self.layer, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.front(x)
        kept.add_(self.layer(kept))
        return self.head(kept.mean((2, 3)))


class Shared(Model):
    """The layer speaks twice, and so does what stands in front."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.layer = Counting(nn.Linear(6, 6)), nn.Linear(6, 6)
        self.head = nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.layer(self.front(x).tanh()).tanh()
        return self.head(x)

    def data(self) -> tuple[Chunk, Callable[..., Any]]:
        return ((torch.randn(N, 6, generator=seeded()).double(),), {}), take_rows


class Tokens(Model):
    """A transformer with padding; positions from a table, a token for the class."""

    def __init__(self) -> None:
        super().__init__()
        self.front = Counting(nn.Embedding(11, 8))
        self.first, self.block = (
            nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.cls, self.table = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(6, 8))
        self.head = nn.Linear(8, C)

    @property
    def layer(self) -> nn.Module:
        return self.block.linear1

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(ids), -1, -1), self.front(ids)], 1) + self.table
        padding = torch.cat([attention_mask.new_zeros(len(ids), 1), ~attention_mask], 1)
        x = self.block(self.first(x, src_key_padding_mask=padding), src_key_padding_mask=padding)
        return self.head(x[:, 0])

    def data(self) -> tuple[Chunk, Callable[..., Any]]:
        ids = torch.randint(0, 11, (N, 5), generator=seeded())
        mask = torch.arange(5) < torch.randint(2, 6, (N, 1), generator=seeded(1))
        return ((ids,), {"attention_mask": mask}), take_rows


class Recurrent(Model):
    """An LSTM behind another; ``first`` says whether samples come first."""

    first = True

    def __init__(self) -> None:
        super().__init__()
        self.front = Counting(nn.LSTM(4, 6, batch_first=self.first))
        self.layer = nn.LSTM(6, 6, batch_first=self.first)
        self.head = nn.Linear(12, C)

    def forward(self, x: Tensor) -> Tensor:
        heard, (state, _) = self.front(x)
        said, (_, cell) = self.layer(heard, None)
        return self.head(torch.cat([said.mean(1 if self.first else 0), state[-1] + cell[-1]], 1))

    def data(self) -> tuple[Chunk, Callable[..., Any]]:
        x = torch.randn(N, 5, 4, generator=seeded()).double()
        if self.first:
            return ((x,), {}), take_rows
        return ((x.transpose(0, 1),), {}), lambda chunk, rows, _: ((chunk[0][0][:, rows],), {})


class SequenceFirst(Recurrent):
    first = False


@dataclass
class Both:
    near: Tensor
    far: Tensor


class TwoInputs(Model):
    """Two inputs, one by keyword, and a module in front that returns an object of its own."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 6), nn.Linear(2, 6)

        def forward(self, x: Tensor, y: Tensor) -> Both:
            return Both(self.one(x), self.other(y))

    def __init__(self) -> None:
        super().__init__()
        self.front = Counting(self.Pair())
        self.before, self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, C)

    def forward(self, x: Tensor, *, y: Tensor, scale: float) -> dict[str, Tensor]:
        both = self.front(x, y)
        hidden = self.layer(self.before(both.near + both.far).tanh()).tanh()
        return {"logits": self.head(hidden * scale + both.far)}

    def data(self) -> tuple[Chunk, Callable[..., Any]]:
        x, y = (torch.randn(N, d, generator=seeded(d)).double() for d in (4, 2))
        return ((x,), {"y": y, "scale": 2.0}), take_rows


MODELS: list[type[Model]] = [
    Chain, Residual, InPlaceAfterwards, Shared, Tokens, Recurrent, SequenceFirst, TwoInputs,
]  # fmt: skip


class Mixing(Chain):
    """Every sample is told from the mean of its batch, behind the layer."""

    def forward(self, x: Tensor) -> Tensor:
        said = self.layer(self.front(x))
        return self.rest(said - said.mean(0))


class Masked(Mixing):
    """A class that is never an answer has a logit that is a measure of nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x)[:, :-1], x.new_full((len(x), 1), -1e9)], 1)


class Unheard(Mixing):
    """Of the silenced units the first is of no weight, so that the first sets mix nothing."""

    def forward(self, x: Tensor) -> Tensor:
        said = self.layer(self.front(x)) * (torch.arange(6) > 2).view(1, 6, 1, 1)
        return self.rest(said - said.mean(0))


class Sometimes(Mixing):
    """Mixes samples where the first one starts with a positive number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x[0, 0, 0, 0] > 0 else Chain.forward(self, x)


class Drawing(Chain):
    def forward(self, x: Tensor) -> Tensor:
        said = super().forward(x)
        return said + torch.randn_like(said)


class OneByOne(Chain):
    """Takes no more samples than it was made for."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, 3, 8, 8)) if len(x) <= N else super().forward(x[:0])


def made(kind: type[Model]) -> tuple[Model, Callable[..., Tensor]]:
    torch.manual_seed(0)
    model = kind().double().eval().requires_grad_(False)

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        said = model(*args, **kwargs)
        return said["logits"] if isinstance(said, dict) else said

    return model, forward


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
        # Two samples to learn from, one full batch to keep; untouched, first and last set alone.
        assert model.front.samples == 2 + 2 * N + 3 * N
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


@pytest.mark.parametrize("kind", [Masked, Unheard, Sometimes])
def test_mixed_samples_are_seen_in_whatever_chunk_or_set(
    kind: type[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_neurocorr.ablation.together._FULL_ELSEWHERE", 2 * N)
    model, forward = made(kind)
    (args, kwargs), take = model.data()
    sets = [(0,), (1,), (0, 1), (2,), (3, 5), (4,)]
    tried = Together(forward, model, "layer", model.layer, "mean", VALUE[:6], 0, take)
    for which, sign in enumerate((-1, 1)):
        x = args[0].clone()
        x[0, 0, 0, 0] = sign
        chunk = ((x,), kwargs)
        with torch.no_grad():
            said = torch.cat(list(tried.run(chunk, N, sets, which)))
        expected = torch.stack([alone(model, forward, chunk, units) for units in sets])
        torch.testing.assert_close(said, expected, rtol=1e-9, atol=1e-9)
    assert "samples are mixed" in tried.note


def alone(
    model: Model, forward: Callable[..., Tensor], chunk: Chunk, units: tuple[int, ...]
) -> Tensor:
    def hook(_: Any, __: Any, output: Tensor) -> Tensor:
        said = output.clone()
        said[:, list(units)] = VALUE[list(units)][:, None, None]
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
    assert max(sizes[2:]) == 5 * N
    tried = Together(tight, model, "layer", model.layer, "mean", VALUE[:6], 0, take, room=1)
    sizes.clear()
    with torch.no_grad():
        list(tried.run(chunk, N, SETS))
    assert max(sizes) == N


# --- a whole study -------------------------------------------------------------------------------


class Own(pl.LightningModule):
    """A LightningModule whose forward is its own, with a network inside."""

    def __init__(self, *, writes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.writes = writes
        self.stem = nn.Sequential(nn.Conv2d(1, 20, 3, padding=1), nn.ReLU(inplace=True))
        self.deep = nn.Conv2d(20, 20, 3, padding=1)
        self.head = nn.Linear(20 * 36, C)
        self.samples: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.samples.append(len(x))
        x = x.mul_(2).add_(1) if self.writes else x * 2 + 1
        hidden = self.stem(x)
        return self.head((self.deep(hidden).relu() + hidden).flatten(1))

    def validation_step(self, batch: list[Tensor]) -> None:
        self(batch[0])


def validated(
    *, writes: bool = False, prepared: bool = False, **settings: Any
) -> tuple[Own, NeuronReport, Any]:
    model = Own(writes=writes).eval()
    x = torch.randn(500, 1, 6, 6, generator=seeded())
    with torch.no_grad():
        logits = model(x.clone())
        model.head.bias -= logits.mean(0)
        target = model(x.clone()).argmax(1)
    missed = torch.rand(len(x), generator=seeded(1)) < 0.3
    answer = torch.where(missed, (target + 1) % C, target)
    model.samples.clear()
    ablation = Ablation(
        by="r", **{"sizes": (1, 2), "random_sets": 4, "time_budget_s": None, **settings}
    )
    callback = NeuronAdvantage(
        BatchBaseline(2), "*", target=1, ablation=ablation, visualizer=None, attribution=False
    )
    loader = DataLoader(TensorDataset(x, target, answer), batch_size=50)
    trainer = paper_trainer(callback, precision="64-true" if prepared else "32-true")
    if prepared:  # the data set holds half of what the model is for
        loader = DataLoader(TensorDataset(x / 2, target, answer), batch_size=50)
        model.on_before_batch_transfer = doubled
    trainer.validate(model, loader, verbose=False)
    assert callback.report is not None
    return model, callback.report, callback.report.studies["ablation"]


def test_a_study_costs_few_calls_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, report, found = validated()
    calls, samples = len(model.samples), sum(model.samples)
    forwards = found.numbers["forwards"]
    monkeypatch.setattr(Together, "_side_by_side", failing)
    slow_model, slow_report, slow_found = validated()
    for name in ("ablation", "ablation_control", "ablation_advantage", "ablation_shared"):
        numbers = report.column(name)
        assert np.isfinite(numbers).any()
        np.testing.assert_allclose(numbers, slow_report.column(name), rtol=0, atol=1e-6)
    assert sum("one set at a time" in note for note in slow_found.notes) == 3
    assert not [note for note in found.notes if "one set at a time" in note]
    # With 64 samples in a chunk four sets go side by side.
    assert slow_found.numbers["forwards"] == forwards
    assert calls < len(slow_model.samples) / 2.2  # one of them checks each chunk
    assert samples < 1.6 * forwards


def test_a_model_that_writes_into_its_inputs_gets_them_fresh_each_time() -> None:
    _, report, _ = validated()
    _, again, found = validated(writes=True)
    assert np.isfinite(report.column("ablation")).any()
    for name in ("ablation", "ablation_control", "ablation_advantage", "ablation_shared"):
        np.testing.assert_allclose(again.column(name), report.column(name), rtol=0, atol=1e-6)
    assert not [note for note in found.notes if "one set at a time" in note]


def test_no_layer_is_begun_once_the_time_is_over() -> None:
    model, _, found = validated(time_budget_s=1e-9)
    assert found.numbers["forwards"] == 0
    assert sum("not finished within its share" in note for note in found.notes) == 3
    assert sum(model.samples) < 2000  # validated, and heard untouched


def doubled(batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
    return [2 * batch[0], *batch[1:]]


def test_samples_are_run_again_as_lightning_prepares_them() -> None:
    _, report, _ = validated()
    _, again, _ = validated(prepared=True)
    assert np.isfinite(report.column("ablation")).any()
    for name in ("ablation", "ablation_control", "ablation_advantage", "ablation_shared"):
        np.testing.assert_allclose(again.column(name), report.column(name), rtol=0, atol=1e-5)


def failing(*_: Any) -> Iterator[Tensor]:
    raise ValueError("not today")
    yield


def test_what_it_costs_is_said_beforehand_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning_neurocorr"):
        _, _, found = validated()
    (said,) = [record.message for record in caplog.records if "forwards" in record.message]
    most = int(said.split("up to ")[1].split(" ")[0].replace(",", ""))
    sets = 2 * (1 + 4) + 16 + 2 * 4
    assert most % (3 * sets) == 0
    assert found.numbers["forwards"] <= most
    bound = 2 * sets * 64 * 3 + 1000
    _, _, bounded = validated(max_forwards=bound)
    assert bound < most
    assert 0 < bounded.numbers["forwards"] < min(bound, found.numbers["forwards"])
    assert [note for note in bounded.notes if "Up to 68 samples per group were taken" in note]
    _, _, least = validated(max_forwards=2 * sets * 64)
    assert 0 < least.numbers["forwards"] <= 2 * sets * 64
    assert sum("(`max_forwards`)" in note for note in least.notes) == 3


def test_the_extent_of_a_study() -> None:
    settings = Ablation()
    assert settings.most_sets == 4 * 21 + 16 + 2 * 20
    assert extent(settings, 3) == (3, 512, 3 * 2 * 140 * 512)
    assert extent(settings, 13) == (13, 512, 13 * 2 * 140 * 512)
    assert extent(settings, 54) == (54, 132, 54 * 2 * 140 * 132)
    assert extent(settings, 500) == (111, 64, 111 * 2 * 140 * 64)
    assert extent(settings, 0) == (0, 512, 0)
    with pytest.raises(ValueError, match="`max_forwards` to be a whole number of at least 17,920"):
        Ablation(max_forwards=17_919)
