"""Which tensor is the prediction and which the target, in whatever a batch leaves behind."""

from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_neurocorr.activations import Call
from lightning_neurocorr.validation.predictions import Reader

N, C = 6, 3
X, Y = torch.randn(N, 5), torch.tensor([0, 1, 2, 0, 1, 2])
LOGITS, IDS = torch.randn(N, C), torch.tensor([2, 1, 0, 0, 1, 2])
LOSS = torch.tensor(0.5)


@dataclass
class Output:
    hidden: Tensor
    logits: Tensor | None = None


class Pair(NamedTuple):
    hidden: Tensor
    out: Tensor


def calls(*outputs: Any) -> list[Call]:
    """Calls of a module that returned these."""
    return [Call(output, ((X,), {}), i, (i, i)) for i, output in enumerate(outputs)]


# --- what a module returned -----------------------------------------------------------------------

KNOWN = {
    "tensor": LOGITS,
    "single": (LOGITS,),
    "single in a dict": {"anything": LOGITS},
    "nested": {"a": [{"b": LOGITS}]},
    "with a loss": (LOSS, LOGITS),
    "with losses per sample": {"loss": torch.rand(N), "found": LOGITS},
    "logits": {"features": X, "logits": LOGITS},
    "an order of its own": OrderedDict(aux=X, preds=LOGITS),
    "output": {"features": LOGITS + 1, "output": LOGITS},
    "y_hat": {"y_hat": LOGITS, "embedding": LOGITS + 1},
    "prediction": {"embedding": LOGITS + 1, "prediction": LOGITS},
    "named, in a nest": {"output": {"logits": LOGITS, "hidden": X}, "features": X},
    "dataclass": Output(X, LOGITS),
    "object": SimpleNamespace(hidden=X, logits=LOGITS),
    "distribution": torch.distributions.Categorical(logits=LOGITS.log_softmax(1)),
    "features first": (X, LOGITS),
    "features last": [LOGITS, X],
    "named tuple": Pair(X, LOGITS),
    "the same twice": (LOGITS, {"again": LOGITS}),
    "no tensor under the name": {"logits": "none", "found": LOGITS},
    "an empty name": Output(LOGITS),
}


@pytest.mark.parametrize("returned", [None, LOSS, {"loss": LOSS}, {"features": X}])
@pytest.mark.parametrize("output", KNOWN.values(), ids=KNOWN)
def test_the_prediction_in_the_output_of_the_module(output: Any, returned: Any) -> None:
    reader = Reader()
    for target in (Y, Y.flip(0)):
        found = reader.read(returned, (X, target), calls(output))
        torch.testing.assert_close(found.prediction.softmax(1), LOGITS.softmax(1))
        assert found.target.equal(target)
        assert found.call is not None
        torch.testing.assert_close(reader.scores(output).softmax(1), LOGITS.softmax(1))
    assert reader.provenance["prediction"].endswith("output of `forward`")
    assert reader.provenance["target"] == "`batch[1]`"


AMBIGUOUS = {
    "embedding as wide as classes": (
        (torch.randn(N, C), LOGITS),
        r"\[0\] \(6, 3\), \[1\] \(6, 3\)",
    ),
    "neither fits": ({"a": X, "b": torch.randn(N, 7)}, r"'a' \(6, 5\), 'b' \(6, 7\)"),
    "two under the name": ({"logits": (LOGITS, LOGITS + 1), "x": X}, r"\[0\] \(6, 3\), \[1\]"),
    "teacher and student": (
        {"teacher": {"logits": LOGITS}, "student": {"logits": LOGITS + 1}},
        r"\['teacher'\]\['logits'\] \(6, 3\)",
    ),
    "class ids beside features": ((X, IDS), r"\[0\] \(6, 5\), \[1\] \(6,\)"),
}


