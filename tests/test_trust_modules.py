"""Switching it on changes nothing: training is bit-identical for modules of every kind."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from lightning_neurocorr import Ablation, FeatureVisualizer, NeuronAdvantage
from tests import many_modules, odd_modules  # noqa: F401 -- they fill KINDS
from tests.one_module import COMPILES_WHOLE, KINDS, Kind, answer
from tests.paper_model import paper_trainer

# Pictures need images, one at a time; attribution and ablation need classes.
NO_PICTURES = ("transformer_with_padding", "sequence_first_transformer", "lstm", "two_inputs")
NO_CLASSES = ("regression", "segmentation", "multilabel")

_DEFAULTS: dict[str, Any] = {
    "baseline": answer,
    "layers": None,
    "top_k": 1,
    "visualizer": FeatureVisualizer(steps=2, every_n_validations=1),
    "ablation": Ablation(random_sets=3, sizes=(1,), singles=1, every_n_validations=1),
}


def watching(kind: Kind, **more: Any) -> NeuronAdvantage:
    """A callback with everything on, at every validation."""
    options = {**_DEFAULTS, **kind.options, **more}
    if "predictions" not in options:
        options.setdefault("target", -2)  # a batch is (inputs, ..., target, the baseline's answer)
    return NeuronAdvantage(options.pop("baseline"), options.pop("layers"), **options)


def train(name: str, watched: bool, **trainer: Any) -> tuple[dict[str, Any], Any, list[str]]:
    """Everything that training leaves behind; the callback; what was said."""
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002
    random.seed(11)
    torch.compiler.reset()
    kind = KINDS[name]()
    nothing = {"ablation": None} if name in NO_CLASSES else {}
    callback = watching(kind, **nothing) if watched else None
    made = paper_trainer(*([callback] if callback else []), **{**kind.trainer, **trainer})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.fit(kind.module, kind.train, kind.valid)
    left = {f"weight {key}": value for key, value in made.lightning_module.state_dict().items()}
    for i, optimizer in enumerate(made.optimizers):
        left |= flat(f"optimizer {i}", optimizer.state_dict())
    left |= flat("flags", {
        name: (part.training, len(part._forward_hooks), len(part._forward_pre_hooks))
        for name, part in made.lightning_module.named_modules()
    })  # fmt: skip
    left |= flat("gradients", {
        name: (p.requires_grad, p.grad) for name, p in made.lightning_module.named_parameters()
    })  # fmt: skip
    left |= {
        "torch draws": torch.rand(4),
        "numpy draws": float(np.random.rand()),  # noqa: NPY002
        "python draws": random.random(),
        "logged": {k: float(v) for k, v in made.callback_metrics.items() if k == "val_loss"},
    }
    said = [str(w.message) for w in caught if "Advantage" in str(w.message)]
    return left, callback, said


def flat(prefix: str, value: Any) -> dict[str, Any]:
    """Nested dicts, lists and tuples by path."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, part in value.items() for k, v in flat(f"{prefix} {key}", part).items()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    different = [key for key in one if not same(one[key], other[key])]
    assert not different


@pytest.mark.parametrize("name", KINDS)
def test_training_is_bit_identical(name: str) -> None:
    if name == "compiled_module" and not COMPILES_WHOLE:
        pytest.skip("PyTorch 2.6 does not compile it")
    without, _, _ = train(name, watched=False)
    with_it, callback, said = train(name, watched=True)
    assert_same(without, with_it)
    report = callback.report
    assert len(callback.history) == 2
    assert np.isfinite(report.column("r")).any()
    drawn = [panel.picture for panel in report.panels if panel.picture is not None]
    assert any(picture.image is not None for picture in drawn) == (name not in NO_PICTURES), said
    if name not in NO_CLASSES:
        assert np.isfinite(report.column("attribution")).any()
    for layer in KINDS[name]().refused:
        assert any(f"Layer {layer} was left out: TorchScript" in note for note in report.notes)


def test_the_fused_transformer_keeps_all_its_layers() -> None:
    _, callback, _ = train("transformer_with_padding", watched=True)
    parts = ("self_attn", "linear1", "linear2")
    inner = [f"encoder.layers.{i}.{part}" for i in (0, 1) for part in parts]
    assert list(callback.report.layers) == ["encoder.layers.0", *inner, "head"]


def test_attribution_and_ablation_were_on() -> None:
    """What does not run cannot disturb: the promise would be kept for nothing."""
    _, callback, _ = train("image_cnn", watched=True)
    assert np.isfinite(callback.report.columns["ablation"]).any()
    assert callback.report.study["neurons"]


@pytest.mark.parametrize("name", ["image_cnn", "averaged_weights"])
def test_resumed_in_mid_training_is_bit_identical(name: str, tmp_path: Any) -> None:
    results = []
    for watched in (False, True):
        kind = _seeded(name)
        first = paper_trainer(*([watching(kind)] if watched else []), max_epochs=1)
        first.fit(kind.module, kind.train, kind.valid)
        first.save_checkpoint(tmp_path / f"{watched}.ckpt")
        kind = _seeded(name)
        callback = watching(kind)
        second = paper_trainer(*([callback] if watched else []), max_epochs=3)
        second.fit(kind.module, kind.train, kind.valid, ckpt_path=tmp_path / f"{watched}.ckpt")
        left = {**kind.module.state_dict(), "draw": torch.rand(3)}
        results.append(left | flat("optimizer", second.optimizers[0].state_dict()))
    assert_same(*results)
    assert [entry.validation for entry in callback.history] == [0, 1, 2]


def _seeded(name: str) -> Kind:
    torch.manual_seed(11)
    return KINDS[name]()
