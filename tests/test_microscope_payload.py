"""What the page reads, against the report that it is made from."""

import gzip
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_neurocorr.inspector.encoding import cut, dumped, pack, unpack
from lightning_neurocorr.inspector.payload import Found, frame, meta
from lightning_neurocorr.inspector.settings import Inspector
from lightning_neurocorr.inspector.states import states
from lightning_neurocorr.report import (
    COLUMNS,
    NeuronReport,
    Outcomes,
    Panel,
    Picture,
    Samples,
    rules,
)
from lightning_neurocorr.report.claims import claims
from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Figure, Finding
from lightning_neurocorr.report.finding_table import Table
from tests.event_files import a_report
from tests.microscope import table_of

NAN = math.nan

# --- bytes ---------------------------------------------------------------------------------------


def read_slowly(kind: str, shape: tuple[int, ...], data: bytes) -> np.ndarray:
    """As the documentation says it, number by number."""
    raw, size = gzip.decompress(data), {"float32": 4, "int32": 4, "uint16": 2}[kind]
    count = len(raw) // size
    numbers = [bytes(raw[byte * count + i] for byte in range(size)) for i in range(count)]
    code = {"float32": "<f4", "int32": "<i4", "uint16": "<u2"}[kind]
    return np.array([np.frombuffer(number, code)[0] for number in numbers]).reshape(shape)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint16"])
def test_parts_are_read_as_they_are_described(dtype: str, ordered: bool) -> None:
    values = (np.arange(12).reshape(4, 3) * 1000 - (3 if dtype != "uint16" else 0)).astype(dtype)
    part = pack(values, ordered=ordered)
    found = read_slowly(part.kind, part.shape, part.data)
    np.testing.assert_allclose(found, values, rtol=1.3e-4)
    assert np.array_equal(unpack(part), found)


@given(st.lists(st.floats(width=32), max_size=30))
@settings(max_examples=200, deadline=None)
def test_a_cut_number_is_off_by_little_and_nothing_turns_into_something_else(
    numbers: list[float],
) -> None:
    values = np.array(numbers, np.float32)
    found = cut(values)
    assert np.array_equal(np.isnan(found), np.isnan(values))
    assert np.array_equal(np.isinf(found), np.isinf(values))
    known = np.isfinite(values) & (np.abs(values) > 1e-37)
    np.testing.assert_allclose(found[known], values[known], rtol=1.23e-4)
    assert np.array_equal(cut(found), found, equal_nan=True)
    assert not np.any(found.view(np.uint32)[np.isfinite(found) & (np.abs(found) < 3e38)] & 0x7FF)


def test_json_has_no_nan_and_no_number_that_javascript_would_round() -> None:
    assert json.loads(dumped({"a": NAN, "b": (np.float32(2), math.inf), "c": 2**60, "d": 7})) == {
        "a": None, "b": [2.0, None], "c": str(2**60), "d": 7,
    }  # fmt: skip
    assert json.loads(dumped(["\ud800 x"])) == ["? x"]


# --- claims and controls -------------------------------------------------------------------------


def random_columns(n: int = 4000) -> dict[str, np.ndarray]:
    """Columns on both sides of every threshold, some unknown."""
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=n) * 0.1 for name in COLUMNS}
    for name in columns:
        if "q_" in name or name.endswith(("_q", "_p")) or name == "p_value":
            columns[name] = rng.choice([0.001, 0.03, 0.5], n, p=[0.8, 0.1, 0.1])
        if not name.startswith("a"):
            columns[name][rng.random(n) < 0.02] = NAN
    for family in ("attribution", "ablation"):  # measured as a whole or not at all
        unknown = rng.random(n) < 0.2
        for name in columns:
            if name.startswith(family):
                columns[name][unknown] = NAN
    return columns


