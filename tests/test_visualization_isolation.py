"""Making pictures changes nothing: for both visualizers, also when the model raises."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_neurocorr.visualization import (
    FeatureVisualizer,
    ImagePrior,
    LucentVisualizer,
    Target,
)

VISUALIZERS = [
    FeatureVisualizer(steps=5, reference_images=8),
    FeatureVisualizer(steps=5, reference_images=8, parametrization="maco", start="noise"),
    LucentVisualizer(steps=5, reference_images=8),
]
TARGETS = [Target("conv", 1), Target("head", 0)]


class Net(nn.Module):
    """Whatever is easily disturbed: batch norm, random numbers, a counter, a frozen weight."""

    def __init__(self, raises=None, at=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        self.head.bias.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()))
        self.raises, self.at, self.calls = raises, at, 0

    def forward(self, images):
        self.calls += 1
        if self.raises is not None and self.calls >= self.at:
            raise self.raises
        self.seen += 1
        hidden = self.act(self.norm(self.conv(images + 1e-3 * torch.randn_like(images))))
        noise = 1e-3 * np.random.rand() + 1e-3 * random.random()  # noqa: NPY002
        return self.head(self.drop(hidden).mean((2, 3)) + noise)


@pytest.fixture
def prior():
    return ImagePrior.fit([torch.rand(12, 3, 8, 8)])


def _in_training(net):
    """A model in the middle of a training step, with gradients and mixed training flags."""
    net.train()
    net.norm.eval()
    net.head(torch.randn(4, 4)).sum().backward()
    return net


def _state(net):
    """Whatever somebody could notice, as comparable values."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {
        "ids": [id(tensor) for tensor in tensors.values()],
        "bits": [tensor.detach().numpy().tobytes() for tensor in tensors.values()],
        "versions": [tensor._version for tensor in tensors.values()],
        "gradients": [
            (id(t.grad), None if t.grad is None else t.grad.numpy().tobytes())
            for t in tensors.values()
        ],
        "requires_grad": [tensor.requires_grad for tensor in tensors.values()],
        "flags": [module.training for module in net.modules()],
        "hooks": [
            [len(m.__dict__[k]) for k in m.__dict__ if k.endswith("_hooks")] for m in net.modules()
        ],
        "modes": (torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()),
        "rng": (
            torch.get_rng_state().numpy().tobytes(),
            random.getstate(),
            np.random.get_state()[1].tobytes(),  # noqa: NPY002
        ),
    }


@pytest.mark.parametrize("visualizer", VISUALIZERS)
def test_nothing_changes(visualizer, prior):
    net = _in_training(Net())
    before = _state(net)
    pictures = visualizer.render(net, None, TARGETS, prior)
    assert all(picture.image is not None for picture in pictures)
    assert _state(net) == before
    copy.deepcopy(net)


