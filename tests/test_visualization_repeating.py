"""Steps repeated from a recording give the bits that steps taken one by one give."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neurocorr.visualization import FeatureVisualizer, ImagePrior, Target
from lightning_neurocorr.visualization.drawing import Drawing
from lightning_neurocorr.visualization.repeating import CudaRecorder, HostMemory
from tests.tape import PretendCuda, PretendGraph, Tape, TapeRecorder


def _network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 5, 2, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 4, 3),
            nn.Tanh(),
        ).eval()


@pytest.fixture
def prior():
    generator = torch.Generator().manual_seed(1)
    return ImagePrior.fit([torch.randn(24, 3, 14, 15, generator=generator).cumsum(-1) / 2])


@pytest.fixture
def tape(monkeypatch):
    """Drawings on a CPU get a recorder, as on a GPU."""
    recorder = TapeRecorder()
    monkeypatch.setattr(Drawing, "recorder", lambda self, count: recorder)
    return recorder


TARGETS = [
    [Target("3", 1), Target("3", 2, sign=-1), Target("3", 0)],
    [Target("3", torch.tensor([1.0, -2.0, 0.0, 1.0])), Target("3", torch.ones(4), sign=-1)],
    [Target("3", 1, position=(0, 1)), Target("3", torch.ones(4)), Target("3", 2)],
]


@pytest.mark.keeps_rng
@pytest.mark.parametrize(
    ("kind", "targets"),
    [(kind, TARGETS[0]) for kind in ("maco", "pca", "fourier", "pixel")]
    + [("fourier", targets) for targets in TARGETS[1:]],
)
def test_a_repeated_recording_gives_the_same_bits(kind, targets, prior, monkeypatch):
    visualizer = FeatureVisualizer(parametrization=kind, steps=12, reference_images=8)
    plain = visualizer.render(_network(), None, targets, prior)
    recorder = TapeRecorder()
    monkeypatch.setattr(Drawing, "recorder", lambda self, count: recorder)
    repeated = visualizer.render(_network(), None, targets, prior)
    assert recorder.asked.count("repeated") == 12 - 3
    assert recorder.asked.count("recorded") == recorder.asked.count("watched") == 1
    for one, other in zip(plain, repeated, strict=True):
        assert one.image is not None
        np.testing.assert_array_equal(one.image, other.image)
        assert one == other or one.activation_ratio == other.activation_ratio


def test_a_step_that_is_frozen_gives_other_pictures(prior, tape, monkeypatch):
    """The tape is a real one: a number that Python made while recording stays what it was."""

    class Counting(nn.Sequential):
        def forward(self, images):
            self.count = getattr(self, "count", 0) + 1
            return super().forward(images + 0.3 * (self.count % 5))

    visualizer = FeatureVisualizer(steps=12, reference_images=8, strength=None)
    (repeated,) = visualizer.render(Counting(*_network()), None, [Target("3", 1)], prior)
    monkeypatch.setattr(Drawing, "recorder", lambda self, count: None)
    (plain,) = visualizer.render(Counting(*_network()), None, [Target("3", 1)], prior)
    assert np.abs(repeated.image - plain.image).max() > 1e-3


def test_the_device_is_never_far_behind_a_clock(prior, tape):
    targets = [Target("3", 1)]
    FeatureVisualizer(steps=9, reference_images=8).render(_network(), None, targets, prior)
    assert tape.asked.count("kept up") == 9
    FeatureVisualizer(steps=9, reference_images=8, time_budget_s=None).render(
        _network(), None, targets, prior
    )
    assert tape.asked.count("kept up") == 9
    assert tape.asked[0] == "opened"
    assert tape.asked[-1] == "closed"


class Asking(nn.Module):
    """Goes one way or the other by a number that it asks the device for."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.conv(images if images.mean().item() > -1e9 else -images)


