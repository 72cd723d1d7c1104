"""What holds on a CPU holds on a GPU; skipped without one."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neurocorr import BatchBaseline, FeatureVisualizer, ImagePrior, compare
from lightning_neurocorr.isolation.room import free_bytes
from lightning_neurocorr.metric import Cells, NeuronAdvantageCorrelation, on_device
from lightning_neurocorr.visualization import Target, drawing, repeating

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)


def _network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4),
    ).eval()  # fmt: skip


@pytest.fixture
def prior():
    return ImagePrior.fit([torch.randn(32, 3, 16, 16).cumsum(-1) / 2])


def _correlations(x, a):
    x, a = x.double().cpu().numpy(), a.double().cpu().numpy()
    return [np.corrcoef(column, a)[0, 1] for column in x.T]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [3, 700])
def test_the_metric_agrees_with_two_passes_in_double_precision(columns, dtype):
    metric = NeuronAdvantageCorrelation(columns).to(CUDA)
    batches = [(torch.randn(n, columns) + 100).to(CUDA, dtype) for n in (256, 1, 97)]
    advantages = [torch.randint(-1, 2, (len(x),), device=CUDA).float() for x in batches]
    for x, a in zip(batches, advantages, strict=True):
        metric.update(x, a)
    expected = _correlations(torch.cat(batches), torch.cat(advantages))
    np.testing.assert_allclose(metric.compute().cpu().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("covariates", "folds"), [(0, 1), (0, 2), (3, 2)])
def test_the_kernels_run_and_are_proved(covariates, folds, monkeypatch):
    monkeypatch.setattr(on_device, "_proved", set())
    x, group = torch.randn(300, 500, device=CUDA).relu(), torch.arange(300, device=CUDA) % 4
    a, half = torch.randn(300, device=CUDA), torch.arange(300, device=CUDA) // 4 % 2
    more = torch.rand(300, covariates, device=CUDA) if covariates else None
    metrics, sums = [], []
    for device in (CUDA, "cpu"):
        given = [None if y is None else y.to(device) for y in (x, a, more, half, group)]
        metric = NeuronAdvantageCorrelation(
            500, folds=folds, num_covariates=covariates, count_active=True
        )
        metric, cells = metric.to(device), Cells(500, 3, device)
        metric.update(*given[:3], given[3] % folds)
        cells.add([given[0]], given[1], given[4] % 3, given[4], given[3])
        metrics.append(metric.state.cpu())
        sums.append(cells.moments(range(3), by_class=True)[1])
    assert not on_device._unable
    assert len(on_device._proved) == 3  # moments, the order of samples, sums by class
    torch.testing.assert_close(*metrics, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sums[0].sums.cpu(), sums[1].sums, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sums[0].squares.cpu(), sums[1].squares, rtol=1e-9, atol=1e-9)


def test_layers_of_a_batch_can_be_handed_over_together():
    sizes = (5, 64, 1)
    together, apart = NeuronAdvantageCorrelation(sum(sizes)), NeuronAdvantageCorrelation(sum(sizes))
    together, apart = together.to(CUDA), apart.to(CUDA)
    for _ in range(3):
        xs = [torch.randn(64, size, device=CUDA) for size in sizes]
        a = torch.randn(64, device=CUDA)
        together.update(xs, a)
        apart.update(torch.cat(xs, 1), a)
    torch.testing.assert_close(together.compute(), apart.compute(), rtol=0, atol=1e-6)


def test_a_validation_finds_on_a_gpu_what_it_finds_on_a_cpu():
    net = _network()
    x, guess = torch.randn(200, 3, 16, 16), torch.randint(0, 4, (200,))
    target = net(x).argmax(1)
    data = torch.utils.data.TensorDataset(x, target, torch.where(guess > 1, target, guess))
    found = []
    for device in ("cpu", CUDA):
        loader = [
            tuple(part.to(device) for part in batch)
            for batch in torch.utils.data.DataLoader(data, batch_size=64)
        ]
        model = copy.deepcopy(net).to(device)
        with torch.backends.cudnn.flags(allow_tf32=False):
            report = compare(model, loader, BatchBaseline(2), target=1)
        found.append(report)
    one, other = found
    assert one.outcomes == other.outcomes
    for name in ("r", "contrast_t", "attribution"):
        left, right = (np.array([getattr(row, name) for row in each.rows]) for each in (one, other))
        np.testing.assert_allclose(left, right, atol=1e-3, err_msg=name)


TARGETS = [Target("3", 1), Target("3", 2, sign=-1), Target("3", torch.ones(6))]


def _drawn(prior, net=None, targets=TARGETS[:2], **settings):
    settings = {"parametrization": "pca", "steps": 16, "precision": "float32", **settings}
    visualizer = FeatureVisualizer(reference_images=16, **settings)
    return visualizer.render((net or _network()).to(CUDA), None, targets, prior)


def test_a_cuda_graph_draws_what_steps_draw(prior, monkeypatch):
    recorded = []
    real = repeating.CudaRecorder.record
    monkeypatch.setattr(
        repeating.CudaRecorder,
        "record",
        lambda self, step: recorded.append(real(self, step)) or recorded[-1],
    )
    with torch.backends.cudnn.flags(allow_tf32=False):
        graph, steps = _drawn(prior), _drawn(prior, cuda_graph=False)
    assert len(recorded) == 1  # one for both neurons of the layer
    for one, other in zip(graph, steps, strict=True):
        assert one.activation_ratio == pytest.approx(other.activation_ratio, rel=0.02, abs=0.02)
        np.testing.assert_allclose(one.image, other.image, atol=0.1)  # sums in another order


def test_drawing_leaves_no_trace_on_random_states(prior):
    layers = _network()  # which seeds every device
    torch.cuda.manual_seed(3)
    before, stream = torch.cuda.get_rng_state(CUDA), torch.cuda.current_stream(CUDA)
    first = torch.rand(4, device=CUDA)
    torch.cuda.set_rng_state(before, CUDA)

    class Noisy(nn.Sequential):
        def forward(self, images):
            return super().forward(images + 0.01 * torch.randn_like(images))

    _drawn(prior, Noisy(*layers))
    assert torch.equal(torch.cuda.get_rng_state(CUDA), before)
    assert torch.equal(torch.rand(4, device=CUDA), first)
    assert torch.cuda.current_stream(CUDA) == stream
    assert torch.cuda.get_sync_debug_mode() == 0


class Refusing(nn.Sequential):
    """Does what no recording can hold, and what PyTorch does not see as waiting."""

    def forward(self, images):
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return super().forward(images)


def test_a_recording_that_fails_leaves_a_device_that_works(prior):
    layers = _network()  # which seeds every device
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state(CUDA)
    with pytest.warns(UserWarning, match="could not be recorded as a CUDA graph"):
        failed = _drawn(prior, Refusing(*layers))
    assert torch.equal(torch.cuda.get_rng_state(CUDA), before)
    torch.rand(4, device=CUDA)  # fails where a recording has spoiled the state
    torch.cuda.synchronize()
    plain = _drawn(prior, cuda_graph=False)
    for one, other in zip(failed, plain, strict=True):
        assert one.activation_ratio == pytest.approx(other.activation_ratio, rel=0.05, abs=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _drawn(prior)  # the next model is recorded


def test_a_model_that_waits_for_the_device_is_not_recorded(prior, monkeypatch):
    class Asking(nn.Sequential):
        def forward(self, images):
            return super().forward(images if images.mean().item() > -1e9 else -images)

    monkeypatch.setattr(repeating.CudaRecorder, "record", lambda *_: pytest.fail("recorded"))
    with pytest.warns(UserWarning, match="waits for the device"):
        _drawn(prior, Asking(*_network()))


def test_a_model_that_copies_from_the_host_is_not_recorded(prior, monkeypatch):
    class Copying(nn.Sequential):
        def forward(self, images):
            return super().forward(
                images * torch.tensor([1.0]).to(images.device, non_blocking=True)
            )

    monkeypatch.setattr(repeating.CudaRecorder, "record", lambda *_: pytest.fail("recorded"))
    with pytest.warns(UserWarning, match="copies from or to the host|waits for the device"):
        _drawn(prior, Copying(*_network()))


def test_our_own_step_never_waits_for_the_device(prior):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # or it would say why there is no recording
        _drawn(prior)
        _drawn(prior, targets=TARGETS[2:])
        for kind in ("maco", "fourier", "pixel"):
            _drawn(prior, parametrization=kind)


def test_all_neurons_of_a_layer_are_drawn_at_once_in_bfloat16(prior):
    net, seen = _network().to(CUDA), set()
    net[3].register_forward_hook(lambda *args: seen.add((len(args[2]), args[2].dtype)))
    FeatureVisualizer(steps=3, reference_images=4).render(
        net, None, [Target("3", unit) for unit in range(6)], prior
    )
    kind = torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    assert (6, kind) in seen
    assert free_bytes(CUDA) > 0
    assert drawing.most_at_once(free_bytes(CUDA), 1) > 1000