@pytest.mark.parametrize("visualizer", VISUALIZERS)
@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), ValueError("broken"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("at", [1, 3])
def test_nothing_changes_when_the_model_raises(visualizer, error, at, prior):
    net = _in_training(Net(error, at))
    before = _state(net)
    with pytest.raises(type(error), match="broken" if str(error) else None):
        visualizer.render(net, None, TARGETS, prior)
    assert _state(net) == before
    copy.deepcopy(net)


@pytest.mark.parametrize("visualizer", VISUALIZERS)
def test_training_goes_on_to_the_same_bits(visualizer, prior):
    def trained(pictures):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        net = Net().train()
        optimizer = torch.optim.Adam(net.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.rand(4, 3, 8, 8)).square().sum().backward()
            if pictures:
                visualizer.render(net, None, TARGETS, prior)
            optimizer.step()
        return [p.detach().clone() for p in net.parameters()]

    for one, other in zip(trained(True), trained(False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("visualizer", VISUALIZERS)
def test_a_model_in_training_is_seen_as_in_evaluation(visualizer, prior):
    net = Net()
    training = visualizer.render(net.train(), None, TARGETS, prior)
    evaluating = visualizer.render(net.eval(), None, TARGETS, prior)
    for one, other in zip(training, evaluating, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


@pytest.mark.parametrize("visualizer", VISUALIZERS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_pictures_are_the_same_inside_validation(visualizer, mode, prior):
    net = Net()
    outside = visualizer.render(net, None, TARGETS, prior)
    with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = visualizer.render(net, None, TARGETS, prior)
    for one, other in zip(outside, inside, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.activation_ratio == other.activation_ratio


@pytest.mark.parametrize("visualizer", VISUALIZERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_read_as_float32(visualizer, dtype, prior):
    net = Net().to(dtype)
    wide = copy.deepcopy(net).float()
    wide.load_state_dict(net.state_dict())
    narrow_pictures = visualizer.render(net, None, TARGETS, prior)
    for one, other in zip(
        narrow_pictures, visualizer.render(wide, None, TARGETS, prior), strict=True
    ):
        np.testing.assert_allclose(one.image, other.image, atol=1e-5)
    assert all(p.dtype == dtype for p in net.parameters())


def test_a_function_around_half_precision_is_refused(prior):
    net = Net().half()
    with pytest.raises(ValueError, match=r"a module or a method of one.*but got function"):
        FeatureVisualizer().render(lambda x: net(x), {"conv": net.conv}, TARGETS[:1], prior)  # noqa: PLW0108


def test_double_precision_models_work(prior):
    (picture,) = VISUALIZERS[0].render(Net().double(), None, TARGETS[:1], prior)
    assert picture.image.dtype == np.float32


def test_a_method_counts_as_its_module(prior):
    net = _in_training(Net())
    before = _state(net)
    (picture,) = VISUALIZERS[0].render(net.forward, {"conv": net.conv}, TARGETS[:1], prior)
    assert picture.image is not None
    assert _state(net) == before


def test_a_plain_function_works(prior):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    (picture,) = VISUALIZERS[0].render(
        lambda images: net(2 * images), {"0": net[0]}, [Target("0", 1)], prior
    )
    assert picture.image is not None
    assert all(parameter.grad is None for parameter in net.parameters())


def test_compiled_models_are_read_eagerly(prior):
    net = Net()
    plain = VISUALIZERS[0].render(net, None, TARGETS, prior)
    compiled = VISUALIZERS[0].render(torch.compile(net), None, TARGETS, prior)
    for one, other in zip(plain, compiled, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_deterministic_mode_is_put_back(prior):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        VISUALIZERS[0].render(Net(), None, TARGETS, prior)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_models_own_except_does_not_swallow_the_stop(prior):
    class Catching(Net):
        def forward(self, images):
            try:
                return super().forward(images)
            except Exception:  # noqa: BLE001
                self.caught = True
                return torch.zeros(len(images), 2)

    net = Catching()
    (picture,) = VISUALIZERS[0].render(net, None, TARGETS[:1], prior)
    assert picture.image is not None
    assert not hasattr(net, "caught")


@pytest.mark.gpu
@pytest.mark.parametrize("visualizer", VISUALIZERS)
def test_a_model_on_a_gpu_gets_the_same_picture(visualizer, prior):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh())
    target = [Target("0", 1)]
    before = torch.cuda.get_rng_state()
    (cpu,) = visualizer.render(net, None, target, prior)
    (gpu,) = visualizer.render(copy.deepcopy(net).cuda(), None, target, prior)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    if isinstance(visualizer, FeatureVisualizer):
        np.testing.assert_allclose(cpu.image, gpu.image, atol=1e-2)


class Checkpointed(nn.Module):
    """Computes its first half again in the backward pass, if asked to."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.reentrant = reentrant
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh())
        self.second = nn.Conv2d(4, 2, 3)

    def forward(self, images):
        if self.reentrant is None:
            return self.second(self.first(images))
        return self.second(checkpoint(self.first, images, use_reentrant=self.reentrant))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("visualizer", VISUALIZERS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_picture(reentrant, visualizer, dtype, prior):
    net = Checkpointed().to(dtype)
    targets = [Target("first.0", 1), Target("first.2", 2), Target("second", 0)]
    plain = visualizer.render(net, None, targets, prior)
    net.reentrant = reentrant
    again = visualizer.render(net, None, targets, prior)
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_activation_checkpointing_is_put_back(prior):
    before = dict(vars(torch.utils.checkpoint))
    net = Checkpointed(reentrant=True)
    VISUALIZERS[0].render(net, None, [Target("second", 0)], prior)
    assert dict(vars(torch.utils.checkpoint)) == before
    with pytest.raises(RuntimeError, match="expected input"):
        VISUALIZERS[0].render(
            net, None, [Target("second", 0)], ImagePrior.fit([torch.rand(12, 1, 8, 8)])
        )
    assert dict(vars(torch.utils.checkpoint)) == before
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="use_reentrant=True"):  # it is on again
        torch.autograd.grad(net(images).sum(), images)
