"""Images as sheets show them: ranges undone, channels as colours, sizes by whole factors."""

import numpy as np
import pytest

from lightning_neurocorr.show.sheets import (
    channel_colours,
    enlarge,
    false_colour,
    to_display,
    to_rgb,
)

LAYER = "features.3"


def test_to_display_undoes_a_range_per_channel_or_a_shared_one() -> None:
    low, high = np.array([0.0, 10.0, -1.0]), np.array([2.0, 30.0, 1.0])
    grey = np.stack([np.full((2, 2), value) for value in (1.0, 20.0, 0.0)])
    assert np.allclose(to_display(grey, low, high), 0.5)
    many = np.stack([np.full((2, 2), value) for value in (0.0, 5.0, 10.0, np.nan)])
    shown = to_display(many, np.array([0.0, 2.0, 0.0, 0.0]), np.array([1.0, 1.0, 10.0, 1.0]))
    assert shown[:, 0, 0].tolist() == [0.0, 0.5, 1.0, 0.0]
    assert shown.dtype == np.float32
    flat = to_display(np.ones((1, 2, 2)), np.ones(1), np.ones(1))
    assert flat.max() == 0  # no range: nothing to divide by
    with pytest.raises(ValueError, match=r"Expected `low` and `high` to have shape \(1,\)"):
        to_display(np.ones((1, 2, 2)), low, high)


@pytest.mark.parametrize("channels", [2, 4, 6, 17])
def test_false_colour_shows_one_channel_in_its_colour_at_its_brightness(channels: int) -> None:
    for channel, colour in enumerate(channel_colours(channels)):
        image = np.zeros((channels, 1, 2))
        image[channel, 0] = [1.0, 0.25]
        view = false_colour(image)
        assert np.allclose(view[0, 0], colour / colour.max(), atol=1e-6)
        assert np.allclose(view[0, 1], 0.25 * view[0, 0], atol=1e-6)
    assert len({tuple(np.round(c, 6)) for c in channel_colours(channels)}) == channels
    assert false_colour(np.zeros((channels, 2, 2))).max() == 0
    white = false_colour(np.ones((channels, 1, 1)))
    assert channels == 2 or white.min() > 0.85


def test_grey_and_colour_images_are_shown_as_they_are() -> None:
    grey = np.array([[[0.0, 0.5, 1.0, np.nan]]])
    assert to_rgb(grey)[0, :, 0].tolist() == [0, 128, 255, 0]
    colour = np.array([0.0, 0.5, 2.0]).reshape(3, 1, 1)
    assert to_rgb(colour)[0, 0].tolist() == [0, 128, 255]


def test_small_images_grow_by_whole_factors_and_large_ones_are_averaged() -> None:
    small = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    assert (enlarge(small, 80) == np.kron(small, np.ones((10, 10, 1), np.uint8))).all()
    assert enlarge(small, 83).shape == (80, 60, 3)
    stripes = np.tile(np.array([0, 255], np.uint8), (200, 150))[..., None].repeat(3, -1)
    shrunk = enlarge(stripes, 80)
    assert shrunk.shape == (53, 80, 3)
    assert abs(float(shrunk[5:-5, 5:-5].mean()) - 127.5) < 3
    assert np.ptp(shrunk[5:-5, 5:-5]) < 60  # every second column alone would be 0 or 255
