"""Reports: columns, rows, rankings, and files that are read without trusting them."""

import copy
import functools
import io
import json
import math
import pickle
import random
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from helpers import make_report
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_neurocorr import verdict
from lightning_neurocorr.report import (
    COLUMNS,
    SCHEMA,
    SMALL_IS_STRONG,
    NeuronReport,
    NeuronRow,
    Outcomes,
    Panel,
    Picture,
    Sample,
    TopList,
    noise_ceiling,
)

NAN = math.nan
SIZES = {"features.0": 3, "head": 2}


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((3, 4, 5)).astype(np.float32)


def full_report() -> NeuronReport:
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=5) for name in COLUMNS}
    columns["q_value"][2] = NAN
    seen = Sample("scan 7", 1.5, "only_model", 3, image(1))
    picture = Picture("head", 1, -1, image(2), 1.2, 1.1, 0.9, "exemplar", "fourier", True, "note")
    panels = (
        Panel("head", 1, (seen, replace(seen, image=None)), (seen,), (), picture, image()),
        Panel("features.0", 0),
    )
    return make_report(
        SIZES, columns, outcomes=Outcomes(50, 20, 10, 20, 0.02), n=100, name="näme",
        baseline="rule", advantage="log_prob", validation=3, step=40, epoch=2, message="",
        notes=("one", "two"),
        panels=panels, study={"sets": [1, 2.5, None, "x"], "curve": {"k": [NAN]}},
        stability={"head": 0.5, "features.0": NAN},
    )  # fmt: skip