@pytest.mark.parametrize(("output", "listed"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_could_be_several_is_refused_with_what_there_is(output: Any, listed: str) -> None:
    with pytest.raises(ValueError, match=f"Expected the module .*`forward`.*{listed}.*`output`"):
        Reader().read(None, (X, Y), calls(output))


@pytest.mark.parametrize(
    ("options", "target", "answer"),
    [
        ({}, Y, None),
        ({"num_classes": 3}, Y * 0, None),
        ({}, torch.eye(3)[Y], None),
        ({}, Y * 0, LOGITS),
        ({}, Y.clamp_max(1), torch.full((N,), 2)),
    ],
    ids=["targets", "said", "one-hot", "scores of the baseline", "ids of the baseline"],
)
def test_the_number_of_classes_tells_which_tensor(options: Any, target: Any, answer: Any) -> None:
    found = Reader(**options).read(None, (X, target), calls((X, LOGITS)), lambda: answer)
    assert found.prediction is not X
    assert found.prediction.equal(LOGITS)


@pytest.mark.parametrize("target", [Y * 0, Y.clamp_min(1), Y + 1, Y * 2], ids=str)
def test_classes_that_were_not_all_seen_do_not_tell(target: Tensor) -> None:
    """A width that only happens to be one more than the largest id is no number of classes."""
    with pytest.raises(ValueError, match="`num_classes`"):
        Reader().read(None, (X, target), calls((X, LOGITS)))


def test_without_classes_the_width_says_nothing() -> None:
    with pytest.raises(ValueError, match=r"\[0\] \(6, 5\), \[1\] \(6, 3\)"):
        Reader(classifies=False).read(None, (X, Y), calls((X, LOGITS)))
    assert Reader(classifies=False).read(None, (X, X), calls((LOSS, X))).prediction.equal(X)


@pytest.mark.parametrize("output", ["text", None, {}, LOSS, {"loss": LOSS}, [[]]], ids=str)
def test_an_output_without_tensors_is_refused(output: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^Expected .* per sample, but got"):
        Reader().read(None, (X, Y), calls(output))


# --- what a validation step returned --------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["preds", "logits", "prediction", "predictions", "y_hat", "output"]
)
@pytest.mark.parametrize("label", ["target", "targets", "labels", "label", "y"])
def test_a_dict_from_the_step_comes_first(name: str, label: str) -> None:
    step = {name: LOGITS.clone().requires_grad_(), label: Y, "loss": LOSS, "features": X}
    for made in ([], calls(X), calls((X, X))):
        reader = Reader()
        prediction, target, _ = reader.read(step, (X, Y + 1), made)
        assert prediction.equal(LOGITS)
        assert not prediction.requires_grad
        assert target.equal(Y)
        assert reader.provenance == {
            "prediction": f"{name!r} of what validation_step returned",
            "target": f"{label!r} of what validation_step returned",
        }


def test_scores_or_class_ids_where_a_dict_has_both() -> None:
    step = {"preds": IDS, "logits": LOGITS, "target": Y}
    assert Reader().read(step, None).prediction.equal(IDS)
    assert Reader(scores=True).read(step, None).prediction.equal(LOGITS)
    assert Reader(scores=True).read({"preds": IDS, "y": Y}, None).prediction.equal(IDS)


def test_parts_that_a_dict_lacks_come_from_elsewhere() -> None:
    prediction, target, _ = Reader().read({"preds": IDS}, (X, Y + 1), calls(LOGITS))
    assert prediction.equal(IDS)
    assert target.equal(Y + 1)
    prediction, target, _ = Reader().read({"target": Y}, (X, Y + 1), calls(LOGITS))
    assert prediction.equal(LOGITS)
    assert target.equal(Y)


def test_targets_of_several_names_are_refused() -> None:
    assert Reader().read({"preds": IDS, "y": Y, "labels": Y}, None).target.equal(Y)
    with pytest.raises(ValueError, match="one target, but got 'labels' and 'y'"):
        Reader().read({"preds": IDS, "y": Y + 1, "labels": Y}, None)


def test_what_the_user_says_counts_before_everything() -> None:
    step, batch = {"preds": LOGITS, "target": Y + 1}, (X, Y + 1, {"meta": Y})
    for target in ("2.meta", lambda batch: batch[2]["meta"]):
        reader = Reader(target=target)
        assert reader.read(step, batch, calls(LOGITS)).target.equal(Y)
        assert reader.provenance["target"].startswith("`target`")
    found = Reader(lambda out, batch: (out["preds"] + 1, batch[2]["meta"])).read(step, batch)
    assert found.prediction.equal(LOGITS + 1)
    assert found.target.equal(Y)


@pytest.mark.parametrize(
    ("outputs", "batch", "made", "predictions", "message"),
    [
        (None, (X, Y), [], None, "was not called and validation_step returned NoneType. Either"),
        ({"loss": X}, (X, Y), [], None, r"returned dict with the keys \['loss'\]. Either return"),
        (None, (X, Y), [], lambda *_: LOGITS, r"\(prediction, target\), but got Tensor"),
        (None, (X, Y), [], lambda *_: (X, Y, Y), r"\(prediction, target\), but got tuple"),
        ({"preds": [1, 2]}, (X, Y), [], None, "the prediction to be a tensor .* but got list"),
        ({"preds": LOSS}, (X, Y), [], None, "the prediction .* but got a number"),
        ({"preds": X, "target": "a"}, (X, Y), [], None, "the target to be .* but got str"),
        ({"preds": X, "target": Y[:2]}, (X, Y), [], None, "same length, but got 6 and 2"),
        (None, (X, Y), calls(LOGITS[:3]), None, "same length, but got 3 and 6.*`predictions`"),
        (
            None,
            (X, Y, Y),
            calls(LOGITS),
            None,
            r"list|tuple of 3: \(6, 5\), \(6,\), \(6,\).*target",
        ),
    ],
)
def test_what_cannot_be_read_says_what_to_do(outputs, batch, made, predictions, message) -> None:
    with pytest.raises(ValueError, match=message):
        Reader(predictions).read(outputs, batch, made)


# --- every batch as the first ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        ((None, (X, Y), LOGITS), (None, {"y": Y}, LOGITS), r"`batch\[1\]`.*`batch\['y'\]`"),
        (({"preds": IDS}, (X, Y), X), (None, (X, Y), X), "as 'preds' of validation_step"),
        ((None, (X, Y), (X, LOGITS)), (None, (X, Y), (X,)), r"as \[1\] in every batch.*\[0\]"),
        ((None, (X, Y), {"h": X, "o": LOGITS}), (None, (X, Y), {"h": X}), "as 'o' in every batch"),
        ((None, (X, Y), (X, LOGITS)), (None, (X, Y), (LOGITS, X)), r"\(N, 3\).*\(N, 5\)"),
        ((None, (X, Y), LOGITS), (None, (X, Y), IDS), r"\(N, 3\) in every batch"),
        (({"target": Y}, (X, Y), LOGITS), (None, (X, Y), LOGITS), r"'target' of validation_step"),
    ],
)  # fmt: skip
def test_a_batch_of_another_form_is_refused(first: Any, second: Any, match: str) -> None:
    reader = Reader()
    reader.read(first[0], first[1], calls(first[2]))
    with pytest.raises(ValueError, match=match):
        reader.read(second[0], second[1], calls(second[2]))


