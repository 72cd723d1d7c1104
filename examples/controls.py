"""Controls: data and baselines in which there is nothing to find, so nothing may be claimed.

The three scenarios (``half_blind_digits.py``, ``older_checkpoint.py``, ``ring_xray.py``) run these
on their twins, and take from here what they print and how they validate. Alone, all controls run:

    python examples/controls.py
"""

import argparse
import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_neurocorr as nc

for package in ("pytorch_lightning", "lightning.pytorch"):
    logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*LeafSpec.*")
warnings.filterwarnings("ignore", ".*does not have many workers.*")


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


def top_list(report: Any, k: int, by: str) -> Check:
    """The strongest neurons as they print, with the largest |r| that chance would reach."""
    found = report.top(k, by=by)
    ceiling = f"largest |r| by chance {found.noise_ceiling:.3f}"
    return Check(f"top by {by}", f"{ceiling}\n\n{indent(str(found), ' ' * 12)}\n", bool(found))


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


def needed(report: Any) -> list[int]:
    """The units that are said to be needed."""
    return [row.unit for row in report.rows if "; needed: " in row.verdict]


def encoding(report: Any) -> int:
    """How many neurons are said to encode the advantage."""
    return sum("; encodes the advantage" in f"; {row.verdict}" for row in report.rows)


def claims(report: Any) -> str:
    """What is said in place of a claim."""
    return report.message or "; ".join(sorted({row.verdict.split("; ")[0] for row in report.rows}))


# --- where there is nothing to find --------------------------------------------------------------


class WithConstant(pl.LightningModule):
    """A model beside a layer that says the same on every sample."""

    def __init__(self, model: pl.LightningModule) -> None:
        super().__init__()
        self.model, self.constant = model, nn.Linear(1, 2)
        nn.init.zeros_(self.constant.weight)
        nn.init.ones_(self.constant.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits (N, 2), all of them 1 larger."""
        return self.model(x) + self.constant(torch.zeros(len(x), 1))

    def validation_step(self, batch: list[Tensor]) -> Tensor:
        """The logits."""
        return self(batch[0])


def check_controls(
    model: pl.LightningModule,
    data: TensorDataset,
    baseline: Callable[[Any], Tensor],
    layer: str,
    seed: int = 0,
) -> list[Check]:
    """Baselines and data that leave nothing to explain, or little to explain it with.

    Args:
        model: A twin: two classes, and right on every sample.
        data: Its images and labels.
        baseline: What the twin beats.
        layer: The layer that it is explained by.
        seed: Of random answers and shuffled labels.
    """
    (x, y), generator = data.tensors, torch.Generator().manual_seed(seed)
    answers = torch.randint(0, 2, (len(y),), generator=generator)
    shuffled = TensorDataset(x, y[torch.randperm(len(y), generator=generator)])
    won = (baseline([x]) != y).nonzero()[0]
    first = TensorDataset(x[:200], y[:200])

    def report(baseline: Any, data: TensorDataset = data, size: int = 100) -> Any:
        return validated(watch(baseline, layer), model, data, size)

    same = report(nc.ModuleBaseline(copy.deepcopy(model)))
    chance = report(lambda batch: answers[: len(batch[0])], size=len(y))
    labels = report(baseline, shuffled)
    zeros = report(lambda batch: torch.zeros(len(batch[0])).long())
    one = report(baseline, TensorDataset(x[won], y[won]))
    sizes = [report(baseline, first, size) for size in (1, 7, 200)]
    flat = validated(watch(baseline, "constant"), WithConstant(model), data)
    return [
        Check("baseline = model: nothing to explain", same.message, bool(same.message)),
        Check("random baseline: no neuron encodes", claims(chance), not encoding(chance)),
        Check("shuffled labels: no neuron encodes", claims(labels), not encoding(labels)),
        Check("constant baseline: only the class", claims(zeros), _only_the_class(zeros, y)),
        Check("one sample: no claim", claims(one), bool(one.message) and not encoding(one)),
        Check("batches of 1, 7 and 200: the same", "up to 1e-5", _same_columns(*sizes)),
        Check("an id twice in a table: refused", *_duplicate_id()),
        Check("a constant layer: no r", claims(flat), bool(np.isnan(flat.column("r")).all())),
    ]


def _only_the_class(report: Any, y: Tensor) -> bool:
    """A baseline that says class 0 loses class 1 as a whole: no neuron knows more than that."""
    return report.outcomes.only_model == int(y.sum()) and not encoding(report)


def _same_columns(first: Any, *others: Any) -> bool:
    return all(
        np.allclose(first.column(name), other.column(name), rtol=0, atol=1e-5, equal_nan=True)
        for name in ("r", "r_within_class", "attribution", "attribution_contrast")
        for other in others
    )


def _duplicate_id() -> tuple[str, bool]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "readings.csv"
        path.write_text("id,prediction\nfirst,0\nfirst,1\n")
        try:
            nc.TableBaseline(path, id=1).check(2)
        except ValueError as error:
            return str(error).replace(str(path), path.name), "first" in str(error)
    return "accepted", False


def main() -> bool:
    """Run the controls of all scenarios; whether all held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fast", action="store_true", help="one scenario instead of three")
    args = parser.parse_args()
    import half_blind_digits as digits  # these take from here what they print
    import older_checkpoint as older
    import ring_xray as ring

    scenarios: dict[str, tuple[Any, ...]] = {
        "half-blind digits": (digits.Twin(), digits.bits(), digits.left_bit, "neurons"),
        "older checkpoint": (digits.Twin(), digits.bits(), older.past_of_the_twin, "neurons"),
        "ring X-ray": (ring.Twin(), ring.squares(), ring.bright_square, "detectors"),
    }
    held = True
    for name, parts in list(scenarios.items())[: 1 if args.fast else None]:
        held &= show(f"Nothing to find: {name}", check_controls(*parts))
    print(f"\nNo advantage was claimed where there is none: {'ok' if held else 'MISSED'}.")
    return held


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
