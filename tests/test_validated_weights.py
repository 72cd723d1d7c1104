"""Everything of ours runs on the weights that were validated, whoever swaps them, and when."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, StochasticWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    Ablation,
    BatchBaseline,
    CachedBaseline,
    FeatureVisualizer,
    NeuronAdvantage,
    SecondPass,
    SnapshotBaseline,
    compare,
)
from lightning_neurocorr.isolation.swapping import KeptWeights
from tests.paper_model import paper_trainer

State = dict[str, Tensor]


class Averaging(Callback):
    """A running mean of the weights, validated in place of them; swapped at the hooks given."""

    def __init__(self, start: str, end: str, copies_at_end: bool = True) -> None:
        self.mean: State = {}
        self.copies_at_end = copies_at_end
        setattr(self, start, self._swap)
        setattr(self, end, self._swap)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        for name, value in pl_module.state_dict().items():
            mean = self.mean.setdefault(name, value.detach().clone())
            if mean.is_floating_point():
                mean.lerp_(value, 0.1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.copies_at_end:
            pl_module.load_state_dict(self.mean)

    def _swap(self, trainer: Any, pl_module: Any) -> None:
        if not self.mean:
            return
        for name, value in pl_module.state_dict().items():
            kept = value.data.clone()
            value.data.copy_(self.mean[name])
            self.mean[name].copy_(kept)


def lightnings_own() -> Any:
    callbacks = pytest.importorskip("pytorch_lightning.callbacks", reason="from Lightning 2.6 on")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("Lightning has it from 2.6 on")
    return callbacks.EMAWeightAveraging(decay=0.9)


AVERAGING = {
    "Lightning's EMA": lightnings_own,
    "epoch hooks": lambda: Averaging("on_validation_epoch_start", "on_validation_epoch_end"),
    "outer hooks": lambda: Averaging("on_validation_start", "on_validation_end"),
    "kept apart": lambda: Averaging("on_validation_start", "on_validation_end", False),
    "SWA": lambda: StochasticWeightAveraging(swa_lrs=0.5, swa_epoch_start=1),
    "none": Callback,
}


class Net(pl.LightningModule):
    """Learns fast, so that weights of two moments answer differently."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3)
        )
        self.validated: list[State] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.validated.append(copy.deepcopy(self.state_dict()))
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Watchful(FeatureVisualizer):
    """Notes the weights that it is given instead of making pictures."""

    seen: list[State]

    def render(self, module: Any, layers: Any, targets: Any, prior: Any, **_: Any) -> Any:
        self.seen.append(copy.deepcopy(module.state_dict()))
        raise ValueError("no picture")


def data() -> tuple[DataLoader[Any], DataLoader[Any]]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(240, 1, 8, 8, generator=generator), torch.arange(240) % 3
    x += y[:, None, None, None] / 2
    answers = (y + (torch.arange(240) % 2)) % 3
    held_out = TensorDataset(x[80:], y[80:], answers[80:])
    return DataLoader(TensorDataset(x[:80], y[:80]), 16), DataLoader(held_out, 60)


def train(averaging: Any, *callbacks: Any, first: bool, **options: Any) -> Net:
    order = [averaging, *callbacks] if first else [*callbacks, averaging]
    module = Net()
    paper_trainer(*order, **options).fit(module, *data())
    return module


def with_weights(state: State) -> Net:
    module = Net()
    module.load_state_dict(state)
    return module


@pytest.mark.parametrize("first", [True, False], ids=["before us", "after us"])
@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize("cached", [False, True])
def test_a_network_is_like_a_snapshot_of_itself(name: str, first: bool, cached: bool) -> None:
    snapshot: Any = SnapshotBaseline()
    baseline = CachedBaseline(snapshot) if cached else snapshot
    callback = NeuronAdvantage(baseline, target=1, visualizer=None)
    module = train(AVERAGING[name](), callback, first=first, max_epochs=3)
    first_one, last = callback.history[0].outcomes, callback.history[-1].outcomes
    assert (first_one.only_model, first_one.only_baseline) == (0, 0)
    held_out = data()[1].dataset.tensors  # type: ignore[attr-defined]
    answers = [with_weights(module.validated[i]).eval()(held_out[0]).argmax(1) for i in (0, -1)]
    right = [answer == held_out[1] for answer in answers]
    assert last.only_model == int((right[1] & ~right[0]).sum())
    assert last.only_baseline == int((right[0] & ~right[1]).sum())
    assert last.only_model + last.only_baseline > 0  # the weights differ, or this shows nothing


