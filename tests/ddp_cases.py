"""Validations that one process or several run alike; started by ``test_trust_ddp`` as a program.

``python -m tests.ddp_cases WORLD FOLDER`` forks WORLD gloo processes, each of which runs every case
and leaves its results in ``FOLDER/RANK.pt``. One start for all cases: importing PyTorch is what
costs. A collective that not every process enters fails after a minute instead of hanging.
"""

from __future__ import annotations

import datetime as dt
import math
import multiprocessing
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from lightning_neurocorr import (
    Ablation,
    Attribution,
    BatchBaseline,
    FeatureVisualizer,
    NeuronAdvantage,
    SecondPass,
    SnapshotBaseline,
    TableBaseline,
)
from tests.paper_model import paper_trainer

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
        self.extra = nn.Linear(3, 2)
        self.wanted = wanted

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        logits = self(batch[0])
        if self.wanted(self.trainer.global_rank, batch_idx):
            self.extra(logits)


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
    **options: Any,
) -> dict[str, Any]:
    """Validate, or fit with a learning rate of 0, and say what was found."""
    callback = NeuronAdvantage(
        baseline or BatchBaseline(2), layers, **{"visualizer": None, **options}
    )
    made = trainer_of(callback, **(trainer or {}))
    valid = loaders() if loaders else DataLoader(Pictures(n), 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if fit:
            made.fit(module(), DataLoader(Pictures(12), 4), valid)
        else:
            made.validate(module(), valid, verbose=False)
    said = [str(w.message) for w in caught if "NeuronAdvantage" in str(w.message)]
    said += [str(w.message) for w in caught if "Every process" in str(w.message)]
    advised = [str(w.message) for w in caught if "sync_dist" in str(w.message)]
    monitored = {
        tag: float(value) for tag, value in made.callback_metrics.items() if "neurocorr/" in tag
    }
    more = {"said": said, "advised": advised, "monitored": monitored, "epochs": made.current_epoch}
    return described(callback) | more


def described(callback: NeuronAdvantage) -> dict[str, Any]:
    """A report as plain data."""
    report = callback.report
    history = [(e.validation, e.step, e.epoch, e.outcomes.only_model) for e in callback.history]
    if report is None:
        return {"report": False, "history": history}
    wanted = (
        "r", "r_low", "r_within_class", "r_replicated", "contrast_t", "mean", "mean_only_model",
        "attribution", "attribution_contrast", "ablation", "ablation_control", "active",
    )  # fmt: skip
    panels = [
        [(s.position, s.activation, s.outcome, s.target) for s in group]
        for panel in report.panels
        for group in (panel.exemplars, panel.only_model, panel.matched)
    ]
    return {
        "report": True,
        "history": history,
        "n": report.n,
        "outcomes": dict(report.outcomes.counts),
        "layers": list(report.layers),
        "sizes": list(report.sizes),
        "columns": {
            name: torch.from_numpy(np.array(report.columns[name], dtype=float))
            for name in wanted
            if name in report.columns
        },
        "panels": panels,
        "message": report.message,
        "notes": list(report.notes),
    }


# --- the cases ------------------------------------------------------------------------------------


@case
def seventeen() -> dict[str, Any]:
    return run(17)


@case
def one_sample() -> dict[str, Any]:
    return run(1)


@case
def two_hundred() -> dict[str, Any]:
    """Enough for attribution, pictures, exemplars and ablation."""
    return run(
        203,
        visualizer=FeatureVisualizer(steps=2),
        ablation=Ablation(random_sets=3, sizes=(1,), singles=2),
        top_k=3,
    )


@case
def attributed_in_part() -> dict[str, Any]:
    """Which samples are attributed depends on each of them alone."""
    return run(900, attribution=Attribution(max_samples=150))


@case
def shuffled() -> dict[str, Any]:
    return run(loaders=lambda: DataLoader(Pictures(17), 4, shuffle=True))


@case
def random_subset() -> dict[str, Any]:
    def loader() -> DataLoader[Any]:
        sampler = torch.utils.data.SubsetRandomSampler(range(11))
        return DataLoader(Pictures(30), 4, sampler=sampler)

    return run(loaders=loader)


@case
def several_loaders() -> dict[str, Any]:
    data = Pictures(28)
    return run(loaders=lambda: [DataLoader(Subset(data, range(17)), 4),
                                DataLoader(Subset(data, range(17, 28)), 3)])  # fmt: skip


@case
def loaders_by_name() -> dict[str, Any]:
    data = Pictures(28)
    return run(loaders=lambda: {"a": DataLoader(Subset(data, range(17)), 4),
                                "b": DataLoader(Subset(data, range(17, 28)), 3)})  # fmt: skip


@case
def positional_table() -> dict[str, Any]:
    return run(23, baseline=TableBaseline(Pictures(23).answer.numpy()))


@case
def log_probability() -> dict[str, Any]:
    def baseline(batch: Any) -> Tensor:
        return nn.functional.one_hot(batch[2], 3).float() + batch[0].mean((1, 2, 3))[:, None] * 0

    return run(29, baseline=baseline, advantage="log_prob")


@case
def own_advantage() -> dict[str, Any]:
    def advantage(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
        return (baseline - target) ** 2 - (prediction[:, 0] - target) ** 2

    return run(
        19, baseline=lambda batch: batch[2].float(), advantage=advantage,
        predictions=lambda outputs, batch: (outputs, batch[1].float()),
        module=Regression,
    )  # fmt: skip


class Regression(Net):
    """Returns its prediction."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(batch[0])


@case
def layer_missing_in_one_batch() -> dict[str, Any]:
    """Whether a layer fires differs between the processes."""
    return run(17, module=lambda: Sometimes(lambda rank, batch: rank == 0 and batch != 1))


@case
def layer_missing_in_other_ranks() -> dict[str, Any]:
    return run(17, module=lambda: Sometimes(lambda rank, batch: rank != 0))


@case
def widths_that_differ() -> dict[str, Any]:
    """One process sees another number of neurons in a layer than the others."""

    def pooling(activation: Tensor) -> Tensor:
        narrow = activation.ndim == 4 and PLACE["rank"] > 0
        return activation.flatten(1)[:, : 3 - narrow]

    return run(17, layers=["net.0", "net.5"], pooling=pooling)


class Bypassed(Net):
    """In one process validation goes around the forward that attribution would differentiate."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        whole = PLACE["rank"] == 0
        return {"preds": (self if whole else self.net)(batch[0]), "target": batch[1]}


@case
def unattributed_in_one_process() -> dict[str, Any]:
    return run(43, module=Bypassed)


@case
def fitted() -> dict[str, Any]:
    return run(17, fit=True, trainer={"max_epochs": 2}, visualizer=FeatureVisualizer(steps=2))


@case
def late_snapshot() -> dict[str, Any]:
    return run(17, fit=True, trainer={"max_epochs": 3}, baseline=SnapshotBaseline(epoch=1))


class Sharded(Net):
    """Built when Lightning asks for it, each layer spread over the processes."""

    def __init__(self) -> None:
        super().__init__()
        del self.net

    def configure_model(self) -> None:
        self.net = Net().net
        if PLACE["world"] > 1:
            mesh = self.device_mesh["data_parallel"]
            for part in (self.net[0], self.net[3], self.net[5], self.net):
                fully_shard(part, mesh=mesh)


def sharding() -> dict[str, Any]:
    """Options of a trainer whose model is sharded where there are several processes."""
    world = PLACE["world"]
    return {"strategy": ModelParallelStrategy(world, 1)} if world > 1 else {}


@sharded_case
def sharded() -> dict[str, Any]:
    return run(
        23, module=Sharded, layers="net.*", attribution=False, trainer=sharding(),
        baseline=TableBaseline(Pictures(23).answer.numpy()),
    )  # fmt: skip


@sharded_case
def sharded_and_fitted() -> dict[str, Any]:
    trainer = {"max_epochs": 3, **sharding()}
    return run(17, module=Sharded, fit=True, attribution=False, trainer=trainer)


@sharded_case
def sharded_evidence() -> dict[str, Any]:
    """What one process would have to run alone, and layers cut in parts: refused in `setup`."""
    nothing: dict[str, Any] = {"attribution": False, "visualizer": None}
    asked = {
        "attribution": nothing | {"attribution": True},
        "ablation": nothing | {"ablation": Ablation(by="r")},
        "second_pass": nothing | {"second_pass": SecondPass()},
        "visualizer": nothing | {"visualizer": FeatureVisualizer()},
        "snapshot": nothing | {"baseline": SnapshotBaseline()},
        "tensor parallel": nothing,
    }
    said = {}
    for what, options in asked.items():
        cut = {"strategy": ModelParallelStrategy(1, PLACE["world"])}
        trainer = cut if what == "tensor parallel" else sharding()
        try:
            run(17, module=Sharded, trainer=trainer, **options)
        except ValueError as error:
            said[what] = str(error)
    return {"refused": said}


@case
def breaks_in_one_process() -> dict[str, Any]:
    """After a whole validation has worked, the baseline fails once in the last process."""
    calls: list[int] = []
    rank, world = PLACE["rank"], PLACE["world"]

    def baseline(batch: Any) -> Tensor:
        calls.append(1)
        # Two batches of rehearsal, then so many per validation.
        per_validation = math.ceil(math.ceil(17 / world) / 4)
        rehearsed = min(2, per_validation)
        if rank == world - 1 and len(calls) == rehearsed + per_validation + 1:
            raise RuntimeError("the reading service is down")
        return batch[2]

    return run(17, fit=True, trainer={"max_epochs": 3}, baseline=baseline)


class Stream(IterableDataset[Any]):
    """Every process sees all of it."""

    def __iter__(self) -> Any:
        data = Pictures(17)
        return (data[i] for i in range(17))


@case
def unsharded_stream() -> dict[str, Any]:
    return run(loaders=lambda: DataLoader(Stream(), 4))


@case
def labels_out_of_range() -> dict[str, Any]:
    """An error in every process, not a wait."""

    class Wrong(Pictures):
        def __getitem__(self, i: int) -> Any:
            x, y, answer = super().__getitem__(i)
            return x, (torch.tensor(9) if i == 4 else y), answer

    try:
        run(loaders=lambda: DataLoader(Wrong(17), 4))
    except ValueError as error:
        return {"error": str(error)}
    return {"error": ""}


# --- processes ------------------------------------------------------------------------------------


def run_all(names: list[str] | None = None) -> dict[str, dict[str, Any]]:
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


def _worker(rank: int, world: int, port: int, folder: str, names: list[str]) -> None:
    PLACE.update(rank=rank, world=world)
    warnings.filterwarnings("ignore")
    torch.distributed.init_process_group(
        "gloo",
        f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world,
        timeout=dt.timedelta(seconds=40),
    )
    torch.save(run_all(names), Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main() -> None:
    """Fork the processes and wait for them."""
    world, folder, names = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
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
    sys.exit(max(abs(worker.exitcode or 0) for worker in workers))


if __name__ == "__main__":
    main()
