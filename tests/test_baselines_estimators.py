"""Estimators and the most frequent class, against what they say themselves."""

import collections
import copy
import io
import pickle
import random

import numpy as np
import pytest
import torch

from lightning_neurocorr.baselines import EstimatorBaseline, MajorityBaseline, check_prediction

sklearn = pytest.importorskip("sklearn")

from sklearn.dummy import DummyClassifier  # noqa: E402
from sklearn.ensemble import RandomForestClassifier  # noqa: E402
from sklearn.linear_model import (  # noqa: E402
    LinearRegression,
    LogisticRegression,
    Perceptron,
    RidgeClassifier,
)
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.svm import SVC, LinearSVC  # noqa: E402
from sklearn.tree import DecisionTreeClassifier  # noqa: E402


def data(n: int = 60, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 2, 3, generator=generator)
    y = torch.arange(n) % classes
    x[torch.arange(n), 0, y % 3] += 2.0
    return x, y


def batches(x: torch.Tensor, y: torch.Tensor, size: int = 16) -> list[tuple]:
    return list(zip(x.split(size), y.split(size), strict=True))


def flat(x: torch.Tensor) -> np.ndarray:
    return x.reshape(len(x), -1).numpy()


CLASSIFIERS = [
    LogisticRegression(max_iter=500),
    make_pipeline(StandardScaler(), KNeighborsClassifier()),
    RandomForestClassifier(5, random_state=0),
    RidgeClassifier(),
    LinearSVC(),
    SVC(decision_function_shape="ovo"),
    Perceptron(),
]


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("classes", [2, 3])
def test_the_answer_is_the_estimators_own(estimator, classes):
    x, y = data(classes=classes)
    estimator = copy.deepcopy(estimator).fit(flat(x), y.numpy())
    answer = check_prediction(EstimatorBaseline(estimator)((x, y)), 60, classes)
    ids = answer if answer.ndim == 1 else answer.argmax(dim=1)
    assert ids.tolist() == estimator.predict(flat(x)).tolist()
    if hasattr(estimator, "predict_proba"):
        np.testing.assert_allclose(answer, estimator.predict_proba(flat(x)))


def test_binary_decision_values_are_two_logits():
    x, y = data(classes=2)
    estimator = LinearSVC().fit(flat(x), y.numpy())
    answer = EstimatorBaseline(estimator)((x, y))
    values = estimator.decision_function(flat(x))
    np.testing.assert_allclose(answer.softmax(dim=1)[:, 1], 1 / (1 + np.exp(-values)))


@pytest.mark.parametrize(
    ("estimator", "absent"), [(LogisticRegression(), 0.0), (LinearSVC(), -torch.inf)]
)
def test_columns_stand_at_their_class_ids(estimator, absent):
    x, y = data()
    ids = torch.tensor([4, 1, 7])[y]  # classes_ is [1, 4, 7]
    estimator.fit(flat(x), ids.numpy())
    answer = EstimatorBaseline(estimator, num_classes=10)((x, ids))
    method = getattr(estimator, "predict_proba", None) or estimator.decision_function
    want = torch.full((60, 10), absent, dtype=torch.float64)
    for column, class_id in enumerate([1, 4, 7]):
        for row in range(60):
            want[row, class_id] = float(method(flat(x))[row, column])
    torch.testing.assert_close(answer.double(), want)
    assert EstimatorBaseline(estimator)((x, ids)).shape == (60, 8)


def test_bool_classes_and_a_single_class():
    x, y = data(classes=2)
    estimator = LogisticRegression().fit(flat(x), y.numpy().astype(bool))
    assert EstimatorBaseline(estimator)((x, y)).shape == (60, 2)
    only = DummyClassifier().fit(flat(x), np.zeros(60, dtype=int))
    assert EstimatorBaseline(only)((x, y)).tolist() == [[1.0, 0.0]] * 60


def test_negative_class_ids_are_predicted_as_ids():
    x, y = data(classes=2)
    estimator = LogisticRegression().fit(flat(x), y.numpy() * 2 - 1)
    answer = EstimatorBaseline(estimator)((x, y))
    assert answer.tolist() == estimator.predict(flat(x)).tolist()


