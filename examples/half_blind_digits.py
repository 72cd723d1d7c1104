"""Half-blind digits: does the package find the neurons that see what the baseline cannot?

The baseline, a logistic regression, sees the left half of scikit-learn's scanned digits. The model
has 24 neurons that see the left half and 24 that see the right: the truth is known. What it knows
more than the baseline is spread over the right ones, where correlation is at chance: attribution
finds them, and silencing them costs the samples that only the model gets right.

First a twin with weights set by hand, whose numbers are known exactly; then controls in which there
is nothing to find; then networks trained by Lightning. Each line says what must hold and whether it
did:

    python examples/half_blind_digits.py
"""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from scipy.stats import rankdata
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_neurocorr as nc
from lightning_neurocorr.ablation import AblationPoint, AblationStudy

for package in ("pytorch_lightning", "lightning.pytorch"):
    logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*LeafSpec.*")
warnings.filterwarnings("ignore", ".*does not have many workers.*")

HALF = 24  # neurons per half of the image
PLANTED = np.arange(2 * HALF) >= HALF  # those that see the right half


@dataclass(frozen=True)
class Check:
    """One line of the result."""

    what: str
    value: str
    holds: bool

    def __str__(self) -> str:
        return f"    {'ok    ' if self.holds else 'MISSED'}  {self.what}: {self.value}"


def show(title: str, checks: list[Check]) -> bool:
    """Print the lines of one part and say whether all hold."""
    print(f"\n{title}")
    for check in checks:
        print(check)
    return all(check.holds for check in checks)


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


def trainer(callback: nc.NeuronAdvantage | None = None, **options: Any) -> pl.Trainer:
    """A quiet trainer on the CPU."""
    return pl.Trainer(
        callbacks=[] if callback is None else [callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def watch(baseline: Any, layers: Any = "neurons", **options: Any) -> nc.NeuronAdvantage:
    """The callback, without pictures."""
    return nc.NeuronAdvantage(baseline, layers, visualizer=None, **options)


def validated(callback: nc.NeuronAdvantage, model: Any, data: Any, size: int = 100) -> Any:
    """The report of one validation."""
    trainer(callback).validate(model, DataLoader(data, batch_size=size), verbose=False)
    return callback.report


# --- the twin ------------------------------------------------------------------------------------


class Twin(pl.LightningModule):
    """Two classes, told by one of four bits: left says 1, left says 0, right says 1, right says 0.

    One neuron for each bit. The left two add 2 to the logit of their class, the right two 3.
    Another layer says the same on every sample.
    """

    def __init__(self) -> None:
        super().__init__()
        self.neurons, self.readout = nn.Linear(4, 4), nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.neurons.weight.copy_(torch.eye(4))
            self.neurons.bias.zero_()
            self.readout.weight.copy_(torch.tensor([[0, 2, 0, 3], [2, 0, 3, 0]]))
        self.constant = nn.Linear(4, 2)
        nn.init.zeros_(self.constant.weight)
        nn.init.ones_(self.constant.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2) of bits (N, 4)."""
        return self.readout(self.neurons(x)) + self.constant(x)

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


def needed(report: Any) -> list[int]:
    """The units that are said to be needed."""
    return [row.unit for row in report.rows if "; needed: " in row.verdict]


# --- where there is nothing to find --------------------------------------------------------------


def check_controls(seed: int = 0) -> list[Check]:
    """Baselines and data that leave nothing to explain, or little to explain it with."""
    model, data = Twin(), bits()
    x, y = data.tensors
    generator = torch.Generator().manual_seed(seed)
    answers = torch.randint(0, 2, (len(y),), generator=generator)

    def random_baseline(batch: list[Tensor]) -> Tensor:
        return answers[: len(batch[0])]

    same = validated(watch(nc.ModuleBaseline(Twin())), model, data)
    chance = validated(watch(random_baseline), model, data, size=len(y))
    shuffled = TensorDataset(x, y[torch.randperm(len(y), generator=generator)])
    labels = validated(watch(left_bit), model, shuffled)
    constant = validated(watch(lambda batch: torch.zeros(len(batch[0])).long()), model, data)
    one = validated(watch(left_bit), model, TensorDataset(x[2:3], y[2:3]))
    single, whole = (validated(watch(left_bit), model, data, size=size) for size in (1, 480))
    flat = validated(watch(left_bit, layers="constant"), model, data)
    return [
        Check("baseline = model: nothing to explain", same.message, bool(same.message)),
        Check("random baseline: no neuron encodes", claims(chance), not encoding(chance)),
        Check("shuffled labels: no neuron encodes", claims(labels), not encoding(labels)),
        Check(
            "constant baseline: wins", f"{constant.outcomes}", constant.outcomes.only_model == 240
        ),
        Check("one sample: no claim", claims(one), not encoding(one)),
        Check(
            "batches of 1: the same r",
            "up to 1e-8",
            np.allclose(single.column("r"), whole.column("r")),
        ),
        Check("an id twice in a table: refused", *_duplicate_id()),
        Check("a constant layer: no r", claims(flat), bool(np.isnan(flat.column("r")).all())),
    ]


def _duplicate_id() -> tuple[str, bool]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "readings.csv"
        path.write_text("id,prediction\nfirst,0\nfirst,1\n")
        try:
            nc.TableBaseline(path, id=1).check(2)
        except ValueError as error:
            return str(error).replace(str(path), path.name), "first" in str(error)
    return "accepted", False


def encoding(report: Any) -> int:
    """How many neurons are said to encode the advantage."""
    return sum("encodes the advantage" in row.verdict for row in report.rows) if report.n else 0


def claims(report: Any) -> str:
    """What is said in place of a claim."""
    return report.message or "; ".join(sorted({row.verdict for row in report.rows}))


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


def train(seed: int, deep: bool, epochs: int = 30) -> nc.NeuronAdvantage:
    """Fit the baseline and the model, with the callback watching."""
    training, validation = digits(seed)
    x, y = training.tensors
    baseline = LogisticRegression(max_iter=2000).fit(left_half([x]).numpy(), y.numpy())
    callback = watch(
        nc.EstimatorBaseline(baseline, features=left_half),
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
    lost, control = [r.point.effect for r in results], [r.point.control for r in results]
    extra = np.mean([a.advantage_accuracy - b.advantage_accuracy for a, b in zip_(lost, control)])
    shared_extra = np.mean([a.shared_accuracy - b.shared_accuracy for a, b in zip_(lost, control)])
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


def zip_(first: list[Any], second: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Pairs."""
    return zip(first, second, strict=True)


def main() -> bool:
    """Run all parts; whether everything held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fast", action="store_true", help="one network instead of twelve")
    args = parser.parse_args()
    held = show("The twin, exactly", check_twin())
    held &= show("Nothing to find", check_controls())
    for deep in (False,) if args.fast else (False, True):
        results = [result(train(seed, deep)) for seed in range(220, 221 if args.fast else 226)]
        title = f"{len(results)} trained, {'deep' if deep else 'linear'} readout"
        held &= show(title, check_trained(results, 0.08, 0.05))
    print(f"\n{'Everything held.' if held else 'Something was MISSED.'}")
    return held


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
