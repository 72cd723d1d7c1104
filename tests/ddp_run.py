"""Runs validations in one process or in several, and says what was found as plain data.

A collective that not every process enters fails after a minute instead of hanging.
"""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_neurocorr import (
    BatchBaseline,
    NeuronAdvantage,
)
from tests.paper_model import paper_trainer

Results = dict[str, dict[str, Any]]

WORLDS = (2, 3)  # so many processes
CASES: dict[str, Callable[[], dict[str, Any]]] = {}
PLACE = {"rank": 0, "world": 1}  # of this process; Lightning deletes its environment variables


# PyTorch 2.6 cannot shard on the CPU.
SHARDS = hasattr(torch.cpu.Stream, "record_event")


def case(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """A validation that is run in one process and in several."""
    CASES[function.__name__] = function
    return function


def sharded_case(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """One that is run where models can be sharded."""
    return case(function) if SHARDS else function


class Pictures(Dataset[Any]):
    """``(image, target, baseline's answer)`` by position, fixed."""

    def __init__(self, n: int) -> None:
        draw = torch.Generator().manual_seed(7)
        self.y = torch.randint(0, 3, (n,), generator=draw)
        self.x = torch.randn(n, 1, 6, 6, generator=draw) + self.y[:, None, None, None]
        self.answer = torch.randint(0, 3, (n,), generator=draw)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.y[i], self.answer[i]


class Net(pl.LightningModule):
    """A small convolutional network, in evaluation mode the same in every batch size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(
            nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Conv2d(5, 4, 3),
            nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Sometimes(Net):
    """A second branch that only a part of the samples goes through."""

    def __init__(self, wanted: Callable[[int, int], bool]) -> None:
        super().__init__()
        self.extra = nn.Linear(36, 2)
        self.wanted = wanted

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])
        if self.wanted(self.trainer.global_rank, batch_idx):
            self.extra(batch[0].flatten(1))


def trainer_of(callback: NeuronAdvantage, **options: Any) -> pl.Trainer:
    """A trainer for as many processes as there are."""
    world = PLACE["world"]
    several = {"strategy": "ddp", "devices": world} if world > 1 else {"devices": 1}
    if world > 1:
        os.environ |= {"LOCAL_RANK": str(PLACE["rank"]), "NODE_RANK": "0"}
    return paper_trainer(callback, **{"max_epochs": 1, **several, **options})


def run(
    n: int = 17,
    *,
    loaders: Callable[[], Any] | None = None,
    module: Callable[[], Net] = Net,
    fit: bool = False,
    trainer: dict[str, Any] | None = None,
    baseline: Any = None,
    layers: Any = None,
    callback: type[NeuronAdvantage] = NeuronAdvantage,
    **options: Any,
) -> dict[str, Any]:
    """Validate, or fit with a learning rate of 0, and say what was found."""
    said = {} if "predictions" in options else {"target": 1}
    ours = callback(baseline or BatchBaseline(2), layers, **{"visualizer": None, **said, **options})
    made = trainer_of(ours, **(trainer or {}))
    valid = loaders() if loaders else DataLoader(Pictures(n), 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if fit:
            made.fit(module(), DataLoader(Pictures(12), 4), valid)
        else:
            made.validate(module(), valid, verbose=False)
    said = [str(w.message) for w in caught if "NeuronAdvantage" in str(w.message)]
    said += [str(w.message) for w in caught if "Every process" in str(w.message)]
    said += [str(w.message) for w in caught if "No distributed sampler" in str(w.message)]
    advised = [str(w.message) for w in caught if "sync_dist" in str(w.message)]
    monitored = {
        tag: float(value) for tag, value in made.callback_metrics.items() if "neurocorr/" in tag
    }
    more = {"said": said, "advised": advised, "monitored": monitored, "epochs": made.current_epoch}
    return described(ours) | more


def described(callback: NeuronAdvantage) -> dict[str, Any]:
    """A report as plain data."""
    report = callback.report
    history = [
        (e.validation, e.step, e.epoch, str(e.outcomes.only_model)) for e in callback.history
    ]
    if report is None:
        return {"report": False, "history": history}
    wanted = (
        "r", "r_low", "r_within_class", "r_replicated", "contrast_t", "mean", "mean_only_model",
        "attribution", "attribution_contrast", "ablation", "ablation_control", "active",
        "mean_over_positions",
    )  # fmt: skip
    images = {
        s.id: float(s.image.sum())
        for panel in report.panels
        for s in (*panel.exemplars, *panel.only_model, *panel.matched)
        if s.image is not None
    }
    panels = [
        [(s.position, s.activation, s.outcome, s.target) for s in group]
        for panel in report.panels
        for group in (panel.exemplars, panel.only_model, panel.matched)
    ]
    return {
        "samples": _plain_samples(report),
        "report": True,
        "history": history,
        "n": report.n,
        "outcomes": {k: str(v) for k, v in report.outcomes.counts.items()},
        "layers": list(report.layers),
        "sizes": list(report.sizes),
        "columns": {
            name: torch.from_numpy(np.array(report.columns[name], dtype=float))
            for name in wanted
            if name in report.columns
        },
        "panels": panels,
        "images": images,
        "attributed": report.provenance.get("attribution"),
        "message": report.message,
        "placebo": report.placebo.to_dict(),
        "notes": list(report.notes),
    }


def _plain_samples(report: Any) -> dict[str, Any]:
    """Samples in their order, and the exemplars of every neuron."""
    found = report.samples
    arrays = ("position", "outcome", "target", "model", "baseline")
    return {
        **{name: getattr(found, name).tolist() for name in arrays},
        **{group: rows.tolist() for group, rows in found.exemplars.items()},
        "ids": list(found.ids),
    }


def run_all(names: list[str] | None = None) -> Results:
    """Every case; a failure is a result too."""
    results = {}
    for name in names or CASES:
        try:
            results[name] = CASES[name]()
        except Exception:  # noqa: BLE001
            results[name] = {"failure": traceback.format_exc()}
            if torch.distributed.is_initialized():
                break  # the other processes are elsewhere now
    return results


def in_processes(program: str, folder: Path, *names: str) -> dict[int, list[Results]]:
    """What each process of two and of three found, by how many there were and by rank.

    Args:
        program: A module of tests that calls :func:`main`.
        folder: For what the processes found.
        names: Cases; all by default.
    """
    done = subprocess.run(
        [sys.executable, "-m", program, str(folder), *names],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    files = {world: [_file(folder, rank, world) for rank in range(world)] for world in WORLDS}
    assert all(file.exists() for own in files.values() for file in own), done.stderr[-4000:]
    found = {
        world: [torch.load(file, weights_only=False) for file in own]
        for world, own in files.items()
    }
    every = [case for own in found.values() for results in own for case in results.values()]
    failures = [case["failure"] for case in every if "failure" in case]
    assert not failures, "\n\n".join(failures)
    assert done.returncode == 0, done.stderr[-4000:]
    return found


def main() -> None:
    """Fork the processes of each start and wait for them; importing PyTorch is what costs."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    sys.exit(max(_start(world, folder, names) for world in WORLDS))


def _start(world: int, folder: Path, names: list[str]) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    workers = [
        fork.Process(target=_worker, args=(rank, world, port, folder, names))
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(abs(worker.exitcode or 0) for worker in workers)


def _worker(rank: int, world: int, port: int, folder: Path, names: list[str]) -> None:
    PLACE.update(rank=rank, world=world)
    warnings.filterwarnings("ignore")
    torch.distributed.init_process_group(
        "gloo",
        f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world,
        timeout=dt.timedelta(seconds=40),
    )
    torch.save(run_all(names), _file(folder, rank, world))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _file(folder: Path, rank: int, world: int) -> Path:
    return folder / f"{rank} of {world}.pt"
