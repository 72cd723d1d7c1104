"""Reading batches, checking predictions and telling baselines from what is nearly one."""

import argparse
import copy
import dataclasses
import pickle
import types
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neurocorr.baselines import (
    Baseline,
    BatchBaseline,
    Checkable,
    CheckpointBaseline,
    EstimatorBaseline,
    Fittable,
    MajorityBaseline,
    ModuleBaseline,
    Movable,
    Positional,
    SnapshotBaseline,
    Snapshotting,
    Stateful,
    TableBaseline,
    check_baseline,
    check_prediction,
    default_inputs,
    default_target,
    read_field,
    read_target,
)

X, Y = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 2, 1])


@dataclasses.dataclass
class Sample:
    image: torch.Tensor
    label: torch.Tensor
    note: str = ""


class Named(NamedTuple):
    label: torch.Tensor
    image: torch.Tensor


class Odd(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class KeyedLikeADict:
    def keys(self):
        return ["image", "label"]

    def __getitem__(self, key):
        return {"image": X, "label": Y}[key]


XY_BATCHES = {
    "tuple": (X, Y),
    "list": [X, Y],
    "dict": {"image": X, "label": Y},
    "dict-ids": {"id": torch.arange(3), "x": X, "y": Y},
    "dict-only-tensor": {"pixels": X, "target": Y, "id": ["a", "b", "c"]},
    "dataclass": Sample(X, Y),
    "named-tuple": Named(Y, X),
    "odd-named-tuple": Odd(X, Y),
    "object": types.SimpleNamespace(x=X, y=Y),
    "dict-like": KeyedLikeADict(),
}


@pytest.mark.parametrize("batch", XY_BATCHES.values(), ids=XY_BATCHES.keys())
def test_input_and_target_are_found(batch):
    assert default_inputs(batch) is X
    assert torch.equal(default_target(batch), Y)


def test_a_bare_tensor_is_the_input_and_has_no_target():
    assert default_inputs(X) is X
    with pytest.raises(ValueError, match=r"\(x, y\).*Tensor of shape \(3, 2\).*`target=`"):
        default_target(X)


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ({"a": X, "b": X, "y": Y}, "dict with 'a', 'b', 'y'.*`inputs=`"),
        ({}, "dict with nothing"),
        ((), "tuple of 0"),
        (None, "NoneType"),
        ("text", "a str"),
    ],
)
def test_an_input_that_is_not_plain_is_an_error_that_names_the_parts(batch, match):
    with pytest.raises(ValueError, match=match):
        default_inputs(batch)


@pytest.mark.parametrize("batch", [(X, Y, Y), [X, X, Y], (X, Y, ["a", "b", "c"]), (X, X, X, Y)])
def test_of_three_and_more_parts_any_may_be_the_target(batch):
    with pytest.raises(ValueError, match=rf"of {len(batch)}: \(3, 2\), .*target=2"):
        default_target(batch)
    assert read_target(batch, 1).equal(batch[1])
    assert default_inputs(batch) is X


@pytest.mark.parametrize("second", [(Y, Y), [Y, X], {"label": Y}, ["cat", "dog", "cow"]])
def test_a_second_part_that_is_no_target_is_refused(second):
    with pytest.raises(TypeError, match=r"second element of the batch.*`target=`"):
        default_target((X, second))


def test_several_names_of_a_target_are_one_where_they_are_one_tensor():
    assert default_target({"y": Y, "labels": Y, "x": X}).equal(Y)
    assert default_target({"y": Y, "labels": None, "x": X}).equal(Y)
    with pytest.raises(ValueError, match=r"'labels' and 'y' may be.*`target=`"):
        default_target({"y": X, "labels": Y, "x": X})


