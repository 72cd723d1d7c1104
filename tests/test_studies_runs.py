"""The built-in studies in fits, checkpoints, YAML and several processes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_neurocorr import (
    Groups,
    Matches,
    NeuronAdvantage,
    Readout,
    Slices,
    Snapshot,
    Words,
)
from tests.asked import net
from tests.ddp_run import WORLDS, Results, case, in_processes, main, run_all, trainer_of
from tests.worlds import world

pytest.importorskip("sklearn")


class Learner(pl.LightningModule):
    """Trains the network of the world a little."""

    def __init__(self) -> None:
        super().__init__()
        self.net = copy.deepcopy(world().model).train()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def test_training_is_the_same_with_every_study(tmp_path: Path) -> None:
    every: list[Any] = [
        Words(),
        Slices(),
        Groups(),
        Readout(),
        Matches(Snapshot(0), every_n_validations=1),
    ]
    weights, ours = [], own_by_position(every)
    none: list[Any] = []
    for callbacks in (none, [ours]):
        torch.manual_seed(0)
        model = Learner()
        trainer = pl.Trainer(
            max_epochs=2, callbacks=callbacks, logger=False, enable_progress_bar=False,
            enable_checkpointing=False, accelerator="cpu", enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, world().loader, world().loader)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
    report: Any = ours.report
    states = {name: finding.state for name, finding in report.studies.items()}
    every_name = ("words", "slices", "groups", "readout", "matches")
    assert {name: states[name] for name in every_name} == dict.fromkeys(every_name, "measured")
    frame = report.studies["matches"].to_dataframe()
    assert 0 < frame.novelty.dropna().max() < 0.5  # an epoch later


def own_by_position(studies: Any) -> NeuronAdvantage:
    found = world()
    return NeuronAdvantage(
        found.baseline, target=1, metadata=found.metadata, studies=studies, visualizer=None,
        attribution=False,
    )  # fmt: skip


def test_a_snapshot_survives_a_checkpoint() -> None:
    first = own_by_position([Matches(Snapshot(0))])
    options = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=1, callbacks=[first], enable_checkpointing=False, **options)
    trainer.fit(Learner(), world().loader, world().loader)
    saved: Any = first
    other: Any = own_by_position([Matches(Snapshot(0))])
    other.load_state_dict(saved.state_dict())
    kept, back = (callback.studies[0].asks[0] for callback in (saved, other))
    assert back.taken_at == 0
    assert all(torch.equal(v, back._parameters[n]) for n, v in kept._parameters.items())


def test_yaml_makes_them() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(NeuronAdvantage, "callback")
    names = ("Words", "Slices", "Groups", "Readout", "Matches")
    studies: list[dict[str, Any]] = [{"class_path": f"lightning_neurocorr.{n}"} for n in names]
    studies[0]["init_args"] = {"formulas": 3}
    snapshot = {"class_path": "lightning_neurocorr.Snapshot", "init_args": {"epoch": 2}}
    studies[4]["init_args"] = {"other": snapshot, "every_n_validations": 5}
    baseline = {"class_path": "lightning_neurocorr.BatchBaseline", "init_args": {"field": "b"}}
    config = {"baseline": baseline, "studies": studies, "metadata": "words"}
    parsed = parser.parse_object({"callback": config})
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    made = instantiate(parsed).callback
    assert made.studies[:4] == (Words(formulas=3), Slices(), Groups(), Readout())
    assert isinstance(made.studies[4].other, Snapshot)
    assert (made.studies[4].other.epoch, made.studies[4].every_n_validations) == (2, 5)
    for study in studies:
        study["init_args"] = {"name": "mine", "time_budget_s": "much"}
        with pytest.raises(jsonargparse.ArgumentError, match="time_budget_s"):
            parser.parse_object({"callback": {**config, "studies": [study]}})


def test_a_resumed_fit_ends_with_every_study(tmp_path: Path) -> None:
    options: Any = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    options |= {"enable_model_summary": False, "enable_checkpointing": False}

    def every() -> NeuronAdvantage:
        return own_by_position([Words(), Slices(), Groups(), Readout(), Matches(Snapshot(0))])

    def rows(callback: NeuronAdvantage) -> dict[str, Any]:
        assert callback.report is not None
        found = callback.report.studies
        assert {f.state for name, f in found.items() if name in kinds} == {"measured"}
        return {name: found[name].to_dataframe() for name in kinds}

    kinds = ("words", "slices", "groups", "readout", "matches")
    torch.manual_seed(0)
    whole, first, again = every(), every(), every()
    loader = world().loader
    pl.Trainer(max_epochs=2, callbacks=[whole], **options).fit(Learner(), loader, loader)
    trainer = pl.Trainer(max_epochs=1, callbacks=[first], **options)
    trainer.fit(Learner(), loader, loader)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    trainer = pl.Trainer(max_epochs=2, callbacks=[again], **options)
    trainer.fit(Learner(), loader, loader, ckpt_path=str(tmp_path / "one.ckpt"))
    for (name, one), two in zip(rows(whole).items(), rows(again).values(), strict=True):
        pd.testing.assert_frame_equal(one, two, obj=name)


@case
def own_studies() -> dict[str, Any]:
    """What they find of the world; numbers and texts of the first process."""
    every = [Words(), Slices(), Groups(), Readout(max_samples=600), Matches(net())]
    ours = own_by_position(every)
    trainer_of(ours).validate(Learner(), world().loader, verbose=False)
    report = ours.report
    assert report is not None
    return {
        name: {column: list(values) for column, values in table.values.items()}
        for name, finding in report.studies.items()
        for table in finding.tables
    } | {"states": {name: f.state for name, f in report.studies.items()}}


@pytest.fixture(scope="module")
def found_together(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Results]]:
    return in_processes("tests.test_studies_runs", tmp_path_factory.mktemp("ranks"), "own_studies")


@pytest.mark.parametrize("processes", WORLDS)
def test_processes_find_the_same(processes: int, found_together: Any) -> None:
    alone = run_all(["own_studies"])["own_studies"]
    first = found_together[processes][0]["own_studies"]
    assert first["states"] == alone["states"]
    for name in ("words", "slices", "groups", "readout", "matches"):
        for column, values in alone[name].items():
            if not values or isinstance(values[0], str) or values[0] is None:
                assert first[name][column] == values, (name, column)
            else:
                np.testing.assert_allclose(first[name][column], values, atol=2e-4, err_msg=column)


if __name__ == "__main__":
    main()
