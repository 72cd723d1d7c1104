"""Binary heads, sets of labels and odd targets, through the whole of `compare`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Ablation, EstimatorBaseline, SecondPass, compare

N = 240


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs ``(N, 6)`` and three labels of each, ``(N, 3)``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 6, generator=generator)
    return x, (x[:, :3] + x[:, 3:].roll(1, 1) > 0.3).long()


class Net(nn.Module):
    """A small network whose last step is the caller's."""

    def __init__(self, out: int, last: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features, self.head, self.last = (
            nn.Linear(6, 8),
            nn.Linear(8, out),
            last or nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.features(x).tanh()))


def loader(x: Tensor, y: Tensor, batch_size: int = 60) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size)


def r_of(model: Net, x: Tensor, advantage: np.ndarray) -> list[float]:
    """r of every feature, computed with SciPy."""
    values = model.features(x).tanh().detach().numpy()  # read where the head reads them
    return [float(stats.pearsonr(column, advantage).statistic) for column in values.T]


def rule(batch: Any) -> Tensor:
    return (batch[0][:, 0] > 0).long()


HEADS = {
    "logit (N, 1)": (nn.Identity(), 0.0),
    "logit (N,)": (nn.Flatten(0), 0.0),
    "probability (N, 1)": (nn.Sigmoid(), 0.5),
    "probability (N,)": (nn.Sequential(nn.Flatten(0), nn.Sigmoid()), 0.5),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("form", ["ids", "floats", "column", "bools"])
def test_one_number_is_read_as_two_classes(head: str, form: str) -> None:
    last, threshold = HEADS[head]
    x, y = data()
    y = y[:, 0]
    target = {"ids": y, "floats": y.float(), "column": y[:, None].float(), "bools": y.bool()}[form]
    model = Net(1, last)
    report = compare(model, loader(x, target), rule, "features")
    right = (model(x).flatten() > threshold) == y.bool()
    other = rule((x,)) == y
    assert report.outcomes.model_accuracy == float(right.double().mean())
    assert report.outcomes.baseline_accuracy == float(other.double().mean())
    expected = r_of(model, x, right.double().numpy() - other.double().numpy())
    np.testing.assert_allclose([row.r for row in report.rows], expected, atol=1e-6)


def test_a_baseline_of_one_number_beside_a_model_of_one_number() -> None:
    x, y = data()
    baseline = Net(1, nn.Sigmoid())
    nn.init.normal_(baseline.head.weight)
    report = compare(Net(1), loader(x, y[:, 0]), lambda batch: baseline(batch[0]), "features")
    right = (baseline(x)[:, 0] > 0.5) == y[:, 0].bool()
    assert report.outcomes.baseline_accuracy == float(right.double().mean())


def test_one_number_beside_other_targets_is_asked_about() -> None:
    x, y = data()
    with pytest.raises(
        ValueError, match=r"targets 0 and 1 beside a prediction of one number.* 2\."
    ):
        compare(Net(1), loader(x, y.sum(1)), rule, "features")
    with pytest.raises(ValueError, match=r"targets 0 and 1 .*for regression pass a callable"):
        compare(Net(1), loader(x, x[:, 0]), rule, "features")


def test_what_one_number_is_can_be_said() -> None:
    x, y = data()
    model = Net(1, nn.Sigmoid())
    for scores, threshold in (("logits", 0.0), ("probabilities", 0.5)):
        report = compare(model, loader(x, y[:, 0]), rule, "features", scores={"model": scores})
        right = (model(x)[:, 0] > threshold) == y[:, 0].bool()
        assert report.outcomes.model_accuracy == float(right.double().mean())


def jaccard_by_hand(given: Tensor, target: Tensor) -> np.ndarray:
    found = []
    for said, true in zip(given.tolist(), target.tolist(), strict=True):
        a = {i for i, v in enumerate(said) if v}
        b = {i for i, v in enumerate(true) if v}
        found.append(len(a & b) / len(a | b) if a | b else 1.0)
    return np.array(found)


@pytest.mark.parametrize("advantage", ["jaccard", "exact_match"])
@pytest.mark.parametrize("form", ["logits", "probabilities", "sets"])
def test_sets_of_labels(advantage: str, form: str) -> None:
    x, y = data()
    last = {
        "logits": nn.Identity(),
        "probabilities": nn.Sigmoid(),
        "sets": type("Sets", (nn.Module,), {"forward": lambda _, v: (v > 0).long()})(),
    }[form]
    model = Net(3, last)

    def baseline(batch: Any) -> Tensor:
        return (batch[0][:, :3] > 0).long()

    report = compare(model, loader(x, y), baseline, "features", advantage=advantage)
    sets = {"logits": model(x) > 0, "probabilities": model(x) > 0.5, "sets": model(x) == 1}[form]
    others = baseline((x,)).bool()
    right, right_too = (sets == y.bool()).all(1), (others == y.bool()).all(1)
    assert report.outcomes.only_model == int((right & ~right_too).sum())
    assert report.outcomes.only_baseline == int((~right & right_too).sum())
    if advantage == "jaccard":
        expected = jaccard_by_hand(sets, y) - jaccard_by_hand(others, y)
    else:
        expected = right.double().numpy() - right_too.double().numpy()
    np.testing.assert_allclose([row.r for row in report.rows], r_of(model, x, expected), atol=1e-6)
    assert any("No attribution: samples have sets of labels" in note for note in report.notes)


@pytest.mark.parametrize(
    "estimator",
    [OneVsRestClassifier(LogisticRegression()), RandomForestClassifier(5, random_state=0)],
)
def test_an_estimator_of_several_labels(estimator: Any) -> None:
    x, y = data()
    estimator.fit(x.numpy(), y.numpy())
    report = compare(
        Net(3), loader(x, y), EstimatorBaseline(estimator), "features", advantage="exact_match"
    )
    said = estimator.predict(x.numpy())
    assert report.outcomes.baseline_accuracy == (said == y.numpy()).all(1).mean()
    with pytest.raises(ValueError, match=r"to answer with one class per sample, .*a set of labels"):
        compare(Net(3), loader(x, y[:, 0]), EstimatorBaseline(estimator), "features")


def test_an_estimator_is_fitted_on_several_labels() -> None:
    x, y = data()
    baseline = EstimatorBaseline(OneVsRestClassifier(LogisticRegression()), fit=True)
    baseline.fit(loader(x, y))
    assert baseline.gives_labels
    assert baseline((x, y)).shape == (N, 3)


def test_soft_labels_are_refused_before_the_estimator_sees_them() -> None:
    x, _ = data()
    mixed = torch.rand(N, 3).softmax(1)
    with pytest.raises(
        ValueError, match=r"training labels to be class ids .* MixUp, say\. Give `ta"
    ):
        EstimatorBaseline(LogisticRegression(), fit=True).fit(loader(x, mixed))
    one_hot = torch.eye(3)[torch.arange(N) % 3]
    baseline = EstimatorBaseline(LogisticRegression(), fit=True)
    baseline.fit(loader(x, one_hot))
    assert baseline.estimator.classes_.tolist() == [0, 1, 2]  # type: ignore[attr-defined]


def test_features_of_another_width_are_named() -> None:
    x, y = data()
    estimator = LogisticRegression().fit(x[:, :4].numpy(), y[:, 0].numpy())
    with pytest.raises(
        ValueError, match=r"features of shape \(60, 6\), but got: .* Give `features=`"
    ):
        compare(Net(2), loader(x, y[:, 0]), EstimatorBaseline(estimator), "features")


@pytest.mark.parametrize(
    ("target", "match"),
    [
        (lambda y: y[:, 0] * 1.0, r"target \(N, L\) of zeros and ones"),
        (lambda y: y * 2, r"the target to be zeros and ones, .* but got 2\."),
        (lambda y: y[:, :2], r"a column for each of the 2 labels of the target"),
    ],
)
def test_targets_that_are_no_sets_of_labels(target: Any, match: str) -> None:
    x, y = data()
    with pytest.raises(ValueError, match=match):
        compare(Net(3), loader(x, target(y)), lambda b: b[1], "features", advantage="jaccard")


@pytest.mark.parametrize("asked", [{"ablation": Ablation()}, {"second_pass": SecondPass()}])
def test_what_compares_classes_is_refused_for_sets(asked: dict[str, Any]) -> None:
    x, y = data()
    with pytest.raises(ValueError, match=r"to be None for advantage='jaccard'"):
        compare(Net(3), loader(x, y), lambda b: b[1], "features", advantage="jaccard", **asked)


@pytest.mark.parametrize(("first", "step"), [(1, r"batch\[1\] - 1"), (-1, r"batch\[1\] \+ 1")])
def test_labels_that_do_not_start_at_zero_name_their_offset(first: int, step: str) -> None:
    x, y = data()
    with pytest.raises(ValueError, match=rf"All targets lie from {first} to .*{step}"):
        compare(Net(4), loader(x, y.sum(1) + first), rule, "features")


def test_masks_are_no_classes_and_the_baseline_is_not_blamed() -> None:
    x, _ = data()
    net = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 1, 1))
    masks = x.reshape(N, 2, 3) > 0
    with pytest.raises(
        ValueError, match=r"Expected `prediction` to be class ids .* \(60, 1, 2, 3\)"
    ):
        compare(net, loader(x, masks), lambda b: b[1])


