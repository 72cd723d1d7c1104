"""Padding is not a token: masks by their documented meaning, or refused in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_neurocorr import Ablation, NeuronAdvantage, NeuronReport, compare, record
from lightning_neurocorr.ablation import silence
from lightning_neurocorr.activations import PaddedEnds, TokenMasks
from lightning_neurocorr.attribution import attribute
from tests.paper_model import paper_trainer

N, T = 48, 6
LOWEST = torch.finfo(torch.float32).min

pytestmark = pytest.mark.filterwarnings("ignore:.*nested.*:UserWarning")


def lengths(n: int = N) -> Tensor:
    return torch.randint(2, T + 1, (n,))


def real_tokens(sizes: Tensor, left: bool = False) -> Tensor:
    real = torch.arange(T) < sizes[:, None]
    return real.flip(1) if left else real


class Tagger(nn.Module):
    """A model of one's own, that is given a mask in some form under some name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, attention_mask: Any = None) -> Tensor:
        return self.head(self.layer(x).sum(1))


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "bool": lambda real: real,
    "whole numbers": lambda real: real.long(),
    "documents": lambda real: 2 * real.long(),
    "float": lambda real: real.float(),
    "added": lambda real: torch.where(real, 0.0, -torch.inf),
    "added, of four axes": lambda real: torch.where(real, 0.0, LOWEST)[:, None, None],
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


