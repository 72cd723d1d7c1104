"""Every watched layer of well-known models has as many neurons as the model says it is wide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_neurocorr.activations import SiteRecorder, choose_layers

N = 3
Layers = dict[str, int]  # further layers, and how wide they are


def widths(
    model: nn.Module, run: Callable[[], Any], batch: Any, more: Layers, unit_axis: Any = None
) -> tuple[dict[str, int], dict[str, str]]:
    """Neurons by layer, of which each sample has its own; and the layers that cannot be read."""
    layers = choose_layers(model) | {name: model.get_submodule(name) for name in more}
    with torch.no_grad(), SiteRecorder(model, layers, unit_axis=unit_axis) as recorder:
        found = []
        for _ in range(2):  # found in the first batch, listened to in the second
            recorder.begin(batch)
            run()
            recorder.pause()
            found.append(recorder.take(N))
    (first, problems), (second, _) = found
    assert recorder._finder.trace.fault is None
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert torch.equal(values, second[name]), name
    return {name: values.shape[1] for name, values in first.items()}, problems


def said(model: nn.Module, more: Layers) -> dict[str, int]:
    """How wide the layers of a model say they are."""
    found = dict(more)
    for name, layer in choose_layers(model).items():
        if isinstance(layer, _ConvNd):
            found[name] = layer.out_channels
        elif isinstance(layer, nn.Linear):
            found[name] = layer.out_features
        else:
            found[name] = layer.embed_dim if hasattr(layer, "embed_dim") else layer.nf
    return found


def check(model: nn.Module, batch: Any, more: Layers | None = None, unseen: int = 0) -> None:
    model.eval()
    more = more or {}

    def run() -> Any:
        return model(**batch) if isinstance(batch, dict) else model(batch)

    found, problems = widths(model, run, batch, more)
    expected = said(model, more)
    assert found == {name: width for name, width in expected.items() if name in found}
    assert len(problems) == unseen, problems
    assert found.keys() | problems.keys() == expected.keys()


def images(size: int) -> Tensor:
    return torch.randn(N, 3, size, size, generator=torch.Generator().manual_seed(0))


SWIN = {"features.1": 24, "features.1.0.mlp.1": 96, "features.2": 48, "features.1.0.attn": 24}
SWIN |= {"norm": 48, "permute": 48, "features.1.0.norm1": 24, "features": 48}
VISION: dict[str, tuple[Callable[[], nn.Module], int, Layers, int]] = {
    "swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4]),
        32, SWIN, 8,
    ),
    "convnext": (
        lambda: torchvision.models.convnext_tiny(num_classes=7),
        32, {"features.1": 96, "features.1.0.block.4": 384, "features.1.0.block.1": 96,
             "features.1.0.block": 96, "features.7": 768, "avgpool": 768}, 0,
    ),
    "vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 48),
        32, {"encoder.ln": 16, "encoder": 16, "encoder.layers.encoder_layer_0.mlp": 16,
             "encoder.layers.encoder_layer_0": 16}, 0,
    ),
    "mobilenet_v3": (
        torchvision.models.mobilenet_v3_small,
        32, {"features.0.2": 16, "features": 576, "features.4.block.2": 96, "avgpool": 576}, 0,
    ),
    "efficientnet": (
        torchvision.models.efficientnet_b0,
        32, {"features.1.0.block.1": 32, "features": 1280}, 0,
    ),
    "regnet": (torchvision.models.regnet_y_400mf, 32, {"trunk_output": 440}, 0),
    "densenet": (
        lambda: torchvision.models.DenseNet(8, (2, 2), 16),
        32, {"features": 32, "features.denseblock1": 32, "features.transition1.relu": 32}, 0,
    ),
    "googlenet": (
        lambda: torchvision.models.GoogLeNet(num_classes=5, init_weights=False),
        64, {"inception3a": 256, "maxpool2": 192}, 6,
    ),
    "inception": (
        lambda: torchvision.models.Inception3(num_classes=5, init_weights=False, aux_logits=False),
        75, {"Mixed_5b": 256, "maxpool1": 64}, 0,
    ),
    "video": (torchvision.models.video.r3d_18, 16, {"layer1": 64, "stem.2": 64}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", VISION)
def test_torchvision(name: str) -> None:
    build, size, more, unseen = VISION[name]
    batch = images(size)
    if name == "video":
        batch = batch[:, :, None].expand(-1, -1, 4, -1, -1)
    check(build(), batch, more, unseen)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(True))
        self.down2 = nn.Sequential(nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(True))
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.last = nn.Sequential(nn.Conv2d(12, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 2, 1))
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        deep = self.down2(self.pool(skip))
        joined = torch.cat([skip, self.up(deep) + self.grow(deep)[:, :6]], 1)
        return self.last(joined)


class Audio(nn.Module):
    """112 time steps behind the first convolution, for 8 units."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(1, 8, 17), nn.Conv1d(8, 5, 9)
        self.relu, self.pool, self.head = nn.ReLU(), nn.MaxPool1d(2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        return self.head(self.conv2(x).relu().mean(-1))


class Solid(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(1, 4, 3), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(4 * 27, 6)
        )


class Recurrent(nn.Module):
    def __init__(self, kind: Any, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Embedding(20, 6)
        self.rnn = kind(6, 10, batch_first=batch_first, bidirectional=True)
        self.norm, self.drop, self.head = nn.LayerNorm(20), nn.Dropout(), nn.Linear(20, 4)

    def forward(self, ids: Tensor) -> Tensor:
        steps = self.embed(ids if self.batch_first else ids.T)
        out = self.drop(self.norm(self.rnn(steps)[0]))
        return self.head(out).mean(1 if self.batch_first else 0)


class Translator(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Embedding(20, 8)
        self.transformer = nn.Transformer(8, 2, 1, 1, 24, batch_first=batch_first)
        self.act, self.head = nn.GELU(), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids if self.batch_first else ids.T)
        out = self.act(self.transformer(x, x))
        return self.head(out).mean(1 if self.batch_first else 0)


class Encoder(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        layer = nn.TransformerEncoderLayer(8, 2, 24, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.encoder(x if self.batch_first else x.transpose(0, 1))
        return self.head(out).mean(1 if self.batch_first else 0)


def ids() -> Tensor:
    return torch.arange(N * 7).reshape(N, 7) % 20


OWN: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], Layers]] = {
    "unet": (
        UNet,
        lambda: images(8),
        {"pool": 6, "grow": 12, "down1": 6, "down2.1": 12, "last": 2},
    ),
    "audio": (Audio, lambda: torch.randn(N, 1, 128), {"relu": 8, "pool": 8}),
    "solid": (Solid, lambda: torch.randn(N, 1, 8, 8, 8), {"1": 4, "2": 4}),
}
for batch_first in (True, False):
    where = "batch first" if batch_first else "sequence first"
    OWN |= {
        f"lstm, {where}": (
            lambda first=batch_first: Recurrent(nn.LSTM, first), ids,
            {"rnn": 20, "norm": 20, "drop": 20, "embed": 6},
        ),
        f"gru, {where}": (lambda first=batch_first: Recurrent(nn.GRU, first), ids, {"rnn": 20}),
        f"transformer, {where}": (
            lambda first=batch_first: Translator(first), ids,
            {"act": 8, "transformer": 8, "transformer.encoder": 8, "transformer.encoder.norm": 8,
             "transformer.decoder.layers.0": 8, "transformer.encoder.layers.0.dropout": 24},
        ),
        f"encoder, {where}": (
            lambda first=batch_first: Encoder(first), lambda: torch.randn(N, 7, 8),
            {"encoder": 8, "encoder.layers.1": 8},
        ),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("name", OWN)
def test_own_models(name: str) -> None:
    build, batch, more = OWN[name]
    check(build(), batch(), more)


# --- Hugging Face: small configs, random weights --------------------------------------------------

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 40}


def bert() -> tuple[nn.Module, Any, Layers]:
    import transformers as T

    config = T.BertConfig(**SMALL, vocab_size=30, num_labels=3)
    layer = "bert.encoder.layer.0"
    more = {f"{layer}.intermediate.intermediate_act_fn": 40, layer: 16, f"{layer}.attention": 16}
    more |= {"bert.embeddings": 16, "dropout": 16}
    model = T.BertForSequenceClassification(config)
    return model, {"input_ids": ids(), "attention_mask": torch.ones(N, 7).long()}, more


def gpt2() -> tuple[nn.Module, Any, Layers]:
    import transformers as T

    config = T.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=16)
    config.num_labels, config.pad_token_id = 3, 29
    more = {"transformer.h.0": 16, "transformer.h.0.mlp.act": 64, "transformer.h.1.attn": 16}
    return T.GPT2ForSequenceClassification(config), {"input_ids": ids()}, more