def test_classes_that_are_not_ids_are_an_error():
    x, y = data()
    estimator = LogisticRegression().fit(flat(x), np.array(["cat", "dog", "cow"])[y])
    with pytest.raises(ValueError, match=r"`estimator.classes_` to be class ids.*'cat', 'cow'"):
        EstimatorBaseline(estimator)((x, y))
    several = DecisionTreeClassifier().fit(flat(x), np.stack([y, y], axis=1))
    with pytest.raises((ValueError, TypeError), match=r"^Expected `estimator"):
        EstimatorBaseline(several)((x, y))


class OnlyPredict:
    """An estimator of one's own, with a column as some libraries return it."""

    def predict(self, X):
        return np.argmax(X, axis=1)[:, None]


class WithoutClasses:
    def predict(self, X):
        return ["the second"] * len(X)

    def predict_proba(self, X):
        return np.tile([0.25, 0.75], (len(X), 1))


def test_estimators_of_ones_own():
    x, y = data()
    assert EstimatorBaseline(OnlyPredict())((x, y)).tolist() == flat(x).argmax(axis=1).tolist()
    assert EstimatorBaseline(WithoutClasses())((x, y)).tolist() == [[0.25, 0.75]] * 60


def test_regression_answers_are_passed_on():
    x, y = data()
    estimator = LinearRegression().fit(flat(x), y.numpy())
    answer = EstimatorBaseline(estimator)((x, y))
    np.testing.assert_allclose(answer, estimator.predict(flat(x)))


# --- features -------------------------------------------------------------------------------


class Spy:
    def predict(self, X):
        self.seen = X
        return np.zeros(len(X), dtype=int)


@pytest.mark.parametrize(
    "inputs",
    [
        torch.arange(12).reshape(2, 2, 3),
        torch.arange(12.0).reshape(2, 2, 3).bfloat16(),
        torch.arange(12.0).reshape(2, 2, 3).requires_grad_(),
        torch.arange(12, dtype=torch.uint8).reshape(2, 2, 3),
        np.arange(12).reshape(2, 2, 3),
    ],
)
def test_default_features_are_the_flattened_input(inputs):
    spy = Spy()
    EstimatorBaseline(spy)({"image": inputs, "label": torch.zeros(2)})
    assert spy.seen.dtype in (np.float32, np.float64)
    assert spy.seen.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_features_by_function_and_by_name():
    x, y = data()
    spy = Spy()
    EstimatorBaseline(spy, features=lambda batch: batch[0][:, 0])((x, y))
    assert np.array_equal(spy.seen, x[:, 0].numpy())
    EstimatorBaseline(spy, features="table")({"x": x, "table": x[:, 1]})
    assert np.array_equal(spy.seen, x[:, 1].numpy())
    EstimatorBaseline(spy, features="text")({"text": ["a", "b"]})
    assert spy.seen == ["a", "b"]
    with pytest.raises(ValueError, match=r"x of the batch to be a tensor.*dict with 'a'.*`feat"):
        EstimatorBaseline(spy)(({"a": x}, y))


# --- fitting --------------------------------------------------------------------------------


def test_fit_is_the_same_as_fitting_on_everything():
    x, y = data()
    given = LogisticRegression()
    baseline = EstimatorBaseline(given, fit=True)
    assert baseline.needs_fit
    baseline.fit(iter(batches(x, y)))
    assert not baseline.needs_fit
    want = LogisticRegression().fit(flat(x), y.numpy()).predict_proba(flat(x))
    np.testing.assert_allclose(baseline((x, y)), want)
    assert not hasattr(given, "classes_")  # a copy was fitted


def test_fit_with_features_and_target():
    x, y = data()
    parts = [{"rows": a, "diagnosis": {"final": b}} for a, b in batches(x, y)]
    baseline = EstimatorBaseline(
        KNeighborsClassifier(1),
        fit=True,
        features=lambda b: b["rows"][:, 0],
        target="diagnosis.final",
    )
    baseline.fit(parts)
    assert baseline(parts[0]).argmax(dim=1).tolist() == y[:16].tolist()
    texts = EstimatorBaseline(DummyClassifier(), fit=True, features="t", target="y")
    texts.fit([{"t": ["a", "b"], "y": [1, 1]}, {"t": ["c"], "y": [0]}])
    assert texts({"t": ["d"]}).argmax(dim=1).tolist() == [1]


