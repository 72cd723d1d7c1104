"""Stored predictions: the right row for each sample, or an error that says what is wrong."""

import copy
import csv
import io
import pickle
import types

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_neurocorr.baselines import TableBaseline, check_prediction

fuzz = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def written(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def at(baseline, *positions):
    return baseline.predict_at(None, torch.tensor(positions))


# --- in memory --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        [3, 1, 2],
        (3, 1, 2),
        np.array([3, 1, 2], dtype=np.uint8),
        torch.tensor([3, 1, 2]),
        torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64),
    ],
)
def test_class_ids_by_position(table):
    baseline = TableBaseline(table)
    assert baseline.needs_positions
    assert check_prediction(at(baseline, 2, 0, 0), 3, 4).tolist() == [2, 3, 3]


def test_scores_by_position_and_by_row_number():
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [-np.inf, 1.0]])
    assert torch.equal(
        at(TableBaseline(scores), 2, 1), torch.tensor([[-np.inf, 1.0], [0.8, 0.2]]).float()
    )
    by_id = TableBaseline(scores, id="row")
    assert torch.equal(by_id({"row": torch.tensor([1])}), torch.tensor([[0.8, 0.2]]))
    with pytest.raises(ValueError, match=r"no row for '3' \(sample 1 of the batch\)"):
        by_id({"row": torch.tensor([1, 3])})


@pytest.mark.parametrize("array", [np.array([0, 1]), torch.tensor([0, 1])])
def test_a_table_does_not_change_with_what_it_was_made_from(array):
    baseline = TableBaseline(array)
    array[:] = 7
    assert at(baseline, 0, 1).tolist() == [0, 1]


@pytest.mark.parametrize(
    "ids",
    [
        ["9", "a", "9"],
        ("9", "a", "9"),
        np.array(["9", "a", "9"]),
        [9, "a", 9],
        [np.int64(9), b"a", torch.tensor(9)],
        [9.0, "a", "9"],
    ],
)
def test_ids_are_compared_as_text(ids):
    baseline = TableBaseline({9: 1, "a": 0}, id="case")
    assert not baseline.needs_positions
    assert baseline({"case": ids}).tolist() == [1, 0, 1]
    assert baseline.predict_at({"case": ids}, None).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("where", "batch"),
    [
        ("case", {"case": torch.tensor([5, 6])}),
        ("meta.case", {"meta": types.SimpleNamespace(case=[5, 6])}),
        (2, (0, 0, torch.tensor([5.0, 6.0]))),
        (lambda batch: [name[:-4] for name in batch], ["5.png", "6.png"]),
    ],
)
def test_ids_are_found_anywhere_in_the_batch(where, batch):
    assert TableBaseline({5: 50, 6: 60}, id=where)(batch).tolist() == [50, 60]


def test_a_single_id_that_is_no_list():
    assert TableBaseline({"a": 1}, id=0)(("a",)).tolist() == [1]
    assert TableBaseline({3: 1}, id=0)((torch.tensor(3),)).tolist() == [1]


@pytest.mark.parametrize("ids", [["a", "c", "b"], ["b", "a", "d"]])
def test_the_first_missing_id_is_named(ids):
    missing = next(value for value in ids if value not in "ab")
    match = rf"no row for '{missing}' \(sample {ids.index(missing)} of the batch\)"
    with pytest.raises(ValueError, match=match + ". Its 2 ids look like 'a', 'b'"):
        TableBaseline({"a": 0, "b": 1}, id=0)((ids,))


def test_dict_of_scores_and_double_ids():
    baseline = TableBaseline({"a": [0.1, 0.9], "b": [1, 0]}, id=0)
    assert torch.equal(baseline((["b", "a"],)), torch.tensor([[1.0, 0.0], [0.1, 0.9]]))
    with pytest.raises(
        ValueError, match="ids of `table` to be different, but got '1' twice: row 1"
    ):
        TableBaseline({1: 0, "1": 1}, id=0)
    with pytest.raises(ValueError, match="`table` is a dict"):
        TableBaseline({1: 0})


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ([], r"shape \(N,\) or \(N, C\), but got \(0,\)"),
        ([[]], r"but got \(1, 0\)"),
        (np.zeros((2, 2, 2)), r"but got \(2, 2, 2\)"),
        (np.array(3), r"but got \(\)"),
        (["cat"], "numbers.*'cat'"),
        ([[1], [1, 2]], "numbers"),
        (np.array([None, 1]), "numbers.*object"),
        (np.array([1j]), "numbers.*complex"),
        (torch.zeros(2, dtype=torch.complex64), "real numbers"),
        ([0.0, float("nan")], "NaN in row 1"),
        ([[0.0, 1.0], [0.0, float("nan")]], "NaN in row 1"),
        (object(), "numbers"),
        (None, "numbers.*None"),
    ],
)
def test_wrong_tables_are_refused_at_once(table, match):
    with pytest.raises(ValueError, match="^Expected `table`.*" + match):
        TableBaseline(table)


