"""Lucent through our adapter: its objectives and transforms, our statistics and manners."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neurocorr.visualization import ImagePrior, LucentVisualizer, Target

QUICK = LucentVisualizer(steps=3, reference_images=8)


def _model(channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.ReLU(),
        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
    )


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("size", [(8, 8), (9, 9), (15, 20), (32, 32)])
def test_every_size_renders_in_the_range_of_the_data(channels, size):
    prior = ImagePrior.fit([torch.randn(12, channels, *size) + 5])
    targets = [Target("0", 1), Target("2.2", 0)]
    for picture in QUICK.render(_model(channels), None, targets, prior):
        assert picture.image.shape == (channels, *size)
        assert picture.method == "lucent"
        assert picture.start == "noise"
        assert (picture.image >= prior.low[:, None, None].numpy()).all()
        assert (picture.image <= prior.high[:, None, None].numpy()).all()


def test_more_steps_drive_more_and_signs_go_their_ways():
    prior = ImagePrior.fit([torch.rand(32, 3, 16, 16)])
    model = _model()
    targets = [
        Target("0", 1),
        Target("0", 1, sign=-1),
        Target("0", 2, position=(4, 5)),
        Target("0", torch.tensor([1.0, -1.0, 0.0, 0.0])),
        Target("2.2", 1),
    ]
    few = LucentVisualizer(steps=1).render(model, None, targets, prior)
    many = LucentVisualizer(steps=60).render(model, None, targets, prior)
    for start, end in zip(few, many, strict=True):
        assert end.activation_ratio > start.activation_ratio
        assert end.augmented_ratio > start.augmented_ratio


def test_any_objective_of_lucent_works():
    from lucent.optvis import objectives

    asked = []

    def objective(layer, unit, batch):
        asked.append((layer, unit, batch))
        return objectives.channel(layer, unit, batch=batch) - 2 * objectives.channel("0", 0)

    prior = ImagePrior.fit([torch.rand(32, 3, 16, 16)])
    visualizer = LucentVisualizer(steps=30, objective=objective)
    (picture,) = visualizer.render(_model(), None, [Target("2.2", 1)], prior)
    assert asked == [("2_2", 1, 0)]
    assert picture.image is not None


def test_own_transforms_replace_lucents():
    prior = ImagePrior.fit([torch.rand(32, 3, 16, 16)])
    shapes = []

    def double(images):
        shapes.append(tuple(images.shape))
        assert images.min() >= 0
        assert images.max() <= 1
        return images.repeat(1, 1, 2, 2)

    LucentVisualizer(steps=2, transforms=[double]).render(_model(), None, [Target("0", 0)], prior)
    assert shapes == [(1, 3, 16, 16)] * 2


def test_the_model_sees_the_size_of_the_data_or_the_one_asked_for():
    prior = ImagePrior.fit([torch.rand(12, 3, 16, 20)])
    model, sizes = _model(), set()
    model.register_forward_pre_hook(lambda _, args: sizes.add(tuple(args[0].shape[2:])))
    QUICK.render(model, None, [Target("0", 0)], prior)
    assert sizes == {(16, 20)}
    large = LucentVisualizer(steps=2, image_size=24)
    (picture,) = large.render(model, None, [Target("0", 0)], prior)
    assert picture.image.shape == (3, 24, 24)
    assert sizes == {(16, 20), (24, 24)}


def test_an_error_in_a_transform_is_not_swallowed():
    def broken(images):
        raise RuntimeError("this transform is broken")

    prior = ImagePrior.fit([torch.rand(12, 3, 16, 16)])
    with pytest.raises(RuntimeError, match="this transform is broken"):
        LucentVisualizer(transforms=[broken]).render(_model(), None, [Target("0", 0)], prior)


def test_an_interrupt_between_forwards_is_not_swallowed():
    from lucent.optvis import objectives

    calls = []

    def interrupted(activation_of):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return objectives.channel("0", 0)(activation_of)

    prior = ImagePrior.fit([torch.rand(12, 3, 16, 16)])
    visualizer = LucentVisualizer(objective=lambda *_: objectives.Objective(interrupted))
    with pytest.raises(KeyboardInterrupt):
        visualizer.render(_model(), None, [Target("0", 0)], prior)
    assert len(calls) == 3


def test_the_time_budget_stops_and_skips():
    prior = ImagePrior.fit([torch.rand(12, 3, 16, 16)])
    visualizer = LucentVisualizer(steps=10**6, time_budget_s=0.3)
    first, second = visualizer.render(_model(), None, [Target("0", 0), Target("0", 1)], prior)
    assert "of 1000000 steps: time budget of 0.3 s used up" in first.note
    assert first.image is not None
    assert second.note == "skipped: time budget of 0.3 s used up"


def test_dead_and_unreachable_units_get_a_note():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)
            nn.init.zeros_(self.conv.weight[0])

        @torch.no_grad()
        def forward(self, images):
            return self.conv(images)

    prior = ImagePrior.fit([torch.rand(12, 3, 16, 16)])
    dead, frozen = QUICK.render(Frozen(), None, [Target("conv", 0), Target("conv", 1)], prior)
    assert dead.note == "dead: no real image activates this unit"
    assert frozen.note == "no picture: no gradient reaches the image through this layer"


def test_the_seed_decides():
    prior = ImagePrior.fit([torch.rand(12, 3, 16, 16)])
    model, target = _model(), [Target("0", 0)]
    first, again, other = (
        LucentVisualizer(steps=3, seed=seed).render(model, None, target, prior)[0].image
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_names_that_lucent_cannot_tell_apart_are_refused():
    model = nn.Module()
    model.a_b, model.a = nn.Conv2d(3, 1, 1), nn.Module()
    model.a.b = nn.Conv2d(1, 1, 1)
    model.forward = lambda images: model.a.b(model.a_b(images))
    prior = ImagePrior.fit([torch.rand(12, 3, 16, 16)])
    with pytest.raises(ValueError, match=r"differ without dots, but got 'a_b' and 'a.b'"):
        QUICK.render(model, None, [Target("a_b", 0), Target("a.b", 0)], prior)


def test_a_function_is_refused():
    model, prior = _model(), ImagePrior.fit([torch.rand(12, 3, 16, 16)])
    with pytest.raises(TypeError, match="a method of one for Lucent, but got function"):
        QUICK.render(lambda x: model(2 * x), {"0": model[0]}, [Target("0", 0)], prior)


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="`image_size` to be positive or None, but got 0"):
        LucentVisualizer(image_size=0)
    with pytest.raises(ValueError, match="`steps` to be an integer of at least 1"):
        LucentVisualizer(steps=0)


def test_importing_us_imports_no_lucent_and_its_absence_names_the_command():
    code = """
import sys
import lightning_neurocorr.visualization as ours
assert not any(name.split(".")[0] in ("lucent", "kornia") for name in sys.modules)
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("lucent"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
try:
    ours.LucentVisualizer()
except ModuleNotFoundError as error:
    assert 'pip install "lightning_neurocorr[lucent]"' in str(error), error
else:
    raise AssertionError("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