def test_the_bits_say_what_the_verdict_says() -> None:
    columns = random_columns()
    report = NeuronReport(("a",), (4000,), columns, n=100)
    found = frame(Found.of(report))
    bits = unpack(found.parts["claims"])
    words = np.array(found.index["verdicts"], object)[unpack(found.parts["verdict"])]
    assert words.tolist() == report.verdicts.tolist()
    for claim in found.index["claims"]:
        made = (bits >> claim["bit"]) & 1 == 1
        expected = getattr(rules, claim["name"])(columns)
        assert np.array_equal(made, expected), claim["name"]
        assert 20 < made.sum() < 3980
        passed = [(bits >> control["bit"]) & 1 == 1 for control in claim["controls"]]
        known = [(bits >> control["known"]) & 1 == 1 for control in claim["controls"]]
        # A claim is made where every control passed; one that cannot be known never fails it.
        every = np.all([p | ~k for p, k in zip(passed, known, strict=True)], 0)
        assert np.all(every[made]), claim["name"]
        told = np.all(known, 0)
        assert np.array_equal(made[told], every[told]), claim["name"]
        failed = np.any([k & ~p for p, k in zip(passed, known, strict=True)], 0)
        assert not np.any(failed & made)
        for p, k in zip(passed, known, strict=True):
            assert not np.any(p & ~k)
            assert 0 < p.sum() < 4000
    places = [
        part[name]
        for claim in found.index["claims"]
        for part in (claim, *claim["controls"])
        for name in ("bit", "known")
    ]
    assert sorted(places) == list(range(len(places)))
    assert len(places) <= 32


def test_every_control_stands_by_columns_that_there_are() -> None:
    for claim in claims({"r": np.zeros(1)}):
        assert claim.column in COLUMNS
        for control in claim.controls:
            assert set(control.columns) <= set(COLUMNS), control.name


# --- summary -------------------------------------------------------------------------------------


def test_a_summary_counts_what_the_table_has() -> None:
    rng = np.random.default_rng(1)
    columns = random_columns(60) | {"mean": rng.random(60), "std": np.r_[0.0, np.ones(59)]}
    report = NeuronReport(
        ("a", "b"), (20, 40), columns, outcomes=Outcomes(6, 3, 2, 1, 0.4), n=12,
        notes=("one",), read_at=("a.relu", "b"),
    )  # fmt: skip
    found = json.loads(dumped(meta(Found.of(report), full=True)))
    assert found["outcomes"] == {
        "both": 6, "only_model": 3, "only_baseline": 2, "neither": 1, "p": 0.4,
        "model": 0.75, "baseline": pytest.approx(8 / 12),
    }  # fmt: skip
    table = frame(Found.of(report))
    bits = unpack(table.parts["claims"])
    for claim in table.index["claims"]:
        made = (bits >> claim["bit"]) & 1
        assert found["neurons"][claim["name"]] == made.sum()
        assert [layer[claim["name"]] for layer in found["layers"]] == [
            made[:20].sum(), made[20:].sum()
        ]  # fmt: skip
    assert found["neurons"]["silenced"] == np.isfinite(columns["ablation"]).sum()
    first, second = found["layers"]
    assert (first["read_at"], first["dead"]) == ("a.relu", 1)
    low, high = second["hist_range"]
    r = columns["r"][20:]
    r = r[np.isfinite(r)]
    counts = [0] * 41
    for value in r:
        counts[min(40, int((value - low) / (high - low) * 41))] += 1
    assert second["hist"] == counts


def test_regression_has_no_outcomes_and_says_why() -> None:
    report = NeuronReport(
        ("a",), (2,), {"r": np.array([0.1, 0.2])}, n=9, asked={"attribution": True}
    )
    found = meta(Found.of(report), full=False)
    assert found["outcomes"] is None
    assert found["evidence"]["attribution"] == {
        "state": "refused",
        "why": "nothing is right or wrong here, so no sample is won",
    }
    assert frame(Found.of(report)).index["columns"][0]["name"] == "r"


# --- states --------------------------------------------------------------------------------------


def empty(**fields) -> NeuronReport:
    asked = dict.fromkeys(("attribution", "ablation", "placebo", "pictures", "thumbnails"), True)
    fields = {"outcomes": Outcomes(6, 3, 2, 1, 0.4), "n": 12, "asked": asked} | fields
    return NeuronReport(("a", "b"), (2, 1), {"r": np.array([0.1, 0.2, 0.3])}, **fields)


def with_column(report: NeuronReport, name: str, *values: float) -> NeuronReport:
    return replace(report, columns={**report.columns, name: np.array(values)})


LATE = Finding("Placebo", state="not_finished", why="out of time")
SLOW = "not finished within its share of the 120 s for all layers"