# --- lengths and positions --------------------------------------------------------------------


def test_length_is_compared_before_training(tmp_path):
    baseline = TableBaseline([0, 1, 2])
    baseline.check(3)
    baseline.check(None)
    with pytest.raises(
        ValueError, match=r"3 rows for 5 samples: position 3 is the first without a"
    ):
        baseline.check(5)
    with pytest.raises(ValueError, match=r"3 rows for 2 samples: row 2 is the first without a sam"):
        baseline.check(2)
    from_file = TableBaseline(written(tmp_path, "prediction\n0\n\n1\n2\n"))
    with pytest.raises(ValueError, match=r"table.csv.*3 rows for 2 samples: line 5 is the first"):
        from_file.check(2)
    TableBaseline({"a": 1}, id=0).check(5)  # by id a table may hold other samples too


def test_positions_must_be_known_and_inside():
    baseline = TableBaseline([0, 1, 2])
    for call in (lambda: baseline(None), lambda: baseline.predict_at(None, None)):
        with pytest.raises(
            ValueError, match=r"looked up by position, but the data set is shuffled"
        ):
            call()
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=rf"got 3 rows and position {wrong}"):
            at(baseline, 0, wrong)
    assert baseline.predict_at(None, torch.tensor([2], dtype=torch.int32)).tolist() == [2]


# --- CSV --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "id,prediction\na,1\nb,-2\n",
        "\ufeffid,prediction\r\na,1\r\nb,-2\r\n",
        "id,prediction\ra,1\rb,-2",
        '"id","prediction"\n"a","1"\n"b"," -2 "\n',
        "\n\nid,prediction\n\na,1\n\n\nb,-2\n\n",
        " id , prediction \na,+1\nb,-2",
        "id;prediction\na;1\nb;-2\n",
        'note,id,prediction\n"two\nlines, ""quoted""",a,1\n,b,-2\n',
    ],
)
def test_csv_in_many_dresses(tmp_path, text):
    baseline = TableBaseline(written(tmp_path, text), id="case")
    answer = baseline({"case": ["b", "a"]})
    assert answer.tolist() == [-2, 1]
    assert answer.dtype == torch.int64
    assert at(TableBaseline(written(tmp_path, text)), 0, 1).tolist() == [1, -2]


def test_tsv_and_other_columns(tmp_path):
    text = "case\tp0\tp1\n7\t0.25\t.75\n8\t1e0\t-inf\n"
    path = written(tmp_path, text, "readings.TSV")
    baseline = TableBaseline(path, id=0, column=["p1", "p0"], id_column="case")
    want = torch.tensor([[-np.inf, 1.0], [0.75, 0.25]])
    assert torch.equal(baseline((torch.tensor([8, 7]),)), want)
    assert repr(baseline) == f"TableBaseline({str(path)!r}, id=0, column=['p1', 'p0'])"