def vit() -> tuple[nn.Module, Any, Layers]:
    import transformers as T

    config = T.ViTConfig(**SMALL, image_size=16, patch_size=8, num_labels=3)
    return T.ViTForImageClassification(config), {"pixel_values": images(16)}, {"vit": 16}


def clip() -> tuple[nn.Module, Any, Layers]:
    import transformers as T

    config = T.CLIPVisionConfig(**SMALL, image_size=16, patch_size=8, projection_dim=12)
    return T.CLIPVisionModelWithProjection(config), {"pixel_values": images(16)}, {}


def wav2vec2() -> tuple[nn.Module, Any, Layers]:
    import transformers as T

    config = T.Wav2Vec2Config(
        **SMALL, conv_dim=(8, 12), conv_stride=(4, 2), conv_kernel=(8, 3),
        num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        num_labels=3, classifier_proj_size=10,
    )  # fmt: skip
    base = "wav2vec2.feature_extractor"
    more = {f"{base}.conv_layers.0": 8, base: 12, "wav2vec2.encoder": 16}
    model = T.Wav2Vec2ForSequenceClassification(config)
    return model, {"input_values": torch.randn(N, 200)}, more


@pytest.mark.parametrize("build", [bert, gpt2, vit, clip, wav2vec2])
def test_hugging_face(build: Callable[[], tuple[nn.Module, Any, Layers]]) -> None:
    model, batch, more = build()
    check(model, batch, more)
