"""The *used* columns against SciPy and loops: in one piece, part by part, over processes."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lightning_neurocorr.activations import choose_layers
from lightning_neurocorr.attribution import Attribution, AttributionSums, attribute
from lightning_neurocorr.attribution.columns import share_contrast
from tests.small_nets import C, N, Wild, conv_net, data

PAIRS = 12


def batches(model: nn.Module, count: int, seed: int = 3) -> list[dict[str, Tensor]]:
    """Half of the samples are members of pairs, all of the second group are."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        x = torch.randn(N, 2, 7, 7, generator=generator)
        target, rival, group, fold = torch.randint(0, C, (4, N), generator=generator)
        pair = torch.randint(0, PAIRS, (N,), generator=generator)
        alone = (group % 2 == 0) & (torch.rand(N, generator=generator) < 0.5)
        pair = torch.where(alone, -1, pair)
        made.append(
            {"x": x, "target": target, "rival": rival, "group": group % 2, "fold": fold % 2,
             "pair": pair, "weight": torch.rand(N, generator=generator).double()}
        )  # fmt: skip
    return made


def added(
    model: nn.Module, sums: AttributionSums, made: list[dict[str, Tensor]]
) -> AttributionSums:
    for b in made:
        rest = (b["target"], b["rival"], b["group"], b["fold"], b["pair"], b["weight"])
        sums.update(lambda b=b: model(b["x"]), choose_layers(model), *rest)
    return sums


def centres(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.randn(len(layer.weight)) for name, layer in choose_layers(model).items()}


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
    made, means = batches(model, 5), centres(model)
    columns = added(model, AttributionSums(means, PAIRS), made).compute()
    group, fold = joined(made, "group"), joined(made, "fold")
    for name, mean in means.items():
        ours, p = columns[name], contributions(model, made, name, mean)[group == 0]
        assert ours.n == len(p)
        test = stats.ttest_1samp(p, 0)
        expected = [p.mean(0), *test.confidence_interval(0.95), test.pvalue]
        got = [ours.attribution, ours.low, ours.high, ours.p_value]
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
        for f in (0, 1):
            expected = contributions(model, made, name, mean)[(group == 0) & (fold == f)].mean(0)
            np.testing.assert_allclose(ours.per_fold[f], expected, rtol=1e-6, atol=1e-9)


def slow_shares(k: np.ndarray) -> list[float]:
    """The share of each neuron, by its definition."""
    summed = [sum(row[j] for row in k) for j in range(k.shape[1])]
    return [value / sum(abs(other) for other in summed) for value in summed]


def slow_contrast(wins: np.ndarray, shared: np.ndarray) -> np.ndarray:
    return np.array(slow_shares(wins)) - np.array(slow_shares(shared))


def test_the_contrast_is_of_shares_and_its_error_a_jackknife() -> None:
    model, parts = conv_net(), 16
    made, means = batches(model, 20), centres(model)
    settings = Attribution(contrast_bytes=1)  # as few parts as there may be
    columns = added(model, AttributionSums(means, 40, settings), made).compute()
    group, pair = joined(made, "group"), joined(made, "pair")
    for name, mean in means.items():
        k, ours = contributions(model, made, name, mean), columns[name]

        def without(part: int, k: np.ndarray = k) -> np.ndarray:
            kept = (pair >= 0) & (pair % parts != part)
            return slow_contrast(k[kept & (group == 0)], k[kept & (group == 1)])

        full = without(-1)
        left_out = np.stack([without(part) for part in range(parts)])
        changes = left_out - left_out.mean(0)
        error = np.sqrt((parts - 1) / parts * (changes**2).sum(0))
        half = stats.t.ppf(0.975, parts - 1) * error
        expected = [full, full - half, full + half, stats.t.sf(full / error, parts - 1)]
        got = [ours.contrast, ours.contrast_low, ours.contrast_high, ours.contrast_p]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_the_share_on_partners_is_weighted() -> None:
    model = conv_net()
    made, means = batches(model, 5), centres(model)
    columns = added(model, AttributionSums(means, PAIRS), made).compute()
    group, weight = joined(made, "group"), joined(made, "weight")
    for name, mean in means.items():
        k = contributions(model, made, name, mean)
        expected = slow_shares(k[group == 1] * weight[group == 1, None])
        np.testing.assert_allclose(columns[name].shared, expected, rtol=1e-5, atol=1e-8)
    unknown = AttributionSums(means, 0).compute()
    assert all(np.isnan(found.shared).all() for found in unknown.values())


def test_the_error_is_that_of_the_contrast_over_many_data_sets() -> None:
    """And its p is one of chance where the members of a pair are exchangeable."""
    generator = np.random.default_rng(0)
    mean, pairs = np.array([3.0, 1.0, 0.5, 0.0, -2.0]), 320
    found, errors, p = [], [], []
    for _ in range(400):
        k = mean + generator.gamma(0.5, 4, (2, pairs, 1)) * generator.standard_normal((2, pairs, 5))
        members = k.reshape(2, 64, 5, 5).sum(2)
        contrast, error, dof = share_contrast(members)
        found.append(contrast)
        errors.append(error)
        p.append(stats.t.sf(contrast / error, dof))
    np.testing.assert_allclose(np.mean(errors, 0), np.std(found, 0), rtol=0.12)
    assert 0.03 < (np.array(p) < 0.05).mean() < 0.07


