"""What visualizers refuse, and how they say so."""

import pytest
import torch
from torch import nn

from lightning_neurocorr.activations import find_sites
from lightning_neurocorr.visualization import (
    FeatureVisualizer,
    ImagePrior,
    LucentVisualizer,
    Target,
    Visualizer,
)

FAST = FeatureVisualizer(steps=2, reference_images=8)


@pytest.fixture
def prior():
    return ImagePrior.fit([torch.randn(9, 1, 8, 8)])


def _model():
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(1, 4, 3, padding=1))
    model.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(256, 3)))
    return model


def test_our_visualizers_and_users_classes_are_visualizers():
    class Mine:
        def render(self, forward, layers, targets, prior, *, exemplars=None, progress=False):
            return []

    assert isinstance(FeatureVisualizer(), Visualizer)
    assert isinstance(LucentVisualizer(), Visualizer)
    assert isinstance(Mine(), Visualizer)
    assert not isinstance(object(), Visualizer)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"parametrization": "gan"}, "`parametrization` to be one of 'auto', 'maco'"),
        ({"start": "zeros"}, "`start` to be one of 'exemplar', 'noise', but got 'zeros'"),
        ({"steps": 0}, "`steps` to be an integer of at least 1, but got 0"),
        ({"max_batch": 1.5}, "`max_batch` to be an integer"),
        ({"learning_rate": -1.0}, "`learning_rate` to be positive or None"),
        ({"time_budget_s": 0}, "`time_budget_s` to be positive or None"),
        ({"strength": float("nan")}, "`strength` to be positive or None"),
        ({"scale": 1.0}, "`scale` to be from 0 to 0.9"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        FeatureVisualizer(**setting)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target("cnov", 0), "but got 'cnov', which matches none. Did you mean 'conv'"),
        (Target("conv", 4), "a unit of 'conv' below 4, but got 4"),
        (Target("conv", torch.ones(3)), "'conv' to have 4 entries, one per unit, but got 3"),
        (Target("conv", 0, position=(8, 0)), r"to be 2 indices below \(8, 8\), but got \(8, 0\)"),
        (Target("conv", 0, position=(1,)), "to be 2 indices"),
    ],
)
def test_targets_that_do_not_fit_are_refused(target, message, prior):
    with pytest.raises(ValueError, match=message):
        FAST.render(_model(), None, [target], prior)


def test_arguments_that_do_not_fit_are_refused(prior):
    model = _model()
    targets = [Target("conv", 0)]
    with pytest.raises(ValueError, match="`targets` to name layers in `layers`, but got 'conv'"):
        FAST.render(model, {"head": model.head}, targets, prior)
    with pytest.raises(TypeError, match="layers by name where `forward` is no module"):
        FAST.render(lambda images: model(2 * images), None, targets, prior)
    for visualizer in (FAST, LucentVisualizer(steps=2)):
        for wrong, said in (([("conv", 0)], r"\('conv', 0\)"), (targets[0], r"\[Target\(")):
            with pytest.raises(
                TypeError, match=f"`targets` to be a list of Target, but got {said}"
            ):
                visualizer.render(model, None, wrong, prior)
    with pytest.raises(ValueError, match="hold 1 images, one per target, but got 2"):
        FAST.render(model, None, targets, prior, exemplars=[None, None])
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\).*got \(1, 4, 4\) for target 0"):
        FAST.render(model, None, targets, prior, exemplars=[torch.zeros(1, 4, 4)])
    with pytest.raises(ValueError, match="`sign` to be 1 or -1, but got 0"):
        Target("conv", 0, sign=0)
    with pytest.raises(ValueError, match="an index or a direction"):
        Target("conv", -1)
    with pytest.raises(ValueError, match="an index or a direction"):
        Target("conv", torch.ones(2, 2))
    assert FAST.render(model, None, [], prior) == []


class _ChannelsLast(nn.Module):
    """A convolution whose ReLU has its channels last; unit 6 exists along that axis only."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 7, 3, padding=1), nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2))


def test_the_units_of_a_relu_are_followed_not_guessed(prior):
    model = _ChannelsLast()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sites = find_sites(model, lambda: model(prior.images[:1]), ["relu"], at="raw")
    followed, told = (
        FAST.render(model, layers, [Target("relu", 5)], prior)[0] for layers in (None, sites)
    )
    assert followed.activation_ratio == told.activation_ratio
    with pytest.raises(ValueError, match="below 7, but got 7"):
        FAST.render(model, None, [Target("relu", 7)], prior)  # 8 is what axis 1 has
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