def round_probabilities(x: Tensor) -> Tensor:
    return (x.softmax(1) * 100).round() / 100


def test_log_prob_of_rounded_probabilities_equals_a_plain_loop() -> None:
    x, y = data()
    target = y.sum(1)
    model, other = Net(4), Net(4)
    nn.init.normal_(other.head.weight)

    def baseline(batch: Any) -> Tensor:
        return round_probabilities(other(batch[0])).detach()

    report = compare(model, loader(x, target), baseline, "features", advantage="log_prob")
    expected = []
    for i in range(N):
        own = float(model(x[i : i + 1]).detach().log_softmax(1)[0, target[i]])
        theirs = float(baseline((x[i : i + 1],))[0, target[i]])
        expected.append(own - np.log(max(theirs, torch.finfo(torch.float32).tiny)))
    np.testing.assert_allclose(
        [row.r for row in report.rows], r_of(model, x, np.array(expected)), atol=1e-6
    )
    with pytest.raises(ValueError, match=r"scores of the baseline .* sum to 100 in every row"):
        compare(model, loader(x, target), lambda b: 100 * other(b[0]).softmax(1), "features",
                advantage="log_prob")  # fmt: skip


@pytest.mark.parametrize(
    "form",
    [
        lambda y: nn.functional.one_hot(y, 4).bool(),
        lambda y: nn.functional.one_hot(y, 4).double(),
        lambda y: y[:, None],
        lambda y: y[:, None].float(),
    ],
    ids=["one-hot bools", "one-hot numbers", "a column", "a column of floats"],
)
def test_forms_of_a_target_of_classes(form: Any) -> None:
    x, y = data()
    classes, model = y.sum(1).long(), Net(4)
    report = compare(model, loader(x, form(classes)), rule, "features")
    right = model(x).argmax(1) == classes
    assert report.outcomes.model_accuracy == float(right.double().mean())
    other = rule([x, classes]) == classes
    assert report.outcomes.both == int((right & other).sum()) > 0


def test_a_binary_target_of_two_columns_of_bools() -> None:
    x, y = data()
    one_hot = nn.functional.one_hot(y[:, 0].long(), 2).bool()
    model = Net(1)
    report = compare(model, loader(x, one_hot), rule, "features")
    right = (model(x)[:, 0] > 0) == y[:, 0].bool()
    assert report.outcomes.model_accuracy == float(right.double().mean())


def test_bools_are_no_answers_of_many_classes() -> None:
    x, y = data()
    with pytest.raises(ValueError, match=r"got bools\. If they say where it is right"):
        compare(Net(4), loader(x, y.sum(1)), lambda batch: rule(batch) == batch[1], "features")


@pytest.mark.parametrize("form", [lambda y: 80 * y + 10.5, lambda y: 3.0 * y])
def test_percentages_and_votes_of_labels_are_asked_about(form: Any) -> None:
    x, y = data()
    with pytest.raises(ValueError, match=r"scores of the baseline .* say scores={'baseline'"):
        compare(Net(3), loader(x, y), lambda b: form(b[1]), "features", advantage="jaccard")
    compare(
        Net(3), loader(x, y), lambda b: form(b[1]), "features",
        advantage="jaccard", scores={"baseline": "logits"},
    )  # fmt: skip
