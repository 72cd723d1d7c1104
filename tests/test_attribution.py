"""The *used* column against loops, SciPy and Captum, on every kind of layer that feeds a logit."""

import weakref
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_neurocorr.activations import choose_layers
from lightning_neurocorr.attribution import (
    Attribution,
    AttributionSums,
    attribute,
    choose_samples,
    match_by_class,
)
from lightning_neurocorr.functional import BOTH, NEITHER, ONLY_BASELINE, ONLY_MODEL

N, C = 6, 3


class Net(nn.Module):
    """Named parts, run one after the other."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


class LastStep(nn.Module):
    def forward(self, output: tuple) -> Tensor:
        return output[0][:, -1]


class TokenMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def conv_net(inplace: bool = True) -> nn.Module:
    return Net(
        conv1=nn.Conv2d(2, 4, 3),
        bn=nn.BatchNorm2d(4),
        relu1=nn.ReLU(inplace=inplace),
        conv2=nn.Conv2d(4, 5, 3),
        relu2=nn.ReLU(inplace=inplace),
        flat=nn.Flatten(),
        fc=nn.Linear(5 * 9, 7),
        gelu=nn.GELU(),
        head=nn.Linear(7, C),
    ).eval()


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (conv_net, (2, 7, 7)),
    "conv1d": (
        lambda: Net(c=nn.Conv1d(2, 3, 3), t=nn.Tanh(), f=nn.Flatten(), h=nn.Linear(9, C)),
        (2, 5),
    ),
    "tokens": (
        lambda: Net(
            a=nn.Linear(4, 5), g=nn.GELU(), b=nn.Linear(5, 6), m=TokenMean(), h=nn.Linear(6, C)
        ),
        (3, 4),
    ),
    "lstm": (
        lambda: Net(rnn=nn.LSTM(4, 5, batch_first=True), last=LastStep(), h=nn.Linear(5, C)),
        (3, 4),
    ),
}


def data(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    target = torch.arange(N) % C
    return torch.randn(N, *shape), target, (target + 1) % C


def slow(
    model: nn.Module, x: Tensor, target: Tensor, rival: Tensor, part: str
) -> tuple[Tensor, Tensor]:
    """One sample and one part at a time, through the parts behind it only."""
    names = [name for name, _ in model.parts.named_children()]
    cut = names.index(part) + 1
    us, vs = [], []
    for i in range(len(x)):
        with torch.no_grad():
            out = model.parts[:cut](x[i : i + 1])
        activation = (out[0] if isinstance(out, tuple) else out).detach().clone().requires_grad_()
        rest = activation.clone()
        logits = model.parts[cut:]((rest, None) if isinstance(out, tuple) else rest)[0]
        (g,) = torch.autograd.grad(logits[target[i]] - logits[rival[i]], activation)
        units = 1 if g.ndim == 4 or isinstance(model.parts[cut - 1], nn.Conv1d) else g.ndim - 1
        order = [units, *(axis for axis in range(g.ndim) if axis != units)]
        size = g.shape[units]
        us.append((activation.detach() * g).permute(order).reshape(size, -1).sum(1))
        vs.append(g.permute(order).reshape(size, -1).sum(1))
    return torch.stack(us).double(), torch.stack(vs).double()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", NETS)
def test_equals_one_sample_and_one_layer_at_a_time(kind: str, frozen: bool) -> None:
    build, shape = NETS[kind]
    model = build().eval().requires_grad_(not frozen)
    x, target, rival = data(shape)
    parts = dict(model.parts.named_children())
    layers = {name: m for name, m in parts.items() if next(m.parameters(), None) is not None}
    found = attribute(lambda: model(x), layers, target, rival)
    assert list(found) == list(layers)
    for name in layers:
        u, v = slow(model, x, target, rival, name)
        torch.testing.assert_close(found[name][0], u, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[name][1], v, atol=1e-5, rtol=1e-4)


def test_a_layer_is_the_same_watched_alone_or_with_others() -> None:
    model, (x, target, rival) = conv_net(), data((2, 7, 7))
    together = attribute(lambda: model(x), choose_layers(model), target, rival)
    for name, layer in choose_layers(model).items():
        alone = attribute(lambda: model(x), {name: layer}, target, rival)[name]
        torch.testing.assert_close(together[name], alone)


def test_contributions_of_a_linear_head_sum_to_the_logit_difference() -> None:
    model, (x, target, rival) = conv_net(), data((2, 7, 7))
    flat = dict(model.parts.named_children())["gelu"]
    u, v = attribute(lambda: model(x), {"gelu": flat}, target, rival)["gelu"]
    logits = model(x).detach().double()
    rows, head = torch.arange(N), model.parts.head
    bias = head.bias.detach().double()
    weight = head.weight.detach().double()
    expected = logits[rows, target] - logits[rows, rival] - bias[target] + bias[rival]
    torch.testing.assert_close(u.sum(1), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(v, weight[target] - weight[rival])


@pytest.mark.parametrize(
    ("kind", "steps", "tolerance"), [("convolutions", 64, 0.01), ("tokens", 16, 0.001)]
)
def test_path_is_complete(kind: str, steps: int, tolerance: float) -> None:
    build, shape = NETS[kind]
    model = build().eval()
    x, target, rival = data(shape)
    names = [name for name, _ in model.parts.named_children()]
    layers = {
        n: m for n, m in model.parts.named_children() if next(m.parameters(), None) is not None
    }
    found = attribute(lambda: model(x), layers, target, rival, method="path", path_steps=steps)

    def margin(logits: Tensor) -> Tensor:
        rows = torch.arange(N)
        return (logits[rows, target] - logits[rows, rival]).detach().double()

    for name in layers:
        cut = names.index(name) + 1
        with torch.no_grad():
            at_zero = margin(model.parts[cut:](torch.zeros_like(model.parts[:cut](x))))
        expected = margin(model(x)) - at_zero
        error = (found[name][0].sum(1) - expected).abs().max() / expected.abs().max()
        assert error < tolerance, name


def test_path_keeps_the_rival_of_the_unchanged_model() -> None:
    # At the actual activations the next best class is 1; at half of them it would be 2.
    model = Net(a=nn.Identity(), h=nn.Linear(1, 3)).eval()
    with torch.no_grad():
        model.parts.h.weight.copy_(torch.tensor([[5.0], [2.0], [0.0]]))
        model.parts.h.bias.copy_(torch.tensor([0.0, 0.0, 1.5]))
    x = torch.ones(1, 1)
    layers = {"a": model.parts.a}
    found = attribute(lambda: model(x), layers, torch.tensor([0]), method="path")
    torch.testing.assert_close(found["a"][0], torch.tensor([[3.0]], dtype=torch.float64))


def test_equals_captum() -> None:
    captum = pytest.importorskip("captum.attr")
    model, (x, target, rival) = conv_net(inplace=False), data((2, 7, 7))
    found = attribute(lambda: model(x), choose_layers(model), target, rival)

    def margin(x: Tensor) -> Tensor:
        rows, logits = torch.arange(N), model(x)
        return logits[rows, target] - logits[rows, rival]

    for name, layer in choose_layers(model).items():
        theirs = captum.LayerGradientXActivation(margin, layer).attribute(x).detach()
        theirs = theirs.flatten(2).sum(2) if theirs.ndim > 2 else theirs
        torch.testing.assert_close(found[name][0], theirs.double(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rival", [None, [-1] * N, "target"])
def test_without_an_answer_the_next_best_class_is_the_rival(rival: object) -> None:
    model, (x, target, _) = conv_net(), data((2, 7, 7))
    given = None if rival is None else target if rival == "target" else torch.tensor(rival)
    logits = model(x).detach()
    best = torch.tensor(
        [
            max((c for c in range(C) if c != t), key=lambda c: row[c])
            for row, t in zip(logits, target, strict=True)
        ]
    )
    found = attribute(lambda: model(x), choose_layers(model), target, given)
    expected = attribute(lambda: model(x), choose_layers(model), target, best)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("squeeze", [False, True])
def test_one_logit_is_that_of_class_one(squeeze: bool) -> None:
    head = nn.Linear(4, 1)
    layer = nn.Linear(2, 4)
    x, target = torch.randn(N, 2), torch.arange(N) % 2

    def forward() -> Tensor:
        logit = head(layer(x))
        return logit[:, 0] if squeeze else logit

    _, v = attribute(forward, {"layer": layer}, target)["layer"]
    sign = (2 * target - 1)[:, None]
    torch.testing.assert_close(v, (sign * head.weight.detach()).double())


# --- kinds of models -----------------------------------------------------------------------------


class Wild(nn.Module):
    """Parallel branches, one of them under no_grad, a layer called twice, a checkpoint, a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 5)
        self.shared = nn.Linear(5, 5)
        self.block = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
        self.as_dict = AsDict()
        self.unused = nn.Linear(5, 5)
        self.head = nn.Linear(10, C)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            left = self.left(x).tanh()
        right = torch.relu_(self.right(x))
        both = torch.relu_(self.shared(left)) + torch.relu_(self.shared(right))
        both = self.run_block(both)
        self.unused(both)
        return self.head(torch.cat([self.as_dict(both)["hidden"], right], 1))

    def run_block(self, x: Tensor) -> Tensor:
        return self.block(x)