def equal(a: object, b: object) -> bool:
    """Equality through dataclasses, tuples, dicts and arrays, where NaN equals NaN."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(
            equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)
        )
    return type(a) is type(b) and a == b


# --- columns and rows -----------------------------------------------------------------------------


def test_outcomes_by_hand() -> None:
    outcomes = Outcomes(5, 3, 1, 1, 0.6)
    assert outcomes.n == 10
    assert outcomes.model_accuracy == 0.8
    assert outcomes.baseline_accuracy == 0.6
    assert outcomes.counts == {"both": 5, "only_model": 3, "only_baseline": 1, "neither": 1}
    assert math.isnan(Outcomes().model_accuracy)
    assert math.isnan(Outcomes().baseline_accuracy)


def test_columns_are_the_numbers_of_a_row() -> None:
    numbers = [f.name for f in fields(NeuronRow)]
    assert numbers == ["layer", "unit", *COLUMNS, "dead", "verdict"]
    assert set(COLUMNS) > SMALL_IS_STRONG
    documented = NeuronRow.__doc__
    assert all(f"{name}: " in documented for name in numbers)


def test_rows_are_the_columns_read_across() -> None:
    report = full_report()
    rows = report.rows
    assert len(rows) == 5
    assert [row.name for row in rows] == [
        "features.0:0", "features.0:1", "features.0:2", "head:0", "head:1"
    ]  # fmt: skip
    for i, row in enumerate(rows):
        for name in COLUMNS:
            assert equal(getattr(row, name), float(report.columns[name][i]))
        assert row.dead == (not report.columns["std"][i] > 0)
        values = {name: report.columns[name][i] for name in COLUMNS}
        assert row.verdict == verdict.neuron(values, dead=row.dead)
        assert equal(report.row(row.layer, row.unit), row)
    assert equal(rows[-1], rows[4])
    assert equal(rows[1:4], [rows[1], rows[2], rows[3]])
    with pytest.raises(IndexError, match="out of range"):
        rows[5]


def test_columns_that_are_missing_are_nan() -> None:
    report = make_report(SIZES)
    for name in set(COLUMNS) - {"r"}:
        assert np.isnan(report.column(name)).all()
        assert math.isnan(getattr(report.rows[0], name))
    assert not report.column("dead").any()


def test_dead_neurons_are_those_that_never_change() -> None:
    report = make_report({"a": 4}, {"mean": [1, 1, NAN, 1], "std": [0, 2, NAN, NAN]})
    assert report.column("dead").tolist() == [True, False, False, True]
    assert [row.dead for row in report.rows] == [True, False, False, True]


@pytest.mark.parametrize("by", ["r", "q_value", "attribution", "dead"])
@pytest.mark.parametrize("largest", [None, True, False])
@pytest.mark.parametrize("layer", [None, "a", "b"])
def test_top_against_sorting_tuples(by: str, largest: bool | None, layer: str | None) -> None:
    rng = np.random.default_rng(3)
    names = ("r", "q_value", "attribution", "mean", "std")
    columns = {name: rng.integers(-3, 4, 60) / 2.0 for name in names}  # many ties
    for column in columns.values():
        column[rng.random(60) < 0.2] = NAN
    report = make_report({"a": 40, "empty": 0, "b": 20}, columns)
    down = by not in SMALL_IS_STRONG if largest is None else largest
    rows = [(row, i) for i, row in enumerate(report.rows) if layer in (None, row.layer)]
    values = [
        (-float(getattr(row, by)) if down else float(getattr(row, by)), i, row.name)
        for row, i in rows
        if not math.isnan(getattr(row, by))
    ]
    for k in (-1, 0, 1, 7, 30, 60, 100):
        found = [row.name for row in report.top(k, by, layer=layer, largest=largest)]
        assert found == [name for *_, name in sorted(values)][: max(k, 0)]


def test_top_of_nothing() -> None:
    assert make_report({}).top() == []
    assert make_report({"a": 3}, {"r": [NAN] * 3}).top() == []
    assert make_report({"a": 0}).top(layer="a") == []
    infinite = make_report({"a": 3}, {"contrast_t": [-math.inf, NAN, math.inf]})
    assert [row.unit for row in infinite.top(by="contrast_t")] == [2, 0]
    assert [row.unit for row in infinite.top(by="contrast_t", largest=False)] == [0, 2]


def test_shown_takes_turns_and_leaves_out_what_does_not_speak_for_the_model() -> None:
    columns = {
        "r": [0.9, 0.8, -0.5, 0.1, NAN, 0.0],
        "attribution": [0.1, NAN, 5.0, 0.3, 4.0, -1.0],
    }
    report = make_report({"a": 6}, columns)
    assert [row.unit for row in report.shown()] == [0, 2, 1, 4, 3]
    assert [row.unit for row in report.shown(3)] == [0, 2, 1]
    assert [row.unit for row in make_report({"a": 2}, {"r": [0.2, 0.3]}).shown()] == [1, 0]


def test_summaries_of_layers() -> None:
    columns = {
        "r": [0.5, -0.7, NAN, NAN, NAN],
        "q_value": [0.05, 0.06, NAN, 0.01, NAN],
        "mean": [1, 1, 1, 1, NAN],
        "std": [1, 1, 0, 0, NAN],
    }
    first, second = make_report(SIZES, columns, n=50).summaries
    assert (first.layer, first.neurons, first.dead, first.strongest) == ("features.0", 3, 1, 0)
    assert (first.max_r, first.min_r, first.significant) == (0.5, -0.7, 1)
    assert first.noise_ceiling == math.sqrt(2 * math.log(6) / 50)
    assert (second.strongest, second.dead, second.significant) == (-1, 1, 1)
    assert math.isnan(second.max_r)
    assert math.isnan(second.min_r)
    assert second.verdict == "no neuron with a correlation"


def test_noise_ceiling_is_what_the_largest_of_unrelated_neurons_reaches() -> None:
    rng = np.random.default_rng(0)
    for neurons, n in ((100, 400), (1000, 400)):
        x, a = rng.normal(size=(20, n, neurons)), rng.normal(size=(20, n))
        x, a = x - x.mean(1, keepdims=True), a - a.mean(1, keepdims=True)
        r = np.einsum("bnd,bn->bd", x, a) / np.sqrt((x**2).sum(1) * (a**2).sum(1)[:, None])
        largest = np.abs(r).max(1).mean()
        assert largest < noise_ceiling(neurons, n) < 1.25 * largest
    assert noise_ceiling(10**9, 2) == 1.0
    assert math.isnan(noise_ceiling(0, 10))
    assert math.isnan(noise_ceiling(10, 0))


def test_the_headline_is_the_message_where_there_is_one() -> None:
    assert make_report(SIZES, message="There is no advantage.").headline == "There is no advantage."
    report = make_report(SIZES)
    assert report.headline == verdict.headline(report)


def test_panels_are_found_by_neuron() -> None:
    report = full_report()
    assert report.panel("head", 1) is report.panels[0]
    assert report.panel("head", 0) is None


def test_dataframe() -> None:
    report = full_report()
    table = report.to_dataframe()
    assert list(table) == ["layer", "unit", *COLUMNS, "dead", "verdict"]
    assert table["layer"].tolist() == ["features.0"] * 3 + ["head"] * 2
    assert table["unit"].tolist() == [0, 1, 2, 0, 1]
    for name in COLUMNS:
        np.testing.assert_array_equal(table[name], report.columns[name])
    assert table["verdict"].tolist() == [row.verdict for row in report.rows]
    assert make_report({}).to_dataframe().empty


def test_dataframe_without_pandas(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"lightning_neurocorr\[pandas\]"):
        make_report(SIZES).to_dataframe()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda report: report.column("R"), "a column of numbers, but got 'R'. There are r, r_low"),
        (lambda report: report.top(by="atribution"), "Close ones are attribution, "),
        (lambda report: report.top(by="verdict"), "a column of numbers, but got 'verdict'"),
        (
            lambda report: report.top(layer="x"),
            "one of the 2 layers of this report, but got 'x'. There are 'features.0', 'head'",
        ),
        (lambda report: report.top(layer="features.1"), "Close ones are 'features.0'"),
        (lambda report: report.row(0, 0), "but got 0. There are 'features.0', 'head'"),
        (lambda report: report.row("head", "1"), "a whole number in .* but got '1'"),
        (
            lambda report: report.row("head", 2),
            r"`unit` of 'head' to be a whole number in \[0, 2\), but got 2",
        ),
        (lambda report: report.row("head", -1), "but got -1"),
    ],
)
def test_what_is_not_in_a_report(ask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(make_report(SIZES))


@pytest.mark.parametrize("k", ["attribution", 2.0, None, True])
def test_how_many_is_a_whole_number(k) -> None:
    with pytest.raises(TypeError, match=r"`k` to be a number of neurons, but got .* into `by`"):
        make_report(SIZES).top(k)


# --- top lists ------------------------------------------------------------------------------------


def test_a_top_list_is_a_list() -> None:
    report = full_report()
    found, rows = report.top(3), list(report.top(3))
    assert found == rows
    assert rows == found
    assert found[0] is not None
    assert found[-1] == rows[-1]
    assert found[1:] == rows[1:]
    assert isinstance(found[1:], TopList)
    assert found[1:].noise_ceiling == found.noise_ceiling
    for again in (copy.copy(found), pickle.loads(pickle.dumps(found))):
        assert [row.name for row in again] == [row.name for row in rows]
        assert str(again) == str(found)


def test_a_top_list_prints_a_table_above_what_chance_reaches() -> None:
    columns = {
        "r": [0.31234, -0.2, 0.1], "r_low": [0.25, -0.3, NAN], "r_high": [0.375, -0.1, NAN],
        "q_value": [3.14e-9, 0.02, NAN], "attribution": [0.5, NAN, 1e-5],
    }  # fmt: skip
    report = make_report({"a": 2, "bb": 1}, columns, n=1000)
    assert str(report.top(2)).splitlines() == [
        "2 of 3 neurons, the largest r first",
        "",
        "  neuron                r [95 %]         q   attribution   verdict",
        "  a:0      +0.312 [+0.25, +0.38]   3.1e-09        +0.500   encodes the advantage",
        "                                                           not shown to be used",
        "  bb:0              +0.100 [n/a]       n/a        +1e-05   too sparse to test",
        "                                                           not shown to be used",
        "",
        "By chance, the largest |r| of 3 unrelated neurons over 1,000 samples is about 0.060.",
    ]
    assert math.sqrt(2 * math.log(2 * 3) / 1000) == pytest.approx(0.060, abs=5e-4)
    assert repr(report.top(2)) == str(report.top(2))


def test_a_top_list_knows_how_many_neurons_it_was_chosen_from() -> None:
    report = full_report()
    everywhere, here = report.top(1), report.top(1, "contrast_t", layer="head")
    assert everywhere.noise_ceiling == noise_ceiling(5, 100)
    assert here.noise_ceiling == noise_ceiling(2, 100)
    assert report.shown().noise_ceiling == noise_ceiling(5, 100)
    assert str(here).startswith("1 of 2 neurons of layer head, the largest contrast_t first")
    assert f"{here[0].contrast_t:.3g}" in str(here)
    assert "the smallest q_value first" in str(report.top(1, "q_value"))


def test_top_lists_of_nothing_and_without_samples() -> None:
    assert str(make_report({"a": 3}, {"r": [NAN] * 3}).top()).startswith("0 of 3 neurons")
    assert "chance" not in str(make_report({"a": 3}, n=0).top())
    assert make_report({}).top()._repr_html_()


def test_a_report_shows_its_headline_and_its_top_neurons() -> None:
    report = full_report()
    text, page = repr(report), report._repr_html_()
    assert text.startswith("NeuronReport 'näme': 5 neurons in 2 layers, 100 samples.\n")
    assert report.headline in text
    assert text.endswith(str(report.top(5)))
    assert report.top(5)._repr_html_() in page
    silent = make_report(SIZES, message="There is <nothing> to explain.")
    assert repr(silent).endswith("There is <nothing> to explain.")
    assert silent._repr_html_() == "<p>There is &lt;nothing&gt; to explain.</p>"


def test_top_lists_show_hostile_names_as_text() -> None:
    report = make_report({"<script>\n\x1b[2J": 2})
    assert "<script>" not in report.top()._repr_html_()
    assert "\x1b" not in str(report.top())
    assert len(str(report.top(1)).splitlines()) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (3,)}, "different names with one entry of `sizes` each"),
        ({"layers": ("a", "a")}, r"different names .* but got \('a', 'a'\)"),
        (
            {"columns": {"r": np.zeros(4)}},
            r"numbers of shape \(5,\) .* but got 'r' of shape \(4,\)",
        ),
        ({"columns": {"R": np.zeros(5)}}, "named in COLUMNS, but got 'R'"),
        ({"columns": {"r": np.array(list("abcde"))}}, "of type <U1|and type <U1"),
    ],
)
def test_what_is_no_report(change: dict, message: str) -> None:
    given = {"layers": ("a", "b"), "sizes": (3, 2), "columns": {}}
    with pytest.raises(ValueError, match=message):
        NeuronReport(**given | change)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("report", [full_report(), make_report({}), make_report({"a": 0, "b": 1})])
def test_what_is_saved_is_loaded(report: NeuronReport, tmp_path: Path) -> None:
    path = report.save(tmp_path / "new" / "folder" / "report.npz")
    loaded = NeuronReport.load(str(path))
    for f in fields(NeuronReport):
        assert equal(getattr(loaded, f.name), getattr(report, f.name)), f.name
    again = loaded.save(tmp_path / "again.npz")
    assert equal(NeuronReport.load(again), loaded)


def test_numbers_of_numpy_in_a_study_are_saved_as_plain_ones(tmp_path: Path) -> None:
    study = {"a": np.float32(0.5), "b": np.arange(3), "c": (1, 2), "d": np.bool_(True)}
    loaded = NeuronReport.load(make_report(SIZES, study=study).save(tmp_path / "x"))
    assert loaded.study == {"a": 0.5, "b": [0, 1, 2], "c": [1, 2], "d": True}
    with pytest.raises(TypeError, match="Expected plain data in a report, but got set"):
        make_report(SIZES, study={"a": {1}}).save(tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="Expected `path` to be a file, but got the folder"):
        make_report(SIZES).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "report.npz"
    old = make_report(SIZES, name="old")
    old.save(path)

    def full_disk(file: io.BufferedWriter, **arrays: object) -> None:
        file.write(b"half of it")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full_disk)
        with pytest.raises(OSError, match="no space left"):
            make_report(SIZES).save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert NeuronReport.load(path).name == "old"
    stop, seen = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            seen.append(NeuronReport.load(path).name)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        old.save(path)
    stop.set()
    reader.join()
    assert set(seen) == {"old"}


class Evil:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('pickle was read')",))


def rewritten(path: Path, **arrays: object) -> Path:
    """The same file with some arrays replaced, or removed where None is given."""
    with np.load(path) as archive:
        kept = {**archive, **arrays}
    np.savez(path, **{key: value for key, value in kept.items() if value is not None})
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")


def meta_of(path: Path, **changes: object) -> np.ndarray:
    with np.load(path) as archive:
        meta = json.loads(archive["meta"].tobytes()) | changes
    text = json.dumps({key: value for key, value in meta.items() if value is not ...})
    return np.frombuffer(text.encode(), np.uint8)


@pytest.mark.parametrize("key", ["meta", "column/r", "column/new", "image/0"])
def test_no_pickle_is_read(key: str, tmp_path: Path) -> None:
    path = full_report().save(tmp_path / "report.npz")
    rewritten(path, **{key: np.array([Evil()] * 5, dtype=object)})
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        NeuronReport.load(path)
    (tmp_path / "raw").write_bytes(pickle.dumps(Evil()))
    np.save(tmp_path / "one.npy", np.array([Evil()], dtype=object))
    for name in ("raw", "one.npy"):
        with pytest.raises(ValueError, match=r"Expected `path` to be a report written by"):
            NeuronReport.load(tmp_path / name)


@pytest.mark.parametrize("schema", [SCHEMA + 1, 99, "1", None, 1.5, ...])
def test_newer_schemas_are_refused(schema: object, tmp_path: Path) -> None:
    path = make_report(SIZES).save(tmp_path / "report.npz")
    rewritten(path, meta=meta_of(path, schema=schema))
    message = "not: 'schema'" if schema is ... else "its schema is .*, this version reads up to"
    with pytest.raises(ValueError, match=message):
        NeuronReport.load(path)


def test_files_of_the_first_schema_are_read(tmp_path: Path) -> None:
    report = full_report()
    path = report.save(tmp_path / "report.npz")
    new = {f"column/{name}": None for name in ("risen_at", "rank_before")}
    rewritten(path, meta=meta_of(path, schema=1, stability=...), **new)
    loaded = NeuronReport.load(path)
    assert loaded.stability == {}
    assert math.isnan(loaded.rows[0].risen_at)
    assert math.isnan(loaded.summaries[0].stability)
    np.testing.assert_array_equal(loaded.column("r"), report.column("r"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": "many"}, "n is 'many'"),
        ({"n": -1}, "n is -1"),
        ({"name": 3}, "name is 3"),
        ({"study": [1]}, r"study is \[1\]"),
        ({"layers": [1, 2]}, "an entry of layers is 1"),
        ({"layers": ["a"]}, "different names with one entry of `sizes`"),
        ({"sizes": [6, -1]}, "an entry of sizes is -1"),
        ({"sizes": [2, 2]}, r"numbers of shape \(4,\)"),
        ({"notes": None}, "not: "),
        ({"notes": ...}, "not: 'notes'"),
        ({"outcomes": {"both": 1, "all": 3}}, "unexpected keyword argument 'all'"),
        ({"outcomes": {"both": "x"}}, "both is 'x'"),
        ({"outcomes": {"p_value": "x"}}, "p_value is 'x'"),
        ({"new": 3}, "unexpected keyword argument 'new'"),
        ({"panels": [{"layer": "a"}]}, "not: 'unit'"),
        ({"panels": 3}, "not: "),
        ({"stability": [0.5]}, r"stability is \[0\.5\]"),
        ({"stability": {"head": "high"}}, "stability of head is 'high'"),
    ],
)
def test_broken_contents_are_errors(change: dict, message: str, tmp_path: Path) -> None:
    path = make_report(SIZES).save(tmp_path / "report.npz")
    rewritten(path, meta=meta_of(path, **change))
    with pytest.raises(ValueError, match=f"Expected `path` to be a report.*{message}"):
        NeuronReport.load(path)


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((2, 2, 2, 2)), np.array([["a"]])])
def test_broken_images_are_errors(wrong: np.ndarray, tmp_path: Path) -> None:
    path = full_report().save(tmp_path / "report.npz")
    rewritten(path, **{"image/0": wrong})
    with pytest.raises(ValueError, match=r"an image is of shape .* and type"):
        NeuronReport.load(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        NeuronReport.load(tmp_path / "missing")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("a,b\n1,2\n")
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for path in (*tmp_path.iterdir(), tmp_path):
        with pytest.raises(ValueError, match="Expected `path` to be a report written by Neuron"):
            NeuronReport.load(path)


def load_or_refuse(content: bytes, folder: Path) -> None:
    """Whatever the bytes are: a report whose every part can be read, or a ValueError."""
    path = folder / "fuzzed"
    path.write_bytes(content)
    try:
        report = NeuronReport.load(path)
    except ValueError:
        return
    assert len(list(report.rows[:5])) <= 5
    report.top(3)
    assert isinstance(report.headline, str)
    assert len(report.summaries) == len(report.layers)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=300), prefix=st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY"]))
def test_random_bytes_are_refused(content: bytes, prefix: bytes, tmp_path: Path) -> None:
    load_or_refuse(prefix + content, tmp_path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 8), cut=st.booleans(), packed=st.booleans())
def test_mutated_files_are_read_or_refused(
    seed: int, flips: int, cut: bool, packed: bool, tmp_path: Path
) -> None:
    content = bytearray(valid_file(packed))
    rng = random.Random(seed)
    for _ in range(flips):
        content[rng.randrange(len(content))] = rng.randrange(256)
    if cut:
        del content[rng.randrange(len(content)) :]
    load_or_refuse(bytes(content), tmp_path)


def values(children: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(children, max_size=3) | st.dictionaries(
        st.text(max_size=3), children, max_size=3
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), values
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_contents_are_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    """Archives that are in order, with descriptions that are not."""
    with np.load(io.BytesIO(valid_file(False))) as archive:
        arrays = dict(archive)
    meta = json.loads(arrays["meta"].tobytes())
    place = data.draw(st.sampled_from([meta, meta["outcomes"], *meta["panels"]]))
    place[data.draw(st.sampled_from([*place, "new"]))] = data.draw(json_values)
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, **arrays)
    load_or_refuse(content.getvalue(), tmp_path)


@functools.cache
def valid_file(packed: bool) -> bytes:
    """A report as it is saved, or the same with compressed members."""
    with TemporaryDirectory() as folder:
        path = full_report().save(Path(folder) / "report.npz")
        if packed:
            with np.load(path) as archive:
                arrays = dict(archive)
            np.savez_compressed(path, **arrays)
        return path.read_bytes()


def test_arrays_that_claim_to_be_huge_are_refused(tmp_path: Path) -> None:
    path = full_report().save(tmp_path / "report.npz")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
    )
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "huge.npz", "w") as new:
        for name in old.namelist():
            new.writestr(name, header.getvalue() if name == "column/r.npy" else old.read(name))
    with pytest.raises(ValueError, match="Expected `path` to be a report"):
        NeuronReport.load(tmp_path / "huge.npz")


def test_a_million_neurons_take_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    column = rng.normal(size=1_000_000)
    start = time.perf_counter()
    names = COLUMNS[:16]
    report = make_report({f"layer{i}": 10_000 for i in range(100)}, dict.fromkeys(names, column))
    assert report.top(10)[0].r == column.max()
    assert len(report.top(10, "attribution")) == 0
    assert report.rows[-1].r == column[-1]
    assert len(report.summaries) == 100
    assert report.headline
    assert len(report.verdicts) == 1_000_000
    loaded = NeuronReport.load(report.save(tmp_path / "large.npz"))
    assert loaded.top(1)[0].name == report.top(1)[0].name
    assert time.perf_counter() - start < 15


def test_reports_and_histories_are_read_without_torch() -> None:
    code = (
        "import sys, lightning_neurocorr.report, lightning_neurocorr.history;"
        "from lightning_neurocorr import NeuronReport, HistoryEntry;"
        "print(sorted({'torch', 'torchmetrics', 'scipy', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
