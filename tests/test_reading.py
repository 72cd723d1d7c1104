"""Prediction and target, from whatever a validation step leaves behind."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import OutputRecorder
from lightning_neurocorr.reading import argument_reader, logits_of, read_prediction

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
LOGITS = torch.randn(4, 3)


@dataclass
class Output:
    hidden: Tensor
    logits: Tensor | None = None


def recorded(output: object = None) -> OutputRecorder:
    """A recorder whose module has returned ``output``; None: it was never called."""
    recorder = OutputRecorder(nn.Identity())
    if output is not None:
        recorder.called, recorder.output = True, output
    return recorder


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], {"image": X, "label": Y}, {"x": X, "target": Y}])
@pytest.mark.parametrize("returned", [None, torch.tensor(0.5), {"loss": torch.tensor(0.5)}])
@pytest.mark.parametrize(
    "output",
    [
        LOGITS, (LOGITS, X), [LOGITS], {"logits": LOGITS, "aux": X}, {"h": X, "logits": LOGITS},
        Output(X, LOGITS), SimpleNamespace(logits=LOGITS),
    ],
)  # fmt: skip
def test_the_output_of_the_module_with_the_target_of_the_batch(batch, returned, output) -> None:
    prediction, target = read_prediction(returned, batch, recorded(output))
    assert prediction.equal(LOGITS)
    assert target.equal(Y)


@pytest.mark.parametrize("name", ["preds", "logits", "predictions", "y_hat"])
@pytest.mark.parametrize("label", ["target", "targets", "labels", "label", "y"])
def test_a_dict_from_the_step_comes_first(name: str, label: str) -> None:
    step = {name: LOGITS.clone().requires_grad_(), label: Y, "loss": torch.tensor(1.0)}
    for recorder in (recorded(), recorded(X)):
        prediction, target = read_prediction(step, (X, Y + 1), recorder)
        assert prediction.equal(LOGITS)
        assert not prediction.requires_grad
        assert target.equal(Y)


def test_scores_or_class_ids_where_a_dict_has_both() -> None:
    step = {"preds": Y, "logits": LOGITS, "target": Y}
    assert read_prediction(step, None, recorded())[0].equal(Y)
    assert read_prediction(step, None, recorded(), scores=True)[0].equal(LOGITS)
    assert read_prediction({"preds": Y, "y": Y}, None, recorded(), scores=True)[0].equal(Y)


def test_parts_that_a_dict_lacks_come_from_elsewhere() -> None:
    prediction, target = read_prediction({"preds": Y}, (X, Y + 1), recorded(LOGITS))
    assert prediction.equal(Y)
    assert target.equal(Y + 1)
    prediction, target = read_prediction({"target": Y}, (X, Y + 1), recorded(LOGITS))
    assert prediction.equal(LOGITS)
    assert target.equal(Y)


def test_a_callable_has_the_last_word() -> None:
    def predictions(outputs: dict, batch: tuple) -> tuple[Tensor, Tensor]:
        return outputs["a"], batch[1]

    step = {"a": LOGITS, "preds": X, "target": Y + 1}
    prediction, target = read_prediction(step, (X, Y), recorded(X), predictions)
    assert prediction.equal(LOGITS)
    assert target.equal(Y)


@pytest.mark.parametrize(
    ("outputs", "batch", "output", "predictions", "message"),
    [
        (None, (X, Y), None, None, "was not called and validation_step returned NoneType. Either"),
        ({"loss": X}, (X, Y), None, None, r"returned dict with the keys \['loss'\]. Either return"),
        (None, (X, Y), None, lambda *_: LOGITS, r"\(prediction, target\), but got Tensor"),
        (None, (X, Y), None, lambda *_: (X, Y, Y), r"\(prediction, target\), but got tuple"),
        ({"preds": [1, 2]}, (X, Y), None, None, "the prediction to be a tensor .* but got list"),
        ({"preds": torch.tensor(1)}, (X, Y), None, None, "the prediction .* but got a number"),
        ({"preds": X, "target": "a"}, (X, Y), None, None, "the target to be .* but got str"),
        ({"preds": X, "target": Y[:2]}, (X, Y), None, None, "same length, but got 4 and 2"),
        (None, (X, Y), LOGITS[:3], None, "same length, but got 3 and 4.*`predictions`"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(outputs, batch, output, predictions, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_prediction(outputs, batch, recorded(output), predictions)


def test_a_module_whose_output_holds_no_tensor() -> None:
    with pytest.raises(TypeError, match="Expected a layer's output to hold a tensor, but got str"):
        read_prediction(None, (X, Y), recorded("text"))


def test_logits_under_their_name_or_the_first_tensor() -> None:
    assert logits_of({"a": X, "logits": LOGITS}) is LOGITS
    assert logits_of(Output(X, LOGITS)) is LOGITS
    assert logits_of(Output(X)) is X
    assert logits_of({"a": X, "logits": "none"}) is X
    assert logits_of((X, LOGITS)) is X


# --- arguments ------------------------------------------------------------------------------------


class Pair(NamedTuple):
    image: Tensor
    label: Tensor


@pytest.mark.parametrize(
    ("batch", "arguments"),
    [
        (lambda x, y: (x, y), lambda b: ((b[0],), {})),
        (lambda x, y: x, lambda b: ((b,), {})),
        (lambda x, y: {"image": x, "more": [y]}, lambda b: ((b["image"],), {"y": b["more"][0]})),
        (lambda x, y: {"a": {"b": (x, y)}}, lambda b: ((), {"pair": b["a"]["b"]})),
        (Pair, lambda b: ((b.label, b.image), {})),
        (lambda x, y: [x, y], lambda b: ((b,), {})),
        (lambda x, y: (x, y), lambda b: ((b[0], 3), {"train": False, "names": ["a", None]})),
    ],
)
def test_arguments_are_found_again_in_another_batch(batch, arguments) -> None:
    first, second = batch(X, Y), batch(X + 1, Y + 1)
    read = argument_reader(first, arguments(first))
    assert read is not None
    same_parts(read(second), arguments(second))
    same_parts(read(first), arguments(first))


def same_parts(found: object, expected: object) -> None:
    """The very same tensors in the same places."""
    if isinstance(expected, Tensor):
        assert found is expected
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same_parts(found[key], expected[key])
    elif isinstance(expected, (tuple, list)):
        assert len(found) == len(expected)
        for part, other in zip(found, expected, strict=True):
            same_parts(part, other)
    else:
        assert found == expected


@pytest.mark.parametrize(
    "arguments",
    [((X + 1,), {}), ((), {"x": X.flatten()}), ((X, [X * 2]), {}), (({"x": X * 2},), {})],
)
def test_arguments_that_were_computed_cannot_be_found_again(arguments) -> None:
    assert argument_reader((X, Y), arguments) is None
