"""What is known about samples: tables, parts of a batch, images; and the words it makes."""

import math
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_neurocorr import ImageStatistics, NeuronAdvantage, Words, compare
from lightning_neurocorr.functional.image_statistics import image_statistics
from lightning_neurocorr.functional.vocabulary import make_vocabulary
from lightning_neurocorr.validation.metadata import (
    SamplesOfBatch,
    TableMetadata,
    metadata_source,
)


def samples(batch: Any = None, numbers: Any = (2, 0), **more: Any) -> SamplesOfBatch:
    """Two samples, by default the third and the first of the data set."""
    given = {"located": True, "ids": None, "rows": None, **more}
    return SamplesOfBatch(batch=batch, n=len(numbers), numbers=torch.tensor(numbers), **given)


def read(metadata: Any, asked: SamplesOfBatch, sample_id: Any = None) -> dict[str, list[Any]]:
    source = metadata_source(metadata, sample_id)
    assert source is not None
    return {
        name: values.tolist() if isinstance(values, Tensor) else list(values)
        for name, values in source.read(asked).items()
    }


TABLE = "id,colour,size\na,red,1\nb,,2.5\nc,blue,NaN\n"


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_file_by_position_and_by_id(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    path.write_text(TABLE.replace(",", "\t") if suffix == ".tsv" else TABLE)
    found = read(path, samples())
    assert found == {"id": ["c", "a"], "colour": ["blue", "red"], "size": ["NaN", "1"]}
    assert read(str(path), samples(ids=["b", "c"]), "id")["colour"] == ["", "blue"]


@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_a_csv_as_programs_write_it(tmp_path: Path, between: str) -> None:
    """Excel writes a mark of bytes and semicolons, pandas numbers rows in a column without name."""
    path, frame = tmp_path / "table.csv", pd.DataFrame({"at": ["a", "b", "c"], "n": [4, 5, 6]})
    frame.to_csv(path, sep=between, encoding="utf-8-sig")
    assert path.read_text("utf-8-sig").startswith(f"{between}at{between}n")
    assert read(path, samples()) == {"at": ["c", "a"], "n": ["6", "4"]}
    assert read(path, samples(ids=["b", "a"]), "at") == {"n": ["5", "4"]}


def test_frames_and_dicts() -> None:
    frame = pd.DataFrame({"case": [7, 8, 9], "flag": [True, None, False]})
    assert read(frame, samples(ids=["9", 7]), "case") == {"flag": [False, True]}
    assert read(frame.set_index("case"), samples(ids=[8, 9]), "case")["flag"][1] is False
    assert read({"x": np.arange(3)}, samples()) == {"x": [2, 0]}
    assert read(TableMetadata(frame, id_column="case"), samples(ids=[9, 8]), lambda b: b) == {
        "flag": [False, None]
    }


def test_parts_of_a_batch() -> None:
    batch = {"meta": {"a": torch.tensor([1.0, 2.0]), "b": ["x", "y"]}, "site": ["s", "t"]}
    assert read("meta", samples(batch)) == {"a": [1.0, 2.0], "b": ["x", "y"]}
    assert read("site", samples(batch)) == {"site": ["s", "t"]}
    assert read(lambda b: {"twice": b["meta"]["a"] * 2}, samples(batch)) == {"twice": [2.0, 4.0]}
    padded = samples(batch, numbers=(5,), rows=torch.tensor([1]))
    assert read("meta", padded) == {"a": [2.0], "b": ["y"]}
    both = ["site", {"x": [10, 11, 12]}]
    assert read(both, samples(batch)) == {"site": ["s", "t"], "x": [12, 10]}


DAYS = ["2020-01-01", "NaT", "2021-06-05"]
COLUMNS = {  # three values, of which the second is missing in all but the first, and their words
    "text": (np.array(["a", "b", "c"]), ("a", "b", "c")),
    "object": (np.array([3, None, "x"], dtype=object), ("3", "x")),
    "days": (np.array(DAYS, dtype="datetime64[D]"), ("2020-01-01", "2021-06-05")),
    "nanoseconds": (np.array(DAYS, dtype="datetime64[ns]"), ("2020-01-01", "2021-06-05")),
    "masked": (np.ma.array([4, 5, 6], mask=[False, True, False]), ("c 6",)),
    "series": (pd.Series(["a", None, "c"], dtype="string", index=[9, 3, 5]), ("a", "c")),
    "dates": (pd.Series(pd.to_datetime(DAYS)), ("2020-01-01", "2021-06-05")),
    "category": (pd.Series([7, None, 9], dtype="category"), ("c 7", "c 9")),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("where", ["table", "function", "key"])
def test_a_column_may_be_any_array_of_values(kind: str, where: str) -> None:
    values, expected = COLUMNS[kind]
    batch: Any = {"c": values}
    metadata = {"table": batch, "function": lambda b: b, "key": "c"}[where]
    for rows in ([0, 1, 2], [2, 0, 1]):
        asked = samples(batch, rows, rows=torch.tensor(rows))
        found = make_vocabulary(read(metadata, asked))
        assert found.words == expected
        known = np.isfinite(found.values).all(1)[np.argsort(rows)]
        assert known.tolist() == [True, kind == "text", True]
        assert found.values[rows.index(2), -1] == 1


def test_an_array_that_runs_backwards_and_spans_of_time_are_columns() -> None:
    asked = samples(None, (0, 1), rows=torch.tensor([2, 0]))
    assert read(lambda _: {"x": np.arange(3.0)[::-1]}, asked) == {"x": [0.0, 2.0]}
    spans = np.array([86_400, "NaT", 0], dtype="timedelta64[s]").astype("timedelta64[ns]")
    assert make_vocabulary(read({"x": spans}, samples(None, (0, 1, 2)))).words == (
        "0:00:00",
        "1 day, 0:00:00",
    )


@pytest.mark.parametrize("values", [{0: "a", 1: "b", 2: "c"}, {"a", "b", "c"}, "abc", 3])
@pytest.mark.parametrize("where", ["table", "function"])
def test_what_has_no_order_of_samples_is_no_column(values: Any, where: str) -> None:
    metadata = {"c": values} if where == "table" else lambda _: {"c": values}
    with pytest.raises(ValueError, match=r"one value per sample.* Give a list"):
        read(metadata, samples())


def test_a_column_of_lists_says_what_to_give() -> None:
    words = make_vocabulary({"tags": [["a", "b"], ["c"], None], "at": list(torch.zeros(3, 2))})
    assert not len(words)
    assert "'tags': a value is a list. Give a column of one value each" in words.notes[0]
    assert "'at': a value is a Tensor" in words.notes[1]


def test_a_date_is_written_without_the_hour_zero() -> None:
    days = [pd.Timestamp(day) for day in ("2020-01-01", "2020-01-02", "2020-01-02 05:00")]
    words = make_vocabulary({"day": days}).words
    assert words == ("2020-01-01", "2020-01-02", "2020-01-02 05:00:00")


@pytest.mark.parametrize(
    ("metadata", "asked", "error", "said"),
    [
        (3.5, samples(), TypeError, "Expected `metadata` to be a CSV or TSV file"),
        (ImageStatistics, samples(), TypeError, "a source such as ImageStatistics"),
        ("nowhere.csv", samples(), FileNotFoundError, "does not exist"),
        ({"x": [1, 2], "y": [1]}, samples(), ValueError, "a value for each sample"),
        ({"x": [1, 2]}, samples(), ValueError, "got 2 rows and position 2"),
        ({"x": [1, 2, 3]}, samples(located=False), ValueError, "Give `sample_id=`"),
        (lambda _: {"x": [1, 2, 3]}, samples(), ValueError, "each of 2 samples, but got 3"),
        (lambda _: {"x": torch.zeros(2, 4)}, samples(), ValueError, "one value per sample"),
        (lambda _: {"x": "ab"}, samples(), ValueError, "one value per sample"),
        ([{"x": [1, 2, 3]}, lambda _: {"x": [1, 2]}], samples(), ValueError, "'x' twice"),
        (ImageStatistics(), samples(torch.zeros(2, 4)), ValueError, r"images \(N, C, H, W\)"),
    ],
)
def test_what_cannot_be_read_is_refused(
    metadata: Any, asked: SamplesOfBatch, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        read(metadata, asked)


def test_ids_that_are_unknown_missing_or_twice() -> None:
    frame = pd.DataFrame({"case": [7, 8, 8], "x": [1, 2, 3]})
    with pytest.raises(ValueError, match="'8' in rows 1 and 2"):
        metadata_source(frame, "case")
    with pytest.raises(ValueError, match="Name it: TableMetadata"):
        metadata_source({"x": [1, 2]}, "case")
    with pytest.raises(ValueError, match="no row for '9'"):
        read(frame[:2], samples(ids=[7, 9]), "case")
    with pytest.raises(ValueError, match="this batch has none"):
        read(frame[:2], samples(), "case")


@pytest.mark.parametrize(
    "ids", [["7", "8"], [7, 8], [7.0, 8.0], [np.int64(7), np.int64(8)], [b"7", b"8"]]
)
@pytest.mark.parametrize("dtype", [str, int, np.int64, float, object])
def test_ids_of_other_types_are_the_same_ids(ids: list[Any], dtype: Any) -> None:
    frame = pd.DataFrame({"case": np.array([8, 7]).astype(dtype), "x": [1, 2]})
    assert read(frame, samples(ids=ids), "case") == {"x": [2, 1]}


@pytest.mark.parametrize("missing", [None, float("nan"), "", " ", "NaN", pd.NA, pd.NaT])
def test_missing_ids_are_no_ids(missing: Any) -> None:
    frame = pd.DataFrame({"case": np.array(["7", missing], dtype=object), "x": [1, 2]})
    with pytest.raises(ValueError, match=r"an id in 'case', but row 1 has none. Leave"):
        metadata_source(frame, "case")
    with pytest.raises(ValueError, match="a sample of this batch has none"):
        read(frame[:1], samples(ids=["7", missing]), "case")


def test_a_table_that_was_told_of_ids_keeps_them() -> None:
    table = TableMetadata({"case": [7, 8], "x": [1, 2]}, id_column="case")
    for _ in range(2):  # options that are made anew ask again
        assert read(table, samples(ids=[8, 7]), lambda b: b) == {"x": [2, 1]}
    with pytest.raises(ValueError, match="Expected `sample_id`, because TableMetadata"):
        TableMetadata({"case": [7, 8], "x": [1, 2]}, id_column="case").check(2)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "to have columns, but got none"),
        ({"x": "abc"}, "'x' to have one value per sample, but got str"),
        ({"x": 5}, "'x' to have one value per sample, but got int"),
        ({"x": np.zeros((3, 2))}, r"but got ndarray of shape \(3, 2\)"),
        ({"x": np.zeros(())}, r"but got ndarray of shape \(\)"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["x", "x"]), "different names"),
    ],
)
def test_tables_that_have_no_columns_of_values_are_refused(table: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        metadata_source(table)


def small_case(n: int = 60) -> tuple[nn.Module, TensorDataset]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=g)
    return nn.Sequential(nn.Linear(4, 2)).eval(), TensorDataset(
        x, (x[:, 0] > 0).long(), torch.arange(n)
    )