def test_a_model_that_waits_is_not_recorded_and_said_so_once(prior, tape):
    torch.manual_seed(0)
    net = nn.Sequential(Asking(), Asking(), nn.Flatten())
    net[1].conv = nn.Conv2d(4, 4, 3)
    targets = [Target("0", 1), Target("1", 1)]
    visualizer = FeatureVisualizer(steps=9, reference_images=8)
    with pytest.warns(UserWarning, match="made step by step.*waits for the device") as said:
        seen = visualizer.render(net, None, targets, prior)
    assert len(said) == 1
    assert "recorded" not in tape.asked
    quiet = FeatureVisualizer(steps=9, reference_images=8, cuda_graph=False)
    for one, other in zip(seen, quiet.render(net, None, targets, prior), strict=True):
        np.testing.assert_array_equal(one.image, other.image)


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, ValueError])
def test_a_recording_that_fails_changes_no_picture(error, prior, tape, monkeypatch):
    def record(step):
        with pytest.raises(error, match="not permitted"):
            fail(lambda: TapeRecorder.record(tape, step))
        raise error("not permitted\nmore lines")

    def fail(run):
        run()
        raise error("not permitted")

    monkeypatch.setattr(tape, "record", record)
    visualizer = FeatureVisualizer(steps=12, reference_images=8)
    with pytest.warns(UserWarning, match=r"recorded as a CUDA graph \(not permitted\)"):
        failed = visualizer.render(_network(), None, TARGETS[0], prior)
    plain = FeatureVisualizer(steps=12, reference_images=8, cuda_graph=False)
    for one, other in zip(failed, plain.render(_network(), None, TARGETS[0], prior), strict=True):
        np.testing.assert_array_equal(one.image, other.image)


@pytest.mark.parametrize(
    ("steps", "settings"), [(7, {}), (20, {"cuda_graph": False})], ids=["too few", "switched off"]
)
def test_nothing_is_recorded_where_it_does_not_pay_or_is_not_wanted(steps, settings, prior, tape):
    visualizer = FeatureVisualizer(steps=steps, reference_images=8, **settings)
    visualizer.render(_network(), None, TARGETS[0], prior)
    assert "watched" not in tape.asked
    assert "recorded" not in tape.asked


def test_a_layer_without_gradient_is_not_recorded(prior, tape):
    class Stopped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            with torch.no_grad():
                return self.conv(images)

    visualizer = FeatureVisualizer(steps=20, reference_images=8)
    (picture,) = visualizer.render(Stopped(), None, [Target("conv", 1)], prior)
    assert picture.note.startswith("no picture: no gradient")
    assert "recorded" not in tape.asked


@pytest.mark.keeps_rng
def test_random_numbers_of_a_model_are_not_training_s(prior, tape):
    class Noisy(nn.Sequential):
        def forward(self, images):
            return super().forward(images + torch.randn_like(images))

    visualizer = FeatureVisualizer(steps=12, reference_images=8)
    visualizer.render(Noisy(*_network()), None, [Target("3", 1)], prior)
    assert tape.asked.count("repeated") == 9


def test_a_step_adds_few_operations_to_forward_and_gradient(prior, tape):
    net, units = _network().requires_grad_(False), torch.arange(3)
    visualizer = FeatureVisualizer(parametrization="fourier", steps=9, reference_images=8)
    visualizer.render(net, None, [Target("3", unit) for unit in range(3)], prior)
    names = [str(operation) for operation, *_ in tape.tape.operations]
    images = torch.randn(3, 3, 14, 15, requires_grad=True)
    with Tape() as bare:
        torch.autograd.grad(net[:4](images)[units, units].mean((1, 2)).sum(), images)
    ours = len([name for name in names if "detach" not in name])
    assert ours - len(bare.operations) <= 30
    assert not [name for name in names if "local_scalar" in name or "_to_copy" in name]
    assert sum("copy_" in name for name in names) == 0
    assert sum("adam" in name for name in names) == 1


@pytest.fixture
def pretend(monkeypatch):
    """Drawings on a CPU get the recorder of a GPU, and a pretended CUDA."""

    def start(**settings):
        cuda = PretendCuda(monkeypatch, **settings)
        monkeypatch.setattr(
            Drawing,
            "recorder",
            lambda self, count: CudaRecorder(torch.device("cpu"), 2 * count * 1000),
        )
        return cuda

    return start


VISUALIZER = FeatureVisualizer(steps=12, reference_images=8, parametrization="pca")


def _plain(prior):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawing, "recorder", lambda self, count: None)
        return VISUALIZER.render(_network(), None, TARGETS[0], prior)


