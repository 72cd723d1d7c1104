"""What pictures show, and the numbers they carry."""

import itertools
import time

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neurocorr.activations import choose_layers
from lightning_neurocorr.visualization import (
    FeatureVisualizer,
    ImagePrior,
    Target,
)

SIZES = [(8, 8), (9, 9), (15, 20), (16, 16), (32, 32), (128, 128)]
FAST = FeatureVisualizer(steps=2, reference_images=8)


class Tiny(nn.Module):
    def __init__(self, channels, size):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        return self.head(self.pool(self.conv(images).relu()).flatten(1))


def _texture(count, channels, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, *size, generator=generator).cumsum(-1) / 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_every_size_renders_without_gradients_around(channels, size):
    model = Tiny(channels, size)
    prior = ImagePrior.fit([_texture(8, channels, size)])
    targets = [Target("conv", 1), Target("head", 2)]
    for mode, kind in itertools.product(
        (torch.no_grad, torch.inference_mode), ("maco", "pca", "fourier", "pixel")
    ):
        visualizer = FeatureVisualizer(parametrization=kind, steps=1, reference_images=4)
        with mode():
            pictures = visualizer.render(model, choose_layers(model), targets, prior)
        for picture in pictures:
            assert picture.image.shape == (channels, *size)
            assert picture.image.dtype == np.float32
            assert np.isfinite(picture.image).all()


def _matched_filter():
    """A channel that answers to one oblique stroke, and what it answers to."""
    template = torch.zeros(7, 7)
    template[range(7), range(7)] = 1
    template[1:, :6] += 0.5 * torch.eye(6)
    template -= template.mean()
    model = nn.Sequential(nn.Conv2d(1, 2, 7, padding=3), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].weight[0, 0] = template
        model[0].weight[1] = 0
        model[0].bias.zero_()
    return model, template


def _best_shift_correlation(image, template):
    patches = torch.from_numpy(image).unfold(1, 7, 1).unfold(2, 7, 1).reshape(-1, 49)
    patches = patches - patches.mean(1, keepdim=True)
    return float((patches @ template.flatten() / patches.norm(dim=1) / template.norm()).max())


