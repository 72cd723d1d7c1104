"""Stand-ins give what the plain model gives, and are left alone where they would not."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_neurocorr.isolation.replacing import replaced_modules
from lightning_neurocorr.visualization import FeatureVisualizer, ImagePrior, Target, stand_ins
from lightning_neurocorr.visualization.isolated_model import IsolatedModel
from lightning_neurocorr.visualization.targets import TargetReader


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
    """Goes another way with few images than with many."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6)
        self.other, self.way = nn.Conv2d(3, 6, 3, 2), way

    def forward(self, images):
        hidden = self.conv(images)
        if len(images) > 2:
            return self.norm(hidden)
        if self.way == "norm of something else":
            return self.norm(self.other(images))
        return self.norm(hidden) + hidden if self.way == "norm first" else self.norm(2 * hidden)


def _odd():
    """Convolutions of every kind that must be read right or left alone."""
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


def _compare(net, layer, size=24, rtol=1e-9):
    """Readings and gradients, short and plain; returns the norms computed on the short way."""
    net = _with_statistics(net.double().eval())
    module, modules = net.get_submodule(layer) if layer else net, dict(net.named_modules())
    model = IsolatedModel(net, {"layer": module})
    targets = [Target("layer", unit) for unit in range(4)]
    readout, calls = TargetReader(targets), {"layer": 1}
    images = torch.rand(4, 3, size, size + 1, dtype=torch.float64, requires_grad=True)
    with model.opened(0):
        model.shorten(model.prepare(images), {"layer": readout.all}, calls)
        for _ in range(2):

            def read(short):
                prepared = model.prepare(images)
                (seen,) = model.read(prepared, {"layer": readout.own}, calls, short=short)["layer"]
                return seen, torch.autograd.grad(seen.sin().sum(), images)[0]

            count, short = _norms(lambda: read(True))
            _, plain = _norms(lambda: read(False))
            torch.testing.assert_close(short, plain, rtol=rtol, atol=rtol)
            assert plain[1].abs().max() > 1e-6
    assert dict(net.named_modules()) == modules
    return count


@pytest.mark.parametrize("size", [16, 23, 32])
@pytest.mark.parametrize(("layer", "norms"), [("5", 0), ("4.first", 0), ("0", 0), ("1", 1)])
def test_a_residual_network_without_its_batch_norms_but_the_one_read(layer, norms, size):
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
    assert _compare(net, "4.first") == 1
    assert seen


def test_outputs_with_other_users_are_left_alone():
    assert _compare(Shared(), "") == 5


def test_odd_convolutions():
    assert _compare(_odd(), "6") == 1


@pytest.mark.parametrize("way", ["norm first", "norm of the double", "norm of something else"])
def test_a_forward_that_goes_another_way_is_drawn_as_it_is(monkeypatch, way):
    net = _with_statistics(Wayward(way)).eval()
    prior = ImagePrior.fit([torch.rand(12, 3, 16, 16)])
    visualizer = FeatureVisualizer(steps=6, reference_images=8)

    def run():
        return visualizer.render(net, {"net": net}, [Target("net", 1), Target("net", 4)], prior)

    found = run()
    monkeypatch.setattr(IsolatedModel, "shorten", lambda *_: None)
    for one, other in zip(found, run(), strict=True):
        np.testing.assert_array_equal(one.image, other.image)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding"),
    [(3, 7, 2, 3), (1, 3, 2, 1), (6, 5, 2, 0), (3, 4, 4, 0), (2, 11, 4, 2), (3, 2, 3, 1)],
)
@pytest.mark.parametrize("size", [19, 24])
def test_a_strided_convolution_as_a_dense_one(channels, kernel, stride, padding, size):
    images = torch.rand(2, channels, size, size + 3, dtype=torch.float64, requires_grad=True)
    plain = nn.Conv2d(channels, 5, kernel, stride, padding).double()
    spread = stand_ins.SpreadConvolution(plain)
    expected, found = plain(images), spread(images)
    torch.testing.assert_close(found, expected)
    into = torch.randn_like(found)
    (gradient,) = torch.autograd.grad(found, images, into)
    slow = torch.zeros(2, channels, size + 2 * padding, size + 3 + 2 * padding).double()
    for row in range(found.shape[2]):
        for column in range(found.shape[3]):
            share = torch.einsum("nd,dchw->nchw", into[:, :, row, column], plain.weight)
            top, left = stride * row, stride * column
            slow[:, :, top : top + kernel, left : left + kernel] += share
    rows, columns = slice(padding, padding + size), slice(padding, padding + size + 3)
    torch.testing.assert_close(gradient, slow[:, :, rows, columns])


def test_only_convolutions_of_a_few_channels_and_a_large_stride_are_spread():
    few = [nn.Conv2d(3, 4, 7, 2, 3), nn.Conv2d(3, 4, 4, 4), nn.Conv2d(1, 4, 11, 4, 2)]
    others = [
        nn.Conv2d(3, 4, 7),
        nn.Conv2d(3, 4, 3, 2),
        nn.Conv2d(16, 4, 7, 2),
        nn.Conv2d(3, 3, 7, 2, groups=3),
        nn.Conv2d(3, 4, 7, (2, 1)),
        nn.Conv2d(3, 4, 7, 2, 3, 2),
        nn.Conv2d(3, 4, 7, 2, 3, padding_mode="reflect"),
        nn.Conv2d(3, 4, 7, 2, device="meta"),
    ]
    assert all(map(stand_ins._spreads, few))
    assert not any(map(stand_ins._spreads, others))


def test_a_replaced_module_is_in_its_place_again_also_after_an_error():
    shared = nn.Linear(2, 2)
    net = nn.Sequential(shared, nn.Sequential(nn.Tanh(), shared), nn.Linear(2, 2))
    before, new = [id(part) for part in net.modules()], nn.Identity()

    def stopped():
        with replaced_modules(net, {shared: new}):
            assert net[0] is net[1][1] is new
            assert [name for name, _ in net.named_children()] == ["0", "1", "2"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [id(part) for part in net.modules()] == before
    assert net[1][1] is shared


def test_a_module_that_looks_into_what_is_replaced_runs_as_it_is():
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = residual()[:2]

        def forward(self, images):
            return self.body(images) * self.body[1].weight.sum()

    assert _compare(Looking(), "") == 1


def test_pictures_are_the_same_and_come_without_batch_norms(monkeypatch):
    net = _with_statistics(residual()).eval()
    prior = ImagePrior.fit([torch.rand(12, 3, 24, 24)])
    targets = [Target("5.two", 1), Target("4.second", 2)]
    visualizer = FeatureVisualizer(steps=9, reference_images=8)
    few, short = _norms(lambda: visualizer.render(net, None, targets, prior))
    monkeypatch.setattr(IsolatedModel, "shorten", lambda *_: None)
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


def test_a_network_that_maps_over_single_images():
    assert _compare(Mapped(), "") == 0


def test_stand_ins_that_read_something_else_are_not_taken(monkeypatch):
    true = stand_ins.fuse_conv_bn_weights

    def wrong(*args):
        weight, bias = true(*args)
        return weight, bias + 0.1

    monkeypatch.setattr(stand_ins, "fuse_conv_bn_weights", wrong)
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
    before, modules = copy.deepcopy(net.state_dict()), dict(net.named_modules())
    prior = ImagePrior.fit([torch.rand(12, 3, 24, 24)])
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        FeatureVisualizer(reference_images=8).render(net, None, [Target("body.5", 0)], prior)
    assert dict(net.named_modules()) == modules
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert net.body[0].weight.grad.eq(1).all()
    assert all(parameter.requires_grad for parameter in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
