"""The *used* columns against SciPy and loops: in one piece, class by class, over processes."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lightning_neurocorr.activations import choose_layers
from lightning_neurocorr.attribution import Attribution, AttributionSums, attribute, union
from tests.small_nets import C, N, Wild, conv_net, data

KEYS = ("group", "target")


def batches(model: nn.Module, count: int, seed: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        x = torch.randn(N, 2, 7, 7, generator=generator)
        target, rival, group, fold = torch.randint(0, C, (4, N), generator=generator)
        made.append(
            {"x": x, "target": target, "rival": rival, "group": group % 2, "fold": fold % 2}
        )
    return made


def added(
    model: nn.Module, sums: AttributionSums, made: list[dict[str, Tensor]]
) -> AttributionSums:
    for b in made:
        rest = (b["target"], b["rival"], b["group"], b["fold"])
        sums.update(lambda b=b: model(b["x"]), choose_layers(model), *rest)
    return sums


def sizes(model: nn.Module) -> dict[str, int]:
    return {name: len(layer.weight) for name, layer in choose_layers(model).items()}


def contributions(
    model: nn.Module, made: list[dict[str, Tensor]], name: str, mean: Tensor
) -> np.ndarray:
    """k of every sample, ``(n, D)``."""
    k = []
    for b in made:
        u, v = attribute(lambda b=b: model(b["x"]), choose_layers(model), b["target"], b["rival"])[
            name
        ]
        k.append(u - mean * v)
    return torch.cat(k).numpy()


def joined(made: list[dict[str, Tensor]], key: str) -> np.ndarray:
    return torch.cat([b[key] for b in made]).numpy()


def test_columns_equal_loops_and_scipy() -> None:
    model = conv_net()
    made = batches(model, 5)
    means = {name: torch.randn(size) for name, size in sizes(model).items()}
    columns = added(model, AttributionSums(sizes(model)), made).compute(means)
    group, fold = joined(made, "group"), joined(made, "fold")
    for name in sizes(model):
        k = contributions(model, made, name, means[name])
        ours, p = columns[name], k[group == 0]
        assert (ours.n, ours.n_shared) == (len(p), (group == 1).sum())
        test = stats.ttest_1samp(p, 0)
        expected = [p.mean(0), *test.confidence_interval(0.95), test.pvalue]
        got = [ours.attribution, ours.low, ours.high, ours.p_value]
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
        for f in (0, 1):
            expected = k[(group == 0) & (fold == f)].mean(0)
            np.testing.assert_allclose(ours.per_fold[f], expected, rtol=1e-6, atol=1e-9)


def test_contrast_of_one_class_is_welch() -> None:
    model = conv_net()
    made = [{**b, "target": torch.ones(N, dtype=torch.long)} for b in batches(model, 5)]
    means = {name: torch.randn(size) for name, size in sizes(model).items()}
    columns = added(model, AttributionSums(sizes(model)), made).compute(means)
    group = joined(made, "group")
    for name, ours in columns.items():
        k = contributions(model, made, name, means[name])
        welch = stats.ttest_ind(k[group == 0], k[group == 1], equal_var=False)
        expected = [
            k[group == 0].mean(0) - k[group == 1].mean(0),
            *welch.confidence_interval(0.95),
            welch.statistic,
        ]
        got = [ours.contrast, ours.contrast_low, ours.contrast_high, ours.contrast_t]
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def contrast_by_loops(
    cells: dict[tuple[int, int], np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contrast, standard error and degrees of freedom from k by group and class."""
    common = [c for g, c in cells if g == 0 and len(cells[0, c]) and len(cells[1, c])]
    wins = sum(len(cells[0, c]) for c in common)
    weight = {c: len(cells[0, c]) / wins for c in common}
    contrast = sum(weight[c] * (cells[0, c].mean(0) - cells[1, c].mean(0)) for c in common)
    errors, freedoms = [], []
    for g in (0, 1):
        inside = [cell for (h, _), cell in cells.items() if h == g and len(cell)]
        freedoms.append(sum(len(cell) - 1 for cell in inside))
        spread = sum(((cell - cell.mean(0)) ** 2).sum(0) for cell in inside)
        share = sum(weight[c] ** 2 / len(cells[g, c]) for c in common)
        errors.append(spread / freedoms[g] * share)
    total = errors[0] + errors[1]
    dof = total**2 / (errors[0] ** 2 / freedoms[0] + errors[1] ** 2 / freedoms[1])
    return contrast, np.sqrt(total), dof