def test_what_cannot_be_fitted_is_said():
    x, y = data()
    baseline = EstimatorBaseline(LogisticRegression(), fit=True)
    with pytest.raises(RuntimeError, match=r"EstimatorBaseline\(LogisticRegression, fit=True\) to"):
        baseline((x, y))
    with pytest.raises(ValueError, match="`fit` to be given training batches, but got none"):
        baseline.fit([])
    with pytest.raises(ValueError, match=r"Say where the target is: `target="):
        baseline.fit([x])
    with pytest.raises(TypeError, match=r"`features` to return an array.*but got a dict"):
        EstimatorBaseline(LogisticRegression(), fit=True, features=lambda b: {}).fit([(x, y)])
    unfitted = EstimatorBaseline(LogisticRegression())
    with pytest.raises(ValueError, match=r"`estimator` to be fitted.*fit=True"):
        unfitted((x, y))


def test_other_errors_of_an_estimator_are_not_hidden():
    x, y = data()
    estimator = LogisticRegression().fit(flat(x), y.numpy())
    with pytest.raises(ValueError, match="6 features"):
        EstimatorBaseline(estimator, features=lambda batch: batch[0][:, 0])((x, y))


def test_random_states_are_kept():
    x, y = data()
    baseline = EstimatorBaseline(DummyClassifier(strategy="stratified"), fit=True)
    numpy = np.random.get_state
    before = random.getstate(), numpy()[1].tolist(), torch.get_rng_state().tolist()
    baseline.fit(batches(x, y))
    assert not torch.equal(baseline((x, y)), baseline((x, y)))
    assert (random.getstate(), numpy()[1].tolist(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_in_every_gradient_mode_and_under_autocast(mode):
    x, y = data()
    estimator = LogisticRegression().fit(flat(x), y.numpy())
    with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        answer = EstimatorBaseline(estimator)((x * 1.0, y))
    np.testing.assert_allclose(answer, estimator.predict_proba(flat(x)))
    assert not answer.requires_grad


def test_estimator_arguments():
    for wrong in (object(), LogisticRegression, None):
        with pytest.raises(TypeError, match="`estimator` to be an object with `predict`"):
            EstimatorBaseline(wrong)
    with pytest.raises(TypeError, match="`estimator` to have `fit`, for fit=True"):
        EstimatorBaseline(OnlyPredict(), fit=True)
    with pytest.raises(TypeError, match="`features` to be a key"):
        EstimatorBaseline(OnlyPredict(), features=1.5)
    for wrong in (1, -1, "3"):
        with pytest.raises(ValueError, match="`num_classes` to be an integer of at least 2"):
            EstimatorBaseline(OnlyPredict(), num_classes=wrong)
    shown = repr(EstimatorBaseline(LogisticRegression(), features="x", fit=True))
    assert shown == "EstimatorBaseline(LogisticRegression, features='x', fit=True)"


def test_a_fitted_baseline_pickles_fitted():
    x, y = data()
    baseline = EstimatorBaseline(LogisticRegression(), fit=True)
    baseline.fit(batches(x, y))
    for twin in (pickle.loads(pickle.dumps(baseline)), copy.deepcopy(baseline)):
        assert not twin.needs_fit
        assert torch.equal(twin((x, y)), baseline((x, y)))


# --- MajorityBaseline -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_majority_is_the_most_frequent_label(seed):
    labels = torch.randint(0, 4, (31,), generator=torch.Generator().manual_seed(seed))
    counts = collections.Counter(labels.tolist())
    want = min(label for label in counts if counts[label] == max(counts.values()))
    baseline = MajorityBaseline()
    assert baseline.needs_fit
    baseline.fit(batches(torch.zeros(31, 2), labels, 7))
    assert not baseline.needs_fit
    assert baseline((torch.zeros(5, 2), torch.zeros(5))).tolist() == [want] * 5


def test_of_equally_frequent_classes_the_smallest_id():
    baseline = MajorityBaseline()
    baseline.fit([(torch.zeros(4), torch.tensor([3, 1, 1, 3]))])
    assert baseline((torch.zeros(1), torch.zeros(1))).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32, torch.int32])
def test_labels_of_any_type_are_counted(dtype):
    baseline = MajorityBaseline()
    baseline.fit([(torch.zeros(3), torch.tensor([0, 1, 1]).to(dtype))])
    assert baseline((torch.zeros(2), torch.zeros(2))).tolist() == [1, 1]


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(3, 2), torch.zeros(3)),
        {"tokens": torch.zeros(3, 9), "mask": torch.zeros(3, 9)},
        torch.zeros(3, 2),
        ["text", [torch.zeros(()), {"a": torch.zeros(3)}]],
    ],
)
def test_the_number_of_samples_is_found(batch):
    answer = MajorityBaseline(7)(batch)
    assert answer.tolist() == [7, 7, 7]
    assert answer.dtype == torch.int64


