"""Where neurons are read: behind norm and activation function, the same for all evidence."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_neurocorr import compare
from lightning_neurocorr.ablation import silence
from lightning_neurocorr.activations import (
    ActivationRecorder,
    Site,
    SiteFinder,
    SiteRecorder,
    choose_layers,
    find_sites,
    listen,
    unit_axis,
)
from lightning_neurocorr.attribution.gradients import attribute


class Net(nn.Module):
    """Parts to put together; ``forward`` is one of the functions below."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.norm2, self.group = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.GroupNorm(2, 6)
        self.relu, self.inplace, self.pool = nn.ReLU(), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.drop, self.gate = nn.Dropout(), nn.Conv2d(6, 6, 1)
        self.head, self.flat = nn.Linear(6, 3), nn.Linear(6 * 16, 3)
        self.body = body
        with torch.no_grad():
            for norm in (self.norm, self.norm2):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def modules(net: Net, x: Tensor) -> Tensor:
    return net.head(pooled(net.b(net.drop(net.relu(net.norm(net.a(x)))))))


def functions(net: Net, x: Tensor) -> Tensor:
    return net.head(pooled(net.b(F.gelu(net.norm(net.a(x))))))


def in_place(net: Net, x: Tensor) -> Tensor:
    y = net.norm(net.a(x))
    y.relu_()
    return net.head(pooled(net.b(y)))


def reused(net: Net, x: Tensor) -> Tensor:
    x = net.inplace(net.norm(net.a(x)))
    return net.head(pooled(net.inplace(net.norm2(net.b(x)))))


def residual(net: Net, x: Tensor) -> Tensor:
    x = net.relu(net.a(x))
    return net.head(pooled(F.relu(x + net.norm(net.b(x)))))