def test_a_target_becomes_a_tensor():
    assert torch.equal(default_target({"y": np.array([0, 2, 1]), "x": X}), Y)
    assert torch.equal(default_target((X, [0, 2, 1])), Y)
    with pytest.raises(TypeError, match=r"'y'.*numbers.*list that starts with 'cat'"):
        default_target({"x": X, "y": ["cat", "dog"]})
    with pytest.raises(ValueError, match="dict with 'x'"):
        default_target({"x": X})
    with pytest.raises(ValueError, match="list of 1"):
        default_target([X])


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("reader", 1),
        ("a.b", 2),
        ("meta.second", 3),
        ("rows.1", 5),
        ("rows.-1", 5),
        ("space.deep", 6),
        (lambda batch: batch["meta"]["second"], 3),
    ],
)
def test_fields_by_key_attribute_position_and_function(field, found):
    batch = {
        "reader": 1,
        "a.b": 2,
        "meta": {"second": 3},
        "rows": (4, 5),
        "space": types.SimpleNamespace(deep=6),
    }
    assert read_field(batch, field) == found


def test_fields_of_tuples_count_from_both_ends():
    assert read_field((1, 2, 3), 2) == 3
    assert read_field((1, 2, 3), -1) == 3
    assert read_field(Sample(X, Y, "n"), "note") == "n"


@pytest.mark.parametrize(
    ("batch", "field"),
    [
        ({"x": X}, "reader"),
        ((X, Y), 2),
        ((X, Y), "reader"),
        (X, 0),
        ({"x": {"a": 1}}, "x.b"),
        ({"rows": X}, "rows.0.1x"),
    ],
)
def test_a_field_that_is_not_there_is_named_with_the_parts(batch, field):
    with pytest.raises(ValueError, match=f"`field` to name a part of the batch, but got {field!r}"):
        read_field(batch, field)


def test_batch_baseline_returns_the_field_as_tensor():
    assert torch.equal(
        BatchBaseline("reader")({"x": X, "reader": [1, 0, 2]}), torch.tensor([1, 0, 2])
    )
    assert torch.equal(BatchBaseline(-1)((X, Y, X)), X)
    assert repr(BatchBaseline("meta.reader")) == "BatchBaseline('meta.reader')"
    with pytest.raises(TypeError, match=r"`field` \('reader'\) of the batch.*'cat'"):
        BatchBaseline("reader")({"reader": ["cat"]})
    for wrong in (True, None, 1.5, "", ["x"]):
        with pytest.raises(TypeError, match="`field` to be a key"):
            BatchBaseline(wrong)


# --- check_prediction -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([0, 2, 1]),
        torch.tensor([0, 2, 1], dtype=torch.uint8),
        torch.tensor([0.0, 2.0, 1.0]),
        torch.tensor([0.0, 2.0, 1.0], dtype=torch.bfloat16),
        np.array([0, 2, 1]),
        np.array([0, 2, 1], dtype=np.uint16),
        np.array([0, 2, 1], dtype=np.float64),
        [0, 2, 1],
        (0, 2, 1),
        [torch.tensor(0), torch.tensor(2), torch.tensor(1)],
    ],
)
def test_class_ids_of_any_type_become_int64(ids):
    checked = check_prediction(ids, 3, 3)
    assert checked.dtype == torch.int64
    assert checked.tolist() == [0, 2, 1]


def test_bools_are_the_classes_0_and_1():
    assert check_prediction(torch.tensor([True, False]), 2).tolist() == [1, 0]


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([[0.1, 0.9], [-torch.inf, 3.0]]),
        np.array([[0.1, 0.9], [-np.inf, 3.0]]),
        [[0.1, 0.9], [float("-inf"), 3.0]],
        [torch.tensor([0.1, 0.9]), torch.tensor([-torch.inf, 3.0])],
    ],
)
def test_scores_stay_scores(scores):
    checked = check_prediction(scores, 2, 2)
    assert checked.is_floating_point()
    torch.testing.assert_close(checked.float(), torch.tensor([[0.1, 0.9], [-torch.inf, 3.0]]))


