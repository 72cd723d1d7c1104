"""Shortcuts give what the plain model gives, and are left alone where they would not."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_neurocorr.visualization import FeatureVisualizer, ImagePrior, Target, shortcuts
from lightning_neurocorr.visualization.isolation import IsolatedModel
from lightning_neurocorr.visualization.targets import Readout


class Block(nn.Module):
    """A residual block of a ResNet, with in-place activations."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.first, self.one = nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after)
        self.second, self.two = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.down = nn.Sequential(
            nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after, affine=False)
        )
        self.act = nn.ReLU(inplace=True)

    def forward(self, images):
        hidden = self.two(self.second(self.act(self.one(self.first(images)))))
        return self.act(hidden + self.down(images))


def residual():
    stem = [nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), Block(8, 12, 1), Block(12, 16, 2))


class Shared(nn.Module):
    """Output of a convolution used beside its norm; one convolution, two norms; one norm, twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 1)
        self.one, self.two, self.three = (nn.BatchNorm2d(6) for _ in range(3))

    def forward(self, images):
        hidden = self.a(images)
        hidden = self.one(hidden) + 0.1 * hidden
        hidden = self.two(self.b(hidden)).tanh() + self.three(self.b(hidden))
        return self.three(self.c(hidden)) + self.three(hidden)


class Wayward(nn.Module):
    """Goes another way when told to."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6)
        self.other, self.way, self.turned = nn.Conv2d(3, 6, 3, 2), way, False

    def forward(self, images):
        hidden = self.conv(images)
        if not self.turned:
            return self.norm(hidden)
        if self.way == "norm of something else":
            return self.norm(self.other(images))
        return self.norm(hidden) + hidden if self.way == "norm first" else self.norm(2 * hidden)


def _odd():
    """Convolutions of every kind that the shortcuts must read right or leave alone."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, (2, 1), padding=2),
        nn.Conv2d(4, 4, 3, padding="same", groups=2),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 6, 5, 3, padding=4, padding_mode="circular"),
        nn.Conv2d(6, 5, 3, 2, dilation=2, padding=2),
        nn.BatchNorm2d(5, track_running_stats=False),
        nn.Tanh(),
    )


def _with_statistics(net):
    """Batch norms that do something, as after training."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.3, 2)
    return net


def _norms(run):
    """How many batch norms PyTorch computes in ``run()``, and what that returns."""
    seen = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append("batch_norm" in str(func) and "backward" not in str(func))
            return func(*args, **(kwargs or {}))

    with Count():
        result = run()
    return sum(seen), result


def _compare(net, layer, size=24, turn=None, rtol=1e-9):
    """Readings and gradients, short and plain; returns the norms computed on the short way."""
    net = _with_statistics(net.double().eval())
    module = net.get_submodule(layer) if layer else net
    model = IsolatedModel(net, {"layer": module})
    targets = [Target("layer", unit) for unit in range(4)]
    readout, calls = Readout(targets), {"layer": 1}
    images = torch.rand(4, 3, size, size + 1, dtype=torch.float64, requires_grad=True)
    with model.opened(0):
        model.shorten(model.prepare(images), {"layer": readout.all}, calls)
        if turn is not None:
            turn.turned = True
        for _ in range(2):  # the second time with what the first has kept

            def read(short):
                prepared = model.prepare(images)
                (seen,) = model.read(prepared, {"layer": readout.own}, calls, short=short)["layer"]
                return seen, torch.autograd.grad(seen.sin().sum(), images)[0]

            count, short = _norms(lambda: read(True))
            _, plain = _norms(lambda: read(False))
            torch.testing.assert_close(short, plain, rtol=rtol, atol=rtol)
            assert plain[1].abs().max() > 1e-6
    assert not _get_current_function_mode_stack()
    return count


@pytest.mark.parametrize("size", [16, 23, 32])
@pytest.mark.parametrize(("layer", "norms"), [("5", 0), ("4.first", 0), ("0", 0), ("1", 0)])
def test_a_residual_network_without_its_batch_norms(layer, norms, size):
    assert _compare(residual(), layer, size) == norms


@pytest.mark.parametrize(
    "kind",
    ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"],
)
@pytest.mark.parametrize("which", ["0", "1"])
def test_modules_with_hooks_of_the_user_run_as_they_are(kind, which):
    net, seen = residual(), []
    net[2] = nn.ReLU()  # PyTorch allows no in-place one behind a backward hook
    getattr(net.get_submodule(which), f"register_{kind}")(lambda *args: seen.append(args[-1]))
    assert _compare(net, "4.one") == 1
    assert seen


def test_outputs_with_other_users_are_left_alone():
    assert _compare(Shared(), "") == 5