class AsDict(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"hidden": x * 1.5}


class Checkpointed(Wild):
    def run_block(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=False)


def wild_by_hand(
    model: Wild, x: Tensor, target: Tensor, rival: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """The forward written out, with every activation kept as it was before what follows it."""
    a: dict[str, Tensor] = {}
    a["left"] = model.left(x).detach().requires_grad_()
    a["right"] = model.right(x)
    right = a["right"].relu()
    a["shared1"], a["shared2"] = model.shared(a["left"].tanh()), model.shared(right)
    a["block.0"] = model.block[0](a["shared1"].relu() + a["shared2"].relu())
    a["block.2"] = model.block[2](a["block.0"].tanh())
    a["as_dict"] = a["block.2"] * 1.5
    a["head"] = model.head(torch.cat([a["as_dict"], right], 1))
    rows = torch.arange(len(x))
    margin = (a["head"][rows, target] - a["head"][rows, rival]).sum()
    gradients = torch.autograd.grad(margin, list(a.values()))
    found = {
        name: ((value * g).detach().double(), g.double())
        for (name, value), g in zip(a.items(), gradients, strict=True)
    }
    first, second = found.pop("shared1"), found.pop("shared2")
    return {**found, "shared": (first[0] + second[0], first[1] + second[1])}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", [Wild, Checkpointed])
def test_models_with_branches_shared_layers_and_checkpoints(kind: type, frozen: bool) -> None:
    model = kind().eval()
    x, target, rival = data((4,))
    expected = wild_by_hand(model, x, target, rival)
    model.requires_grad_(not frozen)
    names = ["left", "right", "shared", "block.0", "block.2", "as_dict", "unused", "head"]
    layers = {name: model.get_submodule(name) for name in names}
    found = attribute(lambda: model(x), layers, target, rival)
    assert set(found) == set(names) - {"unused"}
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_path_through_a_checkpoint() -> None:
    model, straight = Checkpointed().eval(), Wild().eval()
    straight.load_state_dict(model.state_dict())
    x, target, rival = data((4,))
    found = [
        attribute(lambda m=m: m(x), {"0": m.block[0]}, target, rival, method="path")["0"]
        for m in (model, straight)
    ]
    torch.testing.assert_close(found[0], found[1])


def test_sequence_first_modules_have_their_samples_on_the_second_axis() -> None:
    rnn, head = nn.LSTM(4, 5), nn.Linear(5, C)
    x, target, rival = data((3, 4))
    model = Net(rnn=nn.LSTM(4, 5, batch_first=True), last=LastStep(), h=head)
    model.parts.rnn.load_state_dict(rnn.state_dict())
    expected = attribute(lambda: model(x), {"rnn": model.parts.rnn}, target, rival)
    found = attribute(lambda: head(rnn(x.transpose(0, 1))[0][-1]), {"rnn": rnn}, target, rival)
    torch.testing.assert_close(found, expected)


def test_layers_whose_rows_are_not_samples_are_left_out() -> None:
    layer, head = nn.Linear(2, 4), nn.Linear(8, C)
    x, target, rival = data((4,))
    found = attribute(
        lambda: head(layer(x.reshape(-1, 2)).reshape(N, 8)), {"l": layer}, target, rival
    )
    assert found == {}


def test_inference_mode_and_autocast() -> None:
    model, (x, target, rival) = conv_net(), data((2, 7, 7))
    exact = attribute(lambda: model(x), choose_layers(model), target, rival)
    with torch.inference_mode():
        made_here = x * 1.0
        with torch.autocast("cpu", torch.bfloat16):
            model(made_here)  # may leave weights in the cache that were cast in inference mode
            half = attribute(lambda: model(made_here.clone()), choose_layers(model), target, rival)
        found = attribute(lambda: model(made_here.clone()), choose_layers(model), target, rival)
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(found, exact)
    for name in exact:
        assert half[name][0].dtype == torch.float64
        assert (
            torch.corrcoef(torch.stack([half[name][0].flatten(), exact[name][0].flatten()]))[0, 1]
            > 0.99
        )


def test_a_large_mean_does_not_drown_the_contribution() -> None:
    torch.manual_seed(1)
    activation = 1e4 + torch.randn(64, 3, 5, 5)
    conv, weight = nn.Identity(), torch.randn(2, 3, 5, 5)
    target = torch.arange(64) % 2

    def forward() -> Tensor:
        return (conv(activation)[:, None] * weight * activation[:, :1, None]).flatten(2).sum(2)

    u, v = attribute(forward, {"conv": conv}, target, 1 - target)["conv"]
    g = (weight[target] - weight[1 - target]).double() * activation[:, :1].double()
    a, mean = activation.double(), activation.double().mean((0, 2, 3))
    expected = ((a - mean[:, None, None]) * g).sum((2, 3))
    torch.testing.assert_close(u - mean * v, expected, rtol=1e-3, atol=1e-3 * expected.std().item())


# --- nothing changes -----------------------------------------------------------------------------


@pytest.mark.keeps_rng
@pytest.mark.parametrize("fails", [False, True])
def test_changes_nothing(fails: bool) -> None:
    state = torch.get_rng_state()
    model = conv_net()
    model.parts.fc.weight.requires_grad_(False)
    x, target, rival = data((2, 7, 7))
    torch.set_rng_state(state)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reached = []
    handles = [p.register_hook(reached.append) for p in model.parameters() if p.requires_grad]

    def forward() -> Tensor:
        noisy = model(x + 1e-3 * torch.randn_like(x))  # draws from the global state
        if fails:
            raise KeyboardInterrupt
        return noisy

    if fails:
        with pytest.raises(KeyboardInterrupt):
            attribute(forward, choose_layers(model), target, rival)
    else:
        attribute(forward, choose_layers(model), target, rival)
    for handle in handles:
        handle.remove()
    assert reached == [], "a weight was differentiated"
    assert all(p.grad is None for p in model.parameters())
    assert not model.parts.fc.weight.requires_grad
    assert model.parts.conv1.weight.requires_grad
    assert not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_nothing_in_front_of_the_first_layer_is_kept_for_a_backward() -> None:
    class Box:
        """Stands for a tensor kept for a backward that never comes."""

    stem, layer, head = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, C)
    boxes: list[weakref.ref[Box]] = []
    alive: list[int] = []

    def pack(_: Tensor) -> Box:
        boxes.append(weakref.ref(box := Box()))
        return box

    def unpack(_: Box) -> Tensor:
        raise AssertionError("something in front of the first layer was differentiated")

    def forward() -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            hidden = layer(stem(x).tanh().sigmoid())
        alive.append(sum(box() is not None for box in boxes))
        return head(hidden)

    x, target, rival = data((4,))
    attribute(forward, {"layer": layer}, target, rival)
    assert len(boxes) > 0
    assert alive == [0]