def test_contrast_of_many_classes_is_that_of_loops() -> None:
    model, name = conv_net(), "parts.fc"
    model.parts.head = nn.Linear(7, 8)
    made = batches(model, 6)
    made[0]["target"][:2], made[0]["group"][:2] = 7, 0  # no sample of both is of class 7
    mean = torch.randn(7)
    columns = added(model, AttributionSums(sizes(model)), made).compute({name: mean})[name]
    k, group, target = contributions(model, made, name, mean), *(joined(made, x) for x in KEYS)
    cells = {(g, c): k[(group == g) & (target == c)] for g in (0, 1) for c in (*range(C), 7)}
    contrast, se, dof = contrast_by_loops(cells)
    half = stats.t.ppf(0.975, dof) * se
    expected = [contrast, contrast - half, contrast + half, contrast / se]
    got = [columns.contrast, columns.contrast_low, columns.contrast_high, columns.contrast_t]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def of_class_only(n: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs that tell the class and nothing else, classes, and groups whose classes differ."""
    torch.manual_seed(0)
    target = torch.arange(n) % C
    group = (torch.rand(n) > torch.tensor([0.8, 0.5, 0.2])[target]).long()
    return nn.functional.one_hot(target).float(), target, group


def test_what_is_the_same_on_all_samples_of_a_class_has_no_contrast() -> None:
    (x, target, group), layer, head = of_class_only(), nn.Identity(), torch.randn(C, C)
    sums, mean = AttributionSums({"l": C}), x.mean(0)
    answer, fold = (target + 1) % C, torch.zeros_like(target)
    sums.update(lambda: layer(x) @ head.T, {"l": layer}, target, answer, group, fold)
    contrast = sums.compute({"l": mean})["l"].contrast
    k = ((x - mean) * (head[target] - head[answer])).numpy()
    assert np.abs(k[group == 0].mean(0) - k[group == 1].mean(0)).max() > 0.1
    np.testing.assert_allclose(contrast, 0, atol=1e-6)


def test_classes_that_do_not_fit_are_pooled_by_how_often_the_baseline_missed_them() -> None:
    """Classes 0 and 1 have the same odds of a win, and so have 2 and 3: two pools are enough."""
    torch.manual_seed(0)
    target = torch.arange(400) % 4
    group = (torch.rand(400) > torch.tensor([0.8, 0.8, 0.2, 0.2])[target]).long()
    x = nn.functional.one_hot(target // 2, 2).float()
    layer, head = nn.Identity(), torch.randn(4, 2)
    head[1], head[3] = head[0], head[2]
    seen = torch.tensor([[20, 80, 0, 0], [20, 80, 0, 0], [80, 20, 0, 0], [80, 20, 0, 0]])
    answer, fold = (target + 2) % 4, torch.zeros_like(target)

    def sums(seen: Tensor | None) -> AttributionSums:
        small = Attribution(class_bytes=2 * 2 * 32)
        made = AttributionSums({"l": 2}, small, seen=seen)
        made.update(lambda: layer(x) @ head.T, {"l": layer}, target, answer, group, fold)
        return made

    pooled, unknown = sums(seen), sums(None)
    mean = {"l": x.mean(0)}
    assert pooled.strata is not None
    assert len(pooled.strata) == 2
    np.testing.assert_allclose(pooled.compute(mean)["l"].contrast, 0, atol=1e-6)
    assert unknown.strata is None
    columns = unknown.compute(mean)["l"]
    assert np.isnan(columns.contrast).all()
    assert np.isnan(columns.contrast_t).all()
    assert np.isfinite(columns.attribution).all()
    assert union([[0, 1], None]) is None
    assert union([[0, 3], [1]]) == [0, 1, 3]
    assert union([[-1, -2], [1]]) is None


def test_processes_add_up() -> None:
    """They met other classes in another order, and one has no samples."""
    model = conv_net()
    made = batches(model, 4)
    made[0]["target"] = torch.full((N,), C - 1)
    means = {name: torch.zeros(size) for name, size in sizes(model).items()}
    whole = added(model, AttributionSums(sizes(model)), made)
    left = added(model, AttributionSums(sizes(model)), made[:1])
    right = added(model, AttributionSums(sizes(model)), made[1:])
    parts = (left, right, AttributionSums(sizes(model)))
    strata = union([sums.strata for sums in parts])
    assert strata == sorted(whole.strata or [])
    for sums in parts:
        sums.restrict(sizes(model), strata)
    for tensors in zip(*(sums.tensors() for sums in parts), strict=True):
        tensors[0].copy_(sum(tensors))
    found, expected = left.compute(means), whole.compute(means)
    for name in means:
        for column in ("attribution", "contrast", "contrast_t", "p_value", "per_fold"):
            ours, theirs = getattr(found[name], column), getattr(expected[name], column)
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_what_is_undefined_is_nan() -> None:
    model = conv_net()
    means = {name: torch.zeros(size) for name, size in sizes(model).items()}
    empty = AttributionSums(sizes(model)).compute(means)["parts.fc"]
    assert empty.n == 0
    for column in ("attribution", "low", "contrast", "contrast_t", "per_fold"):
        assert np.isnan(getattr(empty, column)).all()
    one = AttributionSums(sizes(model))
    row = torch.zeros(1, dtype=torch.long)
    x = torch.randn(1, 2, 7, 7)
    one.update(lambda: model(x), choose_layers(model), row, row + 1, row, row)
    columns = one.compute(means)["parts.fc"]
    assert np.isfinite(columns.attribution).all()
    assert np.isnan(columns.low).all()
    assert np.isnan(columns.contrast_t).all()
    assert np.isnan(columns.per_fold[1]).all()


def test_a_layer_that_no_gradient_reached_is_named_and_stays_out() -> None:
    model = Wild().eval()
    x, target, rival = data((4,))
    layers = {name: model.get_submodule(name) for name in ("unused", "right")}
    sums = AttributionSums({"unused": 5, "right": 4})
    zeros = torch.zeros(N, dtype=torch.long)
    sums.update(lambda: model(x), layers, target, rival, zeros, zeros)
    assert "no gradient" in sums.problems["unused"]
    assert sums.problems["right"] == "it has 5 neurons, not 4 as before"
    columns = sums.compute({"unused": torch.zeros(5), "right": torch.zeros(4)})
    assert np.isnan(columns["unused"].attribution).all()
    assert np.isnan(columns["right"].attribution).all()