@pytest.mark.parametrize("first", [True, False], ids=["before us", "after us"])
@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize(
    "options",
    [{}, {"val_check_interval": 3}, {"every_n_validations": 5}],
    ids=["epochs", "within epochs", "the last is held"],
)
def test_evidence_is_of_the_validated_weights(name: str, first: bool, options: Any) -> None:
    """The plain call on these weights is the second implementation."""
    options = dict(options)
    evidence: dict[str, Any] = {
        "ablation": Ablation(random_sets=3, sizes=(1,), singles=2),
        "second_pass": SecondPass(permutations=9),
    }
    pictures = Watchful(steps=2)
    object.__setattr__(pictures, "seen", [])
    every = options.pop("every_n_validations", 1)
    callback = NeuronAdvantage(
        BatchBaseline(2), target=1, visualizer=pictures, every_n_validations=every, **evidence
    )
    stop = StopLate() if every > 1 else Callback()
    with pytest.warns(UserWarning, match="could not make pictures .* no picture"):
        module = train(AVERAGING[name](), callback, stop, first=first, max_epochs=3, **options)
    validated = module.validated[-1]
    (seen,) = pictures.seen
    for key, value in validated.items():
        assert torch.equal(seen[key], value), key
    plain = compare(with_weights(validated), data()[1], BatchBaseline(2), target=1, **evidence)
    report = callback.report
    assert report is not None
    assert report.outcomes == plain.outcomes
    assert np.isfinite(plain.column("attribution")).any()
    assert np.isfinite(plain.column("ablation")).any()
    for column in ("r", "attribution", "ablation", "auroc"):
        np.testing.assert_allclose(
            report.column(column), plain.column(column), atol=1e-4, err_msg=column
        )


class StopLate(Callback):
    """Ends the fit in a validation that was not known to be the last, with more training behind."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.should_stop = True


@pytest.mark.parametrize("first", [True, False], ids=["before us", "after us"])
@pytest.mark.parametrize("name", AVERAGING)
def test_training_with_averages_is_bit_identical(name: str, first: bool) -> None:
    found = []
    for ours in (False, True):
        evidence = Ablation(random_sets=3, sizes=(1,), singles=1, every_n_validations=1)
        callback = NeuronAdvantage(
            BatchBaseline(2), target=1, visualizer=None, ablation=evidence, second_pass=SecondPass()
        )
        torch.manual_seed(3)
        module = train(
            AVERAGING[name](), *([callback] if ours else []), first=first, max_epochs=2,
            val_check_interval=3,
        )  # fmt: skip
        found.append(module.state_dict())
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key


# --- the copy itself ------------------------------------------------------------------------------


class Tied(nn.Module):
    """A parameter with two names, a buffer, and NaN in a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        with torch.no_grad():
            self.one.bias[0] = torch.nan


@pytest.fixture
def tied() -> Iterator[Tied]:
    module = Tied()
    yield module
    assert module.two.weight is module.one.weight


def bits(module: nn.Module) -> list[bytes]:
    return [value.detach().numpy().tobytes() for value in module.state_dict().values()]


def interrupted(kept: KeptWeights, holds: Any) -> None:
    with kept.in_place():
        assert holds()
        raise RuntimeError("in the middle")


def test_kept_weights_go_in_and_out_bit_by_bit(tied: Tied) -> None:
    before = bits(tied)
    kept = KeptWeights(tied)
    with torch.no_grad():
        tied.one.weight.mul_(2)
        tied.count += 7
    changed = bits(tied)
    version = tied.one.weight._version
    kept.move_to_cpu()
    with pytest.raises(RuntimeError, match="in the middle"):
        interrupted(kept, lambda: bits(tied) == before)
    assert bits(tied) == changed
    assert tied.one.weight._version == version  # nothing a graph would take for a change
    with torch.inference_mode(), kept.in_place():
        assert bits(tied) == before
    assert bits(tied) == changed


def test_kept_weights_of_another_shape_are_refused(tied: Tied) -> None:
    kept = KeptWeights(tied)
    tied.one.bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(ValueError, match="Expected the model to have the parameters"):
        interrupted(kept, lambda: False)


@pytest.mark.parametrize("gradients", [True, False])
def test_mixed_precision_around_it_sees_the_weights_that_are_in_place(gradients: bool) -> None:
    """Autocast keeps copies of weights; an untrained copy would be the trained network again."""
    net, x = nn.Linear(8, 8), torch.randn(4, 8)
    kept = KeptWeights(net)
    with torch.no_grad():
        net.weight.mul_(2)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(gradients):
        own = net(x)
        with kept.in_place():
            inside = net(x)
        after = net(x)
    assert torch.equal(after, own)
    torch.testing.assert_close(inside - net.bias, (own - net.bias) / 2, atol=0.02, rtol=0.02)
