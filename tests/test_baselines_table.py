"""Stored predictions: the right row for each sample, or an error that says what is wrong."""

import copy
import pickle
import types

import numpy as np
import pytest
import torch

from lightning_neurocorr.baselines import TableBaseline, check_prediction
from tests.baseline_tables import at, written

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