class Text(nn.Module):
    """Ids in, where 0 is padding that PyTorch's encoder is told of."""

    def __init__(self, told: bool = True) -> None:
        super().__init__()
        self.told = told
        self.embed = nn.Embedding(30, 8)
        self.before = nn.Linear(8, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        real = (ids != 0)[..., None]
        hidden = self.before(self.embed(ids)).add_(1)
        mask = ids == 0 if self.told else None
        hidden = self.encoder(hidden, src_key_padding_mask=mask)
        return self.head(hidden.masked_fill(~real, 0).sum(1) / real.sum(1))


def texts(n: int = N) -> list[tuple[Tensor, int, int]]:
    ids = torch.randint(1, 30, (n, T)).masked_fill(~real_tokens(lengths(n)), 0)
    return [(row, int(row[0]) % 2, int(i % 2)) for i, row in enumerate(ids)]


def trimmed(parts: list[tuple[Tensor, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """As long as the longest of the batch."""
    ids, y, answers = (torch.stack([torch.as_tensor(p[i]) for p in parts]) for i in range(3))
    return ids[:, : int((ids != 0).sum(1).max())], y, answers


def against(model: nn.Module, data: Any, size: int = 16, **more: Any) -> NeuronReport:
    loader = DataLoader(data, size, collate_fn=more.pop("collate_fn", trimmed))
    return compare(model, loader, lambda batch: batch[2], target=1, **more)


SAME = ("r", "mean", "mean_over_positions", "attribution")


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "last"])
def test_numbers_do_not_depend_on_the_batch(pooling: str) -> None:
    model, data = Text().eval(), texts()
    alone = against(model, data, 1, pooling=pooling)
    for size in (7, N):
        found = against(model, data, size, pooling=pooling)
        assert found.layers == alone.layers
        assert "before" in found.layers
        assert not any("Padding" in note for note in found.notes)
        for name in SAME:
            np.testing.assert_allclose(
                found.column(name), alone.column(name), atol=2e-5, err_msg=name
            )


@pytest.mark.parametrize("padding", [0.0, torch.nan])
def test_what_padding_says_does_not_matter(padding: float) -> None:
    model, x, real = Tagger(), torch.randn(N, T, 3), real_tokens(lengths())
    filled = x.masked_fill(~real[..., None], padding)
    for pooling in ("mean", "max", "cls", "last"):
        with record(model, "layer", pooling) as recorder:
            model(filled, real)
            taken, _ = recorder.take()
        reduce = {
            "mean": lambda a: a.mean(0), "max": lambda a: a.amax(0),
            "cls": lambda a: a[0], "last": lambda a: a[-1],
        }[pooling]  # fmt: skip
        rows = zip(model.layer(x), real, strict=True)
        expected = torch.stack([reduce(row[mask]) for row, mask in rows])
        torch.testing.assert_close(taken["layer"], expected)


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
        assert (
            found.layers == tuple(n for n in Text.__init__.__code__.co_names if 0) or found.layers
        )
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


# --- without a mask -------------------------------------------------------------------------------


def noted(found: NeuronReport) -> bool:
    return any("Padding may count as tokens" in note for note in found.notes)


def test_where_lengths_may_differ_a_note_says_so() -> None:
    model = Text(told=False).eval()
    whole: dict[str, Any] = {"collate_fn": torch.utils.data.default_collate}
    assert noted(against(model, texts()))  # batches of several lengths
    assert noted(against(model, texts(), N, **whole))  # one id repeats at the ends
    assert not noted(against(Text().eval(), texts(), N, **whole))
    full = [(torch.randint(1, 30, (T,)), i % 2, i // 2 % 2) for i in range(N)]
    assert not noted(against(model, full, N, **whole))


def test_images_are_not_nagged() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.attend = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.patch(x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).flatten(1, 3))
            return self.head(self.attend(hidden, hidden, hidden)[0].mean(1))

    data = [(torch.zeros(1, 4, 4), i % 2, i // 2 % 2) for i in range(N)]  # equal at all ends
    model, whole = Patches().eval(), torch.utils.data.default_collate
    found = against(model, data, collate_fn=whole)
    assert not noted(found)
    assert "patch" in found.layers


@pytest.mark.parametrize("left", [False, True])
def test_padded_ends_of_ids_and_of_numbers(left: bool) -> None:
    real = real_tokens(lengths(), left)
    real[0] = real[0] & (real[0].cumsum(0) < 3) if not left else real[0]
    real[1] = torch.arange(T) < 2 if not left else torch.arange(T) >= T - 2
    ids = torch.randint(1, 10**6, (N, T))
    frames = torch.randn(N, T, 3)
    cases = [(ids * real, True), (ids, False), (frames * real[..., None], True), (frames, False)]
    for values, expected in cases:
        for arguments in (values, values.transpose(0, 1)):
            ends = PaddedEnds()
            for part in (slice(0, 20), slice(20, N)):
                at = values[part] if arguments is values else values[part].transpose(0, 1)
                ends.add(((at,), {}), len(values[part]))
            assert ends.found() is expected
    zeros_inside = ids * real
    zeros_inside[5:9, 2:4] = 0
    zeros_inside[5:9, [1, 4, 5, 0]] = 3
    ends = PaddedEnds()
    ends.add(((zeros_inside,), {}), N)
    assert not ends.found()


def test_a_callable_may_ask_for_the_mask() -> None:
    def median(activation: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return activation.flatten(1, -2).median(1).values if activation.ndim > 2 else activation
        hidden = activation.masked_fill(~mask[..., None], torch.nan)
        return hidden.nanmedian(1).values

    data, layer = texts(), ["before"]
    model = Text().eval()
    asks = against(model, data, 7, layers=layer, pooling=median)
    alone = against(model, data, 1, layers=layer, pooling=median)
    np.testing.assert_allclose(asks.column("r"), alone.column("r"), atol=1e-5)
    assert not any("sees padding" in note for note in asks.notes)
    found = against(model, data, 7, layers=layer, pooling=lambda a: a.amax(1))
    assert any("`pooling` sees padding in before" in note for note in found.notes)


@pytest.mark.parametrize("method", ["gradient", "path"])
def test_attribution_sums_over_real_tokens(method: str) -> None:
    model, x, real = Tagger(), torch.randn(N, T, 3), real_tokens(lengths())
    target = torch.arange(N) % 2
    with TokenMasks(model):  # its head hears padding too
        found = attribute(
            lambda: model(x, real), {"layer": model.layer}, target, 1 - target, method=method
        )
    u, v = found["layer"]
    weight = model.head.weight.detach().double()
    gradient = weight[target] - weight[1 - target]
    spoken = model.layer(x).detach().double().masked_fill(~real[..., None], 0)
    torch.testing.assert_close(v, gradient * real.sum(1)[:, None], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(u, gradient * spoken.sum(1), atol=1e-5, rtol=1e-5)


# --- silencing ------------------------------------------------------------------------------------


def test_silenced_neurons_say_the_mean_of_real_tokens() -> None:
    model, x, real = Tagger(), torch.randn(N, T, 3), real_tokens(lengths())
    spoken = model.layer(x).detach()
    with silence(model, {"layer": [1]}):
        found = model(x, real)
    silent = spoken.clone()
    silent[..., 1] = spoken[real][:, 1].mean()
    torch.testing.assert_close(found, model.head(silent.sum(1)))


def test_resampled_tokens_are_real_ones_of_another_sample() -> None:
    model, real = Tagger(), real_tokens(lengths())
    x = torch.randn(N, T, 3).masked_fill(~real[..., None], torch.nan)
    spoken = model.layer(x).detach()
    heard: list[Tensor] = []
    with silence(model, {"layer": [1]}, "resample"):
        handle = model.layer.register_forward_hook(lambda _m, _i, y: heard.append(y.detach()))
        model(x, real)
        handle.remove()
    owner = {float(v): i for i in range(N) for v in spoken[i, real[i], 1]}
    for i in range(N):
        said = [owner[float(v)] for v in heard[0][i, real[i], 1]]
        assert len(set(said)) == 1
        assert said[0] != i


def test_layers_in_front_of_the_mask_need_values() -> None:
    model, ids = Text().eval(), torch.stack([row for row, _, _ in texts()])
    message = "`values` for layers in front"
    with pytest.raises(ValueError, match=message), silence(model, {"before": [1]}):
        model(ids)
    with silence(model, {"before": [1]}, values={"before": torch.zeros(8)}):
        model(ids)
    model.told = False
    with silence(model, {"before": [1]}):
        model(ids)


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_nested_sequences_are_silenced_too(fill: Any) -> None:
    model, ids = Text().eval(), torch.stack([row for row, _, _ in texts()])
    layer = "encoder.layers.0.linear2"
    with silence(model, {layer: [2]}, fill):
        padded = model(ids)
        with torch.no_grad():
            nested = model(ids)
    torch.testing.assert_close(nested, padded.detach(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(ids), padded, atol=1e-6)


# --- hooks ----------------------------------------------------------------------------------------


def test_looking_for_masks_changes_nothing_and_leaves_nothing() -> None:
    model, ids = Text().eval(), torch.stack([row for row, _, _ in texts()])
    with torch.no_grad():
        before = model(ids)  # on the fast path
        with TokenMasks(model):
            assert torch.equal(model(ids), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_the_callback_reads_masks_too() -> None:
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self, told: bool) -> None:
            super().__init__()
            self.net = Text(told)

        def forward(self, ids: Tensor) -> Tensor:
            return self.net(ids)

        def validation_step(self, batch: Any, _: int) -> Any:
            return {"preds": self(batch[0]), "target": batch[1]}

    data, settings = texts(64), Ablation(sizes=(), singles=2, random_sets=1, by="mean")
    known, told = Module(told=True), Module(told=False)
    for module, options in (
        (known, {}),
        (told, {"token_mask": lambda batch: batch[0] != 0}),
    ):
        columns = []
        for size in (1, 64):
            callback = NeuronAdvantage(
                lambda batch: batch[2], target=1, visualizer=None, ablation=settings, **options
            )
            collate = trimmed if module is known else None
            loader = DataLoader(data, size, collate_fn=collate)
            paper_trainer(callback).validate(module, loader, verbose=False)
            assert callback.report is not None
            assert "net.before" in callback.report.layers
            columns.append(callback.report)
        for name in (*SAME, "ablation"):
            np.testing.assert_allclose(
                columns[0].column(name), columns[1].column(name), atol=2e-5, err_msg=name
            )


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