@pytest.mark.parametrize(
    ("what", "report", "state", "why"),
    [
        ("attribution", with_column(empty(), "attribution", NAN, 1, NAN), "measured", ""),
        ("attribution", empty(asked={"attribution": False}), "not_asked", ""),
        ("attribution", empty(asked={}), "not_asked", "earlier version"),
        ("attribution", empty(notes=("No attribution: it is odd.",)), "refused", "it is odd."),
        ("attribution", empty(message="no advantage"), "refused", "no advantage"),
        ("ablation", empty(), "not_finished", "at the end of a fit"),
        ("ablation", empty(study={"refused": "too few samples"}), "refused", "too few samples"),
        ("ablation", empty(study={"skipped": {"a": SLOW, "b": SLOW}}), "not_finished", SLOW),
        ("ablation", empty(study={"skipped": {"a": "only 1 varies"}}), "refused", "only 1 varies"),
        ("ablation", empty(notes=("Fault in ablation: OSError: x",)), "not_finished", "OSError"),
        ("ablation", empty(notes=("No sample is run again: no.",)), "refused", "no."),
        ("placebo", empty(), "not_finished", "at the end of a fit"),
        ("placebo", empty(studies={"placebo": LATE}), "not_finished", "out of time"),
        ("pictures", empty(notes=("No pictures: text",)), "refused", "text"),
        ("thumbnails", empty(notes=("No pictures: text",)), "refused", "text"),
        ("thumbnails", empty(), "not_finished", "at the end of a fit"),
        ("samples", empty(), "not_asked", "earlier version"),
    ],
)
def test_a_number_that_is_missing_says_why(what, report, state, why) -> None:
    found = states(report)[what]
    assert found["state"] == state
    assert why in found["why"]
    assert (found["why"] == "") == (why == "")


def test_more_samples_than_a_page_can_list_are_said(monkeypatch) -> None:
    from lightning_neurocorr.inspector import states as room

    none = np.full(9, -1)
    report = empty(samples=Samples(np.arange(9), none, none, none, none), asked={"samples": True})
    assert states(report)["samples"]["state"] == "measured"
    monkeypatch.setattr(room, "_MOST_SAMPLES", 8)
    found = states(report)["samples"]
    assert found == {
        "state": "refused", "why": "lists of 9 samples are too long for a page",
    }  # fmt: skip
    assert not any(name.startswith("s/") for name in frame(Found.of(report)).parts)


def test_every_layer_has_its_own_reason() -> None:
    report = replace(
        with_column(empty(), "ablation", 0.5, NAN, NAN), study={"skipped": {"b": SLOW}}
    )
    a, b = meta(Found.of(report), full=False)["layers"]
    assert a["ablation"] == {"state": "measured", "why": ""}
    assert b["ablation"] == {"state": "not_finished", "why": SLOW}
    _, b = meta(Found.of(replace(report, study={})), full=False)["layers"]
    assert b["ablation"]["state"] == "not_chosen"


# --- studies -------------------------------------------------------------------------------------


def test_what_studies_found_is_drawn_from_its_description() -> None:
    """Numbers, texts and pictures of a table come back by the parts that the index names."""
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    table = Table(
        "neuron",
        (Column("layer", "Its layer.", format="text"), Column("unit", "Its unit."),
         Column("odds", "How odd it is.", "nats", "signed"),
         Column("word", "What fits.", format="text")),
        {"layer": ["head", "gone", "conv"], "unit": np.array([2, 0, 5]),
         "odds": np.array([0.1, NAN, 3]), "word": ["<b>", None, "x"]},
        title="Odd ones",
    )  # fmt: skip
    groups = Table("group", (Column("size", "Members.", format="count"),), {"size": np.arange(4)})
    odd = Finding(
        "Odd things", "What is odd?", headline="Two are.", tables=(table, groups),
        figures=(Figure("map", image, "all"),), notes=("beware",), numbers={"n": 2},
    )  # fmt: skip
    refused = Finding("Words", "Which?", state="refused", why="no words were given")
    report = a_report(studies={"odd": odd, "words": refused})
    found = frame(Found.of(report))
    index, parts = table_of(found.items)
    first, second = index["studies"]
    assert (first["name"], first["title"], first["headline"]) == ("odd", "Odd things", "Two are.")
    assert first["texts"] == [{"title": "", "text": "beware"}]
    assert (second["state"], second["why"]) == ("refused", "no words were given")
    neurons, sizes = first["tables"]
    assert (neurons["title"], neurons["per"], neurons["rows"], neurons["all"]) == (
        "Odd ones", "neuron", 3, 3,
    )  # fmt: skip
    row, odds, word = (parts[column["part"]] for column in neurons["columns"])
    assert row.tolist() == [report.layout.position("head", 2), -1, 5]
    np.testing.assert_allclose(odds, [0.1, NAN, 3], rtol=1.3e-4)
    assert word == ["<b>", None, "x"]
    assert neurons["columns"][1] == {
        "name": "odds", "title": "odds", "meaning": "How odd it is.", "unit": "nats",
        "format": "signed", "part": "t/odd/neuron/odds",
    }  # fmt: skip
    assert parts[sizes["columns"][0]["part"]].tolist() == [0, 1, 2, 3]
    (picture,) = first["pictures"]
    assert picture["caption"] == "all"
    assert np.array_equal(parts[picture["part"]], image)