def preactivation(net: Net, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.head(pooled(x + net.b(F.relu(net.norm(x)))))


def by_hand(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(pooled(net.b(y * torch.sigmoid(y))))


def gated(net: Net, x: Tensor) -> Tensor:
    y = F.silu(net.norm(net.a(x)))
    return net.head(pooled(net.b(y * torch.sigmoid(net.gate(y.mean((2, 3), keepdim=True))))))


def flattened(net: Net, x: Tensor) -> Tensor:
    return net.flat(F.relu(net.pool(net.a(x))).flatten(1))


def looked_at(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    _ = y.detach().abs().mean()  # for a log
    return net.head(pooled(net.b(F.leaky_relu(y))))


def ignored(net: Net, x: Tensor) -> Tensor:
    """Its activation function is applied, and both go on."""
    y = net.a(x)
    return net.head(pooled(net.b(torch.relu(y)) + y))


# The body, where layer `a` is read, and the tensor that this is.
CASES: dict[str, tuple[Any, str, Callable[[Net, Tensor], Tensor]]] = {
    "modules": (modules, "relu", lambda n, a: F.relu(n.norm(a))),
    "functions": (functions, "input of b", lambda n, a: F.gelu(n.norm(a))),
    "in place": (in_place, "input of b", lambda n, a: F.relu(n.norm(a))),
    "reused": (reused, "input of b", lambda n, a: F.relu(n.norm(a))),
    "residual": (residual, "relu", lambda n, a: F.relu(a)),
    "preactivation": (preactivation, "a", lambda n, a: a),
    "by hand": (by_hand, "input of b", lambda n, a: F.silu(a)),
    # A function without a module of its own, whose result goes two ways: read where the norm ends.
    "gated": (gated, "norm", lambda n, a: n.norm(a)),
    "flattened": (flattened, "input of flat", lambda n, a: F.relu(F.max_pool2d(a, 2))),
    "looked at": (looked_at, "input of b", lambda n, a: F.leaky_relu(a)),
    "ignored": (ignored, "a", lambda n, a: a),
}


def net(name: str) -> tuple[Net, str, Callable[[Net, Tensor], Tensor]]:
    torch.manual_seed(3)
    body, place, expected = CASES[name]
    return Net(body).eval(), place, expected


def images(n: int = 5) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", CASES)
def test_read_is_what_the_model_goes_on_with(name: str, grad: Any) -> None:
    model, place, expected = net(name)
    with grad():
        x = images()
        plain, activation = model(x), pooled(expected(model, model.a(x)))
        layers = {"a": model.a}
        with SiteRecorder(model, layers) as recorder:
            for _ in range(2):
                recorder.begin(x)
                assert torch.equal(model(x), plain)
                recorder.pause()
                taken, problems = recorder.take(len(x))
                assert not problems
                assert recorder.found.names == {"a": place}
                assert torch.allclose(taken["a"], activation, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_attribution_is_of_the_same_tensor(name: str) -> None:
    """Against a change of one unit at a time by hand, in double precision."""
    model, _, _ = net(name)
    model.double()
    x = images(3).double()
    with torch.no_grad():
        sites = find_sites(model, lambda: model(x), "a")
    target = torch.tensor([0, 1, 2])
    rival = torch.tensor([1, 2, 0])
    u, v = attribute(lambda: model(x), sites, target, rival)["a"]
    with torch.no_grad():

        def margin() -> Tensor:
            logits = model(x)
            return (logits.gather(1, target[:, None]) - logits.gather(1, rival[:, None]))[:, 0]

        before = margin()
        step = 1e-6
        for unit in range(6):
            with nudged(sites["a"], unit, step):
                slope = (margin() - before) / step
            assert torch.allclose(v[:, unit], slope, atol=1e-4)
    assert u.shape == (3, 6)


@contextmanager
def nudged(place: Any, unit: int, step: float) -> Iterator[None]:
    """All places of a unit are a little larger."""

    def larger(where: Any, value: Tensor) -> Tensor:
        value = value.clone()
        value.select(unit_axis(where, value), unit).add_(step)
        return value

    handle = listen(place, larger)
    yield
    handle.remove()


@pytest.mark.parametrize("name", CASES)
def test_silence_is_heard_by_all_that_follows(name: str) -> None:
    """What is silenced says its constant at the site, whatever the layer returns."""
    model, _, _ = net(name)
    x = images()
    with torch.no_grad():
        sites = find_sites(model, lambda: model(x), "a")
        values = {"a": torch.arange(6.0)}
        with silence(sites, {"a": [1, 4]}, values=values):
            silenced = model(x)
        other = copy.deepcopy(model)  # with another layer, of which only the others are left
        other.a.weight[[1, 4]] += torch.randn(2, 2, 3, 3)
        with silence(find_sites(other, lambda: other(x), "a"), {"a": [1, 4]}, values=values):
            again = other(x)
    assert torch.allclose(silenced, again, atol=1e-6)
    assert not torch.allclose(silenced, model(x), atol=1e-3)


def test_group_norm_mixes_neurons_but_is_a_norm() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(216, 2))
    assert places(model, images()) == {"0": "1", "3": "3"}


def places(model: nn.Module, x: Any, layers: Any = None, **options: Any) -> dict[str, str]:
    with torch.no_grad():
        sites = find_sites(model.eval(), lambda: model(x), layers, **options)
    return {name: site.name if isinstance(site, Site) else name for name, site in sites.items()}


ACTIVATIONS = [
    *(nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.ELU, nn.CELU, nn.SELU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Softplus, nn.Softsign),
    *(nn.Softshrink, nn.Hardshrink, nn.Tanh, nn.Tanhshrink, nn.Sigmoid, nn.LogSigmoid),
]


@pytest.mark.parametrize(
    "act",
    ACTIVATIONS,
)
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d, nn.Identity])
def test_all_of_pytorchs_norms_and_activation_functions(act: Any, norm: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), norm(4), act(), nn.Dropout(), nn.Linear(4, 2))
    assert places(model, torch.randn(3, 3)) == {"0": "2", "4": "4"}


class Rms(nn.Module):
    """As language models write it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Frozen(nn.Module):
    """Statistics are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + 1


@pytest.mark.parametrize("kind", [Rms, Frozen])
def test_norms_of_ones_own(kind: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), kind(), nn.SiLU(), nn.Linear(4, 2))
    assert places(model, torch.randn(3, 3)) == {"0": "2", "3": "3"}


def test_a_softmax_is_of_all_classes_and_not_of_a_neuron() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LogSoftmax(-1))
    assert places(model, torch.randn(3, 3)) == {"0": "0"}


