"""Half-blind digits: does the package find the neurons that see what the baseline cannot?

The baseline, a logistic regression, sees the left half of scikit-learn's scanned digits. The model
has 24 neurons that see the left half and 24 that see the right: the truth is known. What it knows
more than the baseline is spread over the right ones, where correlation is at chance: attribution
finds them, and silencing them costs the samples that only the model gets right.

First a twin with weights set by hand, whose numbers are known exactly; then controls in which there
is nothing to find (``controls.py``); then networks trained by Lightning. Each line says what must
hold and whether it did:

    python examples/half_blind_digits.py
"""

import argparse
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch
from controls import Check, check_controls, needed, show, top_list, trainer, validated, watch
from scipy.stats import rankdata
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_neurocorr as nc
from lightning_neurocorr.ablation import AblationPoint, AblationStudy

HALF = 24  # neurons per half of the image
PLANTED = np.arange(2 * HALF) >= HALF  # those that see the right half


# --- data and model ------------------------------------------------------------------------------


def digits(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Half of the digits to train on and half to validate on, another split for every seed."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    x = torch.tensor(images[order] / 16, dtype=torch.float32).view(-1, 8, 8)
    y = torch.tensor(labels[order], dtype=torch.long)
    return TensorDataset(x[:899], y[:899]), TensorDataset(x[899:], y[899:])


class TwoStreams(pl.LightningModule):
    """Neurons for each half of the image, and a readout of all of them.

    Args:
        deep: Whether another hidden layer stands between neurons and answer.
        dropout: Keeps the readout from leaning on few neurons.
    """

    def __init__(self, deep: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.left, self.right = nn.Linear(32, HALF), nn.Linear(32, HALF)
        self.neurons = nn.ReLU()
        if deep:
            readout = [nn.Linear(2 * HALF, 32), nn.ReLU(), nn.Linear(32, 10)]
        else:
            readout = [nn.Linear(2 * HALF, 10)]
        self.readout = nn.Sequential(nn.Dropout(dropout), *readout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 8, 8)."""
        halves = self.left(x[..., :4].flatten(1)), self.right(x[..., 4:].flatten(1))
        return self.readout(self.neurons(torch.cat(halves, 1)))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """The loss."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor]) -> Tensor:
        """The logits."""
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def left_half(batch: list[Tensor]) -> Tensor:
    """What the baseline sees."""
    return batch[0][..., :4].flatten(1)


# --- the twin ------------------------------------------------------------------------------------


class Twin(pl.LightningModule):
    """Two classes, told by one of four bits: left says 1, left says 0, right says 1, right says 0.

    One neuron for each bit. The left two add 2 to the logit of their class, the right two 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.neurons, self.readout = nn.Linear(4, 4), nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.neurons.weight.copy_(torch.eye(4))
            self.neurons.bias.zero_()
            self.readout.weight.copy_(torch.tensor([[0, 2, 0, 3], [2, 0, 3, 0]]))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2) of bits (N, 4)."""
        return self.readout(self.neurons(x))

    def validation_step(self, batch: list[Tensor]) -> Tensor:
        """The logits."""
        return self(batch[0])


def bits(n: int = 480) -> TensorDataset:
    """Every bit equally often."""
    said = torch.arange(n) % 4
    return TensorDataset(nn.functional.one_hot(said, 4).float(), 1 - said % 2)


def left_bit(batch: list[Tensor]) -> Tensor:
    """The twin's baseline: class 1 where the left says so, else 0."""
    return batch[0][:, 0].long()


def check_twin() -> list[Check]:
    """Every number follows from the weights: only the model knows where the right says 1."""
    settings = nc.Ablation(sizes=(1,), singles=4, fill="zero")
    report = validated(watch(left_bit, ablation=settings), Twin(), bits())
    (point,) = AblationStudy.from_dict(report.study).points
    used, r = report.column("attribution"), report.column("r")
    lost, wins = point.effect, report.outcomes.only_model
    # There (a - 1/4) times the weight is (0 - 1/4) 2, (0 - 1/4) (-2), (1 - 1/4) 3, (0 - 1/4) (-3).
    expected = [-0.5, 0.5, 2.25, 0.75]
    return [
        top_list(report, 4, "attribution"),
        Check("the model wins 120 of 480", f"{wins}", wins == 120),
        Check(f"attribution is {expected}", f"{used.round(6)}", np.allclose(used, expected)),
        Check(
            "r is -1/3, -1/3, 1, -1/3", f"{r.round(6)}", np.allclose(r, [-1 / 3, -1 / 3, 1, -1 / 3])
        ),
        Check("neuron 2 is on top in both halves", f"{point.units}", point.units == ((2,), (2,))),
        Check(
            "silent, it costs a margin of 3", f"{lost.advantage_margin}", lost.advantage_margin == 3
        ),
        Check("every win", f"{lost.advantage_accuracy:.0%}", lost.advantage_accuracy == 1),
        Check("nothing else", f"{lost.shared_margin}", lost.shared_margin == 0),
        Check("it alone is needed", f"{needed(report)}", needed(report) == [2]),
    ]


# --- trained networks ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """How one trained network did; AUROC and precision are of the planted neurons."""

    attribution_auroc: float
    attribution_precision: float
    r_auroc: float
    r_precision: float
    point: AblationPoint


def auroc(score: np.ndarray, truth: np.ndarray) -> float:
    """Probability that a planted neuron scores above another one."""
    hits, ranks = int(truth.sum()), rankdata(score)
    return float((ranks[truth].sum() - hits * (hits + 1) / 2) / (hits * (len(truth) - hits)))


def precision(score: np.ndarray, truth: np.ndarray, k: int = 10) -> float:
    """Share of planted neurons among the ``k`` with the highest score."""
    return float(truth[np.argsort(-score)[:k]].mean())


def result(callback: nc.NeuronAdvantage, truth: np.ndarray = PLANTED) -> Result:
    """Judge a report by the truth; neurons without a value come last."""
    report = callback.report
    assert report is not None, "there was no validation"
    assert not report.message, report.message
    used, r = (np.nan_to_num(report.column(by), nan=-1e9) for by in ("attribution", "r"))
    return Result(
        auroc(used, truth),
        precision(used, truth),
        auroc(r, truth),
        precision(r, truth),
        AblationStudy.from_dict(report.study).curve("neurons")[-1],
    )


def train(
    seed: int, deep: bool, epochs: int = 30, layers: str | list[str] = "neurons"
) -> nc.NeuronAdvantage:
    """Fit the baseline and the model, with the callback watching."""
    training, validation = digits(seed)
    x, y = training.tensors
    baseline = LogisticRegression(max_iter=2000).fit(left_half([x]).numpy(), y.numpy())
    callback = watch(
        nc.EstimatorBaseline(baseline, features=left_half),
        layers,
        ablation=nc.Ablation(sizes=(8,), singles=0),
    )
    pl.seed_everything(seed, verbose=False)
    trainer(callback, max_epochs=epochs, check_val_every_n_epoch=epochs).fit(
        TwoStreams(deep, dropout=0.2),
        DataLoader(training, batch_size=32, shuffle=True),
        DataLoader(validation, batch_size=100),
    )
    return callback


def check_trained(results: list[Result], beyond: float, shared: float) -> list[Check]:
    """Means over seeds against what was measured beforehand, with room for other seeds."""
    mean = {name: np.mean([vars(r)[name] for r in results]) for name in list(vars(results[0]))[:4]}
    extra, shared_extra = (
        np.mean([getattr(r.point.effect, of) - getattr(r.point.control, of) for r in results])
        for of in ("advantage_accuracy", "shared_accuracy")
    )
    attribution = mean["attribution_auroc"], mean["attribution_precision"]
    plain = f"{mean['r_auroc']:.2f}, {mean['r_precision']:.2f} by plain r"
    return [
        Check("AUROC of attribution >= 0.9", f"{attribution[0]:.3f}", bool(attribution[0] >= 0.9)),
        Check(
            "its precision at 10 >= 0.9",
            f"{attribution[1]:.3f} ({plain})",
            bool(attribution[1] >= 0.9),
        ),
        Check(
            f"silencing its top 8 costs >= {100 * beyond:.0f} points more of the advantage than 8 "
            "random neurons",
            f"{100 * extra:.1f}",
            bool(extra >= beyond),
        ),
        Check(
            f"and <= {100 * shared:.0f} points more of what both know",
            f"{100 * shared_extra:.1f}",
            bool(shared_extra <= shared),
        ),
    ]


def main() -> bool:
    """Run all parts; whether everything held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fast", action="store_true", help="one network instead of twelve")
    args = parser.parse_args()
    held = show("The twin, exactly", check_twin())
    held &= show("Nothing to find", check_controls(Twin(), bits(), left_bit, "neurons"))
    for deep in (False,) if args.fast else (False, True):
        callbacks = [train(seed, deep) for seed in range(220, 221 if args.fast else 226)]
        title = f"{len(callbacks)} trained, {'deep' if deep else 'linear'} readout"
        first = top_list(callbacks[0].report, 5, "attribution")
        results = [result(callback) for callback in callbacks]
        held &= show(title, [first, *check_trained(results, 0.08, 0.05)])
    print(f"\n{'Everything held.' if held else 'Something was MISSED.'}")
    return held


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
