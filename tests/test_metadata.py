"""What is known about samples: tables, parts of a batch, images; and the words it makes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from lightning_neurocorr import ImageStatistics
from lightning_neurocorr.functional.vocabulary import image_statistics, make_vocabulary
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