def test_modules_that_are_named_are_read_at_their_own_output() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.BatchNorm1d(4))
    x = torch.randn(5, 3)
    assert places(model, x, ["1", "2"]) == {"1": "1", "2": "2"}
    assert places(model, x, "0") == {"0": "3"}
    assert places(model, x, "0", at="raw") == {"0": "0"}
    assert places(model, x, ["0", "1"], at={"0": "raw"}) == {"0": "0", "1": "1"}


def test_layers_called_several_times() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act, self.head = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.fc(self.act(self.fc(x)))))

    model, x = Shared().eval(), torch.randn(6, 4)
    assert places(model, x) == {"fc": "act", "head": "head"}
    with torch.no_grad():
        first = F.relu(model.fc(x))
        expected = (first + F.relu(model.fc(first))) / 2
        sites = find_sites(model, lambda: model(x))
        with ActivationRecorder(sites) as recorder:
            model(x)
            assert torch.allclose(recorder.take(6)[0]["fc"], expected)


def test_a_forward_that_goes_another_way_is_left_out() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.other, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.way = True

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc(x) if self.way else self.other(x)
            return self.head(F.relu(x))

    model, x = Branching(), torch.randn(6, 4)
    with torch.no_grad(), SiteRecorder(model, choose_layers(model, ["fc", "head"])) as recorder:
        recorder.begin(x)
        model(x)
        recorder.pause()
        assert recorder.take(6)[0].keys() == {"fc", "head"}
        model.way = False
        model(x)
        taken, problems = recorder.take(6)
    assert taken.keys() == {"head"}
    assert "heard 1 times at input of head: the forward went another way" in problems["fc"]


def test_what_cannot_be_known_is_left_out_and_can_be_said() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft2(x).abs()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Sorted(), nn.Flatten(), nn.Linear(144, 2)).eval()
    x, y = torch.randn(60, 1, 8, 8), torch.arange(60) % 2
    loader = [(x[:30], y[:30]), (x[30:], y[30:])]

    def baseline(batch: Any) -> Tensor:
        return batch[1].roll(1)

    report = compare(model, loader, baseline, layers=["0", "1"], attribution=False)
    assert report.layers == ("0",)
    (note,) = [note for note in report.notes if note.startswith("Layer 1 was left out")]
    assert "Say so with `unit_axis={'1': axis}`" in note
    report = compare(
        model, loader, baseline, layers=["0", "1"], attribution=False, unit_axis={"1": -1}
    )
    assert report.sizes == (4, 6)
    expected = model[1](model[0](x)).mean((0, 1, 2))
    assert torch.allclose(torch.tensor(report.column("mean")[4:]).float(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"at": "relu"}, ValueError, "Expected `at` to be 'activation', 'raw' or a dict of these"),
        ({"at": {"0": 1}}, ValueError, "but got 1"),
        ({"at": {"x": "raw"}}, ValueError, "Expected the names in `at` to be watched layers"),
        ({"unit_axis": "last"}, TypeError, "Expected `unit_axis` to be None, an axis such as -1"),
        ({"unit_axis": {"0": True}}, TypeError, "but got True"),
        ({"unit_axis": {"9": 1}}, ValueError, "names in `unit_axis` to be watched layers, but got"),
        ({"unit_axis": {"0": 7}}, ValueError, "Expected `unit_axis` of layer '0' to be an axis of"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    with pytest.raises(error, match=message):
        compare(model, [(x, y)], lambda batch: batch[1], **options)


def test_attention_says_what_cannot_be_seen() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x).mean(1))

    model, x, y = Model().eval(), torch.randn(64, 5, 8), torch.arange(64) % 2
    report = compare(model, [(x, y)], lambda batch: batch[1].roll(1), attribution=False)
    assert dict(zip(report.layers, report.sizes, strict=True)) == {
        **{f"encoder.layers.{i}.{part}": size for i in (0, 1) for part, size in PARTS.items()},
        "head": 2,
    }
    assert report.read_at[1] == "encoder.layers.0.dropout" or "linear2" in report.read_at[1]
    (note,) = [note for note in report.notes if note.startswith("Attention of")]
    assert "encoder.layers.0.self_attn, encoder.layers.1.self_attn is one operation" in note
    with torch.no_grad():
        inner = model.encoder.layers[0].self_attn
        expected = inner(x, x, x, need_weights=False)[0].mean((0, 1))
    assert torch.allclose(torch.tensor(report.column("mean")[:8]).float(), expected, atol=1e-5)