def test_predictions_that_are_no_logits_are_refused() -> None:
    layer = nn.Conv2d(2, 3, 3)
    with pytest.raises(ValueError, match=r"logits of shape \(6, C\), but got \(6, 3, 5, 5\)"):
        attribute(lambda: layer(torch.randn(6, 2, 7, 7)), {"l": layer}, torch.zeros(6))
    with pytest.raises(ValueError, match=r"logits of shape \(6, C\), but got \(5, 3\)"):
        attribute(lambda: torch.zeros(5, 3), {"l": layer}, torch.zeros(6))


# --- the columns ---------------------------------------------------------------------------------


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


def test_columns_equal_loops_and_scipy() -> None:
    model = conv_net()
    made = batches(model, 5)
    means = {name: torch.randn(size) for name, size in sizes(model).items()}
    columns = added(model, AttributionSums(sizes(model)), made).compute(means)
    group = torch.cat([b["group"] for b in made]).numpy()
    fold = torch.cat([b["fold"] for b in made]).numpy()
    for name in sizes(model):
        k = []
        for b in made:
            u, v = attribute(
                lambda b=b: model(b["x"]), choose_layers(model), b["target"], b["rival"]
            )[name]
            k.append(u - means[name] * v)
        k = torch.cat(k).numpy()
        ours, p, s = columns[name], k[group == 0], k[group == 1]
        assert (ours.n, ours.n_shared) == (len(p), len(s))
        for j in range(k.shape[1]):
            test = stats.ttest_1samp(p[:, j], 0)
            interval = test.confidence_interval(0.95)
            np.testing.assert_allclose(ours.p_value[j], test.pvalue, rtol=1e-6)
            welch = stats.ttest_ind(p[:, j], s[:, j], equal_var=False)
            between = welch.confidence_interval(0.95)
            expected = [
                p[:, j].mean(),
                *interval,
                p[:, j].mean() - s[:, j].mean(),
                *between,
                welch.statistic,
            ]
            got = [ours.attribution, ours.low, ours.high, ours.contrast, ours.contrast_low]
            got = [column[j] for column in (*got, ours.contrast_high, ours.contrast_t)]
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
        for f in (0, 1):
            expected = k[(group == 0) & (fold == f)].mean(0)
            np.testing.assert_allclose(ours.per_fold[f], expected, rtol=1e-6, atol=1e-9)