def test_a_cuda_graph_is_recorded_on_a_stream_of_its_own(prior, pretend):
    plain, cuda = _plain(prior), pretend()
    pictures = VISUALIZER.render(_network(), None, TARGETS[0], prior)
    for one, other in zip(pictures, plain, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    said = [what for what in cuda.said if not what.startswith("event")]
    assert said == [
        "side waits for current",
        "on side",
        "synchronize",
        "recording, thread_local, meets copy of training",
        "recorded",
        *["replay"] * 9,
        "off side",
        "side done",
    ]
    assert cuda.generator.state == "training"
    assert cuda.said.count("event") == 12
    assert cuda.said.count("event waited for") == 12 - 8  # never more than 8 behind
    assert cuda.mode == 0


@pytest.mark.parametrize("inside", [False, True], ids=["at its end", "inside"])
def test_a_cuda_graph_that_fails_leaves_everything_in_order(inside, prior, pretend, monkeypatch):
    plain, cuda = _plain(prior), pretend(refuses=True)
    if inside:

        class Broken(PretendGraph):
            def capture_begin(self, capture_error_mode):
                super().capture_begin(capture_error_mode)
                self.cuda.broken = True

        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Broken(cuda))
        real = torch.optim.Adam.step

        def step(self, *args):
            if getattr(cuda, "broken", False):
                cuda.broken = False
                raise RuntimeError("not inside a recording")
            return real(self, *args)

        monkeypatch.setattr(torch.optim.Adam, "step", step)
    message = "not inside a recording" if inside else "previous error during capture"
    with pytest.warns(UserWarning, match=message):
        pictures = VISUALIZER.render(_network(), None, TARGETS[0], prior)
    for one, other in zip(pictures, plain, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    assert cuda.generator.state == "training"
    assert cuda.said[-2:] == ["off side", "side done"]
    assert "replay" not in cuda.said


def test_what_is_cached_makes_room_for_a_recording(prior, pretend):
    cuda = pretend(free=2 * 3 * 1000 - 1)
    VISUALIZER.render(_network(), None, TARGETS[0], prior)
    assert cuda.said.index("empty cache") < cuda.said.index("recorded")


def test_pytorch_says_where_a_step_waits(prior, pretend, monkeypatch):
    cuda = pretend()

    class Waiting(nn.Sequential):
        def forward(self, images):
            if cuda.mode == 1:
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            return super().forward(images)

    with pytest.warns(UserWarning, match="the model waits for the device") as said:
        VISUALIZER.render(Waiting(*_network()), None, TARGETS[0], prior)
    assert len(said) == 1
    assert "recorded" not in cuda.said
    assert cuda.mode == 0


def _sums(values):
    return values + torch.tensor(2.0) + torch.ones(3, device="meta").sum()


@pytest.mark.parametrize(
    ("run", "seen"),
    [
        (_sums, False),
        (lambda values: torch.arange(3, device="meta") * values, False),
        (lambda values: torch.arange(3).to("meta", non_blocking=True) * values, True),
        (lambda values: torch.tensor(2.0).to("meta") * values, True),
        (lambda values: values.copy_(torch.ones(3)), True),
        (lambda values: torch.ones(3).mul_(2), False),
    ],
)
def test_memory_of_the_host_is_seen_beside_a_device(run, seen):
    """The meta device stands for a GPU."""
    with HostMemory() as host:
        run(torch.ones(3, device="meta"))
    assert host.seen == seen


def test_a_model_that_copies_from_the_host_is_not_recorded(prior, pretend, monkeypatch):
    cuda = pretend()
    monkeypatch.setattr(HostMemory, "seen", True)
    with pytest.warns(UserWarning, match="copies from or to the host's memory"):
        VISUALIZER.render(_network(), None, TARGETS[0], prior)
    assert "recorded" not in cuda.said


def test_an_interrupt_leaves_everything_in_order(prior, pretend):
    cuda = pretend()

    class Interrupted(nn.Sequential):
        def forward(self, images):
            if "replay" in cuda.said or any(what.startswith("recording") for what in cuda.said):
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        VISUALIZER.render(Interrupted(*_network()), None, TARGETS[0], prior)
    assert cuda.generator.state == "training"
    assert cuda.mode == 0