def test_what_was_learnt_stays_where_later_batches_would_not_tell() -> None:
    reader = Reader()
    assert reader.read(None, (X, Y), calls((X, LOGITS))).prediction.equal(LOGITS)
    assert reader.read(None, (X, Y * 0), calls((X, LOGITS + 1))).prediction.equal(LOGITS + 1)


# --- several calls --------------------------------------------------------------------------------

OTHER = -LOGITS


@pytest.mark.parametrize(
    "made",
    [
        LOGITS, LOGITS.detach(), LOGITS[:], LOGITS.clone(), LOGITS.double(),
        LOGITS.argmax(1), LOGITS.softmax(1), LOGITS.log_softmax(1),
    ],
    ids=["itself", "detached", "view", "copy", "double", "ids", "softmax", "log_softmax"],
)  # fmt: skip
@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_call_is_the_one_that_the_returned_prediction_came_from(made: Tensor, at: int) -> None:
    outputs: list[Any] = [OTHER, OTHER + torch.eye(N, C)]
    outputs.insert(at, {"logits": LOGITS, "hidden": X})
    reader = Reader()
    for _ in range(2):
        call = reader.read({"preds": made}, (X, Y), calls(*outputs)).call
        assert call is not None
        assert call.index == at
        assert reader.provenance["prediction"].endswith(f"call {at + 1} of 3 of `forward`")
        assert len(reader.remarks) == 1
        assert "called 3 times in each validation step: prediction" in reader.remarks[0]


@pytest.mark.parametrize(
    "step",
    [None, {"loss": LOSS}, {"preds": (LOGITS + OTHER) / 2}, {"preds": IDS}],
    ids=["nothing", "loss", "mean of calls", "ids of none"],
)
def test_several_calls_that_cannot_be_told_apart_are_refused(step: Any) -> None:
    with pytest.raises(ValueError, match=r"`forward` to be called once .* got 2 calls.*'logits'"):
        Reader().read(step, (X, Y), calls(LOGITS, OTHER))
    same = {"preds": LOGITS.argmax(1)}
    with pytest.raises(ValueError, match="got 2 calls"):
        Reader().read(same, (X, Y), calls(LOGITS, LOGITS * 2))


def test_the_prediction_of_another_call_than_before_is_refused() -> None:
    reader = Reader()
    reader.read({"preds": LOGITS}, (X, Y), calls(LOGITS, OTHER))
    with pytest.raises(ValueError, match=r"from call 1 of 2 .* but got the prediction from call 2"):
        reader.read({"preds": LOGITS}, (X, Y), calls(OTHER, LOGITS))


# --- what is run again ----------------------------------------------------------------------------


def test_what_is_run_again_is_the_part_that_was_judged() -> None:
    reader = Reader()
    output = {"first": OTHER, "second": LOGITS}
    reader.read({"preds": LOGITS}, (X, Y), calls(output))
    assert reader.scores({"first": X, "second": LOGITS + 1}).equal(LOGITS + 1)
    with pytest.raises(ValueError, match="as 'second' in every batch"):
        reader.scores({"first": X})


def test_where_ids_are_judged_scores_are_run_again_if_it_is_known_which() -> None:
    reader = Reader()
    reader.read({"preds": IDS}, (X, Y), calls((X, LOGITS)))
    assert reader.scores((X, OTHER)) is OTHER
    reader = Reader()
    reader.read({"preds": IDS}, (X, Y), calls((OTHER, LOGITS)))
    with pytest.raises(ValueError, match=r"\[0\] \(6, 3\), \[1\] \(6, 3\)"):
        reader.scores((OTHER, LOGITS))
