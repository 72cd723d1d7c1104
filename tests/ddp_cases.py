"""Validations that one process or several run alike; started by ``test_trust_ddp`` as a program.

``python -m tests.ddp_cases FOLDER`` forks two and then three gloo processes. Each runs every case
and leaves its results in ``FOLDER``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Subset
from typing_extensions import Self

from lightning_neurocorr import (
    Ablation,
    Attribution,
    FeatureVisualizer,
    NeuronAdvantage,
    Placebo,
    SecondPass,
    SnapshotBaseline,
    TableBaseline,
)
from tests.ddp_run import (
    CASES,
    PLACE,
    SHARDS,
    Net,
    Pictures,
    Sometimes,
    case,
    main,
    run,
    run_all,
    sharded_case,
)

__all__ = ["CASES", "SHARDS", "run_all"]


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
def against_placebos() -> dict[str, Any]:
    """Every process runs its part of the samples again."""
    return run(203, placebo=Placebo(draws=2))


@case
def placebo_fails_in_one_process() -> dict[str, Any]:
    """The data set breaks in the last process once the validation is over: none has a placebo."""
    loader = DataLoader(Pictures(40), 4)
    rank, world = PLACE["rank"], PLACE["world"]

    class Breaking(NeuronAdvantage):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if rank == world - 1 and not trainer.sanity_checking:
                loader.dataset.x = None  # type: ignore[attr-defined]
            super().on_validation_end(trainer, pl_module)

    return run(loaders=lambda: loader, callback=Breaking, placebo=Placebo(draws=1))


@case
def attributed_in_part() -> dict[str, Any]:
    """Which samples are attributed depends on each of them alone."""
    return run(900, attribution=Attribution(max_samples=150))


class Stopping(Net):
    """Ends a fit with its first validation, which nothing says beforehand; learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.train()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def on_validation_epoch_end(self) -> None:
        self.trainer.should_stop = not self.trainer.sanity_checking


@case
def attributed_in_passing() -> dict[str, Any]:
    """Inside a fit fewer samples are attributed, wherever each of them is."""
    loader = DataLoader(Pictures(1900), 20)
    limits = {"max_epochs": 9, "limit_train_batches": 1}
    return run(loaders=lambda: loader, module=Stopping, fit=True, trainer=limits)


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
def text_ids() -> dict[str, Any]:
    """Each process has seen the images of some samples, and which they are is known by id alone."""

    def loader() -> DataLoader[Any]:
        sampler = torch.utils.data.SubsetRandomSampler(range(61))
        return DataLoader(Pictures(61), 4, sampler=sampler)

    return run(
        loaders=loader, visualizer=FeatureVisualizer(steps=2), top_k=3,
        sample_id=lambda batch: [f"sum {float(x.sum()):.5f}" for x in batch[0]],
    )  # fmt: skip


class Normed(Net):
    """The mean over positions of its first layer is fixed by a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1] = nn.InstanceNorm2d(5)
        del self.net[2]


@case
def fixed_by_a_norm() -> dict[str, Any]:
    return run(23, module=Normed)


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


def less_error(prediction: Tensor, baseline: Tensor, target: Tensor) -> Tensor:
    return (baseline - target) ** 2 - (prediction[:, 0] - target) ** 2


def regression(**more: Any) -> dict[str, Any]:
    return run(
        19, baseline=lambda batch: batch[2].float(), advantage=less_error,
        predictions=lambda outputs, batch: (outputs, batch[1].float()),
        module=Regression, **more,
    )  # fmt: skip


@case
def own_advantage() -> dict[str, Any]:
    return regression()


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


class Averaged(Net):
    """Validates other weights than it trains, and stops where nothing said that it would."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1].momentum = 0.0  # each process trains on other samples
        torch.manual_seed(9)
        self.other = [torch.randn_like(p) for p in self.net.parameters()]

    def on_validation_epoch_start(self) -> None:
        self.swap()

    def on_validation_epoch_end(self) -> None:
        self.swap()

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = True

    def swap(self) -> None:
        for mine, other in zip(self.net.parameters(), self.other, strict=True):
            kept = mine.data.clone()
            mine.data.copy_(other)
            other.copy_(kept)


@case
def held_and_averaged() -> dict[str, Any]:
    return run(
        203,
        fit=True,
        module=Averaged,
        every_n_validations=10,
        trainer={"max_epochs": 5},
        ablation=Ablation(random_sets=3, sizes=(1,), singles=2),
    )


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
        # Two batches of rehearsal, the first asked about twice, then so many per validation.
        per_validation = math.ceil(math.ceil(17 / world) / 4)
        rehearsed = min(2, per_validation) + 1
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


class Shards(IterableDataset[Any]):
    """Every process has samples of its own."""

    def __iter__(self) -> Any:
        data, rank, world = Pictures(12), PLACE["rank"], PLACE["world"]
        return (data[i] for i in range(rank, 12, world))


@case
def sharded_stream() -> dict[str, Any]:
    return run(loaders=lambda: DataLoader(Shards(), 4))


@case
def no_distributed_sampler() -> dict[str, Any]:
    return run(trainer={"use_distributed_sampler": False})


@case
def one_of_two_loaders_shared_out() -> dict[str, Any]:
    """Each process counts further in the first loader than it is long, and then in the second."""
    rank, world = PLACE["rank"], PLACE["world"]

    def loaders() -> list[DataLoader[Any]]:
        data = Pictures(28)
        second = Subset(data, range(17, 28))
        sampler = DistributedSampler(second, world, rank, shuffle=False)
        return [DataLoader(Subset(data, range(17)), 4), DataLoader(second, 3, sampler=sampler)]

    return run(loaders=loaders, trainer={"use_distributed_sampler": False})


@case
def regression_without_a_sampler() -> dict[str, Any]:
    """Numbers have no classes that could tell."""
    return regression(trainer={"use_distributed_sampler": False})


@case
def sharded_by_hand() -> dict[str, Any]:
    """Every process has a data set of its own, and no sampler."""
    rank, world = PLACE["rank"], PLACE["world"]
    mine = range(rank, 16 - 16 % world, world)
    return run(
        loaders=lambda: DataLoader(Subset(Pictures(16), mine), 4),
        trainer={"use_distributed_sampler": False},
    )


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


if __name__ == "__main__":
    main()
