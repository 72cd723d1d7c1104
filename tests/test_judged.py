"""A validation step that judges by other classes or labels than are read is noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchmetrics.classification as M
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as T
from torch.utils.data import DataLoader, Dataset

from lightning_neurocorr import NeuronAdvantage, NeuronReport
from tests.paper_model import paper_trainer, watch

N, C = 60, 4
G = torch.Generator().manual_seed(3)
X = torch.randn(N, 5, generator=G)
Y = torch.randint(0, C, (N,), generator=G)
OTHER = torch.randint(0, C, (N,), generator=G)
ONE_OF_TWO = torch.randint(0, 2, (N,), generator=G)
MAP = torch.tensor([2, 0, 3, 1])


class Data(Dataset):
    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


class Module(LightningModule):
    """Scores of some classes, or with one column a logit of class 1."""

    def __init__(self, step: Callable[[Module, Any], Any], classes: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, classes)
        self.step, self.classes = step, classes
        self.metrics = nn.ModuleDict()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        scores = self.head(self.body(x).relu())
        if labels is not None:
            self.log("loss", T.cross_entropy(scores, labels))
        return scores[:, 0] if self.classes == 1 else scores

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(self, batch)

    def measured(self, metric: nn.Module, *args: Tensor) -> None:
        name = type(metric).__name__
        if name not in self.metrics:
            self.metrics[name] = metric
        self.metrics[name](*args)


def validated(
    step: Callable[[Module, Any], Any],
    make: Callable[[int], Any] = lambda i: (X[i], Y[i]),
    classes: int = C,
    **options: Any,
) -> NeuronReport:
    options = {"attribution": False, "visualizer": None, "inspector": None, **options}
    baseline = options.pop("baseline", lambda _: torch.zeros(10, dtype=torch.long))
    callback = NeuronAdvantage(baseline, **options)
    module = Module(step, classes)
    paper_trainer(callback).validate(module, DataLoader(Data(make), 10), verbose=False)
    assert callback.report is not None
    return callback.report


def right(report: NeuronReport) -> float:
    return report.outcomes.both + report.outcomes.only_model


def log_right(module: Module, classes: Tensor, labels: Tensor) -> None:
    module.log("right", (classes == labels).float().mean())


# --- labels ---------------------------------------------------------------------------------------

OTHER_LABELS = {
    "loss": lambda m, b: m.log("loss", T.cross_entropy(m(b[0]), MAP[b[1]])),
    "smoothed": lambda m, b: T.cross_entropy(m(b[0]), C - 1 - b[1], label_smoothing=0.1),
    "accuracy": lambda m, b: log_right(m, m(b[0]).argmax(1), MAP[b[1]]),
    "wrong ones": lambda m, b: m.log("error", (m(b[0]).max(1)[1] != MAP[b[1]]).float().mean()),
    "counted": lambda m, b: m.measured(
        M.MulticlassAccuracy(C, average="micro"), m(b[0]), MAP[b[1]]
    ),
    "by class": lambda m, b: m.measured(M.MulticlassAccuracy(C), m(b[0]), MAP[b[1]]),
    "F1": lambda m, b: m.measured(M.MulticlassF1Score(C), m(b[0]), MAP[b[1]]),
    "one-hot": lambda m, b: T.binary_cross_entropy_with_logits(
        m(b[0]), T.one_hot(MAP[b[1]], C).float()
    ),
    "coarse": lambda m, b: log_right(m, m(b[0]).argmax(1) // 2, b[1] // 2),
    "in forward": lambda m, b: m(b[0], MAP[b[1]]),
}


@pytest.mark.parametrize("step", OTHER_LABELS)
def test_other_labels_are_refused(step: str) -> None:
    with pytest.raises(ValueError, match=r"with other labels than `batch\[1\]`, .* `target`"):
        validated(OTHER_LABELS[step])


BATCHES = {
    "coordinates": (lambda i: {"x": X[i], "y": OTHER[i], "kind": Y[i]}, "x", "kind"),
    "inside": (lambda i: ({"x": X[i], "label": Y[i]}, OTHER[i]), "0.x", "0.label"),
    "swapped": (lambda i: (Y[i], T.one_hot(OTHER[i], 5)), 1, 0),
    "lengths": (lambda i: ((X[i], Y[i]), OTHER[i]), "0.0", "0.1"),
}


@pytest.mark.parametrize("batch", ["coordinates", "inside", "lengths"])
def test_what_is_no_label_is_not_taken_for_it(batch: str) -> None:
    make, x, y = BATCHES[batch]

    def read(value: Any, path: Any) -> Any:
        for key in str(path).split("."):
            value = value[int(key) if key.isdigit() else key]
        return value

    def step(module: Module, batch: Any) -> None:
        log_right(module, module(read(batch, x)).argmax(1), read(batch, y))

    with pytest.raises(ValueError, match="compares predictions with other labels than"):
        validated(step, make)
    report = validated(step, make, target=lambda batch: read(batch, y))
    with torch.no_grad():
        assert right(report) == int((Module(step, C)(X).argmax(1) == Y).sum())
    assert not any("what you named" in note for note in report.notes)


class TwoHeads(Module):
    def __init__(self, step: Callable[[Module, Any], Any]) -> None:
        super().__init__(step, C)
        self.domain = nn.Linear(5, C)

    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x), "domain": self.domain(x)}


@pytest.mark.parametrize("key", ["y", "kind"])
def test_the_label_of_another_head_is_none_of_this_one(key: str) -> None:
    def step(module: Module, batch: Any) -> None:
        found: Any = module(batch["x"])
        log_right(module, found["logits"].argmax(1), batch["kind"])
        log_right(module, found["domain"].argmax(1), batch["y"])

    module = TwoHeads(step)
    options: Any = {"attribution": False, "visualizer": None, "inspector": None}
    if key == "kind":
        options["target"] = "kind"
    callback = NeuronAdvantage(lambda _: torch.zeros(10, dtype=torch.long), **options)
    loader = DataLoader(Data(BATCHES["coordinates"][0]), 10)
    trainer = paper_trainer(callback)
    if key == "y":
        with pytest.raises(ValueError, match=r"other labels than `batch\['y'\]`"):
            trainer.validate(module, loader, verbose=False)
        return
    trainer.validate(module, loader, verbose=False)
    assert callback.report is not None
    with torch.no_grad():
        assert right(callback.report) == int((module(X)["logits"].argmax(1) == Y).sum())


OF_THE_OTHER_HEAD = {
    "labels": lambda z, b: T.cross_entropy(z, b[1].flip(0)),
    "sets of labels": lambda z, b: T.binary_cross_entropy_with_logits(z, (b[0][:, :C] > 0).float()),
    "all of their tokens": lambda z, b: T.cross_entropy(z.repeat(2, 1), b[1].repeat(2)),
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("loss", OF_THE_OTHER_HEAD)
def test_what_the_step_judges_of_another_head_says_nothing_of_this_one(
    loss: str, recwarn: pytest.WarningsRecorder, *, named: bool
) -> None:
    def step(module: Module, batch: Any) -> Any:
        found: Any = module(batch[0])
        module.log("other", OF_THE_OTHER_HEAD[loss](found["domain"], batch))
        return {"logits": found["logits"], "target": batch[1]} if named else None

    callback = NeuronAdvantage(
        lambda _: torch.zeros(10, dtype=torch.long), visualizer=None, inspector=None
    )
    module = TwoHeads(step)
    loader = DataLoader(Data(lambda i: (X[i], Y[i])), 10)
    paper_trainer(callback).validate(module, loader, verbose=False)
    assert callback.report is not None
    with torch.no_grad():
        assert right(callback.report) == int((module(X)["logits"].argmax(1) == Y).sum())
    assert not [w for w in recwarn if "validation_step" in str(w.message)]


def test_labels_of_each_token_say_nothing_of_one_label_a_sample(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """A language model is judged at every position, and read at the last one."""

    def step(module: Module, batch: Any) -> Any:
        x, y = batch
        scores = module(x[:, None] * torch.linspace(1, 2, 3)[:, None])
        every = y[:, None].expand(-1, 3)
        module.log("loss", T.cross_entropy(scores.reshape(-1, C), every.reshape(-1)))
        return {"logits": scores[:, -1], "target": y}

    report = validated(step)
    with torch.no_grad():
        assert right(report) == int((Module(step, C)(2 * X).argmax(1) == Y).sum())
    assert not [w for w in recwarn if "validation_step" in str(w.message)]


def test_labels_that_were_named_are_taken_and_said() -> None:
    with pytest.warns(UserWarning, match="The target is what you named, but .* for 10 of the 10"):
        report = validated(OTHER_LABELS["accuracy"], target=1)
    assert any("with other labels than `target` (1)" in note for note in report.notes)
    with torch.no_grad():
        assert right(report) == int((Module(OTHER_LABELS["loss"], C)(X).argmax(1) == Y).sum())


# --- classes --------------------------------------------------------------------------------------

OTHER_CLASSES = {
    "probability": (1, lambda m, b: log_right(m, (m(b[0]).sigmoid() > 0.7).long(), b[1])),
    "logit": (1, lambda m, b: log_right(m, torch.where(m(b[0]) >= 0.3, 1, 0), b[1])),
    "backwards": (1, lambda m, b: log_right(m, 1 - (m(b[0]).sigmoid() > 0.5).int(), b[1])),
    "metric": (1, lambda m, b: m.measured(M.BinaryAccuracy(0.7), m(b[0]), b[1])),
    "table": (1, lambda m, b: m.measured(M.BinaryConfusionMatrix(0.7), m(b[0]), b[1])),
    "of two": (2, lambda m, b: log_right(m, m(b[0]).softmax(1)[:, 1] > 0.8, b[1].bool())),
    "of thresholds": (2, lambda m, b: log_right(m, (m(b[0]) > 0).sum(1), b[1])),
    "signs": (1, lambda m, b: log_right(m, m(b[0]).sub(0.3).sign(), 2 * b[1] - 1)),
    "rounded up": (1, lambda m, b: log_right(m, m(b[0]).sigmoid().add(0.4).floor(), b[1])),
}
TWO = lambda i: (X[i], ONE_OF_TWO[i])  # noqa: E731


@pytest.mark.parametrize("step", OTHER_CLASSES)
def test_other_thresholds_are_refused(step: str) -> None:
    classes, taken = OTHER_CLASSES[step]
    with pytest.raises(ValueError, match=r"chooses another class .* as 'preds' from"):
        validated(taken, TWO, classes)


def test_returned_classes_are_those_that_count() -> None:
    def step(module: Module, batch: Any) -> dict[str, Tensor]:
        classes = (module(batch[0]).sigmoid() > 0.7).long()
        log_right(module, classes, batch[1])
        return {"preds": classes}

    report = validated(step, TWO, 1)
    with torch.no_grad():
        classes = (Module(step, 1)(X).sigmoid() > 0.7).long()
    assert right(report) == int((classes == ONE_OF_TWO).sum())


def test_features_that_were_returned_under_a_name_are_said() -> None:
    def step(module: Module, batch: Any) -> dict[str, Tensor]:
        features = module.body(batch[0])
        loss = T.cross_entropy(module.head(features), batch[1])
        return {"output": features, "loss": loss}

    with pytest.warns(UserWarning, match="The prediction is what you named, but .* another class"):
        validated(step, layers="body")


def test_a_threshold_beside_a_named_prediction_is_said() -> None:
    with pytest.warns(UserWarning, match="The prediction is what you named, but .* another class"):
        validated(OTHER_CLASSES["of two"][1], TWO, 2, output="head")


@pytest.mark.parametrize("ids", [False, True])
def test_other_answers_that_were_returned_are_refused(*, ids: bool) -> None:
    def step(module: Module, batch: Any) -> Tensor:
        scores = module(batch[0])
        return MAP[scores.argmax(1)] if ids else scores + 9 * torch.eye(C)[1]

    with pytest.raises(ValueError, match="validation_step returned other answers"):
        validated(step)


def test_samples_that_the_step_leaves_out_are_said() -> None:
    def step(module: Module, batch: Any) -> None:
        scores, known = module(batch[0]), batch[1] != 2
        log_right(module, scores[known].argmax(1), batch[1][known])

    with pytest.warns(UserWarning, match="validation_step leaves samples out"):
        validated(step)


def test_sets_of_labels_are_no_classes() -> None:
    one_hot = T.one_hot(Y, C)

    def step(module: Module, batch: Any) -> None:
        scores = module(batch[0])
        module.log("loss", T.binary_cross_entropy_with_logits(scores, batch[1].float()))
        module.log("exact", ((scores > 0) == batch[1]).all(1).float().mean())

    callback = NeuronAdvantage(
        lambda _: torch.zeros(10, C), advantage="exact_match", visualizer=None, inspector=None
    )
    loader = DataLoader(Data(lambda i: (X[i], one_hot[i])), 10)
    paper_trainer(callback).validate(Module(step, C), loader, verbose=False)
    assert callback.report is not None


SETS = {
    "ordinal": lambda y: (y[:, None] >= torch.arange(C)).float(),
    "label and its parent": lambda y: T.one_hot(y, C).float().index_fill(1, torch.tensor(0), 1.0),
    "negatives have none": lambda y: T.one_hot(y, C).float() * (y > 0)[:, None],
}


@pytest.mark.parametrize("sets", SETS)
def test_a_loss_of_label_sets_says_nothing_of_the_largest_score(sets: str) -> None:
    def loss(module: Module, batch: Any) -> Tensor:
        scores = module(batch[0])
        module.log("loss", T.binary_cross_entropy_with_logits(scores, SETS[sets](batch[1])))
        return scores

    with pytest.raises(ValueError, match=r"sets of labels, of which \d+ of the 10 .* as 'preds'"):
        validated(lambda m, b: m.log("n", float(len(loss(m, b)))))
    with pytest.warns(UserWarning, match="The prediction is what you named, but .* sets of labels"):
        validated(lambda m, b: m.log("n", float(len(loss(m, b)))), output="head")
    said = validated(lambda m, b: {"preds": loss(m, b).argmax(1)})
    fine = validated(lambda m, b: log_right(m, loss(m, b).argmax(1), b[1]))
    with torch.no_grad():
        classes = Module(lambda *_: None, C)(X).argmax(1)
    assert right(fine) == right(said) == sum(int(a == b) for a, b in zip(classes, Y, strict=True))


BACKWARDS = {
    "distance": (4, lambda z: -z),
    "squared": (4, lambda z: -z.square()),
    "temperature": (4, lambda z: z / -0.1),
    "of two": (2, lambda z: -z),
}


@pytest.mark.parametrize("way", BACKWARDS)
def test_scores_that_a_loss_takes_upside_down_are_distances(way: str) -> None:
    classes, turned = BACKWARDS[way]

    class Distances(Module):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            return torch.cdist(self.body(x).relu(), self.head.weight)

    def step(module: Module, batch: Any) -> None:
        module.log("loss", T.cross_entropy(turned(module(batch[0])), batch[1] % classes))

    callback = watch(baseline=lambda b: b[1] * 0, layers="body", target=lambda b: b[1] % classes)
    loader = DataLoader(Data(lambda i: (X[i], Y[i])), 10)
    with pytest.raises(ValueError, match=r"takes the scores upside down.* as 'preds' from"):
        paper_trainer(callback).validate(Distances(step, classes), loader, verbose=False)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_margin_in_the_loss_turns_nothing_upside_down(classes: int) -> None:
    def step(module: Module, batch: Any) -> None:
        scores, label = module(batch[0]), batch[1] % classes
        module.log("loss", T.cross_entropy(scores - 9 * T.one_hot(label, classes), label))

    report = validated(step, classes=classes, target=lambda b: b[1] % classes)
    with torch.no_grad():
        found = Module(step, classes)(X).argmax(1)
    assert right(report) == int((found == Y % classes).sum())


# --- what is logged -------------------------------------------------------------------------------


class AtTheEnd(Module):
    """Keeps predictions, and judges them when all are there."""

    def __init__(self, judge: Callable[[Tensor, Tensor], Any], name: str) -> None:
        super().__init__(self.keep, 2)
        self.judge, self.name = judge, name

    def keep(self, _: Any, batch: Any) -> None:
        self.kept.append((self(batch[0]).numpy(), batch[1].numpy()))

    def on_validation_epoch_start(self) -> None:
        self.kept: list[Any] = []

    def on_validation_epoch_end(self) -> None:
        scores, labels = (
            torch.cat([torch.as_tensor(p) for p in part]) for part in zip(*self.kept, strict=True)
        )
        self.log(self.name, float(self.judge(scores, labels)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def as_logged(judge: Callable[[Tensor, Tensor], Any], name: str, *, fit: bool) -> NeuronReport:
    callback = NeuronAdvantage(
        lambda _: torch.zeros(10, dtype=torch.long), visualizer=None, inspector=None
    )
    module, loader = AtTheEnd(judge, name), DataLoader(Data(TWO), 10)
    trainer = paper_trainer(callback, max_epochs=1)
    trainer.fit(module, loader, loader) if fit else trainer.validate(module, loader, verbose=False)
    assert callback.report is not None
    return callback.report


def share(scores: Tensor, labels: Tensor, limit: float = 0.5) -> float:
    return float(((scores.softmax(1)[:, 1] > limit) == labels).float().mean())


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("name", ["val_acc", "valid/accuracy", "val_acc_epoch"])
def test_an_accuracy_of_something_else_is_said(name: str, *, fit: bool) -> None:
    with pytest.warns(UserWarning, match="None of the accuracies that the model logs is that of"):
        report = as_logged(lambda z, y: share(z, y, 0.9), name, fit=fit)
    with torch.no_grad():
        scores = AtTheEnd(share, name)(X)
    expected = f"It is {share(scores, ONE_OF_TWO):.3f} here, and the model logged {name} = "
    assert any(f"{expected}{share(scores, ONE_OF_TWO, 0.9):.3f}" in note for note in report.notes)


def by_class(scores: Tensor, labels: Tensor) -> float:
    rights = (scores.argmax(1) == labels).float()
    return float(torch.stack([rights[labels == c].mean() for c in (0, 1)]).mean())


@pytest.mark.parametrize(
    ("judge", "name"),
    [
        (share, "val_acc"),
        (lambda z, y: 100 * share(z, y), "val_acc"),
        (by_class, "val_accuracy"),
        (lambda z, y: share(z, y, 0.9), "val_top5_acc"),
        (lambda z, y: share(z, y, 0.9), "val_loss"),
        (lambda z, y: share(z, y, 0.9), "baseline_val_acc"),
        (lambda z, y: share(z, y, 0.9), "val_acc@5"),
        (lambda z, y: share(z, y, 0.9), "val/acc5"),
    ],
)
def test_the_same_accuracy_is_no_news(
    judge: Any, name: str, recwarn: pytest.WarningsRecorder
) -> None:
    report = as_logged(judge, name, fit=True)
    assert not [note for note in report.notes if "accurac" in note]
    assert not [w for w in recwarn if "accurac" in str(w.message)]


@pytest.mark.parametrize("share", [True, False])
def test_the_share_of_labels_is_an_accuracy_of_sets(
    recwarn: pytest.WarningsRecorder, *, share: bool
) -> None:
    with torch.no_grad():
        sets = (Module(lambda *_: None, C)(X) > 0).long()
    sets[40:, 0] = 1 - sets[40:, 0]

    def step(module: Module, batch: Any) -> None:
        same = ((module(batch[0]) > 0) == batch[1]).float()
        module.log("val_acc", same.mean() if share else same.amin(1).mean() / 2)

    report = validated(
        step, lambda i: (X[i], sets[i]), baseline=lambda _: torch.zeros(10, C),
        advantage="exact_match",
    )  # fmt: skip
    assert right(report) == 40
    assert bool([note for note in report.notes if "accurac" in note]) != share
    assert bool([w for w in recwarn if "accurac" in str(w.message)]) != share


def test_an_accuracy_for_each_class_is_none_of_all() -> None:
    def step(module: Module, batch: Any) -> None:
        classes = module(batch[0]).argmax(1)
        for c in range(C):
            module.log(f"val_acc_{c}", (classes[batch[1] == c] == c).float().sum() / 10)
        module.log("val_acc_all", 1.0)

    assert not [note for note in validated(step).notes if "accurac" in note]


# --- nothing is wrong ----------------------------------------------------------------------------

FINE = {
    "probability": (1, lambda m, b: log_right(m, m(b[0]).sigmoid() > 0.5, b[1])),
    "logit": (1, lambda m, b: log_right(m, (m(b[0]) > 0).float(), b[1].float())),
    "rounded": (1, lambda m, b: log_right(m, m(b[0]).sigmoid().round(), b[1])),
    "loss": (1, lambda m, b: T.binary_cross_entropy_with_logits(m(b[0]), b[1].float())),
    "column": (1, lambda m, b: log_right(m, m(b[0])[:, None] > 0, b[1][:, None].bool())),
    "metrics": (1, lambda m, b: [
        m.measured(metric, z, b[1])
        for z in [m(b[0])]
        for metric in (M.BinaryAccuracy(), M.BinaryF1Score(), M.BinaryConfusionMatrix(),
                       M.BinaryAUROC(), M.BinaryAUROC(thresholds=7), M.BinaryCalibrationError())
    ]),
    "two thresholds": (1, lambda m, b: [
        log_right(m, z.sigmoid() > limit, b[1]) for z in [m(b[0])] for limit in (0.3, 0.5, 0.9)
    ]),
    "of two": (2, lambda m, b: log_right(m, m(b[0]).softmax(1)[:, 1] > 0.5, b[1].bool())),
    "sure": (2, lambda m, b: m.log("sure", (m(b[0]).softmax(1).amax(1) > 0.9).float().mean())),
    "unsure": (2, lambda m, b: log_right(m, m(b[0]).softmax(1).max(1)[0] < 0.7, b[1].bool())),
    "a mean of the labels": (2, lambda m, b: T.nll_loss(m(b[0]).log_softmax(1), b[1]) + b[1].sum()),
    "table": (2, lambda m, b: m.measured(M.MulticlassConfusionMatrix(2), m(b[0]), b[1])),
    "two labels": (2, lambda m, b: [
        T.cross_entropy(z, label) for z in [m(b[0])] for label in (1 - b[1], b[1])
    ]),
    "the best of two": (2, lambda m, b: m.measured(
        M.MulticlassAccuracy(2, top_k=2), m(b[0]), b[1]
    )),
    "among the best two": (3, lambda m, b: m.log(
        "top2", (m(b[0]).topk(2, 1).indices == b[1][:, None]).any(1).float().mean()
    )),
    "one-hot": (2, lambda m, b: T.cross_entropy(m(b[0]), T.one_hot(b[1], 2).float())),
    "the label's score": (2, lambda m, b: m(b[0]).gather(1, b[1][:, None]).mean()),
    "no label": (2, lambda m, b: m.log("entropy", m(b[0]).softmax(1).log().mean())),
    "signs": (1, lambda m, b: log_right(m, m(b[0]).sign(), 2 * b[1] - 1)),
    "named -1 and 1": (1, lambda m, b: log_right(m, 2 * (m(b[0]) > 0).int() - 1, 2 * b[1] - 1)),
    "as ids": (2, lambda m, b: m(b[0]).argmax(1)),
    "as scores": (2, lambda m, b: m(b[0]).log_softmax(1)),
}  # fmt: skip


@pytest.mark.parametrize("step", FINE)
def test_usual_steps_are_fine(step: str, recwarn: pytest.WarningsRecorder) -> None:
    classes, taken = FINE[step]
    report = validated(taken, TWO, classes)
    with torch.no_grad():
        scores = Module(taken, classes)(X)
    ids = scores.argmax(1) if classes > 1 else (scores > 0).long()
    assert right(report) == int((ids == ONE_OF_TWO).sum())
    assert not [w for w in recwarn if "validation_step" in str(w.message)]