def test_votes_become_floats_and_gradients_stay_outside():
    votes = check_prediction(torch.tensor([[2, 1], [0, 3]]), 2)
    assert votes.is_floating_point()
    assert not check_prediction(torch.rand(2, 2, requires_grad=True), 2).requires_grad


@pytest.mark.parametrize(
    ("prediction", "match"),
    [
        (torch.zeros(4), r"\(N,\) class ids or \(N, C\) scores for the N = 3 .* shape \(4,\)"),
        (torch.zeros(()), r"shape \(\)"),
        (torch.zeros(3, 2, 2), r"shape \(3, 2, 2\)"),
        (torch.zeros(3, 1), r"column per class.*logit > 0"),
        (torch.zeros(3, 0), r"column per class"),
        (torch.tensor([0.0, 0.5, 1.0]), r"integral class ids.*0.5 for sample 1"),
        (torch.tensor([0.0, 1.0, torch.nan]), r"integral class ids.*nan for sample 2"),
        (torch.tensor([0.0, torch.inf, 1.0]), r"integral class ids.*inf for sample 1"),
        (torch.tensor([0, 1, 2]), r"class ids from 0 to 1, but got 2 for sample 2"),
        (torch.tensor([-1, 1, 0]), r"class ids from 0 to 1, but got -1 for sample 0"),
        (torch.zeros(3, 5), r"2 classes, but got 5 columns.*Leave out the columns"),
        (torch.tensor([[0, 1], [0, torch.nan], [0, 0]]), r"without NaN.*for sample 1"),
    ],
)
def test_a_prediction_that_does_not_fit_is_named(prediction, match):
    with pytest.raises(ValueError, match=r"^Expected `baseline` \(MyRule\).*" + match):
        check_prediction(prediction, 3, 2, name="MyRule")


@pytest.mark.parametrize(
    ("prediction", "got"),
    [
        (None, "None"),
        ("cat", "a str"),
        (["cat", "dog", "cow"], "a list that starts with 'cat'"),
        ([[1], [1, 2]], "a list that starts with"),
        ([10**30], "a list that starts with 1000"),
        ({"logits": X}, "a dict"),
        (np.array(["cat"]), "a ndarray of <U3"),
        (torch.zeros(3, dtype=torch.complex64), "torch.complex64"),
        (np.zeros(3, dtype=complex), "a ndarray of complex128"),
        ([torch.zeros(2), torch.zeros(3)], "a list that starts with tensor"),
        (np.array([2**63], dtype=np.uint64), "9223372036854775808"),
    ],
)
def test_what_is_not_numbers_is_named(prediction, got):
    with pytest.raises(TypeError, match=f"prediction of `baseline` .MyRule.*but got {got}"):
        check_prediction(prediction, 3, name="MyRule")


def test_values_are_not_read_when_that_would_wait_for_a_device():
    on_meta = torch.zeros(3, device="meta")  # reading a value of a meta tensor raises
    assert check_prediction(on_meta, 3, 2, values=False).dtype == torch.int64
    assert check_prediction(torch.zeros(3, 2, device="meta"), 3, 2, values=False).shape == (3, 2)


def test_the_prediction_is_moved():
    assert check_prediction([0, 1], 2, device="meta").device.type == "meta"
    assert check_prediction([0, 1], 2, device=torch.device("cpu")).device.type == "cpu"


def test_other_advantages_may_have_other_predictions():
    regression = torch.tensor([0.25, 0.5, 0.75])
    assert check_prediction(regression, 3, classification=False) is not None
    masks = check_prediction(torch.zeros(3, 4, 4, dtype=torch.bool), 3, classification=False)
    assert masks.dtype == torch.bool
    with pytest.raises(ValueError, match=r"one answer per sample for the N = 2 .* \(3,\)"):
        check_prediction(regression, 2, classification=False)