def test_majority_says_what_is_missing():
    with pytest.raises(RuntimeError, match=r"MajorityBaseline\(\) to know its class.*`class_id=`"):
        MajorityBaseline()((torch.zeros(1), torch.zeros(1)))
    with pytest.raises(ValueError, match="training batches, but got none"):
        MajorityBaseline().fit([])
    with pytest.raises(ValueError, match=r"labels to be \(N,\) class ids.*shape \(2, 3\)"):
        MajorityBaseline().fit([(torch.zeros(2), torch.zeros(2, 3))])
    with pytest.raises(ValueError, match=r"labels to be \(N,\) class ids.*float32"):
        MajorityBaseline().fit([(torch.zeros(2), torch.tensor([0.5, 1.0]))])
    with pytest.raises(ValueError, match="one row per sample, but got a dict with 'a'"):
        MajorityBaseline(0)({"a": "text"})
    with pytest.raises(ValueError, match="`target` to name a part"):
        MajorityBaseline(0, target="z")({"a": torch.zeros(3)})
    for wrong in ("1", 1.0, True):
        with pytest.raises(TypeError, match="`class_id` to be an integer or None"):
            MajorityBaseline(wrong)


def test_majority_state_travels_in_the_checkpoint():
    baseline = MajorityBaseline(target="t")
    baseline.fit([{"t": torch.tensor([2, 2, 0])}])
    file = io.BytesIO()
    torch.save(baseline.state_dict(), file)
    file.seek(0)
    twin = MajorityBaseline(target="t")
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert not twin.needs_fit
    assert twin({"t": torch.zeros(2)}).tolist() == [2, 2]
    given = MajorityBaseline(1)
    given.load_state_dict(baseline.state_dict())
    assert given(torch.zeros(1)).tolist() == [1]
    assert MajorityBaseline().state_dict() == {}
    assert repr(baseline) == "MajorityBaseline()"
    assert repr(given) == "MajorityBaseline(1)"


def test_labels_are_one_hot_in_all_batches_or_sets_in_all():
    """A batch of label sets in which each sample happens to have one label is no batch of ids."""
    x, ids = torch.randn(40, 3), torch.arange(40) % 2
    one_hot = torch.nn.functional.one_hot(ids, 2)
    sets = one_hot.clone()
    sets[20:] = torch.tensor([1, 1])
    sets[30:] = 0
    for targets, several in ((one_hot, False), (sets, True)):
        estimator = KNeighborsClassifier(1)
        baseline = EstimatorBaseline(estimator, fit=True)
        baseline.fit([(x[rows], targets[rows]) for rows in (slice(20), slice(20, 40))])
        assert (np.ndim(baseline.estimator.predict(x.numpy())) == 2) == several


class Careful(LogisticRegression):
    """Names class 1 where it is sure, as a TunedThresholdClassifierCV does."""

    def predict(self, X):
        return (self.predict_proba(X)[:, 1] > 0.8).astype(int)


@pytest.mark.parametrize("steps", [[], [StandardScaler()]], ids=["alone", "pipeline"])
def test_the_class_is_what_the_estimator_predicts(steps):
    x, y = data(90, 2)
    y[::4] = 0  # so that classes overlap
    estimator = make_pipeline(*steps, Careful()).fit(flat(x), y.numpy())
    likeliest = estimator.predict_proba(flat(x)).argmax(1)
    predicted = estimator.predict(flat(x))
    others = int((likeliest != predicted).sum())
    assert others
    baseline = EstimatorBaseline(estimator)
    with pytest.warns(UserWarning, match=f"`predict` names .* for {others} of 90"):
        answer = baseline((x, y))
    assert answer.tolist() == predicted.tolist()
    alone = [baseline((x[i : i + 1], y[i : i + 1])) for i in range(9)]  # the same in every batch
    assert torch.cat(alone).tolist() == predicted[:9].tolist()
    said = EstimatorBaseline(estimator, scores=True)((x, y))
    assert said.argmax(1).tolist() == likeliest.tolist()