def test_pairs_are_spread_over_the_parts_and_few_pairs_are_parts() -> None:
    model = conv_net()
    (name, mean), *_ = centres(model).items()
    sums = AttributionSums({name: mean}, 3)
    assert sums.parts == 3
    made = batches(model, 1)[0]
    made |= {"group": torch.tensor([0, 1] * 3), "pair": torch.tensor([0, 0, 1, 1, 2, 2])}
    columns = added(model, sums, [made]).compute()[name]
    assert columns.pairs == 3
    assert np.isfinite(columns.contrast_p).all()
    one = AttributionSums({name: mean}, 1)
    made["pair"] = torch.tensor([0, 0, -1, -1, -1, -1])
    columns = added(model, one, [made]).compute()[name]
    assert np.isfinite(columns.contrast).all()
    assert np.isnan(columns.contrast_p).all()


def test_what_is_the_same_on_all_pairs_has_no_contrast_and_no_p() -> None:
    layer, head = nn.Identity(), torch.randn(C, C)
    x = torch.eye(C)[torch.arange(12) % C]
    target = torch.arange(12) % C
    group, pair = torch.arange(12) // 6, torch.arange(12) % 6
    sums = AttributionSums({"l": x.mean(0)}, 6)
    rest = (target, (target + 1) % C, group, torch.zeros_like(target), pair)
    sums.update(lambda: layer(x) @ head.T, {"l": layer}, *rest)
    found = sums.compute()["l"]
    np.testing.assert_allclose(found.contrast, 0, atol=1e-6)


def test_a_mean_of_equal_numbers_has_no_p() -> None:
    """Also where rounding makes them differ."""
    layer, head = nn.Identity(), torch.randn(C, C)
    x = torch.full((12, C), 0.1) * (1 + 1e-7 * torch.arange(12)[:, None])
    zeros = torch.zeros(12, dtype=torch.long)
    sums = AttributionSums({"l": torch.zeros(C)}, 0)
    sums.update(lambda: layer(x) @ head.T, {"l": layer}, zeros, zeros + 1, zeros, zeros, zeros - 1)
    found = sums.compute()["l"]
    assert (found.high > found.low).any()
    assert np.isnan(found.p_value).all()


def test_processes_add_up() -> None:
    """One of them has no samples."""
    model = conv_net()
    made, means = batches(model, 4), centres(model)
    whole = added(model, AttributionSums(means, PAIRS), made)
    left = added(model, AttributionSums(means, PAIRS), made[:1])
    right = added(model, AttributionSums(means, PAIRS), made[1:])
    parts = (left, right, AttributionSums(means, PAIRS))
    for tensors in zip(*(sums.tensors() for sums in parts), strict=True):
        tensors[0].copy_(sum(tensors))
    found, expected = left.compute(), whole.compute()
    for name in means:
        for column in ("attribution", "contrast", "contrast_p", "shared", "p_value", "per_fold"):
            ours, theirs = getattr(found[name], column), getattr(expected[name], column)
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
        assert (found[name].n, found[name].pairs) == (expected[name].n, expected[name].pairs)


@pytest.mark.filterwarnings("error")
def test_what_is_undefined_is_nan() -> None:
    model = conv_net()
    means = centres(model)
    empty = AttributionSums(means, 0).compute()["parts.fc"]
    assert empty.n == empty.pairs == 0
    for column in ("attribution", "low", "contrast", "contrast_p", "per_fold"):
        assert np.isnan(getattr(empty, column)).all()
    one, row = AttributionSums(means, 0), torch.zeros(1, dtype=torch.long)
    x = torch.randn(1, 2, 7, 7)
    one.update(lambda: model(x), choose_layers(model), row, row + 1, row, row, row - 1)
    columns = one.compute()["parts.fc"]
    assert np.isfinite(columns.attribution).all()
    assert np.isnan(columns.low).all()
    assert np.isnan(columns.contrast).all()
    assert np.isnan(columns.per_fold[1]).all()


def test_a_neuron_that_is_not_finite_spoils_no_other_share() -> None:
    members = np.random.default_rng(0).standard_normal((2, 8, 5))
    members[:, :, 2] = np.nan
    rest = np.delete(members, 2, axis=2)
    for broken, whole in zip(share_contrast(members)[:2], share_contrast(rest)[:2], strict=True):
        assert np.isnan(broken[2])
        np.testing.assert_allclose(np.delete(broken, 2), whole)


def test_a_layer_that_no_gradient_reached_is_named_and_stays_out() -> None:
    model = Wild().eval()
    x, target, rival = data((4,))
    layers = {name: model.get_submodule(name) for name in ("unused", "right")}
    sums = AttributionSums({"unused": torch.zeros(5), "right": torch.zeros(4)}, 2)
    zeros = torch.zeros(N, dtype=torch.long)
    sums.update(lambda: model(x), layers, target, rival, zeros, zeros, zeros)
    assert "no gradient" in sums.problems["unused"]
    assert sums.problems["right"] == "it has 5 neurons, not 4 as before"
    columns = sums.compute()
    assert np.isnan(columns["unused"].attribution).all()
    assert np.isnan(columns["right"].attribution).all()
    assert np.isnan(columns["right"].contrast).all()
