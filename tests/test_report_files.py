"""Saved reports: whole or not at all, and read without trusting them."""

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
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_neurocorr.report import (
    COLUMNS,
    SCHEMA,
    NeuronReport,
)
from tests.full_report import SIZES, equal, full_report
from tests.helpers import make_report


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


def test_files_without_the_parts_of_the_advantage_do_not_say_encodes(tmp_path: Path) -> None:
    passing = {"r": 0.5, "q_value": 0.005, "r_within_class": 0.4, "q_within_class": 0.01}
    parts = {"q_only_model": 0.01, "parts_replicated": 0.1}
    columns = {name: [value] for name, value in (passing | parts).items()}
    path = make_report({"a": 1}, columns).save(tmp_path / "report.npz")
    assert NeuronReport.load(path).rows[0].verdict == "encodes the advantage"
    rewritten(path, meta=meta_of(path, schema=2), **{f"column/{name}": None for name in parts})
    words = "its r is above 0; its two parts were not tested"
    assert NeuronReport.load(path).rows[0].verdict == words


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
        "import sys, lightning_neurocorr.report, lightning_neurocorr.report.history;"
        "from lightning_neurocorr import NeuronReport, HistoryEntry;"
        "print(sorted({'torch', 'torchmetrics', 'scipy', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