# --- samples, pictures, settings -----------------------------------------------------------------


def test_samples_without_classes_have_positions_and_ids_alone() -> None:
    none = np.full(3, -1)
    samples = Samples(np.arange(3), none, none, none, none, ids=("a", 2**60, None))
    report = NeuronReport(("a",), (2,), {"r": np.array([0.1, 0.2])}, samples=samples)
    found = frame(Found.of(report))
    assert unpack(found.parts["s/outcome"]).tolist() == [255, 255, 255]
    assert "s/target" not in found.parts
    assert json.loads(gzip.decompress(found.parts["s/id"].data)) == ["a", str(2**60), None]
    assert found.index["tile"] is None


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_pictures_lie_where_the_index_says(channels: int) -> None:
    import io

    from PIL import Image

    panels = tuple(
        Panel("head", unit, picture=Picture("head", unit, activation_ratio=unit + 0.5, note="n"),
              shown=np.full((channels, 20, 20), unit / 10, np.float32))
        for unit in (4, 0, 5)
    )  # fmt: skip
    none = Panel("conv", 2, picture=Picture("conv", 2, note="dead"))
    panels = (panels[0], none, Panel("conv", 3), *panels[1:])
    found = frame(Found.of(a_report(panels=panels, step=7)))
    grid = found.index["picture"]
    assert grid["step"] == 7
    (sheet,) = found.pictures
    pixels = np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB"))
    made = found.index["pictures"]
    unmade = made.pop(1)
    assert (unmade["row"], unmade["tile"], unmade["note"]) == (2, None, "dead")
    for picture, unit in zip(made, (4, 0, 5), strict=True):
        assert picture["row"] == 6 + unit
        assert picture["ratio"] == unit + 0.5
        y, x = divmod(picture["tile"], grid["per_row"])
        cut_out = pixels[y * grid["h"] :, x * grid["w"] :][: grid["h"], : grid["w"]]
        assert cut_out.max() == pytest.approx(255 * unit / 10, abs=3)


def test_full_tables_come_when_they_are_due() -> None:
    plain = Inspector()
    due = [v for v in range(1, 201) if plain.writes_table(v, 100)]
    assert due[:10] == list(range(1, 11))
    assert len(due) < 60
    assert [v for v in range(1, 201) if plain.writes_table(v, 1 << 18)] == [1]
    assert [v for v in range(1, 10) if Inspector(3).writes_table(v, 9)] == [3, 6, 9]
    few = frame(Found.of(a_report()), ["r", "q_value"])
    assert [column["name"] for column in few.index["columns"]] == ["r", "q_value"]


@pytest.mark.parametrize(
    "wrong",
    [{"every_n_validations": 0}, {"every_n_validations": 1.5}, {"columns": "r"},
     {"columns": [3]}, {"columns": ["r", "q"]}, {"thumbnails": -1}, {"max_thumbnails": True}],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(wrong))}` of Inspector"):
        Inspector(**wrong)


def test_partners_of_many_neurons_are_those_of_one_after_the_other() -> None:
    from lightning_neurocorr.exemplars import MatchedSamples

    draw = torch.Generator().manual_seed(0)
    matched = MatchedSamples(5, k=3)
    target = torch.randint(0, 4, (60,), generator=draw)  # no sample of class 4
    matched.update(torch.arange(60) * 7, torch.randint(0, 2, (60,), generator=draw), target)
    kept = matched.compute()
    targets = torch.randint(-1, 7, (50, 6), generator=draw)
    found = kept.match_all(targets, torch.arange(50))
    for unit in range(50):
        one = kept.match(targets[unit].tolist(), seed=unit)
        assert found[unit].tolist() == [-1 if e is None else e.position for e in one]