def test_processes_add_up() -> None:
    model = conv_net()
    made = batches(model, 4)
    means = {name: torch.zeros(size) for name, size in sizes(model).items()}
    whole = added(model, AttributionSums(sizes(model)), made)
    left = added(model, AttributionSums(sizes(model)), made[:1])
    right = added(model, AttributionSums(sizes(model)), made[1:])
    empty = AttributionSums(sizes(model))
    tensors = (sums.tensors() for sums in (left, right, empty))
    reduced = [sum(parts) for parts in zip(*tensors, strict=True)]
    for mine, theirs in zip(whole.tensors(), reduced, strict=True):
        torch.testing.assert_close(mine, theirs)
    left.merge(right)
    np.testing.assert_allclose(
        left.compute(means)["parts.fc"].contrast_t, whole.compute(means)["parts.fc"].contrast_t
    )


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


# --- which samples -------------------------------------------------------------------------------


def groups(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 4, (n,), generator=generator)
    outcome = torch.randint(0, 4, (n,), generator=generator)
    return target, outcome, torch.rand(n, generator=generator)


def test_partners_share_the_class_and_are_used_once() -> None:
    target, outcome, draw = groups(200)
    partners = match_by_class(target, outcome, draw)
    advantage = (outcome == ONLY_MODEL).nonzero().flatten()
    assert len(partners) == len(advantage)
    used = partners[partners >= 0].tolist()
    assert len(set(used)) == len(used)
    for i, j in zip(advantage.tolist(), partners.tolist(), strict=True):
        assert j < 0 or (target[i] == target[j] and outcome[j] == BOTH)
    for c in range(4):
        of_class = target[advantage] == c
        available = int(((outcome == BOTH) & (target == c)).sum())
        assert int((partners[of_class] >= 0).sum()) == min(int(of_class.sum()), available)