@pytest.mark.parametrize("rows", [59, 61, 6000])
def test_a_table_by_position_has_a_row_for_each_sample(rows: int) -> None:
    model, data = small_case()
    told = {"metadata": {"x": np.arange(rows)}, "studies": [Words()], "target": 1}
    with pytest.raises(ValueError, match=rf"{rows:,} rows for 60 samples. Leave .*`sample_id=`"):
        compare(model, DataLoader(data, 20), lambda b: 1 - b[1], **told)
    part = Subset(data, range(40))  # its positions are others than those of the whole
    told["metadata"] = [ImageStatistics(), {"x": np.arange(60)}]
    with pytest.raises(ValueError, match="60 rows for 40 samples"):
        compare(model, DataLoader(part, 20), lambda b: 1 - b[1], **told)


def test_a_table_by_id_may_have_more_rows() -> None:
    model, data = small_case(200)
    report = compare(
        model, DataLoader(data, 20), lambda b: 1 - b[1], target=1, sample_id=2, studies=[Words()],
        metadata={"id": np.arange(6000), "odd": np.arange(6000) % 2},
    )  # fmt: skip
    assert report.studies["words"].state == "measured"


class Small(pl.LightningModule):
    """Two neurons that learn nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])


@pytest.mark.parametrize("limits", [{"limit_val_batches": 2}, {"fast_dev_run": True}, {}])
@pytest.mark.parametrize("sets", [1, 2])
def test_a_validation_that_sees_fewer_samples_needs_the_rows_of_all(
    limits: dict[str, Any], sets: int, tmp_path: Path
) -> None:
    _, data = small_case()
    loaders = [DataLoader(data, 20) for _ in range(sets)]
    for rows, refused in ((60 * sets, False), (60 * sets + 1, True)):
        callback = NeuronAdvantage(
            lambda b: 1 - b[1], target=1, metadata={"x": np.arange(rows)}, studies=[Words()],
            visualizer=None, attribution=False,
        )  # fmt: skip
        trainer = pl.Trainer(
            callbacks=[callback], logger=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
            **limits,
        )  # fmt: skip
        said = f"{rows:,} rows for {60 * sets:,} samples"
        with pytest.raises(ValueError, match=said) if refused else nullcontext():
            trainer.validate(Small(), loaders, verbose=False)


def test_words_of_each_kind() -> None:
    n = 10
    columns = {
        "flag": [True, False] * 5,
        "told": ["yes", "no", "", "yes", "no", "N/A", None, float("nan"), "yes", "no"],
        "colour": ["red", "blue", None, "red", "green", "blue", "", "red", "blue", "green"],
        "size": [str(i) for i in range(n)],
        "binary": torch.tensor([0, 1] * 5),
        "grade": [3, 5, None, 5, 3, 3, 5, 5, 3, 3],
    }
    words = make_vocabulary(columns, np.arange(n) % 2, {0: "cat", 1: "dog"})
    table = dict(zip(words.words, words.values.T.tolist(), strict=True))
    assert list(table) == [
        "flag", "told", "blue", "green", "red", "low size", "high size", "binary", "grade 5",
        "cat", "dog",
    ]  # fmt: skip
    assert [i for i, v in enumerate(table["told"]) if math.isnan(v)] == [2, 5, 6, 7]
    assert [i for i, v in enumerate(table["red"]) if v == 1] == [0, 3, 7]
    assert [i for i, v in enumerate(table["red"]) if math.isnan(v)] == [2, 6]
    assert table["low size"] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert table["high size"] == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert math.isnan(table["grade 5"][2])
    assert table["grade 5"][:2] == [0, 1]
    assert table["dog"] == [0, 1] * 5
    assert words.without("class").words[-1] == "grade 5"


def test_frames_say_what_is_missing_and_what_is_a_name() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {
            "whole": pd.array([1, 2, None, 4] * 10, dtype="Int64"),
            "truth": pd.array([True, False, None, True] * 10, dtype="boolean"),
            "text": pd.array(["x", "y", None, "x"] * 10, dtype="string"),
            "day": pd.to_datetime(["2020-01-01", "2021-01-01", None, "2021-01-01"] * 10),
            "camera": pd.Categorical([1, 2, None, 3] * 10),
            "sure": ["yes", "no", None, "maybe"] * 10,
            "code": ["3", "04", None, "a"] * 10,
        }
    )
    samples = SamplesOfBatch(None, None, 40, torch.arange(40), located=True)
    words = make_vocabulary(dict(TableMetadata(frame).read(samples)))
    assert np.isnan(words.values[2::4]).all()
    assert not np.isnan(words.values[[0, 1, 3]]).any()
    named = dict(zip(words.words, words.values.T, strict=True))
    assert {"truth", "x", "y", "maybe", "yes", "no", "3", "04", "a"} < set(named)
    assert {"camera 1", "camera 2", "camera 3", "high whole"} < set(named)
    assert named["camera 3"][:4].tolist()[::3] == [0, 1]


def test_words_that_say_nothing_are_left_out_and_said() -> None:
    columns = {
        "same": [1] * 300,
        "empty": [None] * 300,
        "one": ["x"] * 300,
        "names": [f"sample {i}" for i in range(300)],
        "mostly": [0.0] * 280 + list(range(1, 21)),
    }
    words = make_vocabulary(columns)
    assert words.words == ("high mostly",) or len(words.words) <= 1
    assert len(words.notes) >= 4


def test_columns_that_give_no_words_say_what_would() -> None:
    days = pd.date_range("2020-01-01", periods=300)
    told = {
        "dates": (list(days), "'dates'.*Give the year or the month of a date"),
        "days": ([str(day.date()) for day in days], "'days'.*Give the year or the month"),
        "sizes": ([*map(str, range(299)), "big"], "'sizes'.*'big' is none: leave values empty"),
        "names": ([f"case {i}" for i in range(300)], "'names'.*Give groups of them"),
        "gone": ([None, "", "n/a", float("nan"), "?", "unknown"] * 50, "'gone': it is empty"),
        "sure": (["y", "yes", "true"] * 100, "'sure': every sample that has a value has True"),
        "one": (["red", "", None] * 100, "'one': every sample that has a value has 'red'"),
    }
    words = make_vocabulary({name: values for name, (values, _) in told.items()})
    assert not len(words)
    assert len(words.notes) == len(told)
    for note, (_, said) in zip(words.notes, told.values(), strict=True):
        assert re.search(said, note)


def test_truth_values_in_text_and_missing_ones() -> None:
    columns = {
        "seen": ["yes", "No", "?", "YES"], "flag": ["y", "n", "", "Y"],
        "true": ["true", "FALSE", None, "True"], "stored": ["1", "0", "nan", "1.0"],
    }  # fmt: skip
    words = make_vocabulary(columns)
    assert words.words == tuple(columns)
    for values in words.values.T.tolist():
        assert values[:2] == [1, 0]
        assert math.isnan(values[2])
        assert values[3] == 1


def test_columns_called_as_classes_are_told_apart() -> None:
    columns = {"cat": [True, False, True], "class": ["cat", "dog", "cat"], "dog": ["a", "b", None]}
    words = make_vocabulary(columns, np.array([0, 1, 0]), {0: "cat", 1: "dog"})
    assert len(set(words.words)) == len(words.words) == 7
    assert words.words[0] == "cat"
    assert [w for w, kind in zip(words.words, words.kinds, strict=True) if kind == "class"]


def test_texts_that_two_columns_share_name_their_column() -> None:
    words = make_vocabulary({"left": ["a", "b", "a"], "right": ["b", "c", "b"]})
    assert words.words == ("a", "left b", "right b", "c")
    scores = make_vocabulary({"a dog": torch.tensor([0.1, 0.7, float("nan")])}, scores=["a dog"])
    assert scores.kinds == ("score",)
    assert np.isnan(scores.values[2, 0])


def test_image_statistics_by_loops() -> None:
    images = torch.rand(3, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 4 - 1
    found = image_statistics(images)
    for i, image in enumerate(images.numpy()):
        grey = image.mean(0)
        down = [abs(grey[y + 1, x] - grey[y, x]) for y in range(5) for x in range(5)]
        across = [abs(grey[y, x + 1] - grey[y, x]) for y in range(6) for x in range(4)]
        slow = {
            "brightness": grey.mean(),
            "contrast": grey.std(),
            "edges": np.mean(down) + np.mean(across),
            "size": (grey > (grey.min() + grey.max()) / 2).mean(),
            "symmetry": np.corrcoef(grey.ravel(), grey[:, ::-1].ravel())[0, 1],
            "saturation": (image.max(0) - image.min(0)).mean(),
            "redness": image[0].mean() - image.mean(),
            "greenness": image[1].mean() - image.mean(),
            "blueness": image[2].mean() - image.mean(),
        }
        assert {name: float(v[i]) for name, v in found.items()} == pytest.approx(slow, abs=1e-5)
    assert torch.isnan(image_statistics(torch.ones(1, 1, 4, 4))["symmetry"]).all()


class Scorer:
    """Scores of two words from brightness alone."""

    words = ("bright", "dark")

    def __call__(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, -mean], 1)


def test_a_scorer_gives_scores_of_its_words() -> None:
    images = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    source = metadata_source(Scorer())
    assert source is not None
    assert source.scores == ("bright", "dark")
    assert read(Scorer(), samples((images, torch.zeros(2)))) == {
        "bright": [0.0, 1.0],
        "dark": [0.0, -1.0],
    }
