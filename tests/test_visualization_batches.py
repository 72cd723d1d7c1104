"""How many pictures are made at once, and that it changes none; forwards in bfloat16."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neurocorr.isolation.room import free_bytes
from lightning_neurocorr.visualization import FeatureVisualizer, ImagePrior, Target, drawing
from lightning_neurocorr.visualization.memory import bytes_per_image, most_at_once


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 24, 3), nn.Tanh())


@pytest.fixture
def prior():
    return ImagePrior.fit([torch.randn(24, 3, 14, 15).cumsum(-1) / 2])


def _sizes(net, visualizer, targets, prior):
    """How many images each forward had, and the pictures."""
    sizes = []
    handle = net[0].register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    pictures = visualizer.render(net, None, targets, prior)
    handle.remove()
    return sizes, pictures


def test_all_neurons_of_a_layer_are_drawn_at_once_where_memory_allows(prior, monkeypatch):
    net, visualizer = _network(), FeatureVisualizer(steps=3, reference_images=2)
    targets = [Target("2", unit) for unit in range(24)]
    sizes, on_cpu = _sizes(net, visualizer, targets, prior)
    assert sizes.count(16) == sizes.count(8) == 3 + 9
    monkeypatch.setattr(drawing, "free_bytes", lambda _: 2**33)
    sizes, together = _sizes(net, visualizer, targets, prior)
    assert sizes.count(24) == 3 + 9
    monkeypatch.setattr(drawing, "free_bytes", lambda _: 0)
    sizes, alone = _sizes(net, visualizer, targets, prior)
    assert sizes.count(1) == 24 * (3 + 9)
    for one, *others in zip(on_cpu, together, alone, strict=True):
        for other in others:
            np.testing.assert_allclose(one.image, other.image, atol=1e-4)
            assert one.activation_ratio == pytest.approx(other.activation_ratio, abs=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_picture_is_the_same_alone_and_with_sixty_others(precision, prior):
    net = nn.Sequential(*_network()[:2], nn.Conv2d(8, 61, 3))
    visualizer = FeatureVisualizer(
        steps=12, reference_images=8, max_batch=61, precision=precision, start="noise"
    )
    together = visualizer.render(net, None, [Target("2", unit) for unit in range(61)], prior)
    atol = 1e-3 if precision == "float32" else 0.05  # a step in another order rounds otherwise
    for unit in (0, 30, 60):
        (alone,) = visualizer.render(net, None, [Target("2", unit)], prior)
        np.testing.assert_allclose(alone.image, together[unit].image, atol=atol)


def test_the_memory_of_an_image_is_what_autograd_keeps_for_it():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 5, 1))
    net.requires_grad_(False)
    images = torch.randn(4, 3, 10, 10, requires_grad=True)
    # by hand: the first convolution keeps its input, the sigmoid what the last one is given
    kept = 4 * 10 * 10 * (3 + 8)
    assert bytes_per_image(net, images) == kept + 8 * images[0].nbytes


def test_batches_fit_into_a_quarter_of_the_free_memory():
    assert most_at_once(None, 10**9) == 16
    assert most_at_once(80 * 10**9, 10**9) == 20
    assert most_at_once(10**9, 10**9) == 1
    assert free_bytes(torch.device("cpu")) is None


def test_bfloat16_moves_pictures_as_far_and_leaves_their_numbers_float32(prior):
    net = _network()
    targets = [Target("2", unit) for unit in range(8)]
    seen = {}
    for precision in ("float32", "bfloat16", "auto"):
        dtypes = set()
        handle = net[2].register_forward_hook(lambda *args, kept=dtypes: kept.add(args[2].dtype))
        visualizer = FeatureVisualizer(steps=24, reference_images=16, precision=precision)
        pictures = visualizer.render(net, None, targets, prior)
        handle.remove()
        seen[precision] = dtypes, pictures
    assert seen["float32"][0] == seen["auto"][0] == {torch.float32}  # "auto" is for GPUs
    assert seen["bfloat16"][0] == {torch.float32, torch.bfloat16}
    for plain, half in zip(seen["float32"][1], seen["bfloat16"][1], strict=True):
        assert half.image.dtype == np.float32
        assert half.activation_ratio == pytest.approx(plain.activation_ratio, rel=0.15)
        activation = net[:3](torch.from_numpy(half.image)[None])[0, half.unit].mean()
        assert _ratio(net, half.unit, activation, prior) == pytest.approx(
            half.activation_ratio, abs=2e-3
        )


def _ratio(net, unit, activation, prior):
    with torch.no_grad():
        real = net[:3](prior.images[:16])[:, unit].mean((1, 2))
        return float((activation - real.mean()) / (real.quantile(0.99) - real.mean()))


class Fine(nn.Module):
    """Unit 1 is a small difference of large numbers, which bfloat16 cannot tell."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 2, 3), nn.Identity()

    def forward(self, images):
        seen = self.conv(images)
        large = seen[:, 1:] + 3000
        return self.act(torch.cat([seen[:, :1], large], 1))


def test_units_that_bfloat16_reads_wrong_are_drawn_in_float32(prior):
    torch.manual_seed(0)
    net, targets = Fine(), [Target("act", 0), Target("act", 1)]
    plain, half = (
        FeatureVisualizer(steps=12, reference_images=16, precision=precision).render(
            net, None, targets, prior
        )
        for precision in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(plain[1].image, half[1].image, atol=1e-4)
    assert np.abs(plain[0].image - half[0].image).max() > 1e-5


def test_pictures_that_bfloat16_reads_wrong_in_the_end_are_made_again(prior, monkeypatch):
    net, targets = _network(), [Target("2", unit) for unit in range(3)]
    asked = []

    def right_in_half(self, chunk, images, plain=None):
        asked.append(list(chunk))
        return [plain is None or index != 1 for index in chunk]

    monkeypatch.setattr(drawing.Drawing, "right_in_half", right_in_half)
    settings = {"steps": 12, "reference_images": 16}
    plain = FeatureVisualizer(**settings).render(net, None, targets, prior)
    half = FeatureVisualizer(**settings, precision="bfloat16").render(net, None, targets, prior)
    assert asked == [[0, 1, 2], [0, 1, 2]]
    np.testing.assert_allclose(plain[1].image, half[1].image, atol=1e-4)
    for unit in (0, 2):
        assert np.abs(plain[unit].image - half[unit].image).max() > 1e-5


def test_models_in_double_precision_stay_there(prior):
    net, kinds = _network().double(), set()
    net[2].register_forward_hook(lambda *args: kinds.add(args[2].dtype))
    visualizer = FeatureVisualizer(steps=2, reference_images=8, precision="bfloat16")
    visualizer.render(net, None, [Target("2", 1)], prior)
    assert kinds == {torch.float64}
