"""Few numbers with stable names."""

import math

import numpy as np
import pytest

from lightning_neurocorr.report import Outcomes
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.show.scalars import group_r, layer_groups, summary_scalars, tag_part
from tests.helpers import make_report

NAN = math.nan

RESNET18 = ("conv1", *(
    f"layer{stage}.{block}.{part}"
    for stage in range(1, 5)
    for block in range(2)
    for part in ("conv1", "conv2", *(["downsample.0"] if stage > 1 and not block else []))
), "fc")  # fmt: skip


def test_resnet18_has_six_groups_and_few_tags() -> None:
    groups = layer_groups(RESNET18)
    assert list(groups) == ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert len(groups["layer2"]) == 5
    report = make_report(dict.fromkeys(RESNET18, 4))
    tags = summary_scalars(report, HistoryEntry.from_report(report))
    assert len(RESNET18) == 21
    assert len(tags) == 6 + 3 * 6
    # and per group a histogram and a sheet, a table, and a figure
    assert len(tags) + 2 * len(groups) + 2 <= 40


@pytest.mark.parametrize(
    "layers",
    [
        (), ("a",), ("a", "b", "c"), tuple(f"net.{i}" for i in range(50)),
        tuple(f"net.body.{i}.{part}" for i in range(3) for part in "abcde"),
        tuple(f"block{i}.conv" for i in range(100)), ("x y", "x_y", "x/y"),
        tuple("n" * 80 + f".{i}." + "m" * 80 for i in range(30)),
        tuple("n" * 80 + f".{i}" for i in range(4)), tuple("äöü.βγ.文字.🙂"),
        tuple(f"{'x' * 70}{i}{'y' * 70}" for i in range(200)),
    ],
)  # fmt: skip
def test_every_layer_is_in_one_group_and_groups_are_few(layers: tuple[str, ...]) -> None:
    groups = layer_groups(layers)
    assert sorted(sum(groups.values(), [])) == sorted(layers)  # noqa: RUF017
    assert len(groups) <= 6
    for tag in groups:
        assert tag == tag_part(tag)
        assert 0 < len(tag) <= 60
        assert tag.isascii()
        assert not set(tag) & set("/ <>|\n")
    assert len(layer_groups(layers, limit=1)) <= 1


def test_groups_are_as_fine_as_the_limit_allows() -> None:
    names = [f"net.body.{i}.{part}" for i in range(3) for part in "abc"]
    assert layer_groups(tuple(names)) == {
        f"net.body.{i}": [f"net.body.{i}.{part}" for part in "abc"] for i in range(3)
    }
    runs = layer_groups(tuple(f"net.{i}" for i in range(12)))
    assert next(iter(runs)) == "net.0..net.1"
    assert [len(run) for run in runs.values()] == [2] * 6


def test_names_as_parts_of_tags() -> None:
    assert tag_part("model.layer-1_a.conv") == "model.layer-1_a.conv"
    assert tag_part("a/b c<d>|\n") == "a_b_c_d___"
    assert tag_part("x" * 40 + "." + "y" * 40) == "x" * 28 + "..." + "y" * 28


def report_of_two() -> tuple:
    columns = {
        "r": [0.5, -0.9, NAN, 0.7, 0.2, NAN],
        "q_value": [0.01, 0.02, NAN, 0.03, 0.5, NAN],
    }
    report = make_report(
        {"net.0": 3, "net.1": 2, "dead": 1}, columns, outcomes=Outcomes(50, 20, 10, 20, 0.1)
    )
    return report, HistoryEntry.from_report(report, HistoryEntry.from_report(report))


def test_numbers_of_a_report() -> None:
    numbers = summary_scalars(*report_of_two())
    assert numbers == pytest.approx(
        {
            "accuracy/model": 0.7, "accuracy/baseline": 0.6, "outcomes/both": 50,
            "outcomes/only_model": 20, "outcomes/only_baseline": 10, "outcomes/neither": 20,
            "strongest_r/net.0": 0.5, "strongest_r/net.1": 0.7, "strongest_r/dead": NAN,
            "significant/net.0": 2, "significant/net.1": 1, "significant/dead": 0,
            "stability/net.0": 1, "stability/net.1": 1, "stability/dead": NAN,
        },
        nan_ok=True,
    )  # fmt: skip
    assert all(type(value) is float for value in numbers.values())


def test_numbers_of_layers_that_share_a_group() -> None:
    names = [f"body.{i}.{part}" for i in range(3) for part in "abc"]
    r = np.linspace(-0.4, 0.4, 9)
    r[8] = NAN
    report = make_report(dict.fromkeys(names, 1), {"r": r, "q_value": [0.01] * 9})
    first = HistoryEntry.from_report(report)
    numbers = summary_scalars(report, first)
    assert numbers["strongest_r/body.0"] == pytest.approx(-0.2)
    assert numbers["strongest_r/body.2"] == pytest.approx(0.3)
    assert numbers["significant/body.1"] == 3
    assert math.isnan(numbers["stability/body.1"])


def test_r_of_groups() -> None:
    found = group_r(report_of_two()[0])
    assert {name: values.tolist() for name, values in found.items()} == {
        "net.0": [0.5, -0.9], "net.1": [0.7, 0.2], "dead": []
    }  # fmt: skip


def test_a_report_without_layers() -> None:
    report = make_report({}, outcomes=Outcomes())
    numbers = summary_scalars(report, HistoryEntry.from_report(report))
    assert len(numbers) == 6
    assert math.isnan(numbers["accuracy/model"])
    assert group_r(report) == {}