def test_odd_convolutions():
    assert _compare(_odd(), "6") == 1


@pytest.mark.parametrize("way", ["norm first", "norm of the double", "norm of something else"])
def test_a_forward_that_goes_another_way_is_run_as_it_is(way):
    net = Wayward(way)
    assert _compare(net, "", turn=net) == 1


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding"),
    [(3, 7, 2, 3), (1, 3, 2, 1), (6, 5, 2, 0), (3, 4, 4, 0), (2, 11, 4, 2), (3, 2, 3, 1)],
)
@pytest.mark.parametrize("size", [19, 24])
def test_the_gradient_by_phases_is_the_gradient(channels, kernel, stride, padding, size):
    images = torch.rand(2, channels, size, size + 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, channels, kernel, kernel, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    pad = (padding, padding)
    phases = shortcuts._phases(weight, stride)
    short = shortcuts._Strided.apply(images, weight, bias, phases, stride, pad)
    plain = torch.conv2d(images, weight, bias, stride, pad)
    assert torch.equal(short, plain)
    into = torch.randn_like(plain)
    (found,), (expected,) = (torch.autograd.grad(y, images, into) for y in (short, plain))
    torch.testing.assert_close(found, expected)
    slow = torch.zeros(2, channels, size + 2 * padding, size + 3 + 2 * padding).double()
    for row in range(plain.shape[2]):
        for column in range(plain.shape[3]):
            share = torch.einsum("nd,dchw->nchw", into[:, :, row, column], weight)
            top, left = stride * row, stride * column
            slow[:, :, top : top + kernel, left : left + kernel] += share
    rows, columns = slice(padding, padding + size), slice(padding, padding + size + 3)
    torch.testing.assert_close(found, slow[:, :, rows, columns])


def test_the_gradient_by_phases_has_a_gradient():
    weight, images = torch.randn(2, 1, 3, 3).double(), torch.rand(1, 1, 6, 6).double()
    phases = shortcuts._phases(weight, 2)
    torch.autograd.gradgradcheck(
        lambda x: shortcuts._Strided.apply(x, weight, None, phases, 2, (1, 1)).sin(),
        images.requires_grad_(),
    )


def test_pictures_are_the_same_and_come_without_batch_norms(monkeypatch):
    net = _with_statistics(residual()).eval()
    prior = ImagePrior.fit([torch.rand(12, 3, 24, 24)])
    targets = [Target("5.two", 1), Target("4.second", 2)]
    visualizer = FeatureVisualizer(steps=9, reference_images=8)
    few, short = _norms(lambda: visualizer.render(net, None, targets, prior))
    monkeypatch.setattr(shortcuts, "still_tensors", lambda *_: set())
    monkeypatch.setattr(
        "lightning_neurocorr.visualization.isolation.still_tensors", lambda *_: set()
    )
    many, plain = _norms(lambda: visualizer.render(net, None, targets, prior))
    assert few < many
    for one, other in zip(short, plain, strict=True):
        np.testing.assert_allclose(one.image, other.image, atol=1e-3)
        assert one.activation_ratio == pytest.approx(other.activation_ratio, rel=1e-3)


class Mapped(nn.Module):
    """Looks at one image at a time."""

    def __init__(self):
        super().__init__()
        self.body = residual()[:3]

    def forward(self, images):
        return torch.vmap(lambda image: self.body(image[None])[0])(images)


def test_shortcuts_that_raise_are_not_taken():
    assert _compare(Mapped(), "") == 1


def test_shortcuts_that_read_something_else_are_not_taken(monkeypatch):
    true = shortcuts._folded

    def wrong(*args):
        weight, bias = true(*args)
        return weight, bias + 0.1

    monkeypatch.setattr(shortcuts, "_folded", wrong)
    assert _compare(residual(), "5") == 8 - 1


def test_an_exception_on_the_short_way_leaves_nothing_behind():
    class Raising(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.calls = residual(), 0

        def forward(self, images):
            self.calls += 1
            hidden = self.body[0](images)
            if self.calls > 4:
                raise KeyboardInterrupt
            return self.body[1:](self.body[1](hidden))

    net = Raising()
    net.body[0].weight.grad = torch.ones_like(net.body[0].weight)
    before = copy.deepcopy(net.state_dict())
    prior = ImagePrior.fit([torch.rand(12, 3, 24, 24)])
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        FeatureVisualizer(reference_images=8).render(net, None, [Target("body.5", 0)], prior)
    assert not _get_current_function_mode_stack()
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert net.body[0].weight.grad.eq(1).all()
    assert all(parameter.requires_grad for parameter in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
