"""Padding is not a token: masks by their documented meaning, or refused in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Ablation, NeuronAdvantage, record
from lightning_neurocorr.activations import TokenMasks
from tests.padded import LOWEST, SAME, N, T, Tagger, Text, against, lengths, real_tokens, texts
from tests.paper_model import paper_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*nested.*:UserWarning")

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "bool": lambda real: real,
    "whole numbers": lambda real: real.long(),
    "documents": lambda real: 2 * real.long(),
    "float": lambda real: real.float(),
    "added": lambda real: torch.where(real, 0.0, -torch.inf),
    "added, of four axes": lambda real: torch.where(real, 0.0, LOWEST)[:, None, None],
    "added, one seen by all": lambda real: torch.where(real, 0.0, LOWEST).index_fill(
        1, torch.tensor(T - 1), -LOWEST
    ),
    "of four axes": lambda real: real[:, None, None],
}


def by_hand(values: Tensor, real: Tensor) -> Tensor:
    return torch.stack([row[mask].mean(0) for row, mask in zip(values, real, strict=True)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", ["several", "full"])
def test_attention_masks_by_their_documented_meaning(form: str, sizes: str) -> None:
    model, x = Tagger(), torch.randn(N, T, 3)
    real = real_tokens(lengths() if sizes == "several" else torch.full((N,), T), left=True)
    with record(model, "layer") as recorder:
        model(x, FORMS[form](real))
        taken, problems = recorder.take()
    assert not problems
    assert not recorder.doubts()
    torch.testing.assert_close(taken["layer"], by_hand(model.layer(x), real))


@pytest.mark.parametrize("named", ["positional", "keyword", "batch"])
def test_a_mask_is_found_wherever_it_is_handed_over(named: str) -> None:
    class Whole(Tagger):
        def forward(self, x: Any, attention_mask: Any = None) -> Tensor:
            return super().forward(x["ids"] if isinstance(x, dict) else x)

    model, x, real = Whole(), torch.randn(N, T, 3), real_tokens(lengths())
    calls = {
        "positional": lambda: model(x, real),
        "keyword": lambda: model(x, attention_mask=real),
        "batch": lambda: model({"ids": x, "attention_mask": real}),
    }
    with record(model, "layer") as recorder:
        calls[named]()
        taken, _ = recorder.take()
    torch.testing.assert_close(taken["layer"], by_hand(model.layer(x), real))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(N, 1, T, T), r"`attention_mask` of shape \(48, 1, 6, 6\) does not say"),
        (
            torch.ones(T, T).tril(),
            r"are \(48, 6\), but token masks are of shape \(6, 6\)",
        ),
        (torch.ones(N, T + 1), r"are \(48, 6\), but token masks are of shape \(48, 7\)"),
    ],
)
def test_masks_that_do_not_say_it_are_refused_by_name(mask: Tensor, message: str) -> None:
    model = Tagger()
    with record(model) as recorder:
        model(torch.randn(N, T, 3), mask)
        taken, problems = recorder.take()
    assert list(taken) == ["head"]  # one position per sample
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problems["layer"])
    assert "`token_mask`" in problems["layer"]


@pytest.mark.parametrize(
    ("mask", "samples", "reason"),
    [
        (torch.ones(T, T).tril(), T, "what each token sees"),
        (torch.full((N, T), -3.0), N, "hide a token in part"),
        (torch.zeros(N, T, dtype=torch.long), N, "a sample has no real token"),
    ],
)
def test_doubts_are_said_when_a_validation_ends(mask: Tensor, samples: int, reason: str) -> None:
    model = Tagger()
    with record(model, "layer") as recorder:
        model(torch.randn(samples, T, 3), mask)
        recorder.take()
    assert reason in recorder.doubts()["layer"]


def test_the_first_and_last_token_are_real_ones() -> None:
    model, x, sizes = Tagger(), torch.randn(N, T, 3), lengths()
    real = real_tokens(sizes, left=True)
    for pooling, at in (("cls", T - sizes), ("last", torch.full((N,), T - 1))):
        with record(model, "layer", pooling) as recorder:
            model(x, real)
            taken, _ = recorder.take()
        torch.testing.assert_close(taken["layer"], model.layer(x)[torch.arange(N), at])


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_layers_without_tokens_are_refused_in_words(pooling: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(2), nn.Conv1d(3, 2, 1), nn.Flatten())
    with record(model, pooling=pooling) as recorder:
        model(torch.randn(2, 1, 4, 4))
        taken, problems = recorder.take()
    assert not taken
    for layer in ("0", "2"):
        assert f"pooling='{pooling}' takes one token of a layer (N, T, D)" in problems[layer]


def test_token_mask_says_it_where_calls_do_not() -> None:
    model, data = Text(told=False).eval(), texts()
    masks = {
        "callable": lambda batch: batch[0] != 0,
        "several": lambda batch: [batch[0] != 0, torch.ones(len(batch[0]), T + 3)[:, :-1] > 0],
        "whole numbers": lambda batch: (batch[0] != 0).long(),
    }
    whole: dict[str, Any] = {"collate_fn": torch.utils.data.default_collate}
    settings = Ablation(sizes=(), singles=3, random_sets=1, by="mean")
    for mask in masks.values():
        found = against(model, data, N, token_mask=mask, ablation=settings, **whole)
        assert np.isfinite(found.column("attribution")).any()
        with torch.no_grad():
            ids = torch.stack([row for row, _, _ in data])
            spoken = model.before(model.embed(ids))
        pooled = by_hand(spoken, ids != 0).double().numpy()
        at = [row.mean for row in found.rows if row.layer == "before"]
        np.testing.assert_allclose(at, pooled.mean(0), atol=1e-5)
        everywhere = spoken[ids != 0].double().mean(0)
        at = [row.mean_over_positions for row in found.rows if row.layer == "before"]
        np.testing.assert_allclose(at, everywhere, atol=1e-5)
        again = against(model, data, 5, token_mask=mask, ablation=settings, **whole)
        for name in (*SAME, "ablation"):
            np.testing.assert_allclose(found.column(name), again.column(name), atol=2e-5)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (lambda batch: (batch[0] != 0).float(), ValueError, "bools .* got torch.float32"),
        (lambda batch: (batch[0] != 0)[:3], ValueError, r"one row for each of 16 samples.*\(3, "),
        (lambda batch: "mask", TypeError, "a tensor .* got str"),
        (lambda batch: batch[0][0] != 0, ValueError, "bools"),
        ("mask", ValueError, "`token_mask` to name a part of the batch, but got 'mask'"),
        (1.5, TypeError, "token_mask"),
    ],
)
def test_what_is_no_token_mask(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        against(Text(told=False).eval(), texts(), token_mask=mask)


def test_two_callbacks_each_have_their_own_mask() -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Text(told=False)

        def forward(self, ids: Tensor) -> Tensor:
            return self.net(ids)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    module = Module().eval()
    ids = torch.stack([row for row, _, _ in texts()])
    y, answers = torch.arange(N) % 2, torch.zeros(N).long()
    loader = DataLoader(TensorDataset(ids, y, answers), 16)
    first = torch.arange(ids.shape[1]) < 3
    callbacks = [
        NeuronAdvantage(
            lambda b: b[2], "net.before", target=1, visualizer=None, name=name,
            token_mask=lambda b, mask=mask: mask.expand(len(b[0]), -1),
        )
        for name, mask in {"start": first, "end": ~first}.items()
    ]  # fmt: skip
    paper_trainer(*callbacks).validate(module, loader, verbose=False)
    with torch.no_grad():
        spoken = module.net.before(module.net.embed(ids)).double()
    for callback, mask in zip(callbacks, (first, ~first), strict=True):
        assert callback.report is not None
        found = [row.mean for row in callback.report.rows]
        np.testing.assert_allclose(found, spoken[:, mask].mean((0, 1)), atol=1e-5)


class Towers(nn.Module):
    """Two encoders, each with a mask of its own or none."""

    def __init__(self, first: bool, second: bool, of_one_length: bool) -> None:
        super().__init__()
        self.told, self.cut = (first, second), 0 if of_one_length else 1
        self.one, self.two = Text(first), Text(second)
        self.after = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        other = ids.flip(0)[:, self.cut :]
        joined = self.one(ids) + self.two(other)
        self.after(self.one.embed(ids))
        return joined


def test_layers_of_two_towers_each_have_their_mask() -> None:
    model = Towers(True, True, of_one_length=True).eval()
    ids = torch.stack([row for row, _, _ in texts()])
    ids[:, 0] = 0  # not that both masks are of the same tokens
    with record(model, ["two.encoder.layers.0.linear2", "after"]) as recorder:
        model(ids.roll(-1, 1))
        taken, problems = recorder.take()
    assert not problems
    assert "differ" in recorder.doubts()["after"]  # which tower is it of?
    assert "two.encoder.layers.0.linear2" not in recorder.doubts()
    alone = Text().eval()
    alone.load_state_dict(model.two.state_dict())
    with record(alone, "encoder.layers.0.linear2") as recorder:
        alone(ids.roll(-1, 1).flip(0))
        expected, _ = recorder.take()
    torch.testing.assert_close(
        taken["two.encoder.layers.0.linear2"], expected["encoder.layers.0.linear2"]
    )


def test_a_mask_that_comes_after_a_layer_is_not_ignored() -> None:
    model = Towers(False, True, of_one_length=True).eval()
    with record(model, ["one.before", "two.before", "one.encoder.layers.0.linear2"]) as recorder:
        model(torch.stack([row for row, _, _ in texts()]))
        taken, problems = recorder.take()
    # The first encoder has none, and says so; what is in front of the second cannot know.
    assert "one.encoder.layers.0.linear2" in taken
    assert "its token mask came after it" in problems["two.before"]


def test_a_layer_of_another_length_is_left_out() -> None:
    class Prepended(Text):
        def forward(self, ids: Tensor) -> Tensor:
            first = self.embed(torch.zeros_like(ids[:, :1]))
            hidden = torch.cat([first, self.before(self.embed(ids))], 1)
            padded = torch.cat([ids[:, :1] != ids[:, :1], ids == 0], 1)
            return self.head(self.encoder(hidden, src_key_padding_mask=padded)[:, 0])

    found = against(Prepended().eval(), texts())
    assert "before" not in found.layers
    assert "encoder.layers.0.linear2" in found.layers
    assert any("before was left out: its samples and positions are" in n for n in found.notes)


def test_looking_for_masks_changes_nothing_and_leaves_nothing() -> None:
    model, ids = Text().eval(), torch.stack([row for row, _, _ in texts()])
    with torch.no_grad():
        before = model(ids)  # on the fast path
        with TokenMasks(model):
            assert torch.equal(model(ids), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


class Renamed(nn.Linear):
    """A method of its own that takes a mask, as its class does not."""

    def masked(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(x * attention_mask[..., None])


def test_signatures_are_read_once_a_method_and_not_once_a_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(*(Renamed(3, 3) for _ in range(20)))
    for part in (model[7], model[11]):
        part.forward = part.masked
    read, real = [], inspect.signature
    monkeypatch.setattr(inspect, "signature", lambda call: read.append(call) or real(call))
    masks = TokenMasks(model)
    assert len(read) == 3  # of the chain, of linear layers, of those two
    with masks:
        x, real_tokens = torch.randn(2, 5, 3), torch.ones(2, 5)
        model[7](x, real_tokens), model[11](x, attention_mask=real_tokens)
        assert masks.lengths == {5}
        assert len(masks._forward.seen) == 2
