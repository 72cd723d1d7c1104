"""Models of images and text as scorers of words; weights come from a path that the user gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

Tokenizer = Callable[[list[str]], Any]
ToImages = Callable[[Tensor], Tensor]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class _Scorer:
    """Cosine of image and text, one score per word: no softmax, which would make words compete."""

    def __init__(
        self,
        model: nn.Module,
        words: Sequence[str],
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        to_images: ToImages | None,
    ) -> None:
        self.words = tuple(words)
        if not self.words or len(set(self.words)) != len(self.words):
            raise ValueError(f"Expected `words` to be different texts, but got {words!r:.200}.")
        self.model, self.size, self.to_images = model.eval(), size, to_images
        self._mean, self._std = (
            torch.tensor(v, device="cpu").view(1, 3, 1, 1) for v in (mean, std)
        )
        self._texts: Tensor | None = None

    def _encode_texts(self, device: torch.device) -> Tensor:
        raise NotImplementedError

    def _encode_images(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Cosines ``(N, V)``.

        Args:
            images: ``(N, C, H, W)`` of one or three channels; in [0, 1], or as ``to_images`` takes
                them.

        Raises:
            ValueError: If they are no such images.
        """
        if self._texts is None or self._texts.device != images.device:
            self.model.to(images.device)
            self._texts = _unit(self._encode_texts(images.device))
        return _unit(self._encode_images(self._prepared(images))) @ self._texts.T

    def _prepared(self, images: Tensor) -> Tensor:
        shown = (images if self.to_images is None else self.to_images(images)).float()
        if shown.ndim != 4 or shown.shape[1] not in (1, 3):
            raise ValueError(
                "Expected images (N, C, H, W) of one or three channels, but got "
                f"{tuple(shown.shape)}. Say with `to_images` how to make them."
            )
        shown = shown.expand(-1, 3, -1, -1)
        shown = nn.functional.interpolate(
            shown, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 1)
        return (shown - self._mean.to(shown.device)) / self._std.to(shown.device)


class OpenClipScorer(_Scorer):
    """A model of ``open_clip``.

    Args:
        model: The model, loaded.
        tokenizer: Its tokenizer, from ``open_clip.get_tokenizer``.
        words: The words to score.
        prompt: Where a word goes into a sentence.
        to_images: From what the network gets, ``(N, C, H, W)``, to images in [0, 1]; undoes a
            normalisation. None: they are in [0, 1].

    Raises:
        ValueError: If there are no words or two are the same.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        words: Sequence[str],
        *,
        prompt: str = "a photo of {}",
        to_images: ToImages | None = None,
    ) -> None:
        visual: Any = getattr(model, "visual", None)
        size = visual.image_size
        size = int(size if isinstance(size, int) else size[0])
        mean = getattr(visual, "image_mean", None) or _CLIP_MEAN
        std = getattr(visual, "image_std", None) or _CLIP_STD
        super().__init__(model, words, size, mean, std, to_images)
        self._tokens = tokenizer([prompt.format(word) for word in words])

    @classmethod
    def load(cls, name: str, weights: str | Path, words: Sequence[str], **options: Any) -> Self:
        """A model by its name in ``open_clip`` and a file of weights.

        Raises:
            FileNotFoundError: If the file is not there: nothing is downloaded.
        """
        import open_clip

        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected `weights` to be a file of weights, but got {str(path)!r}."
            )
        model = open_clip.create_model(name, pretrained=str(path))
        return cls(model, open_clip.get_tokenizer(name), words, **options)

    def _encode_texts(self, device: torch.device) -> Tensor:
        model: Any = self.model
        return model.encode_text(self._tokens.to(device))

    def _encode_images(self, images: Tensor) -> Tensor:
        model: Any = self.model
        return model.encode_image(images)


class TransformersScorer(_Scorer):
    """A CLIP or SigLIP model of ``transformers``.

    Args:
        model: The model, loaded.
        tokenizer: Its tokenizer.
        words: The words to score.
        prompt: Where a word goes into a sentence; by default that of the model's kind.
        mean: What images are normalised with; by default that of the model's kind.
        std: The same.
        to_images: From what the network gets, ``(N, C, H, W)``, to images in [0, 1]; undoes a
            normalisation. None: they are in [0, 1].

    Raises:
        ValueError: If there are no words or two are the same.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        words: Sequence[str],
        *,
        prompt: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        to_images: ToImages | None = None,
    ) -> None:
        config: Any = model.config
        siglip = "siglip" in str(config.model_type)
        size = int(config.vision_config.image_size)
        half = (0.5, 0.5, 0.5)
        super().__init__(
            model,
            words,
            size,
            mean or (half if siglip else _CLIP_MEAN),
            std or (half if siglip else _CLIP_STD),
            to_images,
        )
        prompt = prompt or ("This is a photo of {}." if siglip else "a photo of {}")
        # SigLIP was trained with texts filled up to one length.
        self._tokens = tokenizer(
            [prompt.format(word) for word in words],
            padding="max_length" if siglip else True,
            truncation=True,
            max_length=int(config.text_config.max_position_embeddings),
            return_tensors="pt",
        )

    @classmethod
    def load(cls, folder: str | Path, words: Sequence[str], **options: Any) -> Self:
        """A model from a folder that ``save_pretrained`` wrote.

        Raises:
            FileNotFoundError: If the folder is not there: nothing is downloaded.
        """
        from transformers import AutoModel, AutoProcessor

        path = Path(folder).expanduser()
        if not path.is_dir():
            raise FileNotFoundError(
                f"Expected `folder` to be a folder with a model, but got {str(path)!r}."
            )
        model = AutoModel.from_pretrained(path, local_files_only=True)
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)
        shown = getattr(processor, "image_processor", None)
        known = {
            "mean": getattr(shown, "image_mean", None),
            "std": getattr(shown, "image_std", None),
        }
        tokenizer = getattr(processor, "tokenizer", processor)
        return cls(model, tokenizer, words, **{**known, **options})

    def _encode_texts(self, device: torch.device) -> Tensor:
        model: Any = self.model
        tokens = {name: part.to(device) for name, part in self._tokens.items()}
        return _features(model.get_text_features(**tokens))

    def _encode_images(self, images: Tensor) -> Tensor:
        model: Any = self.model
        return _features(model.get_image_features(pixel_values=images))


def _features(output: Any) -> Tensor:
    """The embedding: some versions of transformers return it among other things."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)
