"""A validation pass and a collector without Lightning: what a notebook would do."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import BatchBaseline, choose_layers
from lightning_neurocorr import functional as F
from lightning_neurocorr.attribution import Attribution
from lightning_neurocorr.functional.hashing import folds
from lightning_neurocorr.report import NeuronReport
from lightning_neurocorr.report.layout import Layout
from lightning_neurocorr.samples import LoaderPositions
from lightning_neurocorr.validation import (
    Batch,
    Validation,
    ValidationPass,
    alarms_of,
    halves_of,
    report_of,
)
from lightning_neurocorr.validation.asking import describe
from lightning_neurocorr.validation.batches import judge_batch
from lightning_neurocorr.validation.classes import pools
from lightning_neurocorr.validation.collector import Collector
from lightning_neurocorr.validation.options import Options
from lightning_neurocorr.validation.settings import Settings
from lightning_neurocorr.validation.watched import Watched

CPU = torch.device("cpu")


def one_pass(
    activations: torch.Tensor,
    prediction: torch.Tensor,
    baseline: torch.Tensor,
    target: torch.Tensor,
    size: int = 32,
    **options: Any,
) -> tuple[NeuronReport, Validation]:
    """A whole pass over one layer in batches of ``size``."""
    result = ValidationPass(**options)
    for rows in torch.arange(len(target)).split(size):
        batch = Batch(prediction[rows], baseline[rows], target[rows], rows)
        result.add(batch, {"layer": activations[rows]}, {})
    found = result.finish(CPU)
    return report_of(found), found


@pytest.fixture
def labels() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    target = torch.randint(0, 4, (400,))
    prediction = torch.where(torch.rand(400) < 0.9, target, (target + 1) % 4)
    weak = torch.tensor([0.1, 0.2, 0.5, 0.3])[target]
    baseline = torch.where(torch.rand(400) > weak, target, (target + 2) % 4)
    return prediction, baseline, target


def advantage_of(labels: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> np.ndarray:
    prediction, baseline, target = labels
    return ((prediction == target).double() - (baseline == target).double()).numpy()


def residual(values: np.ndarray, design: np.ndarray) -> np.ndarray:
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def test_within_class_r_is_that_of_residuals_on_class_dummies(labels: Any) -> None:
    x = torch.randn(400, 3) + labels[2][:, None] * torch.tensor([0.0, 1.0, 2.0])
    report, _ = one_pass(x, *labels, num_classes=4)
    dummies = np.eye(4)[labels[2].numpy()]
    a = residual(advantage_of(labels), dummies)
    for unit in range(3):
        expected = np.corrcoef(residual(x[:, unit].double().numpy(), dummies), a)[0, 1]
        assert report.rows[unit].r_within_class == pytest.approx(expected, abs=1e-6)


def test_classes_are_counted_as_they_come(labels: Any) -> None:
    """Ids, and nobody says how many: the same as with their number, whatever the labels are."""
    x = torch.randn(400, 3) + labels[2][:, None] * torch.tensor([0.0, 1.0, 2.0])
    known, _ = one_pass(x, *labels, num_classes=4)
    counted, _ = one_pass(x, *labels)
    far = torch.tensor([60_000, 7, 2, 3_000])
    renamed, _ = one_pass(x, *(far[part] for part in labels))
    for name, values in known.columns.items():
        for found in (counted, renamed):
            np.testing.assert_allclose(found.column(name), values, rtol=1e-9, err_msg=name)
    assert np.isfinite(known.column("q_only_model")).all()


def test_a_detector_of_one_class_does_not_encode_where_nobody_says_how_many_there_are() -> None:
    target = torch.arange(4000) % 10
    baseline = torch.where((target == 7) & (torch.rand(4000) < 0.8), 0, target)
    x = (target[:, None] == torch.tensor([7, 3])) + 0.3 * torch.randn(4000, 2)
    report, _ = one_pass(x, target, baseline, target)
    assert report.rows[0].r > 0.5
    assert report.rows[0].verdict.startswith("goes with the class, not with the advantage")


def test_sets_of_labels_have_no_class_to_control_for() -> None:
    target = torch.rand(400, 3) < 0.5
    prediction = torch.where(torch.rand(400, 3) < 0.9, target, ~target)
    baseline = torch.where(torch.rand(400, 3) < 0.6, target, ~target)
    both = [(part == target).all(1).float() for part in (prediction, baseline)]
    x = torch.randn(400, 2) + (both[0] - both[1])[:, None]
    report, _ = one_pass(x, prediction, baseline, target, advantage="exact_match")
    assert report.rows[0].verdict == "its r is above 0; classes were not controlled for"
    assert report.notes == ("Classes were not controlled for: a sample has a set of labels.",)


def test_labels_that_are_ids_are_not_controlled_for(labels: Any) -> None:
    prediction, baseline, target = (part.clone() for part in labels)
    target[5] = 1 << 20
    x = torch.randn(400, 2) + ((prediction == target) & (baseline != target))[:, None]
    report, _ = one_pass(x, prediction, baseline, target)
    assert report.rows[0].verdict == "its r is above 0; classes were not controlled for"
    assert "encode the advantage. Classes were not controlled for." in report.headline


def test_beyond_the_budget_classes_are_pooled_by_what_was_seen_before() -> None:
    """2,000 samples of 100 classes, of which 16 fit: none at first, then 16 pools of like ones."""
    target = torch.randint(0, 100, (2000,))
    weak = torch.linspace(0.05, 0.6, 100)[target]
    prediction = torch.where(torch.rand(2000) < 0.9, target, (target + 1) % 100)
    baseline = torch.where(torch.rand(2000) > weak, target, (target + 2) % 100)
    x = torch.randn(2000, 2) + weak[:, None] * torch.tensor([0.0, 20.0])
    labels, room = (prediction, baseline, target), {"class_budget": 128 * 2 * 16}
    first, result = one_pass(x, *labels, **room)
    assert np.isnan(first.column("r_within_class")).all()
    assert first.rows[1].verdict == "its r is above 0; classes were not controlled for"
    assert "Classes were not controlled for: sums for so many classes" in first.notes[0]
    np.testing.assert_allclose(first.column("mean"), x.double().mean(0), rtol=1e-6)
    seen = result.samples.by_class()
    pooled, _ = one_pass(x, *labels, **room, class_outcomes=seen)
    pool = pools(seen, 16)[target].numpy()
    assert len(set(pool)) == 16
    a = residual(advantage_of(labels), np.eye(16)[pool])
    for unit in range(2):
        column = residual(x[:, unit].double().numpy(), np.eye(16)[pool])
        expected = np.corrcoef(column, a)[0, 1]
        assert pooled.rows[unit].r_within_class == pytest.approx(expected, abs=1e-6)
    assert pooled.rows[1].r > 0.2
    assert "controlled for in 16 pools" in pooled.notes[0]
    assert "encodes" not in pooled.rows[1].verdict
    few, _ = one_pass(x, *(part % 16 for part in labels), **room, class_outcomes=seen[:16])
    assert np.isfinite(few.column("r_within_class")).all()


def test_profile_is_the_mean_of_each_group(labels: Any) -> None:
    x = torch.randn(400, 2) + 1e4
    report, _ = one_pass(x, *labels)
    prediction, baseline, target = labels
    model, rival = (prediction == target).numpy(), (baseline == target).numpy()
    column = x[:, 1].double().numpy()
    row = report.rows[1]
    assert row.mean_both == pytest.approx(column[model & rival].mean())
    assert row.mean_only_model == pytest.approx(column[model & ~rival].mean())
    assert row.mean_only_baseline == pytest.approx(column[~model & rival].mean())
    assert row.mean_neither == pytest.approx(column[~model & ~rival].mean())
    assert row.mean == pytest.approx(column.mean())
    assert row.std == pytest.approx(column.std(), rel=1e-5)
    assert row.active == 1


def test_columns_of_a_half_come_from_its_samples_only(labels: Any) -> None:
    x = torch.randn(400, 2)
    _, result = one_pass(x, *labels)
    half_of = folds(torch.arange(400)).numpy()
    found = halves_of(result)
    for half in (0, 1):
        mine = half_of == half
        expected = np.corrcoef(x[:, 1].double().numpy()[mine], advantage_of(labels)[mine])[0, 1]
        assert found[half]["layer"]["r"][1] == pytest.approx(expected, abs=1e-6)


def test_log_prob_advantage() -> None:
    model, baseline = torch.randn(50, 3), torch.randn(50, 3).softmax(1)
    target, x = torch.randint(0, 3, (50,)), torch.randn(50, 2)
    report, _ = one_pass(x, model, baseline, target, advantage="log_prob")
    rows = torch.arange(50)
    gain = model.double().log_softmax(1)[rows, target] - baseline.double().log()[rows, target]
    expected = np.corrcoef(x[:, 0].double(), gain)[0, 1]
    assert report.rows[0].r == pytest.approx(expected, abs=1e-6)
    assert report.outcomes.n == 50


def test_a_callable_advantage_serves_regression() -> None:
    target = torch.randn(60)
    model, baseline = target + 0.1 * torch.randn(60), target + torch.randn(60)
    x = torch.stack([(baseline - target).abs(), torch.randn(60)], 1)
    report, _ = one_pass(
        x, model, baseline, target, advantage=lambda p, b, y: (b - y).abs() - (p - y).abs()
    )
    assert report.rows[0].r > 0.9
    assert report.outcomes.n == 0
    assert math.isnan(report.outcomes.model_accuracy)
    assert math.isnan(report.rows[0].mean_both)
    assert report.message == ""


def test_messages_say_why_there_is_nothing_to_see(labels: Any) -> None:
    prediction, _, target = labels
    x = torch.randn(400, 2)
    same, _ = one_pass(x, prediction, prediction, target)
    assert "there is no advantage to explain" in same.message
    few = prediction.clone()
    few[:3] = (few[:3] + 1) % 4
    short, _ = one_pass(x, prediction, few, target)
    assert "differ on 3 of 400 samples only" in short.message
    worse = torch.where(torch.arange(400) % 2 == 0, target, (target + 1) % 4)
    lost, _ = one_pass(x, worse, target, target)
    assert "never right where the baseline is wrong" in lost.message
    assert "No sample" in report_of(ValidationPass().finish(CPU)).message


def test_labels_that_are_no_classes_are_refused(labels: Any) -> None:
    prediction, baseline, target = labels
    target = target.clone()
    target[7] = -100
    with pytest.raises(ValueError, match=r"\[0, 4\), but got -100 for 1 samples"):
        one_pass(torch.randn(400, 2), prediction, baseline, target, num_classes=4)


def test_neurons_that_are_not_finite_are_counted(labels: Any) -> None:
    x = torch.randn(400, 3)
    x[5, 1] = torch.inf
    with pytest.warns(UserWarning, match="1 of 3 neurons"):
        report, found = one_pass(x, *labels)
    assert math.isnan(report.rows[1].r)
    assert math.isfinite(report.rows[0].r)
    assert "1 neurons of layer layer" in alarms_of(found)[0]


# --- the collector --------------------------------------------------------------------------------


def test_a_notebook_needs_no_lightning() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)).eval()
    x, y, answers = torch.randn(90, 5), torch.randint(0, 3, (90,)), torch.randint(0, 3, (90,))
    loader = DataLoader(TensorDataset(x, y, answers), batch_size=20)
    options = Options(BatchBaseline(2), target=1, attribution=Attribution())
    settings = Settings(options, choose_layers(model), model, exemplars=3)
    positions = LoaderPositions(loader)
    with Collector(model, settings) as collector:
        for batch in loader:
            model(batch[0])
            collector.update(None, batch, positions)
        found = collector.running_pass.finish(CPU)
    report, rankings = report_of(found), found.rankings
    assert not any(module._forward_hooks for module in model.modules())
    hidden = model[:2](x).detach()  # behind the activation function
    strongest = rankings["0"].top(4)[0]
    assert strongest.position == int(hidden[:, 4].argmax())
    gain = (model(x).argmax(1) == y).double() - (answers == y).double()
    expected = np.corrcoef(hidden[:, 4].double(), gain)[0, 1]
    assert report.row("0", 4).r == pytest.approx(expected, abs=1e-6)
    assert np.isfinite(report.column("attribution")).all()


def test_a_baseline_is_described_without_addresses() -> None:
    assert describe(lambda batch: batch) == "<lambda>"
    assert "0x" not in describe(object())


def test_a_layer_that_drops_out_takes_nothing_from_the_others(labels: Any) -> None:
    xs = {name: torch.randn(400, size) for name, size in (("a", 3), ("b", 2), ("c", 4))}
    whole, without = ValidationPass(exemplars=3), ValidationPass(exemplars=3)
    for rows in torch.arange(400).split(80):
        batch = Batch(*(part[rows] for part in labels), rows)
        some = {name: x[rows] for name, x in xs.items() if name != "b"}
        without.add(batch, some, {})
        there = [name for name in "abc" if name in some or rows[0] != 160]
        whole.add(batch, {name: some.get(name, xs[name][rows] * torch.nan) for name in there}, {})
    found = [result.finish(CPU) for result in (whole, without)]
    reports = [report_of(one) for one in found]
    assert reports[0].layers == ("a", "c")
    assert "b was left out: it fired on 4 of 5 batches" in reports[0].notes[0]
    for name, values in reports[1].columns.items():
        # Matrix products of another width may round otherwise.
        np.testing.assert_allclose(
            reports[0].columns[name], values, rtol=1e-5, atol=1e-7, err_msg=name
        )
    for layer, ranking in found[1].rankings.items():
        assert found[0].rankings[layer].entries.equal(ranking.entries)
    q = reports[0].column("q_value")
    alone, _ = one_pass(xs["c"], *labels, size=80)
    np.testing.assert_allclose(q[3:], alone.column("q_value"), rtol=1e-6)


def test_layers_of_two_devices_come_together_in_the_order_of_the_report() -> None:
    cpu, sizes = torch.device("cpu"), {"a": 2, "b": 3, "c": 1}
    xs = {name: torch.randn(60, size) for name, size in sizes.items()}
    rows, group, target = torch.arange(60), torch.arange(60) % 4, torch.arange(60) % 3
    judged = judge_batch(Batch(target, target, target, rows), "correctness", classifies=True)
    judged = replace(judged, advantage=torch.randn(60), outcome=group)
    there, here, everywhere = (
        Watched({name: sizes[name] for name in names}, cpu, 3, 4) for names in ("b", "ca", "abc")
    )
    for watched in (there, here, everywhere):
        watched.add(xs, judged, target)
    whole = Watched(sizes, cpu, 3, 4)
    for part in (there, here):
        whole.take(part)
    torch.testing.assert_close(whole.metric.state, everywhere.metric.state, rtol=1e-6, atol=1e-5)
    for part, expected in zip(whole.cells.moments([2, 0, 1], True),
                              everywhere.cells.moments([2, 0, 1], True), strict=True):  # fmt: skip
        for field in ("counts", "advantage", "shift", "sums", "squares"):
            np.testing.assert_array_equal(getattr(part, field), getattr(expected, field))
    for name, ranking in everywhere.rankings().items():
        assert whole.rankings()[name].entries.equal(ranking.entries)


def test_a_layer_that_is_left_out_costs_nothing_more() -> None:
    watched = Watched({"a": 2, "b": 3}, torch.device("cpu"), 1, 4)
    assert watched.only({"a", "b", "c"}) is watched
    assert watched.only({"c"}) is None
    rest = watched.only({"b"})
    assert rest is not None
    assert rest.metric.num_neurons == rest.exemplars.num_neurons == rest.cells.neurons == 3


def test_a_layer_that_another_process_lacks_is_left_out(
    labels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(**other: Any) -> Validation:
        """What two processes find, the second of which says otherwise."""
        result, rows = ValidationPass(), torch.arange(400)
        result.add(Batch(*labels, rows), {"a": torch.randn(400, 2), "b": torch.randn(400, 3)}, {})
        gather = "lightning_neurocorr.validation.one_pass.gather_objects"
        monkeypatch.setattr(gather, lambda mine: [mine, replace(mine, **other)])
        return result.finish(CPU)

    lacking = found(sizes={"a": 2})
    assert lacking.layout == Layout(("a",), (2,))
    assert lacking.problems == {"b": "it fired in some of the processes only"}
    assert len(found(sizes={}, classifies=None).layout) == 5  # without samples it lacks none
    other = {"a": "0", "b": "1"}
    assert "it is read at" not in str(found(read_at=other).problems)  # the first says nothing
    assert "gave 2 neurons in one process and 4" in found(sizes={"a": 4, "b": 3}).problems["a"]


def test_nothing_watched_has_two_empty_halves(labels: Any) -> None:
    result = ValidationPass()
    result.add(Batch(*labels, torch.arange(400)), {"a": torch.randn(400, 0)}, {})
    found = result.finish(CPU)
    assert "a: it has no neurons" in report_of(found).message
    assert halves_of(found) == [{}, {}]


def test_a_finished_validation_is_a_value(labels: Any) -> None:
    """What is read of it depends on no order and changes nothing; a pass gives it once."""
    x, result = torch.randn(400, 3), ValidationPass(exemplars=2)
    result.add(Batch(*labels, torch.arange(400)), {"layer": x}, {})
    found = result.finish(CPU)
    late, early = halves_of(found), report_of(found)
    again = report_of(found)
    for name, values in early.columns.items():
        np.testing.assert_array_equal(values, again.columns[name])
    for half, repeated in zip(late, halves_of(found), strict=True):
        for name, values in half["layer"].items():
            np.testing.assert_array_equal(values, repeated["layer"][name])
    assert early.notes == again.notes == report_of(found, name="x").notes
    with pytest.raises(FrozenInstanceError):
        found.samples = None  # type: ignore[misc]
    with pytest.raises(RuntimeError, match="finish once"):
        result.finish(CPU)
    with pytest.raises(RuntimeError, match="no batch can follow"):
        result.add(Batch(*labels, torch.arange(400)), {"layer": x}, {})


_UP = "To encode the advantage here is to be higher in `only_model` than in `both`"
_DOWN = (
    "To go with the baseline's advantage here is to be higher in `only_baseline` than in `neither`"
)
_NONE = "No neuron is said to encode the advantage"


@pytest.mark.parametrize(
    ("counts", "said"),
    [  # of both, only_model, only_baseline, neither
        ((300, 300, 300, 300), ()),
        ((300, 300, 0, 0), (_UP,)),
        ((300, 300, 300, 10), (_UP,)),
        ((10, 300, 300, 300), (_NONE, _DOWN)),
        ((0, 300, 300, 0), (_NONE,)),
    ],
)
def test_a_claim_that_rests_on_one_part_says_so(
    counts: tuple[int, ...], said: tuple[str, ...]
) -> None:
    groups = torch.tensor([F.BOTH, F.ONLY_MODEL, F.ONLY_BASELINE, F.NEITHER])
    outcome = torch.repeat_interleave(groups, torch.tensor(counts))
    target = torch.arange(len(outcome)) % 3
    prediction = torch.where(
        (outcome == F.BOTH) | (outcome == F.ONLY_MODEL), target, (target + 1) % 3
    )
    baseline = torch.where(
        (outcome == F.BOTH) | (outcome == F.ONLY_BASELINE), target, (target + 2) % 3
    )
    x = torch.randn(len(outcome), 2)
    x[outcome == F.ONLY_MODEL, 0] += 2
    x[outcome == F.ONLY_BASELINE, 1] += 2
    report, _ = one_pass(x, prediction, baseline, target)
    assert [note.split(":")[0] for note in report.notes] == list(said)
    up, down = (row.verdict for row in report.rows)
    assert up.startswith("its r is above 0" if _NONE in said else "encodes the advantage")
    if counts[2]:
        told = "goes with the baseline's" if counts[3] > 25 else "its r is below 0"
        assert down.startswith(told)
