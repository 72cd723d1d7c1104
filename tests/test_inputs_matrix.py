"""Every form of batch, output, target and baseline answer that docs/inputs.md promises.

Each gives what a plain loop over the data set gives, or is refused with what to do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_neurocorr import (
    BatchBaseline,
    ModuleBaseline,
    NeuronAdvantage,
    NeuronReport,
    TableBaseline,
    compare,
)
from tests.helpers import pearson
from tests.paper_model import paper_trainer

N, F, C, SIZE = 90, 5, 3, 20
GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(N, 4, generator=GENERATOR)
Y = torch.randint(0, C, (N,), generator=GENERATOR)
Y[:C] = torch.arange(C)  # the first batch holds every class
ANSWERS = torch.where(torch.rand(N, generator=GENERATOR) < 0.6, Y, (Y + 1) % C)


class Net(nn.Module):
    """``shape`` makes of features and logits what it returns."""

    def __init__(self, shape: Callable[[Tensor, Tensor], Any] = lambda f, z: z) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.first, self.head = nn.Linear(4, F), nn.Linear(F, C)
        self.shape = shape

    def forward(self, x: Tensor) -> Any:
        features = self.first(x)
        return self.shape(features, self.head(features))


def plain_loop(x: Tensor = X) -> dict[str, Any]:
    """What a loop over single samples finds: activations, accuracies, r of every neuron."""
    net, features, logits = Net(), [], []
    with torch.no_grad():
        for row in x:
            features.append(net.first(row[None])[0])
            logits.append(net.head(features[-1][None])[0])
    model = [int(z.argmax()) == int(y) for z, y in zip(logits, Y, strict=True)]
    baseline = [int(b) == int(y) for b, y in zip(ANSWERS, Y, strict=True)]
    advantage = np.array(model, float) - np.array(baseline, float)
    columns = torch.cat([torch.stack(features), torch.stack(logits)], 1).numpy()
    return {
        "model": sum(model) / N,
        "baseline": sum(baseline) / N,
        "r": [pearson(column, advantage) for column in columns.T],
    }


LOOP = plain_loop()


def assert_is_the_loop(report: NeuronReport, loop: dict[str, Any] = LOOP) -> None:
    assert report.layers == ("first", "head")
    assert report.n == N
    assert report.outcomes.model_accuracy == pytest.approx(loop["model"], abs=1e-9)
    assert report.outcomes.baseline_accuracy == pytest.approx(loop["baseline"], abs=1e-9)
    np.testing.assert_allclose(report.column("r"), loop["r"], atol=1e-5)


def test_the_loop_can_tell_what_is_compared() -> None:
    """Another prediction, target or answer gives other numbers, and so do other activations."""
    other = plain_loop(X.flip(0))
    assert other["model"] != LOOP["model"]
    assert LOOP["model"] != LOOP["baseline"]
    assert np.abs(np.subtract(other["r"], LOOP["r"])).max() > 0.05


# --- what is promised -----------------------------------------------------------------------------


@dataclass
class Sample:
    image: Tensor
    label: Any
    answer: Any


class Named(NamedTuple):
    answer: Any
    labels: Any
    x: Tensor


# From input, target and the baseline's answer to a batch; and how to say where the target is.
BATCHES: dict[str, tuple[Callable[[Tensor, Any, Any], Any], Any]] = {
    "tuple": (lambda x, y, a: (x, y), None),
    "list": (lambda x, y, a: [x, y], None),
    "three": (lambda x, y, a: (x, a, y), 2),
    "last of three": (lambda x, y, a: [x, a, y], -1),
    "nested": (lambda x, y, a: (x, {"meta": {"truth": y}, "label": a}), "1.meta.truth"),
    "function": (lambda x, y, a: {"x": x, "y": a, "z": y}, lambda batch: batch["z"]),
    "dict": (lambda x, y, a: {"answer": a, "target": y, "x": x}, None),
    "dict with a key": (lambda x, y, a: {"label": a, "inputs": x, "truth": y}, "truth"),
    "twice the same": (lambda x, y, a: {"x": x, "y": y, "labels": y}, None),
    "dataclass": (Sample, None),
    "named tuple": (lambda x, y, a: Named(a, y, x), None),
    "object": (lambda x, y, a: SimpleNamespace(pixel_values=x, targets=y, answer=a), None),
}

OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda f, z: z,
    "features first": lambda f, z: (f, z),
    "with a loss": lambda f, z: {"loss": f.mean(), "anything": z},
    "order of its own": lambda f, z: OrderedDict(hidden=f, aux=f * 2, logits=z),
    "same width": lambda f, z: {"embedding": f[:, :C], "preds": z},
    "dataclass": lambda f, z: SimpleNamespace(hidden=(f, f), logits=z),
    "ids": lambda f, z: {"features": f, "preds": z.argmax(1)},
    "ids and scores": lambda f, z: {"preds": z.argmax(1), "logits": z, "features": f},
}

TARGETS: dict[str, Callable[[Tensor], Any]] = {
    "ids": lambda y: y,
    "int32": lambda y: y.int(),
    "float": lambda y: y.float(),
    "one-hot": lambda y: nn.functional.one_hot(y, C),
    "one-hot floats": lambda y: nn.functional.one_hot(y, C).float(),
}

ANSWER_FORMS: dict[str, Callable[[Tensor], Any]] = {
    "ids": lambda a: a,
    "list": lambda a: a.tolist(),
    "array": lambda a: a.numpy(),
    "scores": lambda a: nn.functional.one_hot(a, C) * 2.0 - 0.5,
}


def starts() -> Iterator[slice]:
    return (slice(i, i + SIZE) for i in range(0, N, SIZE))


def batches(form: Callable[..., Any], target: Callable[[Tensor], Any]) -> list[Any]:
    return [form(X[rows], target(Y[rows]), 1 - Y[rows] % 2) for rows in starts()]


def rows_of(batch: Any) -> slice:
    """Which samples a batch holds: its input is in it, whatever the form."""
    if isinstance(batch, Tensor):
        x = batch
    else:
        listed = isinstance(batch, (tuple, list))
        parts = batch if listed else (batch if isinstance(batch, dict) else vars(batch)).values()
        x = next(p for p in parts if isinstance(p, Tensor) and p.shape[1:] == (4,))
    start = int((x[0] == X).all(1).nonzero()[0])
    return slice(start, start + len(x))


def answering(form: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    return lambda batch: form(ANSWERS[rows_of(batch)])


def compared(batch: str, output: str, target: str, answer: str) -> None:
    form, where = BATCHES[batch]
    told = {"num_classes": C} if output == "ids" else {}
    report = compare(
        Net(OUTPUTS[output]), batches(form, TARGETS[target]), answering(ANSWER_FORMS[answer]),
        target=where, attribution=False, **told,
    )  # fmt: skip
    assert_is_the_loop(report)
    assert "`forward`" in report.provenance["prediction"]
    assert ("`target`" in report.provenance["target"]) == (where is not None)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_batch_and_output_is_the_plain_loop(batch: str, output: str) -> None:
    """Targets and answers take turns, so that each meets every batch and every output."""
    turn = list(BATCHES).index(batch) + list(OUTPUTS).index(output)
    answers, targets = list(ANSWER_FORMS), list(TARGETS)
    compared(batch, output, targets[turn % len(targets)], answers[turn % len(answers)])


@pytest.mark.parametrize("answer", ANSWER_FORMS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_and_answer_is_the_plain_loop(target: str, answer: str) -> None:
    for output in ("tensor", "ids"):
        compared("tuple", output, target, answer)


BASELINES: dict[str, Any] = {
    "of the batch": BatchBaseline("answer"),
    "by position": TableBaseline(ANSWERS.numpy()),
    "by id": TableBaseline(dict(enumerate(ANSWERS.tolist())), id="id"),
    "a module": ModuleBaseline(nn.Identity(), inputs="answer"),
    "a function": lambda batch: batch["answer"],
}


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("advantage", ["correctness", "log_prob"])
def test_every_baseline_is_the_plain_loop(name: str, advantage: str) -> None:
    rows = [
        {"x": X[i], "y": Y[i], "answer": ANSWERS[i], "id": i} for i in range(N)
    ]  # fmt: skip
    loader = DataLoader(rows, batch_size=SIZE)  # type: ignore[arg-type]
    if advantage == "log_prob":
        with pytest.raises(ValueError, match=r"^Expected .*\(N, C\)"):
            compare(Net(), loader, BASELINES[name], advantage=advantage)
        return
    report = compare(Net(), loader, BASELINES[name], sample_id="id")
    assert_is_the_loop(report)
    assert np.isfinite(report.column("attribution")).all()


# --- in a training run ----------------------------------------------------------------------------


class Step(pl.LightningModule):
    """``step`` says what validation_step does with a batch."""

    def __init__(self, step: Callable[[Any, Any], Any], output: str = "tensor") -> None:
        super().__init__()
        net = Net(OUTPUTS[output])
        self.first, self.head, self.shape, self.step = net.first, net.head, net.shape, step

    def forward(self, x: Tensor) -> Any:
        features = self.first(x)
        return self.shape(features, self.head(features))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(self, batch)


def noise(batch: Any) -> Tensor:
    return torch.randn_like(batch[0])


def flipped_last(m: Any, b: Any) -> Any:
    wanted = m(b[0])
    m(noise(b))
    return {"logits": wanted}


def flipped_first(m: Any, b: Any) -> Any:
    m(noise(b))
    return {"logits": m(b[0]), "target": b[1]}


def flipped_both(m: Any, b: Any) -> Any:
    m(noise(b))
    wanted = m(b[0])
    m(noise(b)[:3])
    return {"preds": wanted.argmax(1)}


def by_hand(m: Any, b: Any) -> Any:
    features = m.first(b[0])
    return {"preds": m.head(features), "y": b[1]}


def heads(m: Any, b: Any) -> Any:
    """The head is called on noise too, each time right after its own features."""
    m.head(m.first(noise(b)))
    return {"logits": m.head(m.first(b[0]))}


def one_more_look(m: Any, b: Any) -> Any:
    """A layer of the model is called outside of its forward too."""
    m.first(noise(b))
    logits = m(b[0])
    m.head(torch.randn(7, F))
    return logits.mean()


STEPS: dict[str, tuple[Callable[[Any, Any], Any], dict[str, Any]]] = {
    "returns nothing": (lambda m, b: [m(b[0])][1:], {}),
    "returns a loss": (lambda m, b: m(b[0]).mean(), {}),
    "returns the prediction": (lambda m, b: m(b[0]), {}),
    "returns a dict": (lambda m, b: {"loss": b[0].mean(), "logits": m(b[0]), "y": b[1]}, {}),
    "returns features too": (lambda m, b: {"features": m.first(b[0]), "preds": m(b[0])}, {}),
    "returns ids": (lambda m, b: {"preds": m(b[0]).argmax(1)}, {}),
    "without forward": (by_hand, {}),
    "names the head": (lambda m, b: by_hand(m, b)["preds"].mean(), {"output": "head"}),
    "noise after it": (flipped_last, {}),
    "noise before it": (flipped_first, {}),
    "noise around it": (flipped_both, {}),
    "head and noise": (heads, {"output": "head"}),
    "one more look": (one_more_look, {}),
    "by predictions": (
        lambda m, b: {"mine": m(b[0]), "preds": b[1]},
        {"predictions": lambda out, batch: (out["mine"], batch[1])},
    ),
}


def validated(module: Step, data: list[Any], **options: Any) -> NeuronReport:
    """The report of a validation; it says what several calls were taken for."""
    callback = NeuronAdvantage(answering(lambda a: a), visualizer=None, **options)
    loader = DataLoader(data, batch_size=None)  # type: ignore[arg-type]
    paper_trainer(callback).validate(module, loader, verbose=False)
    assert callback.report is not None
    return callback.report


@pytest.mark.filterwarnings("ignore:.*was called .* times in each validation step")
@pytest.mark.parametrize("name", STEPS)
def test_every_promised_step_is_the_plain_loop(name: str) -> None:
    step, options = STEPS[name]
    report = validated(Step(step), batches(lambda x, y, a: (x, y), lambda y: y), **options)
    assert_is_the_loop(report)
    inside = {"without forward": 0, "names the head": C, "head and noise": C}.get(name, F + C)
    assert np.isfinite(report.column("attribution"))[F + C - inside :].all()
    assert np.isfinite(report.column("attribution")).sum() == inside


@pytest.mark.parametrize("output", [o for o in OUTPUTS if o not in ("ids", "features first")])
def test_every_output_of_a_lightning_module_is_the_plain_loop(output: str) -> None:
    module = Step(lambda m, b: m(b[0]) and None if output == "x" else [m(b[0])][1:], output)
    assert_is_the_loop(
        validated(module, batches(lambda x, y, a: {"x": x, 0: x, "y": y}, lambda y: y))
    )


# --- what is refused ------------------------------------------------------------------------------


def refused(match: str, **made: Any) -> None:
    form = made.pop("form", lambda x, y, a: (x, y))
    target = made.pop("as_target", lambda y: y)
    net = Net(made.pop("output", OUTPUTS["tensor"]))
    baseline = made.pop("baseline", None) or answering(lambda a: a)
    with pytest.raises((ValueError, TypeError), match=r"^Expected .*" + match):
        compare(net, batches(form, target), baseline, **made)


MULTI_HOT = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 1]])

REFUSED_BATCHES: dict[str, tuple[Any, str]] = {
    "three parts": (lambda x, y, a: (x, a, y), r"list|tuple of 3: \(20, 4\), .*`target=`"),
    "four parts": (lambda x, y, a: [x, x, a, y], "of 4: .*`target=`"),
    "two names": (lambda x, y, a: {"x": x, "label": y, "y": a}, "'label' and 'y' may be"),
    "no name": (lambda x, y, a: {"x": x, "truth": y}, "with 'x', 'truth'.*`target=`"),
    "two targets": (lambda x, y, a: (x, (y, a)), "second element of the batch.*`target=`"),
    "words": (lambda x, y, a: (x, [str(i) for i in y]), "numbers.*`target=`"),
    "no target": (lambda x, y, a: x, r"Tensor of shape \(20, 4\).*`target=`"),
}

REFUSED_TARGETS: dict[str, tuple[Any, str]] = {
    "multi-hot": (lambda y: MULTI_HOT[y], "several or none.*advantage='jaccard'"),
    "no label at all": (lambda y: nn.functional.one_hot(y, C) * (y > 0)[:, None], "or none"),
    "MixUp": (lambda y: 0.7 * torch.eye(C)[y] + 0.3 * torch.eye(C)[y.roll(1)], "soft labels"),
    "smoothed": (lambda y: 0.9 * torch.eye(C)[y] + 0.1 / C, "soft labels"),
    "a mask": (lambda y: (torch.arange(12) < y[:, None]).long(), r"\(N, 3\).*\(20, 12\).*`target`"),
    "another width": (lambda y: nn.functional.one_hot(y, 4), r"\(20, 4\)"),
    "numbers": (lambda y: nn.functional.one_hot(y, C) * 5, "other than 0 and 1"),
    "missing": (lambda y: torch.eye(C)[y] * torch.nan, "other than 0 and 1"),
}

REFUSED_OUTPUTS: dict[str, tuple[Any, str]] = {
    "same width": (lambda f, z: (f[:, :C], z), r"\[0\] \(20, 3\), \[1\] \(20, 3\)"),
    "nothing fits": (lambda f, z: {"a": f, "b": torch.cat([z, f], 1)}, r"'a' \(20, 5\), 'b'"),
    "no tensor": (lambda f, z: "text", "per sample, but got str"),
    "a number": (lambda f, z: z.mean(), "number|per sample"),
    "half of the rows": (lambda f, z: z[::2], "10"),
    "one row": (lambda f, z: {"logits": z[:1]}, "1"),
}


@pytest.mark.parametrize("name", REFUSED_BATCHES)
def test_batches_that_are_refused(name: str) -> None:
    form, match = REFUSED_BATCHES[name]
    refused(match, form=form)


@pytest.mark.parametrize("name", REFUSED_TARGETS)
def test_targets_that_are_refused(name: str) -> None:
    target, match = REFUSED_TARGETS[name]
    refused(match, as_target=target)
    for output in (OUTPUTS["ids"], OUTPUTS["same width"]):
        refused("", as_target=target, output=output, num_classes=C)


def test_a_target_that_is_one_hot_in_the_first_batch_only_is_refused() -> None:
    def target(y: Tensor) -> Tensor:
        rows = torch.eye(C)[y].clone()
        if y.equal(Y[3 * SIZE : 4 * SIZE]):
            rows[4] = torch.tensor([1.0, 0, 1])
        return rows

    refused("several or none", as_target=target)


def test_a_one_hot_target_beside_ids_needs_the_number_of_classes() -> None:
    refused("num_classes=3", output=OUTPUTS["ids"], as_target=TARGETS["one-hot"])


@pytest.mark.parametrize("name", REFUSED_OUTPUTS)
def test_outputs_that_are_refused(name: str) -> None:
    output, match = REFUSED_OUTPUTS[name]
    refused(match, output=output)


def test_target_and_predictions_contradict() -> None:
    refused("both", target=1, predictions=lambda out, batch: (out, batch[1]))
    for wrong in ("", True, 1.5, ["y"]):
        refused("`target` to be a key", target=wrong)
    refused("`target` to name a part", target=5)
    refused("`target` to name a part", target="label")


def mean_of_calls(m: Any, b: Any) -> Any:
    return {"logits": (m(b[0]) + m(b[0].flip(0))) / 2}


def twice(m: Any, b: Any) -> None:
    m(b[0])
    m(noise(b))


def of_no_call(m: Any, b: Any) -> Any:
    twice(m, b)
    return {"preds": b[1]}


def heads_later(m: Any, b: Any) -> Any:
    """Both features first, then both heads: which features a head got is not known."""
    wanted, other = m.first(b[0]), m.first(noise(b))
    m.head(other)
    return {"logits": m.head(wanted)}


REFUSED_STEPS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "several calls": (twice, {}, "called once in a validation step, but got 2 calls"),
    "mean of calls": (mean_of_calls, {}, "2 calls.*'logits'"),
    "of no call": (of_no_call, {}, "got 2 calls"),
    "never called": (lambda m, b: m.head(m.first(b[0])).mean(), {}, "was not called"),
    "two targets": (
        lambda m, b: {"preds": m(b[0]), "y": b[1], "label": 1 - b[1]}, {}, "one target",
    ),
    "some rows": (lambda m, b: {"preds": m(b[0])[:5], "y": b[1][:5]}, {}, "5"),
    "no rows": (lambda m, b: {"preds": m(b[0]).mean()}, {}, "a number"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_STEPS)
def test_steps_that_are_refused(name: str) -> None:
    step, options, match = REFUSED_STEPS[name]
    with pytest.raises((ValueError, TypeError), match=r"^Expected .*" + match):
        validated(Step(step), batches(lambda x, y, a: (x, y), lambda y: y), **options)


@pytest.mark.filterwarnings("ignore:.*was called .* times in each validation step")
def test_layers_whose_call_is_not_known_are_left_out_and_said() -> None:
    data = batches(lambda x, y, a: (x, y), lambda y: y)
    with pytest.warns(UserWarning, match="Layer first was left out: .*another call of `output`"):
        report = validated(Step(heads_later), data, output="head")
    assert report.layers == ("head",)
    np.testing.assert_allclose(report.column("r"), LOOP["r"][F:], atol=1e-5)

    def two_looks(m: Any, b: Any) -> Any:
        m.first(noise(b))
        return {"preds": m.head(m.first(b[0]))}

    with pytest.warns(UserWarning, match="Layer first was left out: .* called 2 times outside"):
        report = validated(Step(two_looks), data)
    assert report.layers == ("head",)