PARTS = {"self_attn": 8, "linear1": 12, "linear2": 8}


def test_weights_that_another_module_uses_are_said_to_be_out_of_sight() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.inner.weight, self.inner.bias)

    model = nn.Sequential(nn.Linear(3, 3), Fused(), nn.Linear(4, 2)).eval()
    x = torch.randn(5, 3)
    with torch.no_grad(), SiteFinder(model, choose_layers(model)) as finder:
        model(x)
    _, _, problems = finder.found()
    assert list(problems) == ["1.inner"]
    assert "Name '1' in `layers` to watch what that returns" in problems["1.inner"]


def test_a_fault_of_ours_is_a_note_and_layers_are_read_raw(monkeypatch: Any) -> None:
    from lightning_neurocorr.activations import operations

    def broken(*_: Any) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(operations, "follow", broken)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    report = compare(model, [(x[:20], y[:20]), (x[20:], y[20:])], lambda b: b[1].roll(1))
    assert report.read_at == ("0", "2")
    assert any("Layers are read raw: the forward could not be followed" in n for n in report.notes)
    assert torch.allclose(
        torch.tensor(report.column("mean")[:4]).float(), model[0](x).mean(0), atol=1e-5
    )


def test_the_first_batch_leaves_nothing_behind() -> None:
    import gc
    import weakref

    model = nn.Sequential(nn.Conv2d(2, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 36, 2))
    alive: list[Any] = []
    model[1].register_forward_hook(lambda _m, _i, out: alive.append(weakref.ref(out)))
    model[3].register_forward_pre_hook(lambda *_: alive.append(alive[0]() is None))
    x = images()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model]
    with torch.no_grad(), SiteRecorder(model, choose_layers(model)) as recorder:
        recorder.begin(x)
        model(x)
        recorder.pause()
        recorder.take(5)
        gc.collect()
        assert alive[0]() is None
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model] == hooks
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_following_changes_no_bit(mode: str, grad: Any) -> None:
    """PyTorch's own decompositions in Python round otherwise than its kernels."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.InstanceNorm2d(6), nn.SiLU(),
        nn.Upsample(scale_factor=1.7, mode=mode),
        nn.GroupNorm(2, 6), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 8), nn.Softmax(-1),
    ).eval()  # fmt: skip
    x = torch.randn(4, 2, 13, 13)
    with grad():
        plain = model(x)
        with SiteFinder(model, choose_layers(model)) as finder:
            finder.restart(x)
            followed = model(x)
    assert finder.trace.fault is None
    assert torch.equal(followed, plain)


def test_several_recorders_at_once_find_what_one_finds_alone() -> None:
    """As those of two callbacks: what one pools is no use of a layer by the model."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3), nn.Tanh(),
        nn.Linear(3, 2),
    ).eval()  # fmt: skip
    layers, x, found = choose_layers(model), torch.randn(7, 4), []
    for count in (1, 3):
        recorders = [SiteRecorder(model, layers) for _ in range(count)]
        with ExitStack() as stack:
            for recorder in recorders:
                stack.enter_context(recorder).begin(x)
            model(x)
            for recorder in reversed(recorders):
                recorder.pause()
            found += [(recorder.take()[0], recorder.found) for recorder in recorders]
    alone, places = found[0]
    assert places is not None
    assert places.names == {"0": "2", "4": "5", "6": "6"}
    for taken, others_found in found:
        assert others_found is not None
        assert others_found.names == places.names
        assert all(torch.equal(taken[name], alone[name]) for name in alone)


def test_a_place_that_is_no_longer_in_the_model_is_looked_for_again() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    layers = {"0": model[0]}
    x = torch.randn(6, 3)
    found = None
    for act, said in ((torch.relu, "1"), (torch.tanh, "1"), (torch.tanh, "1")):
        if act is torch.tanh:
            model[1] = nn.Tanh()
        with SiteRecorder(model, layers, found=found) as recorder:
            model(x)
            taken, problems = recorder.take(6)
        assert not problems
        assert torch.equal(taken["0"], act(model[0](x)))
        found = recorder.found
        assert found is not None
        assert found.names == {"0": said}
