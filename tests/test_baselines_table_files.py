"""Tables in CSV and NPY files: read as written, or an error that says where the file is wrong."""

import csv
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_neurocorr.baselines import TableBaseline, check_prediction
from tests.baseline_tables import at, written

fuzz = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

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
        with pytest.raises(
            ValueError, match=r"integral class ids|class ids from 0|class ids .* to be exact"
        ):
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
