"""The figure of r over validations, looked at as pixels."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from lightning_neurocorr.report import Outcomes
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.show.figures import history_figure
from tests.helpers import make_report

NAN = math.nan


def history(rows: list[list[float]], layer: str = "net.0") -> list[HistoryEntry]:
    return [
        HistoryEntry.from_report(make_report({layer: len(r)}, {"r": r}, epoch=i, validation=i))
        for i, r in enumerate(rows)
    ]


def coloured(image: np.ndarray) -> tuple[int, int]:
    """Number of clearly red and of clearly blue pixels."""
    red, _, blue = (image[..., i].astype(int) for i in range(3))
    return int((red - blue > 60).sum()), int((blue - red > 60).sum())


@pytest.mark.parametrize("validations", [1, 2, 8, 9, 40, 41, 300])
@pytest.mark.parametrize("neurons", [1, 16])
def test_a_figure_of_any_length(validations: int, neurons: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform(-1, 1, (validations, neurons)).tolist()
    image = history_figure(history(rows), [("net.0", unit) for unit in range(neurons)])
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert max(image.shape) <= 2000
    assert image.flags.c_contiguous


def test_up_is_red_down_is_blue_and_unknown_is_neither() -> None:
    # The colour bar below is the same in all three.
    neurons = [("net.0", 0)]
    up, down, unknown = (
        np.array(coloured(history_figure(history([[r]] * 9), neurons))) for r in (0.8, -0.8, NAN)
    )
    assert up[0] > unknown[0] + 1000
    assert down[1] > unknown[1] + 1000
    assert abs(up[1] - unknown[1]) < 1000
    assert abs(down[0] - unknown[0]) < 1000


def test_rows_are_neurons_from_top_to_bottom_and_columns_validations() -> None:
    rows = [[0.9] * 8 + [NAN] * 8] * 10 + [[NAN] * 8 + [0.9] * 8] * 10
    image = history_figure(history(rows), [("net.0", unit) for unit in range(16)]).astype(int)
    red = image[..., 0] - image[..., 2] > 60
    red[int(0.75 * len(red)) :] = False  # the colour bar
    y, x = np.nonzero(red)
    middle_y, middle_x = (y.min() + y.max()) / 2, (x.min() + x.max()) / 2
    assert ((y < middle_y) == (x < middle_x)).mean() > 0.95


def green(image: np.ndarray) -> int:
    red, green, blue = (image[..., i].astype(int) for i in range(3))
    return int((green - np.maximum(red, blue) > 35).sum())


@pytest.mark.parametrize("layers", [2, 9])
def test_a_top_list_that_stays_is_green(layers: int) -> None:
    names = [f"net.{i}" for i in range(layers)]
    rng = np.random.default_rng(0)

    def drawn(kept: bool) -> np.ndarray:
        found: list[HistoryEntry] = []
        r = rng.uniform(0, 1, 40 * layers)
        for i in range(9):
            r = r if kept else rng.uniform(0, 1, 40 * layers)
            report = make_report(dict.fromkeys(names, 40), {"r": r}, validation=i, epoch=i)
            found.append(HistoryEntry.from_report(report, found[-1] if found else None, top_k=4))
        return history_figure(found, [(name, 0) for name in names])

    stable, flickering = green(drawn(True)), green(drawn(False))
    assert stable > 10_000
    assert flickering < 0.1 * stable


def test_of_a_long_history_the_first_and_the_last_are_shown() -> None:
    rows = [[0.0]] * 200
    neurons = [("net.0", 0)]
    plain = coloured(history_figure(history(rows), neurons))
    for i in (0, 199):
        changed = [*rows]
        changed[i] = [0.04]
        assert coloured(history_figure(history(changed), neurons)) != plain


@pytest.mark.parametrize(
    "layer", ["$x_1$", "a$b", "net.层.0", "🙂", "a\nb\tc", "x" * 500, "<b>&amp;", "\\alpha", "_^{}"]
)
def test_odd_layer_names(layer: str) -> None:
    """Warnings are errors here, of missing glyphs too."""
    image = history_figure(history([[0.5, 0.1]], layer), [(layer, 0), (layer, 1)])
    assert max(image.shape) <= 2000


def test_the_state_of_matplotlib_is_left_alone() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    history_figure(history([[0.5]]), [("net.0", 0)])
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("value", "shown"), [(1.0, "1.00"), (0.123, ".12"), (-0.004, ".00"), (-0.5, "−.50")]
)
def test_cells_say_their_value(value, shown, monkeypatch):
    written = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.text", lambda self, x, y, text, **_: written.append(text)
    )
    history_figure(entries([value]), [("conv", 0)])
    assert [text.lstrip("+") for text in written] == [shown]


def colours(figure: np.ndarray) -> set[tuple[int, ...]]:
    """The colours of large areas."""
    found, counts = np.unique(figure.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(map(int, colour)) for colour in found[counts > 400]}


def entries(*rows: Sequence[float]) -> list[HistoryEntry]:
    return [
        HistoryEntry(i, i, i, Outcomes(), ("conv",), (len(r),), np.array(r, np.float32))
        for i, r in enumerate(rows)
    ]


def test_the_figure_shows_r_by_colour_and_undefined_r_in_grey():
    strong_red, strong_blue, grey = (103, 0, 31), (5, 48, 97), (195, 199, 206)
    figure = history_figure(entries([0.5, -0.5, 0.5]), [("conv", 0), ("conv", 2)])
    assert strong_red in colours(figure)
    assert strong_blue not in colours(figure)
    figure = history_figure(entries([0.5, 0.0]), [("conv", 0), ("conv", 1)])
    assert any(min(colour) > 240 for colour in colours(figure)), (
        "zero is white, whatever the others"
    )
    figure = history_figure(entries([0.5, -0.5, math.nan]), [("conv", 1), ("conv", 2)])
    assert {strong_blue, grey} <= colours(figure)
    assert grey in colours(history_figure(entries([0.5]), [("conv", 0), ("gone", 0)]))


def test_the_figure_keeps_its_width_however_long_the_run_is():
    short = history_figure(entries([0.1]), [("conv", 0)])
    long = history_figure(entries(*([0.1],) * 300), [("conv", 0)])
    assert short.shape == long.shape
    assert short.dtype == np.uint8
    taller = history_figure(entries([0.1] * 16), [("conv", unit) for unit in range(16)])
    assert taller.shape[1] == short.shape[1] <= 700
    assert taller.shape[0] > 2 * short.shape[0]