def test_partners_follow_the_order_of_the_draw() -> None:
    target = torch.zeros(4, dtype=torch.long)
    outcome = torch.tensor([ONLY_MODEL, BOTH, BOTH, ONLY_BASELINE])
    assert match_by_class(target, outcome).tolist() == [1]
    assert match_by_class(target, outcome, torch.tensor([0.1, 0.9, 0.2, 0.0])).tolist() == [2]
    assert match_by_class(target, torch.full((4,), NEITHER)).tolist() == []


def test_the_choice_does_not_depend_on_the_order() -> None:
    target, outcome, draw = groups(300)
    rows, group = choose_samples(target, outcome, draw, rate=0.6, room=20)
    chosen = {(int(i), int(g)) for i, g in zip(rows, group, strict=True)}
    order = torch.randperm(300)
    again, group = choose_samples(target[order], outcome[order], draw[order], rate=0.6, room=20)
    assert {(int(order[i]), int(g)) for i, g in zip(again, group, strict=True)} == chosen
    advantage = [i for i, g in chosen if g == 0]
    eligible = [i for i in range(300) if outcome[i] == ONLY_MODEL and draw[i] < 0.6]
    assert sorted(advantage) == sorted(sorted(eligible, key=lambda i: draw[i])[:20])
    assert all(outcome[i] == BOTH for i, g in chosen if g == 1)


def test_settings() -> None:
    assert Attribution().keep_rate() == 1
    assert Attribution(max_samples=100).keep_rate(expected=400) == 0.25
    assert Attribution(max_samples=100).keep_rate(total=800) == 0.5
    assert Attribution().limit(2000) == 256
    assert Attribution().limit(4000) == 300
    assert Attribution().limit(10**6) == Attribution().limit() == 1024
    assert Attribution().keep_rate(expected=600, total=4000) == 0.5
    assert AttributionSums({}, total=4000).room == 300
    sums = AttributionSums({"l": 2}, Attribution(max_samples=4))
    layer, zeros = nn.Linear(3, 2), torch.zeros(N, dtype=torch.long)
    assert sums.room == 4
    sums.update(lambda: layer(torch.ones(N, 3)), {"l": layer}, zeros, None, zeros, zeros)
    assert sums.room == 0
    with pytest.raises(ValueError, match="`max_samples` to be at least 1, but got 0"):
        Attribution(max_samples=0)
    with pytest.raises(ValueError, match=r"`max_share` to be in \(0, 1\], but got 2"):
        Attribution(max_share=2)
    with pytest.raises(ValueError, match="`method` to be 'gradient' or 'path', but got 'saliency'"):
        Attribution(method="saliency")