def _strokes(count, size, template, seed=0):
    """The stroke anywhere (it comes back in on the other side), with little noise."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.zeros(size, size)
    frame[:7, :7] = template
    images = 0.1 * torch.randn(count, 1, size, size, generator=generator)
    for image in images:
        image[0] += frame.roll(torch.randint(size, (2,), generator=generator).tolist(), (0, 1))
    return images


@pytest.mark.parametrize(
    ("kind", "start"),
    [("maco", "noise"), ("fourier", "noise"), ("pixel", "noise"), ("pca", "exemplar")],
)
def test_the_picture_of_a_matched_filter_is_its_template(kind, start):
    model, template = _matched_filter()
    images = _strokes(1000, 7, template)
    prior = ImagePrior.fit([images], max_images=1000)
    target = Target("0", 0, position=(3, 3))  # the filter lies on the whole image
    visualizer = FeatureVisualizer(parametrization=kind, start=start)
    (picture,) = visualizer.render(model, None, [target], prior)
    assert _best_shift_correlation(picture.image, template) > 0.8
    noise = images.std() * torch.randn(1000, 7, 7)
    activation = float((torch.from_numpy(picture.image[0]) * template).sum())
    assert activation > float((noise * template).sum((1, 2)).max())


def test_a_channel_over_a_larger_image_shows_its_template_with_default_settings():
    model, template = _matched_filter()
    images = _strokes(1000, 16, template)
    prior = ImagePrior.fit([images])
    (picture,) = FeatureVisualizer().render(model, None, [Target("1", 0)], prior)
    assert _best_shift_correlation(picture.image, template) > 0.8
    with torch.no_grad():
        noise = images.std() * torch.randn(1000, 1, 16, 16)
        best = float(model[:2](noise)[:, 0].mean((1, 2)).max())
        drawn = float(model[:2](torch.from_numpy(picture.image)[None])[0, 0].mean())
    assert drawn > best
    assert picture.readable


def test_the_numbers_are_what_ten_lines_give():
    model = Tiny(1, (8, 8)).eval()
    data = _texture(60, 1, (8, 8))
    prior = ImagePrior.fit([data])
    (picture,) = FAST.render(model, None, [Target("conv", 1, sign=-1)], prior)
    with torch.no_grad():
        real = -model.conv(prior.images[:8])[:, 1].mean((1, 2)).double()
        drawn = -model.conv(torch.from_numpy(picture.image)[None])[0, 1].mean().double()
    mean, top = real.mean(), real.quantile(0.99)
    assert picture.activation_ratio == pytest.approx(float((drawn - mean) / (top - mean)), rel=1e-4)
    assert picture.real_best == pytest.approx(float((real.max() - mean) / (top - mean)), rel=1e-4)
    assert picture.readable == (picture.activation_ratio >= picture.real_best)
    assert (picture.layer, picture.unit, picture.sign) == ("conv", 1, -1)


def test_a_weak_picture_says_do_not_read():
    model = Tiny(1, (8, 8))
    prior = ImagePrior.fit([_texture(60, 1, (8, 8))])
    slow = FeatureVisualizer(steps=1, start="noise", learning_rate=1e-9, parametrization="pixel")
    (picture,) = slow.render(model, None, [Target("conv", 1)], prior)
    assert not picture.readable
    assert picture.note.startswith("do not read this picture: real images drive this neuron more")


def test_pictures_stop_at_the_strength_asked_for():
    model, _ = _matched_filter()
    prior = ImagePrior.fit([torch.randn(64, 1, 16, 16)])
    target = [Target("1", 0)]
    gentle = FeatureVisualizer(strength=1.25).render(model, None, target, prior)[0]
    hard = FeatureVisualizer(strength=None).render(model, None, target, prior)[0]
    assert gentle.readable
    assert hard.activation_ratio > 1.5 * gentle.activation_ratio


def test_both_signs_positions_and_directions_drive_what_they_say():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 36, 4)).eval()
    prior = ImagePrior.fit([_texture(40, 3, (8, 8))])
    direction = torch.randn(5)
    targets = [
        Target("0", 2),
        Target("0", 2, sign=-1),
        Target("0", 1, position=(2, 3)),
        Target("0", direction),
        Target("2", 3, sign=-1),
    ]
    pictures = FeatureVisualizer(steps=30).render(model, None, targets, prior)
    with torch.no_grad():
        images = torch.stack([torch.from_numpy(p.image) for p in pictures])
        drawn, real = model[0](images), model[0](prior.images)
        outputs, real_outputs = model(images), model(prior.images)
    assert drawn[0, 2].mean() > real[:, 2].mean((1, 2)).max()
    assert drawn[1, 2].mean() < real[:, 2].mean((1, 2)).min()
    assert drawn[2, 1, 2, 3] > real[:, 1, 2, 3].max()
    along = torch.einsum("ndhw,d->nhw", real, direction).mean((1, 2))
    assert torch.einsum("dhw,d->hw", drawn[3], direction).mean() > along.max()
    assert outputs[4, 3] < real_outputs[:, 3].min()
    assert [p.unit for p in pictures] == [2, 2, 1, -1, 3]


def test_a_picture_does_not_depend_on_the_others():
    model = Tiny(1, (8, 8))
    prior = ImagePrior.fit([_texture(20, 1, (8, 8))])
    visualizer = FeatureVisualizer(steps=3, start="noise")
    together = visualizer.render(model, None, [Target("conv", i) for i in (3, 0, 1)], prior)
    alone = visualizer.render(model, None, [Target("conv", 0)], prior)
    np.testing.assert_allclose(together[1].image, alone[0].image, atol=1e-4)
    other_seed = FeatureVisualizer(steps=3, start="noise", seed=1)
    (changed,) = other_seed.render(model, None, [Target("conv", 0)], prior)
    assert np.abs(changed.image - alone[0].image).max() > 0.1


def test_neurons_of_a_layer_share_batches_and_the_forward_stops_after_the_layer():
    model = Tiny(1, (8, 8))
    sizes, heads = [], []
    model.conv.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    model.head.register_forward_pre_hook(lambda _, args: heads.append(len(args[0])))
    prior = ImagePrior.fit([_texture(4, 1, (8, 8))])
    visualizer = FeatureVisualizer(steps=2, max_batch=3)
    visualizer.render(model, None, [Target("conv", i) for i in range(4)], prior)
    assert sizes == [4] + [3] * (2 + 9) + [1] * (
        2 + 9
    )  # real images, steps, judged as they are and warped
    assert heads == [4]


def test_given_exemplars_are_started_from_and_compared_with():
    model = Tiny(1, (8, 8))
    prior = ImagePrior.fit([_texture(20, 1, (8, 8))])
    strong = prior.images[:1] + 9 * model.conv.weight[1, 0].sum().sign().detach()
    still = FeatureVisualizer(parametrization="pixel", steps=1, learning_rate=1e-9)
    plain = still.render(model, None, [Target("conv", 1)], prior)[0]
    targets = [Target("conv", 0), Target("conv", 1)]
    for given in ([None, strong[0]], {1: strong[0]}):
        picture = still.render(model, None, targets, prior, exemplars=given)[1]
        assert picture.real_best > plain.real_best
        clamped = strong[0].clamp(prior.low, prior.high).numpy()
        np.testing.assert_allclose(picture.image, clamped, atol=0.5)
        assert picture.start == "exemplar"


def test_the_negative_direction_starts_from_the_lowest_activation():
    model = Tiny(1, (8, 8)).eval()
    prior = ImagePrior.fit([_texture(20, 1, (8, 8))])
    with torch.no_grad():
        real = model.conv(prior.images)[:, 1].mean((1, 2))
    still = FeatureVisualizer(parametrization="pixel", steps=1, learning_rate=1e-9)
    target = [Target("conv", 1, sign=-1)]
    strongest, lowest = prior.images[real.argmax()], prior.images[real.argmin()]
    for given, start in ((None, lowest), ([strongest], lowest), ([lowest], lowest)):
        (picture,) = still.render(model, None, target, prior, exemplars=given)
        clamped = start.clamp(prior.low[:, None, None], prior.high[:, None, None]).numpy()
        np.testing.assert_allclose(picture.image, clamped, atol=0.05)
        assert (picture.sign, picture.start) == (-1, "exemplar")


def test_dead_units_are_said_not_drawn():
    model = Tiny(1, (8, 8))
    with torch.no_grad():
        model.conv.weight[2], model.conv.bias[2] = 0, -1
    prior = ImagePrior.fit([_texture(9, 1, (8, 8))])
    dead, alive = FAST.render(model, None, [Target("conv", 2), Target("conv", 1)], prior)
    assert dead.image is None
    assert not dead.readable
    assert dead.note == "dead: no real image activates this unit"
    assert alive.image is not None


def test_what_noise_cannot_reach_starts_from_a_real_image():
    class Rare(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.ReLU()

        def forward(self, images):
            return self.gate(images.mean((1, 2, 3), keepdim=True) - 2)

    data = _texture(30, 1, (8, 8))
    data[:3] += 4
    prior = ImagePrior.fit([data])
    visualizer = FeatureVisualizer(parametrization="pixel", start="noise", steps=3)
    (picture,) = visualizer.render(Rare(), None, [Target("gate", 0)], prior)
    assert picture.image is not None
    assert picture.start == "exemplar"


def test_a_layer_behind_no_grad_or_never_called_gets_a_note():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.unused = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)

        def forward(self, images):
            with torch.no_grad():
                return self.frozen(images)

    prior = ImagePrior.fit([_texture(9, 1, (8, 8))])
    targets = [Target("frozen", 0), Target("unused", 0)]
    frozen, unused = FAST.render(Frozen(), None, targets, prior)
    assert frozen.note == "no picture: no gradient reaches the image through this layer"
    assert unused.note == "no picture: the forward never calls this layer"
    assert frozen.image is None
    assert unused.image is None


def test_an_in_place_activation_after_the_layer_changes_nothing():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3))
    inplace = nn.Sequential(plain[0], nn.ReLU(inplace=True), plain[2])
    prior = ImagePrior.fit([_texture(9, 1, (8, 8))])
    first, second = (
        FAST.render(m, None, [Target("0", 0), Target("2", 0)], prior) for m in (plain, inplace)
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.activation_ratio == b.activation_ratio


def test_a_layer_called_twice_counts_as_the_mean_of_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, images):
            return self.shared(2 * self.shared(images))

    model = Twice()
    prior = ImagePrior.fit([_texture(9, 1, (8, 8))])
    (picture,) = FAST.render(model, None, [Target("shared", 0)], prior)

    def mean_of_calls(images):
        first = model.shared(images)
        return (first + model.shared(2 * first)).mean((1, 2, 3)).double() / 2

    with torch.no_grad():
        real, drawn = (
            mean_of_calls(prior.images[:8]),
            mean_of_calls(torch.tensor(picture.image)[None]),
        )
    ratio = (drawn - real.mean()) / (real.quantile(0.99) - real.mean())
    assert picture.activation_ratio == pytest.approx(float(ratio), rel=1e-3)


@pytest.mark.parametrize("sequence_first", [False, True])
def test_units_of_token_models_are_the_last_axis(sequence_first):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(8, 6)
            self.embed.batch_first = not sequence_first

        def forward(self, images):
            rows = images[:, 0]  # a token per row
            return self.embed(rows.transpose(0, 1) if sequence_first else rows)

    model = Tokens()
    prior = ImagePrior.fit([_texture(20, 1, (9, 8))])
    targets = [Target("embed", 5), Target("embed", 2, position=(3,))]
    mean, third = FeatureVisualizer(steps=30).render(model, None, targets, prior)
    with torch.no_grad():
        real = model.embed(prior.images[:, 0])  # (N, rows, units)
        drawn = [model.embed(torch.from_numpy(picture.image[0])) for picture in (mean, third)]
    assert drawn[0][:, 5].mean() > real[:, :, 5].mean(1).max()
    assert drawn[1][3, 2] > real[:, 3, 2].max()


def test_models_that_view_contiguous_memory_work():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2)

        def forward(self, images):
            hidden = self.conv(images)
            return self.head(hidden.view(len(hidden), -1))

    prior = ImagePrior.fit([_texture(9, 3, (8, 8))])
    (picture,) = FAST.render(Viewing(), None, [Target("head", 0)], prior)
    assert picture.image is not None


def test_the_time_budget_stops_and_skips():
    class Slow(Tiny):
        def forward(self, images):
            time.sleep(0.02)
            return super().forward(images)

    model = Slow(1, (8, 8))
    prior = ImagePrior.fit([_texture(9, 1, (8, 8))])
    visualizer = FeatureVisualizer(steps=1000, time_budget_s=0.3, max_batch=1)
    began = time.monotonic()
    pictures = visualizer.render(model, None, [Target("conv", 0), Target("conv", 1)], prior)
    assert time.monotonic() - began < 3
    assert "of 1000 steps: time budget of 0.3 s used up" in pictures[0].note
    assert pictures[0].image is not None
    assert pictures[1].note == "skipped: time budget of 0.3 s used up"
    assert pictures[1].image is None


def test_the_progress_bar_counts_pictures(capsys):
    model = Tiny(1, (8, 8))
    prior = ImagePrior.fit([_texture(9, 1, (8, 8))])
    FAST.render(model, None, [Target("conv", 0)], prior, progress=True)
    assert "Pictures" in capsys.readouterr().out
