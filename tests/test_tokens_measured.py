"""What is measured of padded sequences is that of their real tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_neurocorr import Ablation, NeuronAdvantage, record
from lightning_neurocorr.ablation import silence
from lightning_neurocorr.activations import TokenMasks
from lightning_neurocorr.attribution import attribute
from tests.padded import SAME, N, T, Tagger, Text, against, lengths, real_tokens, texts, trimmed
from tests.paper_model import paper_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*nested.*:UserWarning")


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
