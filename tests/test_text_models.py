"""Scorers of words on random weights: wiring only, no claim about real models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_neurocorr.validation.metadata import SamplesOfBatch, metadata_source
from lightning_neurocorr.validation.text_models import OpenClipScorer, TransformersScorer

open_clip = pytest.importorskip("open_clip")  # here: it leaves an environment variable behind
transformers = pytest.importorskip("transformers")

WORDS = ["a shoe", "a bag", "a coat"]


class Letters:
    """A tokenizer of twenty lines: one token for each letter."""

    def __call__(self, texts: list[str], *, padding: Any = True, max_length: int, **_: Any) -> Any:
        rows = [[1, *(2 + ord(c) % 90 for c in text), 95][:max_length] for text in texts]
        full = max_length if padding == "max_length" else max(map(len, rows))
        ids = torch.tensor([row + [0] * (full - len(row)) for row in rows])
        found = {"input_ids": ids}
        return found if padding == "max_length" else {**found, "attention_mask": (ids > 0).long()}


def clip() -> Any:
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    part |= {"num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**part, "vocab_size": 96, "max_position_embeddings": 24, "eos_token_id": 95},
        vision_config={**part, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    return transformers.CLIPModel(config)


def siglip() -> Any:
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    part |= {"num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config={**part, "vocab_size": 96, "max_position_embeddings": 24},
        vision_config={**part, "image_size": 16, "patch_size": 8},
    )
    return transformers.SiglipModel(config)


@pytest.mark.parametrize("make", [clip, siglip])
def test_scores_are_cosines_of_the_models_own_features(make: Any) -> None:
    model = make().eval()
    scorer = TransformersScorer(model, Letters(), WORDS)
    images = torch.rand(5, 3, 16, 16)
    found = scorer(images)
    siglike = make is siglip
    prompt, half = ("This is a photo of {}.", 0.5) if siglike else ("a photo of {}", None)
    mean = torch.tensor((half and [half] * 3) or [0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor((half and [half] * 3) or [0.26862954, 0.26130258, 0.27577711])
    for i, image in enumerate(images):
        for v, word in enumerate(WORDS):
            padding = "max_length" if siglike else True
            tokens = Letters()([prompt.format(word)], padding=padding, max_length=24)
            pixels = ((image - mean[:, None, None]) / std[:, None, None])[None]
            with torch.no_grad():
                text, seen = (
                    part if isinstance(part, torch.Tensor) else part.pooler_output
                    for part in (
                        model.get_text_features(**tokens),
                        model.get_image_features(pixel_values=pixels),
                    )
                )
            cosine = torch.nn.functional.cosine_similarity(text, seen).item()
            assert found[i, v].item() == pytest.approx(cosine, abs=1e-4)


def test_open_clip_scores_its_own_features() -> None:
    part = {"width": 32, "layers": 1}
    model = open_clip.CLIP(
        16,
        {**part, "image_size": 32, "patch_size": 16, "head_width": 16},
        {**part, "heads": 2},
    ).eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    grey = torch.rand(4, 1, 28, 28)
    scorer = OpenClipScorer(model, tokenizer, WORDS, to_images=lambda x: 1 - x)
    found = scorer(grey)
    assert found.shape == (4, 3)
    assert (found.abs() <= 1 + 1e-6).all()
    with torch.no_grad():
        text = model.encode_text(tokenizer(["a photo of a bag"]))
        seen = model.encode_image(scorer._prepared(grey))
    cosine = torch.nn.functional.cosine_similarity(text, seen)
    np.testing.assert_allclose(found[:, 1], cosine, atol=1e-5)


def test_they_are_metadata() -> None:
    scorer = TransformersScorer(clip(), Letters(), WORDS)
    source = metadata_source(scorer)
    assert source is not None
    asked = SamplesOfBatch((torch.rand(2, 1, 9, 9), None), None, 2, torch.arange(2), True)
    assert source.scores == tuple(WORDS)
    assert list(source.read(asked)) == WORDS


def test_nothing_is_downloaded_and_words_differ(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a folder with a model"):
        TransformersScorer.load("openai/clip-vit-base-patch32", WORDS)
    with pytest.raises(FileNotFoundError, match="a file of weights"):
        OpenClipScorer.load("ViT-B-32", tmp_path / "none.pt", WORDS)
    with pytest.raises(ValueError, match="different texts"):
        TransformersScorer(clip(), Letters(), ["a", "a"])
    scorer = TransformersScorer(clip(), Letters(), WORDS)
    with pytest.raises(ValueError, match="one or three channels"):
        scorer(torch.zeros(2, 4, 8, 8))
