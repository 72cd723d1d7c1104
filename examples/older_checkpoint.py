"""Older checkpoint: what did the last epochs of training buy, and which neurons carry it?

The baseline is the model's own past, a Lightning ``.ckpt`` from when the right half of every digit
was missing. Training then went on with whole digits. The neurons that see the right half must be
found; where the past and the present are the same, there must be nothing to explain. First a twin
with weights set by hand, whose numbers are known exactly, and controls (``controls.py``).

    python examples/older_checkpoint.py
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from controls import Check, check_controls, needed, show, top_list, trainer, validated, watch
from half_blind_digits import PLANTED, Twin, TwoStreams, bits, check_trained, digits, result
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lightning_neurocorr as nc
from lightning_neurocorr.ablation import AblationStudy


def without_right(x: Tensor) -> Tensor:
    """Digits as the older model knew them."""
    return torch.cat([x[..., :4], torch.zeros_like(x[..., 4:])], -1)


# --- the twin ------------------------------------------------------------------------------------


def past_twin() -> Twin:
    """The past of the twin lacks the weight of neuron 2: it is wrong where the right says 1."""
    past = Twin()
    with torch.no_grad():
        past.readout.weight[1, 2] = 0
    return past


def past_of_the_twin(batch: list[Tensor]) -> Tensor:
    """What it says."""
    with torch.no_grad():
        return past_twin()(batch[0]).argmax(1)


def check_twin(folder: Path) -> list[Check]:
    """The checkpoint is the past of the twin."""
    path = save(past_twin(), folder / "past.ckpt")
    settings = nc.Ablation(sizes=(1,), singles=4, fill="zero")
    callback = watch(nc.CheckpointBaseline(path, Twin), ablation=settings)
    report = validated(callback, Twin(), bits())
    (point,) = AblationStudy.from_dict(report.study).points
    used, lost = report.column("attribution"), point.effect
    expected = [-0.5, 0.5, 2.25, 0.75]
    losses = lost.advantage_accuracy, lost.shared_accuracy
    same = validated(watch(nc.CheckpointBaseline(save(Twin(), path), Twin)), Twin(), bits())
    return [
        top_list(report, 4, "attribution"),
        Check(
            "the last step won 120 of 480", f"{report.outcomes.only_model}", _wins(report) == 120
        ),
        Check(f"attribution is {expected}", f"{used.round(6)}", np.allclose(used, expected)),
        Check("neuron 2 costs every win, no more", f"{losses}", losses == (1, 0)),
        Check("it alone is needed", f"{needed(report)}", needed(report) == [2]),
        Check("past = present: nothing to explain", same.message, bool(same.message)),
    ]


def _wins(report: Any) -> int:
    return report.outcomes.only_model


def save(model: pl.LightningModule, path: Path) -> Path:
    """A checkpoint as Lightning writes it."""
    quiet = trainer()
    quiet.strategy.connect(model)
    quiet.save_checkpoint(path, weights_only=True)
    return path


# --- trained networks ----------------------------------------------------------------------------


def train(
    seed: int, deep: bool, folder: Path, epochs: int = 20, layers: str | list[str] = "neurons"
) -> nc.NeuronAdvantage:
    """Train without the right halves, save, and go on with them; the callback watches the rest."""
    training, validation = digits(seed)
    x, y = training.tensors
    pl.seed_everything(seed, verbose=False)
    model, older = TwoStreams(deep), trainer(max_epochs=epochs, limit_val_batches=0)
    halves = TensorDataset(without_right(x), y)
    later = DataLoader(validation, batch_size=100)
    older.fit(model, DataLoader(halves, batch_size=32, shuffle=True), later)
    path = folder / f"{seed}-{deep}.ckpt"
    older.save_checkpoint(path, weights_only=True)
    callback = watch(
        nc.CheckpointBaseline(path, TwoStreams),
        layers,
        ablation=nc.Ablation(sizes=(8,), singles=0),
    )
    trainer(callback, max_epochs=epochs, check_val_every_n_epoch=epochs // 4).fit(
        model, DataLoader(training, batch_size=32, shuffle=True), later
    )
    return callback


def check_history(callbacks: list[nc.NeuronAdvantage]) -> Check:
    """The advantage over the past grows with the epochs."""
    first = np.mean([callback.history[0].outcomes.only_model for callback in callbacks])
    last = np.mean([callback.history[-1].outcomes.only_model for callback in callbacks])
    return Check("wins rise over the epochs", f"{first:.0f} -> {last:.0f}", bool(last > first))


def main() -> bool:
    """Run all parts; whether everything held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fast", action="store_true", help="one network instead of twelve")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held = show("The twin, exactly", check_twin(folder))
        controls = check_controls(Twin(), bits(), past_of_the_twin, "neurons")
        held &= show("Nothing to find", controls)
        for deep in (False,) if args.fast else (False, True):
            seeds = range(300, 301 if args.fast else 306)
            callbacks = [train(seed, deep, folder) for seed in seeds]
            results = [result(callback, PLANTED) for callback in callbacks]
            first = top_list(callbacks[0].report, 5, "attribution")
            checks = [first, *check_trained(results, 0.1, 0.05), check_history(callbacks)]
            held &= show(f"{len(results)} trained, {'deep' if deep else 'linear'} readout", checks)
    print(f"\n{'Everything held.' if held else 'Something was MISSED.'}")
    return held


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
