"""Contact sheets: what is drawn is what was found."""

import dataclasses
import math

import numpy as np
import pytest

from lightning_neurocorr.report import COLUMNS, NeuronReport, Outcomes
from lightning_neurocorr.report.panels import Panel, Picture, Sample
from lightning_neurocorr.report.written import significant
from lightning_neurocorr.show.sheets import (
    channel_colours,
    contact_sheet,
    enlarge,
    false_colour,
    to_rgb,
)
from lightning_neurocorr.show.sheets.canvas import (
    DARK,
    LIGHT,
    OUTCOME_COLOURS,
    Canvas,
    font,
    shortened,
    wrapped,
)
from lightning_neurocorr.show.sheets.words import caption, facts, short_facts

LAYER = "features.3"


def picture(**changes) -> Picture:
    made = Picture(
        LAYER, 0, 1, np.zeros((1, 8, 8), np.float32), 1.4, 1.2, 1.1, "exemplar", "pca", True
    )
    return dataclasses.replace(made, **changes)


def images(n: int, channels: int = 1, side: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(n + channels)
    return list(rng.random((n, channels, side, side), dtype=np.float32))


def panel(unit: int, found: list[np.ndarray], **changes) -> Panel:
    """A panel of three samples per group, all different, and a picture."""

    def group(start: int, outcome: str) -> tuple[Sample, ...]:
        return tuple(
            Sample(i, 3.0 - 0.1 * i, outcome, 2, found[i]) for i in range(start, start + 3)
        )

    return Panel(
        layer=changes.pop("layer", LAYER),
        unit=unit,
        exemplars=changes.pop("exemplars", group(0, "neither")),
        only_model=changes.pop("only_model", group(3, "only_model")),
        matched=changes.pop("matched", group(6, "both")),
        picture=changes.pop("picture", picture(unit=unit, image=found[9])),
        shown=changes.pop("shown", found[9]),
    )


def report(*panels: Panel, r: tuple[float, ...] = (0.1, 0.5, math.nan, -0.2)) -> NeuronReport:
    columns = {name: np.full(4, np.nan) for name in COLUMNS} | {"r": np.array(r)}
    columns |= {"mean": np.ones(4), "std": np.ones(4)}
    layer = panels[0].layer if panels else LAYER
    return NeuronReport((layer,), (4,), columns, Outcomes(5, 3, 1, 1), n=10, panels=panels)


def places(sheet: np.ndarray, block: np.ndarray) -> list[tuple[int, int]]:
    """Where (y, x) the block occurs in the sheet, exactly."""
    colours, first, counts = np.unique(
        block.reshape(-1, 3), axis=0, return_index=True, return_counts=True
    )
    rarest = counts.argmin()
    dy, dx = divmod(int(first[rarest]), block.shape[1])
    corners = np.argwhere((sheet == colours[rarest]).all(-1)) - (dy, dx)
    return [
        (int(y), int(x))
        for y, x in corners
        if min(y, x) >= 0 and np.array_equal(sheet[y:, x:][: len(block), : block.shape[1]], block)
    ]


def place(sheet: np.ndarray, block: np.ndarray) -> tuple[int, int]:
    (found,) = places(sheet, block)
    return found


def text_at(sheet: np.ndarray, box: tuple[slice, slice]) -> int:
    """How many pixels of a region are not of its commonest colour."""
    pixels, counts = np.unique(sheet[box].reshape(-1, 3), axis=0, return_counts=True)
    return int(counts.sum() - counts.max()) if len(pixels) > 1 else 0


def drawn(text: str, size: int, bold: bool = False, colour=LIGHT.ink, paper=LIGHT.paper):
    """The pixels that a text must have on a sheet."""
    palette = dataclasses.replace(LIGHT, paper=paper)
    width = math.ceil(font(size, bold).getlength(text))
    canvas = Canvas(width + 2, round(1.3 * size), palette)
    canvas.write((0, 0), text, size, bold=bold, colour=colour)
    inked = np.argwhere((canvas.array() != np.array(paper)).any(-1))
    top, left = inked.min(0)
    bottom, right = inked.max(0)
    return canvas.array()[top : bottom + 1, left : right + 1]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dark", [False, True])
def test_every_sample_is_drawn_where_it_belongs(channels: int, dark: bool) -> None:
    found = images(10, channels)
    sheet = contact_sheet(report(panel(1, found)), LAYER, dark=dark)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == 700  # twice the width of TensorBoard's card
    at = [place(sheet, enlarge(to_rgb(image), 80)) for image in found[:9]]
    columns = [{x for _, x in at[i : i + 3]} for i in (0, 3, 6)]
    assert max(columns[0]) < min(columns[1])
    assert max(columns[1]) < min(columns[2])
    assert len({y for y, _ in at}) == 2  # two by two, aligned over the groups
    assert at[0][0] == at[3][0] == at[6][0]
    top, left = place(sheet, enlarge(to_rgb(found[9]), 160))
    assert (top, left > max(columns[2])) == (at[0][0], True)
    for (y, x), outcome in zip(at[::3], ("neither", "only_model", "both"), strict=True):
        assert (sheet[y + 82, x : x + 80] == OUTCOME_COLOURS[outcome]).all()


def test_words_are_drawn() -> None:
    found = images(10)
    sheet = contact_sheet(report(panel(1, found)), LAYER)
    for text, size, bold, colour in (
        (LAYER, 24, True, LIGHT.ink),
        ("strongest", 16, True, LIGHT.muted),
        ("only the model", 16, True, LIGHT.muted),
        ("both right", 16, True, LIGHT.muted),
        ("made for", 16, True, LIGHT.muted),
        (f"{LAYER}:1", 19, True, LIGHT.ink),
        ("too sparse to test", 18, False, LIGHT.ink),
        ("1.4× real p99", 16, True, LIGHT.ink),
        ("1.2× when moved", 16, False, LIGHT.muted),
        ("from top sample", 16, False, LIGHT.muted),
    ):
        assert places(sheet, drawn(text, size, bold, colour)), text


def test_rows_are_in_the_order_of_r_and_undefined_comes_last() -> None:
    found = images(40)
    panels = [panel(unit, found[10 * unit : 10 * unit + 10]) for unit in range(4)]
    sheet = contact_sheet(report(*panels), LAYER)
    tops = {unit: place(sheet, enlarge(to_rgb(found[10 * unit]), 80))[0] for unit in range(4)}
    assert sorted(tops, key=lambda unit: tops[unit]) == [1, 0, 3, 2]


def test_a_small_sheet_has_the_first_neurons_and_says_how_many_more_there_are() -> None:
    found = images(40)
    panels = [panel(unit, found[10 * unit : 10 * unit + 10]) for unit in range(4)]
    sheet = contact_sheet(report(*panels), LAYER, neurons=2)
    shown = [u for u in range(4) if places(sheet, enlarge(to_rgb(found[10 * u]), 80))]
    assert shown == [0, 1]  # in order of r: 1, 0, 3, 2
    text = "2 more of this layer are in the tab NEURONS."
    assert places(sheet, drawn(text, 18, False, LIGHT.muted))
    assert (contact_sheet(report(*panels), LAYER, neurons=4) == contact_sheet(
        report(*panels), LAYER)).all()  # fmt: skip
    with pytest.raises(ValueError, match="`neurons` to be at least 1"):
        contact_sheet(report(*panels), LAYER, neurons=0)


def test_the_same_report_gives_the_same_sheet() -> None:
    found = images(10)
    first = contact_sheet(report(panel(1, found)), LAYER)
    assert (first == contact_sheet(report(panel(1, found)), LAYER)).all()


def test_fewer_samples_than_asked_for_and_more() -> None:
    found = images(10)
    sheet = contact_sheet(report(panel(1, found)), LAYER, samples=1)
    assert len(places(sheet, enlarge(to_rgb(found[0]), 80))) == 1
    assert not places(sheet, enlarge(to_rgb(found[1]), 80))
    few = panel(1, found, only_model=(), matched=())
    sheet = contact_sheet(report(few, panel(0, images(11))), LAYER)
    assert places(sheet, enlarge(to_rgb(found[0]), 80))


def test_groups_without_samples_take_no_column() -> None:
    found = images(10)
    bare = panel(1, found, only_model=(), matched=(), picture=None, shown=None)
    sheet = contact_sheet(report(bare), LAYER)
    assert not places(sheet, drawn("only the model", 16, True, LIGHT.muted))
    assert not places(sheet, drawn("made for", 16, True, LIGHT.muted))
    assert places(sheet, drawn("strongest", 16, True, LIGHT.muted))
    assert sheet.shape[1] == 700


def test_an_image_that_cannot_be_had_is_said() -> None:
    found = images(10)
    blank = (Sample(4, 2.0, "both", 1, None),)
    sheet = contact_sheet(report(panel(1, found, exemplars=blank)), LAYER)
    assert places(sheet, drawn("no image", 15, colour=LIGHT.muted, paper=LIGHT.box))


@pytest.mark.parametrize("channels", [1, 6])
def test_pictures_that_were_not_made_say_why(channels: int) -> None:
    note = "dead: no real image activates this unit"
    dead = picture(image=None, readable=False, note=note)
    found = images(10, channels)
    sheet = contact_sheet(report(panel(1, found, picture=dead, shown=None)), LAYER)
    said = ["dead: no real image", "activates this unit"] if channels == 1 else [note]
    for line in said:
        assert places(sheet, drawn(line, 15, colour=LIGHT.muted, paper=LIGHT.box)), line


@pytest.mark.parametrize("channels", [1, 6])
def test_pictures_that_real_data_beat_are_marked(channels: int) -> None:
    found = images(10, channels)
    weak = picture(image=found[9], readable=False, activation_ratio=0.7, real_best=1.6)
    marked = contact_sheet(report(panel(1, found, picture=weak)), LAYER)
    plain = contact_sheet(report(panel(1, found)), LAYER)
    lines = ["do not read this", "picture"] if channels == 1 else ["do not read this picture"]
    for line in lines:
        block = drawn(line, 15, True, colour=LIGHT.paper, paper=LIGHT.alarm)
        assert places(marked, block), line
        assert not places(plain, block), line


@pytest.mark.parametrize(("channels", "side"), [(2, 64), (6, 64), (9, 32), (20, 32)])
def test_other_numbers_of_channels_become_strips_of_one_scale(channels: int, side: int) -> None:
    found = images(10, channels, side=16)
    for image in found:
        image *= np.linspace(0.1, 0.8, channels, dtype=np.float32)[:, None, None]
    sheet = contact_sheet(report(panel(1, found)), LAYER, samples=4)
    assert sheet.shape[1] == 700
    for image in (
        found[0],
        found[1],
        found[3],
        found[6],
        found[9],
    ):  # strongest two, one each, picture
        low, high = image.min(), image.max()
        shown = (image - low) / (high - low)  # one scale for all of its channels
        at = [place(sheet, enlarge(to_rgb(plane[None]), side)) for plane in shown]
        assert [x for _, x in at[: min(channels, 6)]] == sorted({x for _, x in at})[
            : min(channels, 6)
        ]
        assert len({y for y, _ in at}) == math.ceil(channels / 12)
        view = enlarge(np.round(255 * false_colour(shown)).astype(np.uint8), 72)
        assert place(sheet, view)[1] < at[0][1]
    assert not places(sheet, enlarge(to_rgb(found[2][:1]), side))


def test_the_colour_of_a_channel_is_said() -> None:
    sheet = contact_sheet(report(panel(1, images(10, 6, 16))), LAYER)
    for colour in channel_colours(6):
        block = np.broadcast_to(np.round(255 * colour).astype(np.uint8), (5, 64, 3))
        assert place(sheet, np.ascontiguousarray(block))[0] < 160


@pytest.mark.parametrize("side", [8, 9, 15, 32, 80, 81, 224])
def test_images_of_any_size_fit(side: int) -> None:
    for channels in (1, 3, 5):
        sheet = contact_sheet(report(panel(1, images(10, channels, side))), LAYER)
        assert sheet.shape[1] == 700


def test_oblong_images_fit() -> None:
    for shape in ((1, 10, 40), (1, 40, 10), (4, 10, 40)):
        found = [np.random.default_rng(i).random(shape, dtype=np.float32) for i in range(10)]
        sheet = contact_sheet(report(panel(1, found)), LAYER)
        if shape[0] == 1:
            assert all(len(places(sheet, enlarge(to_rgb(image), 80))) == 1 for image in found[:9])


@pytest.mark.parametrize(
    "layer",
    [
        "features.encoder.stage_4.blocks.17.attention.projection.out.linear_2.base_layer.default",
        "日本語.слой.ñ",
        "line\nbreak\ttab\x00null\u202e",
        "\ud800 surrogate <script> | _`*",
        "x",
    ],
)
def test_any_layer_name_can_be_drawn(layer: str) -> None:
    found = images(10)
    plain = contact_sheet(report(panel(1, found)), LAYER)
    sheet = contact_sheet(report(panel(1, found, layer=layer)), layer)
    assert sheet.shape == plain.shape
    assert text_at(sheet, (slice(8, 40), slice(12, 600))) > 20


def test_a_long_name_loses_its_middle() -> None:
    face = font(19, True)
    short = shortened("encoder." * 20 + "final", 300, face)
    assert face.getlength(short) <= 300
    assert short.startswith("encoder.")
    assert short.endswith("final")
    assert "…" in short
    assert shortened("conv1", 300, face) == "conv1"
    assert shortened("conv1", 3, face) == "…"


def test_wrapping_keeps_every_word_and_the_width() -> None:
    face = font(18)
    text = "goes with the class, not with the advantage within it; " + "unbroken" * 30
    lines = wrapped(text, 250, face)
    assert all(face.getlength(line) <= 250 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrapped("", 100, face) == []


def test_captions_and_numbers_are_short() -> None:
    assert caption(Sample(0, 2.345678, "both", 7)) == ("7", "2.35")
    assert caption(Sample(0, math.nan, "both", -1)) == ("", "")
    shown = {4.0: "4.00", 123.4: "123", 12345.6: "12346", -0.0123: "−0.0123", 0.0: "0.00"}
    assert {value: significant(value) for value in shown} == shown
    assert len(significant(1.23e-7)) <= 8


def test_facts_about_a_picture() -> None:
    weak = picture(
        sign=-1,
        start="noise",
        readable=False,
        real_best=1.6,
        augmented_ratio=math.nan,
        note="do not read this picture: real images drive it more; stopped after 3 of 64 steps",
    )
    assert short_facts(weak) == ["1.4× real p99", "best real: 1.6×", "drives it down", "from noise"]
    assert facts(picture()) == (
        "1.4× the 99th percentile of real images, 1.2× shifted and turned; "
        "started from the top exemplar"
    )
    assert "(the best real image 1.6×), ? shifted" in facts(weak)
    down = picture(sign=-1)
    assert short_facts(down)[-2:] == ["drives it down", "from lowest sample"]
    assert facts(down).endswith("started from the lowest sample")
    assert weak.remarks == "stopped after 3 of 64 steps"


def test_text_stands_out_from_the_paper() -> None:
    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [
            (c / 255 / 12.92 if c < 10.3 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour
        ]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    def contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        light, dark = sorted((luminance(a), luminance(b)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for palette in (LIGHT, DARK):  # WCAG 2 asks for 4.5
        for colour in (palette.ink, palette.muted, palette.alarm):
            assert contrast(colour, palette.paper) >= 4.5
        assert contrast(palette.muted, palette.box) >= 4.5


def test_a_layer_without_panels_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"Expected `layer` to be one with panels \('features.3'\)"
    ):
        contact_sheet(report(panel(1, images(10))), "nothing")
    with pytest.raises(ValueError, match="Expected `samples` to be at least 1, but got 0"):
        contact_sheet(report(panel(1, images(10))), LAYER, samples=0)