def test_integers_stay_exact_and_floats_make_the_column_float(tmp_path):
    path = written(tmp_path, f"prediction\n{2**63 - 1}\n{-(2**63)}\n0\n")
    assert at(TableBaseline(path), 0, 1).tolist() == [2**63 - 1, -(2**63)]
    path = written(tmp_path, "prediction\n1\n2.0\n")
    assert check_prediction(at(TableBaseline(path), 0, 1), 2, 3).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "id,prediction\na,1\nb,\n",
            r"line 3, column 'prediction' .* number, but got an empty cell",
        ),
        ("id,prediction\na,1\n\nb,NaN\n", "line 4, column 'prediction' .* but got NaN"),
        ("id,prediction\na,cat\n", "line 2, column 'prediction' .* but got 'cat'"),
        ("id,prediction\na,1_000\n", "but got '1_000'"),
        ("id,prediction\na,\u0661\n", "but got '\u0661'"),
        ("id,prediction\na,1.5.2\n", "but got '1.5.2'"),
        ('id,prediction\n"x\ny",1\nb,0x1\n', "line 4, column 'prediction' .* but got '0x1'"),
        ("id,prediction\na,1,2\n", "line 2 of .* to have 2 cells as the header, but got 3"),
        ("id,prediction\na\n", "line 2 of .* to have 2 cells as the header, but got 1"),
        (
            "id,reading\na,1\n",
            "column 'prediction', but got no such .* 'id', 'reading'. .*`column=",
        ),
        ("id,prediction,prediction\na,1,2\n", "column 'prediction', but got several of that name"),
        ("case,prediction\na,1\n", "column 'id', but got no such column.*`id_column="),
        ("id,prediction\na,1\nb,2\na,3\n", "different, but got 'a' twice: line 4 and line 2"),
        ("id,prediction\n", "a header and rows, but got 1 lines"),
        ("", "a header and rows, but got 0 lines"),
        ('id,prediction\na,"1\n', "CSV text in UTF-8, but got unexpected end of data"),
        ('id,prediction\na,"1"2\n', "CSV text in UTF-8, but got"),
        ("id,prediction\na,1\n".encode("utf-16"), "CSV text in UTF-8, but got 'utf-8' codec"),
        (f"id,prediction\n{'a' * 200_000},1\n", "CSV text in UTF-8, but got field larger"),
    ],
)
def test_a_csv_that_is_wrong_is_named_by_line_and_column(tmp_path, text, match):
    baseline = TableBaseline(written(tmp_path, text), id=0)
    with pytest.raises(ValueError, match="^Expected .*" + match) as caught:
        baseline.check(None)
    assert "table.csv'" in str(caught.value)


def test_huge_numbers(tmp_path):
    for digits in (30, 400, 5000):
        baseline = TableBaseline(written(tmp_path, f"prediction\n{'9' * digits}\n"))
        with pytest.raises(ValueError, match=r"integral class ids|class ids from 0"):
            check_prediction(at(baseline, 0), 1, 10)


def test_a_cell_is_never_executed(tmp_path):
    path = written(tmp_path, "prediction\n__import__('os').abort()\n")
    with pytest.raises(ValueError, match='but got "__import__'):
        TableBaseline(path).check(1)


def naive(text: str) -> tuple[list[str], list[int]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    return [row["id"] for row in rows], [int(row["prediction"]) for row in rows]


@fuzz
@given(
    rows=st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(
            lambda text: not {"\r", "\n", "\0"} & set(text)
        ),
        st.integers(-(2**63), 2**63 - 1),
        min_size=1,
        max_size=8,
    ),
    newline=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    bom=st.booleans(),
)
def test_whatever_csv_writes_is_read_back(tmp_path, rows, newline, quoting, bom):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=newline, quoting=quoting)
    writer.writerows([("id", "prediction"), *rows.items()])
    data = out.getvalue().encode("utf-8-sig" if bom else "utf-8")
    baseline = TableBaseline(written(tmp_path, data), id=0)
    ids, values = naive(out.getvalue())
    assert baseline((ids,)).tolist() == values == list(rows.values())


WORDS = b'id prediction , \n \r " 1 -2 nan ; \t \xef\xbb\xbf \x00 \xff 1e999 9999999999999999999999'
pieces = st.sampled_from([*WORDS.split(b" "), b" "])
any_text = st.one_of(st.binary(max_size=80), st.lists(pieces, max_size=24).map(b"".join))


@fuzz
@given(
    data=any_text | any_text.map(lambda rest: b"id,prediction\n" + rest),
    where=st.sampled_from([None, 0]),
    suffix=st.sampled_from([".csv", ".tsv"]),
    column=st.sampled_from(["prediction", ["prediction", "id"]]),
)
def test_any_bytes_are_a_table_or_an_error_of_ours(tmp_path, data, where, suffix, column):
    baseline = TableBaseline(written(tmp_path, data, "table" + suffix), id=where, column=column)
    try:
        baseline.check(None)
    except ValueError as error:
        assert str(error).startswith("Expected ")  # noqa: PT017 - either outcome is right
        assert "`table`" in str(error)  # noqa: PT017
    else:
        rows = baseline._read().values
        assert len(rows) >= 1
        assert not rows.float().isnan().any()


# --- NPY --------------------------------------------------------------------------------------