def test_read_only_arrays_are_copied():
    array = np.array([1, 0])
    array.flags.writeable = False
    checked = check_prediction(array, 2)
    checked += 1
    assert array.tolist() == [1, 0]


# --- protocols ------------------------------------------------------------------------------


class Nothing(nn.Module):
    def forward(self, x):
        return x


class Predictor:
    def predict(self, X):
        return np.zeros(len(X))


def built_ins(tmp_path) -> dict[str, object]:
    torch.save({}, tmp_path / "empty.ckpt")
    return {
        "estimator": EstimatorBaseline(Predictor()),
        "module": ModuleBaseline(Nothing()),
        "checkpoint": CheckpointBaseline(tmp_path / "empty.ckpt", Nothing),
        "table": TableBaseline([0, 1, 2]),
        "batch": BatchBaseline("y"),
        "majority": MajorityBaseline(),
        "snapshot": SnapshotBaseline(),
    }


def test_each_built_in_has_its_capabilities_and_no_other(tmp_path):
    protocols = [Positional, Fittable, Snapshotting, Movable, Stateful, Checkable]
    has = {
        name: {protocol.__name__ for protocol in protocols if isinstance(baseline, protocol)}
        for name, baseline in built_ins(tmp_path).items()
    }
    assert has == {
        "estimator": {"Fittable"},
        "module": {"Movable"},
        "checkpoint": {"Movable", "Checkable"},
        "table": {"Positional", "Checkable"},
        "batch": set(),
        "majority": {"Fittable", "Stateful"},
        "snapshot": {"Snapshotting", "Stateful"},
    }


def test_built_ins_and_functions_are_baselines(tmp_path):
    for baseline in [*built_ins(tmp_path).values(), lambda batch: batch["y"]]:
        assert isinstance(baseline, Baseline)
        check_baseline(baseline)
    check_baseline(len)  # some built-in functions have a signature, some have none
    check_baseline(max)


def test_built_ins_survive_pickle_and_deepcopy(tmp_path):
    for name, baseline in built_ins(tmp_path).items():
        for twin in (pickle.loads(pickle.dumps(baseline)), copy.deepcopy(baseline)):
            assert repr(twin) == repr(baseline), name


@pytest.mark.parametrize(
    ("baseline", "match"),
    [
        (MajorityBaseline, r"the class MajorityBaseline\. Give an instance: MajorityBaseline\("),
        (nn.Linear(2, 2), r"a Linear\. Wrap it: ModuleBaseline"),
        (Predictor(), r"a Predictor\. Wrap it: EstimatorBaseline"),
        ("last.ckpt", r"'last.ckpt'\. For a file write CheckpointBaseline\('last.ckpt'"),
        (np.zeros(3), r"a ndarray\. Wrap stored predictions: TableBaseline"),
        ([0, 1], r"a list\. Wrap stored predictions"),
        ({"a": 1}, r"a dict\. Wrap stored predictions"),
        (torch.zeros(3), r"a Tensor\. Wrap stored predictions"),
        (None, r"a NoneType\. Give a function of the batch"),
        (argparse.Namespace(), r"a Namespace\. Give a function"),
        (lambda x, y: x, r"cannot be called with one argument\. Give a function"),
        (lambda: 0, r"cannot be called with one argument"),
    ],
)
def test_what_is_nearly_a_baseline_is_told_how_to_become_one(baseline, match):
    with pytest.raises(TypeError, match="^Expected `baseline` to be callable.*but got .*" + match):
        check_baseline(baseline)


def test_a_class_of_ones_own_has_the_capabilities_whose_methods_it_has():
    class Own:
        needs_fit = True
        needs_positions = False

        def __call__(self, batch):
            return batch["y"]

        def fit(self, batches):
            self.needs_fit = False

        def predict_at(self, batch, positions):
            return positions

    assert isinstance(Own(), Fittable)
    assert isinstance(Own(), Positional)
    assert not isinstance(Own(), Stateful)