def npy(array, **kwargs) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float64, ">i4", "<f4", bool])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, dtype, order):
    array = np.array([[1, 0], [0, 1], [1, 1]], dtype=dtype, order=order)
    baseline = TableBaseline(written(tmp_path, npy(array), "table.npy"))
    baseline.check(3)
    assert at(baseline, 2, 0).tolist() == [[1, 1], [1, 0]]
    ids = TableBaseline(written(tmp_path, npy(array[:, 0]), "ids.npy"), id=0)
    assert check_prediction(ids(([2, 1],)), 2).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "an NPY file of numbers, but got"),
        (b"PK\x03\x04", "an NPY file of numbers, but got"),
        (npy(np.array([{}, 1], dtype=object), allow_pickle=True), "NPY file of numbers, but got"),
        (pickle.dumps([0, 1]), "an NPY file of numbers, but got"),
        (npy(np.array(["cat"])), "an NPY file of numbers, but got <U3"),
        (npy(np.array([1j])), "an NPY file of numbers, but got complex128"),
        (npy(np.zeros(2, dtype=[("id", "i4"), ("p", "f4")])), "an NPY file of numbers, but got"),
        (npy(np.array([0.0, np.nan])), "a number for each sample, but got NaN in row 1"),
        (npy(np.zeros((2, 2, 2))), r"shape \(N,\) or \(N, C\), but got \(2, 2, 2\)"),
        (npy(np.zeros(4))[:-3], "an NPY file of numbers, but got"),
        (npy(np.array([2**63], dtype=np.uint64)), "64-bit integers, but got 9223372036854775808"),
    ],
)
def test_an_npy_that_is_wrong_is_named(tmp_path, data, match):
    with pytest.raises(ValueError, match="^Expected `table` '.*table.npy'.*" + match):
        TableBaseline(written(tmp_path, data, "table.npy")).check(None)


def test_an_npz_under_the_name_of_an_npy(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    path = written(tmp_path, (tmp_path / "a.npz").read_bytes(), "table.npy")
    with pytest.raises(ValueError, match="NPY file of numbers"):
        TableBaseline(path).check(None)


def test_a_header_that_lies_about_its_size_asks_for_no_memory(tmp_path):
    header = npy(np.zeros(4)).replace(b"(4,)", b"(4" + b"0" * 11 + b",)", 1)
    header = header.replace(b" " * 11 + b"\n", b"\n", 1)
    with pytest.raises(ValueError, match="NPY file of numbers"):
        TableBaseline(written(tmp_path, header, "table.npy")).check(None)


VALID = npy(np.arange(6).reshape(3, 2))


@fuzz
@given(
    data=st.binary(max_size=60)
    | st.binary(max_size=40).map(lambda rest: b"\x93NUMPY" + rest)
    | st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4
    )
)
def test_any_bytes_are_an_array_or_an_error_of_ours(tmp_path, data):
    if isinstance(data, list):
        changed = bytearray(VALID)
        for place, value in data:
            changed[place] = value
        data = bytes(changed)
    try:
        TableBaseline(written(tmp_path, data, "table.npy")).check(None)
    except ValueError as error:
        assert str(error).startswith("Expected `table`")  # noqa: PT017 - either outcome is right


# --- arguments --------------------------------------------------------------------------------


def test_files_are_looked_for_at_once_and_read_late(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`table` to be a file, but got .*missing.csv"):
        TableBaseline(tmp_path / "missing.csv")
    with pytest.raises(ValueError, match=r"ending in .csv, .tsv or .npy, but got 'table.xlsx'"):
        TableBaseline("table.xlsx")
    path = written(tmp_path, "prediction\n1\n")
    baseline = TableBaseline(str(path))
    path.write_text("prediction\n2\n")
    assert at(baseline, 0).tolist() == [2]
    path.unlink()
    assert at(baseline, 0).tolist() == [2]


def test_table_arguments(tmp_path):
    with pytest.raises(TypeError, match="`id` to be a key"):
        TableBaseline([0], id=1.5)
    for wrong in ([], [1]):
        with pytest.raises(TypeError, match="`column` to be the name of a column"):
            TableBaseline([0], column=wrong)
    assert repr(TableBaseline([0, 1], id="case")) == "TableBaseline(<list of 2>, id='case')"


def test_tables_pickle(tmp_path):
    path = written(tmp_path, "id,prediction\na,1\n")
    for baseline in (TableBaseline({"a": 1}, id=0), TableBaseline(path, id=0)):
        for twin in (pickle.loads(pickle.dumps(baseline)), copy.deepcopy(baseline)):
            assert twin((["a"],)).tolist() == [1]


@pytest.mark.keeps_rng
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_tables_in_every_mode(mode):
    baseline = TableBaseline([[0.5, 0.25]])
    with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        answer = at(baseline, 0)
    assert answer.tolist() == [[0.5, 0.25]]
