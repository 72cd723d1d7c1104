"""Words, slices, matches, groups and read-outs on a world with planted knowledge."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    FeatureVisualizer,
    Groups,
    Matches,
    NeuronAdvantage,
    NeuronReport,
    Readout,
    Slices,
    Snapshot,
    Words,
    compare,
)
from lightning_neurocorr.studies.readout import _by_chance
from tests.ddp_run import case, main, run_all, trainer_of
from tests.worlds import World, world

pytest.importorskip("sklearn")


def asked(studies: Any, found: World | None = None, baseline: Any = None, **more: Any) -> Any:
    """The findings of some studies."""
    found = found or world()
    options = {"metadata": found.metadata, "target": 1, "attribution": False, **more}
    return compare(
        found.model, found.loader, baseline or found.baseline, studies=studies, **options
    ).studies


def shuffled(found: World) -> Any:
    """A baseline with nothing left to know."""
    answers = found.placebo()
    return lambda batch: answers[batch[2]]


@pytest.fixture(scope="module")
def planted() -> Any:
    return asked([Words(), Slices()])


@pytest.fixture(scope="module")
def placebo() -> Any:
    return asked([Words(), Slices()], baseline=shuffled(world()))


def test_the_word_of_the_advantage_is_the_planted_one(planted: Any) -> None:
    frame = planted["words"].to_dataframe()
    assert len(frame) == 24 + 16 + 4
    said = frame.advantage_word.dropna()
    assert len(said) >= 5
    assert set(said) == {"turned"}
    assert (frame.score > frame.null).mean() > 0.5
    assert "colour" not in " ".join(frame.word.dropna())


def test_a_neurons_score_is_pearsons_r(planted: Any) -> None:
    frame, found = planted["words"].to_dataframe(), world()
    with torch.no_grad():
        hidden = found.model[:2](found.x).numpy()
    rows = frame[(frame.layer == "0") & (frame.word == "turned")]
    assert len(rows)
    for row in rows.itertuples():
        r = np.corrcoef(hidden[:, row.unit], found.turned)[0, 1]
        assert row.score == pytest.approx(r, abs=1e-5)


def test_no_word_of_the_advantage_against_a_placebo(placebo: Any) -> None:
    frame = placebo["words"].to_dataframe()
    assert frame.advantage_word.notna().mean() <= 0.05


def test_the_planted_slice_is_found_and_measured(planted: Any) -> None:
    frame, found = planted["slices"].to_dataframe(), world()
    first = frame.iloc[0]
    assert (first["slice"], first.direction, first.found_by) == ("turned", "only_model", "words")
    with torch.no_grad():
        model = (found.model(found.x).argmax(1) == found.y).numpy()
    baseline = (found.baseline((found.x,)) == found.y).numpy()
    inside = model.astype(int)[found.turned] - baseline.astype(int)[found.turned]
    assert first.low - 0.1 <= inside.mean() <= first.high + 0.1
    assert first.wins - first.losses == pytest.approx(first.advantage * first.n)
    assert set(map(int, first.examples.split(", "))) <= set(np.flatnonzero(found.turned))
    assert not frame["slice"].str.contains("red|green|blue|light").any()


def test_no_slice_against_a_placebo(placebo: Any) -> None:
    finding = placebo["slices"]
    assert finding.state == "measured"
    assert len(finding.to_dataframe()) == 0
    assert "No slice holds" in finding.headline


def test_slices_without_words_are_described_by_them() -> None:
    class Unsearched(Slices):
        """Skips the search over words."""

        name = "slices"

    found = asked([Slices()], metadata=None)["slices"].to_dataframe()
    assert len(found)
    assert set(found.found_by) == {"activations"}
    positions = [int(p) for p in found.iloc[0].examples.split(", ")]
    assert world().turned[positions].mean() >= 0.8


def test_a_permuted_copy_is_matched_exactly() -> None:
    found = world()
    other, order = copy.deepcopy(found.model), torch.randperm(24)
    with torch.no_grad():
        other[0].weight.copy_(found.model[0].weight[order])
        other[0].bias.copy_(found.model[0].bias[order])
        other[2].weight.copy_(found.model[2].weight[:, order])
    finding = asked([Matches(other)])["matches"]
    frame = finding.to_dataframe()
    first = frame[(frame.layer == "0") & frame.r.notna()]
    assert (order.numpy()[first.other_unit] == first.unit).all()
    assert first.novelty.abs().max() < 1e-4
    assert first.mutual.all()
    assert frame.untrained.dropna().median() < 0.9  # the control is no copy
    assert "untrained copy" in finding.headline


def test_new_units_of_a_checkpoint_are_new() -> None:
    found = world()
    old = copy.deepcopy(found.model)
    with torch.no_grad():
        old[0].weight[12:] = torch.randn(12, 13, generator=torch.Generator().manual_seed(1))
    frame = asked([Matches(old, untrained=False)])["matches"].to_dataframe()
    first = frame[(frame.layer == "0") & frame.r.notna()]
    same, new = first[first.unit < 12].novelty, first[first.unit >= 12].novelty
    assert same.max() < 1e-4
    assert np.mean([new.to_numpy()[:, None] > same.to_numpy()]) >= 0.9
    assert frame.untrained.isna().all()


def test_the_baseline_is_the_other_network_where_it_is_one() -> None:
    from lightning_neurocorr import ModuleBaseline

    found = world()
    frame = asked([Matches()], baseline=ModuleBaseline(found.model, inputs=0))["matches"]
    assert frame.to_dataframe().novelty.dropna().abs().max() < 1e-4


class Streams(nn.Module):
    """Twelve neurons on each of two sources, and their sum as the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 24)
        self.head = nn.Linear(24, 4)
        g = torch.Generator().manual_seed(3)
        weight = torch.zeros(24, 12)
        weight[:12, :6] = torch.randn(12, 6, generator=g)
        weight[12:, 6:] = torch.randn(12, 6, generator=g)
        with torch.no_grad():
            self.hidden.weight.copy_(weight)
            self.hidden.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu())


def streams() -> World:
    """Two sources that each show the class of three in five samples."""
    g = torch.Generator().manual_seed(4)
    n, y = 2400, torch.randint(0, 4, (2400,), generator=g)
    shown = [
        torch.where(torch.rand(n, generator=g) < 0.6, y, torch.randint(0, 4, (n,), generator=g))
        for _ in range(2)
    ]
    pictures = 1.5 * torch.randn(2, 4, 6, generator=g)
    x = torch.cat([pictures[i][shown[i]] for i in range(2)], 1)
    x = x + 0.7 * torch.randn(n, 12, generator=g)
    model = Streams()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(model.head.parameters(), 0.02)
        for _ in range(150):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    source = shown[1].numpy() == y.numpy()
    return World(model.eval(), x, y, source, torch.zeros(4, 12))  # type: ignore[arg-type]


def test_groups_are_the_sources_and_cost_what_they_carry() -> None:
    found = streams()
    draw = torch.rand(len(found.y), generator=torch.Generator().manual_seed(6)) < 0.6

    def weak(batch: tuple[Tensor, ...]) -> Tensor:
        return torch.where(draw[batch[2]], (batch[1] + 1) % 4, batch[1])

    finding = asked([Groups(layers=["hidden"])], found, weak, layers=["hidden"], attribution=True)
    frame = finding["groups"].to_dataframe()
    assert len(frame) == 2
    units = [set(map(int, text.split(", "))) for text in frame.units]
    assert sorted(len(u & set(range(12))) for u in units) == [0, 12]
    assert (frame.ablation > 0.1).all()
    assert frame.attribution.notna().all()


class Asked(FeatureVisualizer):
    """Remembers what it is asked for."""

    def render(self, forward: Any, layers: Any, targets: Any, prior: Any, **more: Any) -> Any:
        if isinstance(targets[0].unit, Tensor):  # of groups, not of neurons
            self.directions = list(targets)
        return super().render(forward, layers, targets, prior, **more)


def test_a_group_has_a_picture_of_its_mean() -> None:
    found = streams()
    draw = torch.rand(len(found.y), generator=torch.Generator().manual_seed(6)) < 0.6
    model = nn.Sequential(nn.Flatten(), found.model)
    data = TensorDataset(found.x.view(-1, 1, 3, 4), found.y, torch.arange(len(found.y)))
    visualizer = Asked(steps=4)
    finding = compare(
        model, DataLoader(data, 128), lambda b: torch.where(draw[b[2]], (b[1] + 1) % 4, b[1]),
        target=1, layers=["1.hidden"], visualizer=visualizer, attribution=False,
        studies=[Groups(ablation_samples=0)], top_k=1,
    ).studies["groups"]  # fmt: skip
    frame = finding.to_dataframe()
    assert [figure.name for figure in finding.figures] == [f"1.hidden, group {g}" for g in (0, 1)]
    hidden = found.model.hidden(found.x).relu().detach()  # type: ignore[operator]
    for units, target in zip(frame.units, visualizer.directions, strict=True):
        mine = [int(unit) for unit in units.split(", ")]
        for unit, weight in enumerate(target.unit.tolist()):
            wanted = 1 / (float(hidden[:, unit].std(correction=0)) * 12) if unit in mine else 0.0
            assert abs(weight) == pytest.approx(wanted, rel=1e-3)


class Fails(FeatureVisualizer):
    """Knows no directions."""

    def render(self, forward: Any, layers: Any, targets: Any, prior: Any, **more: Any) -> Any:
        if isinstance(targets[0].unit, Tensor):
            raise TypeError("an index, please")
        return super().render(forward, layers, targets, prior, **more)


def test_groups_stay_where_the_visualizer_knows_no_directions() -> None:
    found = streams()
    draw = torch.rand(len(found.y), generator=torch.Generator().manual_seed(6)) < 0.6
    data = TensorDataset(found.x.view(-1, 1, 3, 4), found.y, torch.arange(len(found.y)))
    finding = compare(
        nn.Sequential(nn.Flatten(), found.model), DataLoader(data, 128),
        lambda b: torch.where(draw[b[2]], (b[1] + 1) % 4, b[1]), target=1, top_k=1,
        layers=["1.hidden"], visualizer=Fails(steps=4), attribution=False,
        studies=[Groups(ablation_samples=0)],
    ).studies["groups"]  # fmt: skip
    assert len(finding.to_dataframe()) == 2
    assert not finding.figures
    assert "an index, please" in " ".join(finding.notes)


class TwoClasses(nn.Module):
    """Two classes from four, by one logit or by two."""

    def __init__(self, net: nn.Module, logits: int) -> None:
        super().__init__()
        self.net, self.logits = net, logits

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x).unflatten(1, (2, 2)).logsumexp(2)
        return z if self.logits == 2 else z[:, 1:] - z[:, :1]


def test_one_logit_loses_without_a_group_what_two_lose() -> None:
    found = streams()
    draw = torch.rand(len(found.y), generator=torch.Generator().manual_seed(6)) < 0.6
    data = TensorDataset(found.x, (found.y >= 2).long(), torch.arange(len(found.y)))
    frames = []
    for logits in (1, 2):
        report = compare(
            TwoClasses(found.model, logits).eval(), DataLoader(data, 128),
            lambda batch: torch.where(draw[batch[2]], 1 - batch[1], batch[1]), target=1,
            layers=["net.hidden"], studies=[Groups()],
        )  # fmt: skip
        frames.append(report.studies["groups"].to_dataframe())
    assert len(frames[0])
    assert frames[0].ablation.max() < 0.5
    np.testing.assert_allclose(*(f[["ablation", "ablation_random"]] for f in frames))


def test_sets_of_labels_have_no_class_to_compare_in() -> None:
    found = world()
    several = nn.functional.one_hot(found.y, 4) + nn.functional.one_hot((found.y + 1) % 4, 4)
    loader = DataLoader(TensorDataset(found.x, several.float()), 128)
    for study in (Words(), Slices(), Groups(), Readout()):
        with pytest.raises(ValueError, match="one true class per sample"):
            compare(
                found.model, loader, lambda batch: batch[1].flip(1), target=1, studies=[study],
                advantage="exact_match", attribution=False, metadata=found.metadata,
            )  # fmt: skip


def test_layers_without_groups_say_so() -> None:
    g = torch.Generator().manual_seed(9)
    x = torch.randn(800, 12, generator=g)
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(12))  # twelve sources that share nothing
        y = model(x).argmax(1)
    found = World(model.eval(), x, y, np.zeros(800), torch.zeros(4, 12))
    wrong = torch.randint(0, 2, (800,), generator=g)
    finding = asked([Groups()], found, lambda b: (b[1] + wrong[b[2]]) % 4, layers=["0"])["groups"]
    assert finding.state == "measured"
    assert len(finding.to_dataframe()) == 0
    assert any("No groups in 0" in note for note in finding.notes)


class Exclusive(nn.Module):
    """Whether two inputs differ in sign becomes linear in the third layer only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.three, self.head = nn.Linear(2, 4), nn.Linear(4, 2)
        with torch.no_grad():
            for turn in (self.one, self.two):
                turn.weight.copy_(torch.tensor([[0.8, -0.6], [0.6, 0.8]]))
            back = torch.linalg.inv(self.two.weight @ self.one.weight)
            signs = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1]])
            self.three.weight.copy_(signs @ back)
            self.three.bias.zero_()
            self.head.weight.copy_(torch.tensor([[1.0, 1, -1, -1], [-1, -1, 1, 1]]))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.three(self.two(self.one(x))).relu())


def test_the_advantage_becomes_readable_at_the_planted_depth() -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(1200, 2, generator=g)
    y = (x[:, 0] * x[:, 1] < 0).long()
    found = World(Exclusive().eval(), x, y, np.zeros(1200), torch.zeros(4, 12))  # type: ignore[arg-type]
    noise = torch.randint(0, 2, (1200,), generator=g)
    finding = asked([Readout()], found, lambda batch: noise[batch[2]])["readout"]
    frame = finding.to_dataframe().set_index("layer")
    before, after = frame.loc["two"], frame.loc["three"]
    assert frame.loc["one"].accuracy_only_model < 0.65
    assert abs(before.accuracy_only_model - frame.loc["one"].accuracy_only_model) <= 0.05
    assert after.gain >= 0.3
    assert abs(after.shuffled - 0.5) < 0.15
    assert "three" in finding.headline


class Single(nn.Module):
    """Says the same class whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(12, 6), nn.Linear(6, 2)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(torch.tensor([9.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu())


def test_what_a_model_that_says_one_class_seems_to_tell_is_what_chance_tells() -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.randn(1200, 12, generator=g)
    y = (torch.rand(1200, generator=g) < 0.4).long()  # nothing that x tells
    noise = torch.randint(0, 2, (1200,), generator=g)
    found = World(Single().eval(), x, y, np.zeros(1200), torch.zeros(4, 12))  # type: ignore[arg-type]
    frame = asked([Readout()], found, lambda batch: noise[batch[2]])["readout"].to_dataframe()
    assert (frame.accuracy_only_model > 0.8).all()  # the wins are all of class 0
    assert (frame.accuracy_only_model - frame.by_chance).abs().max() < 1e-6


def test_chance_is_how_often_answers_and_labels_of_any_two_samples_agree() -> None:
    rng = np.random.default_rng(0)
    read, target = rng.integers(-1, 4, 50), rng.integers(0, 3, 50)
    slow = np.mean([one == other for one in read for other in target])
    assert _by_chance(read, target) == pytest.approx(slow)


def test_the_copy_is_asked_about_a_fifth_and_the_model_about_the_same() -> None:
    found = asked([Readout()])["readout"]
    frame = found.to_dataframe()
    assert "asked about 500 samples" in found.notes[0]
    alone = asked([Readout(max_samples=500)])["readout"].to_dataframe()
    assert frame.trained.tolist() == alone.accuracy_only_model.tolist()
    assert frame.untrained.tolist() == alone.untrained.tolist()
    assert (frame.trained > frame.untrained).iloc[1:].all()


@pytest.mark.parametrize(
    ("studies", "more", "said"),
    [
        ([Words()], {"metadata": None}, "Expected `metadata` for the study Words"),
        ([Slices(without_words=False)], {"metadata": None}, "Expected `metadata` for Slices"),
        ([Matches()], {}, "Expected a network to compare with"),
        ([Words(), Words()], {}, "a `name` of its own"),
        *(
            ([study], {"advantage": lambda p, b, t: p.mean(1) - b.float()}, "right or wrong")
            for study in (Words(), Slices(), Groups(), Readout())
        ),
    ],
)
def test_what_cannot_work_is_refused_early(
    studies: list[Any], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        asked(studies, **more)


def test_against_a_placebo_every_layer_tells_of_wins_what_it_tells_of_all() -> None:
    found = world()
    frame = asked([Readout()], baseline=shuffled(found))["readout"].to_dataframe()
    assert (frame.accuracy_only_model - frame.accuracy_both).abs().max() < 0.1
    assert (frame.shuffled - 0.25).abs().max() < 0.15


class Rolled(nn.Module):
    """A network that is given the next sample of the batch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.roll(1, 0))


def test_one_process_makes_no_copy_of_what_was_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_neurocorr.functional.matching import CrossMoments

    def copied(self: Any) -> None:
        raise AssertionError("ten thousand neurons by as many are 400 MB")

    monkeypatch.setattr(CrossMoments, "__getstate__", copied)
    assert asked([Matches(net(), untrained=False)])["matches"].state == "measured"


def test_nobody_matches_a_network_on_other_samples() -> None:
    frame = asked([Matches(Rolled(world().model), untrained=False)])["matches"].to_dataframe()
    assert frame.r.max() < 0.2
    assert frame.novelty.min() > 0.8


def test_no_groups_in_columns_that_are_shuffled_within_class() -> None:
    found = streams()
    draw = torch.rand(len(found.y), generator=torch.Generator().manual_seed(6)) < 0.6
    with torch.no_grad():
        hidden = found.model.hidden(found.x).relu()  # type: ignore[operator]
        mixed, g = hidden.clone(), torch.Generator().manual_seed(8)
        for column in mixed.T:
            for c in range(4):
                mine = (found.y == c).nonzero().squeeze(1)
                column[mine] = column[mine[torch.randperm(len(mine), generator=g)]]

    class Says(nn.Module):
        """Says columns again, and the answers of the network."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(24, 24)
            with torch.no_grad():
                nn.init.eye_(self.hidden.weight)
                self.hidden.bias.zero_()

        def forward(self, x: Tensor) -> Tensor:
            self.hidden(x[:, :24])
            return x[:, 24:]

    rows = {}
    for name, a in (("real", hidden), ("shuffled", mixed)):
        said = World(Says(), torch.cat([a, found.model(found.x).detach()], 1), found.y,  # type: ignore[arg-type]
                     found.turned, found.pictures)  # fmt: skip
        finding = asked(
            [Groups(ablation_samples=0)], said,
            lambda b: torch.where(draw[b[2]], (b[1] + 1) % 4, b[1]), layers=["hidden"],
        )["groups"]  # fmt: skip
        rows[name] = len(finding.to_dataframe())
    assert rows == {"real": 2, "shuffled": 0}


def test_words_of_other_samples_are_not_given() -> None:
    found, draw, slices = world(), np.random.default_rng(3), 0
    for _ in range(6):
        order = draw.permutation(len(found.y))
        mixed = {name: values[order] for name, values in found.metadata.items()}
        findings = asked([Words(formulas=0), Slices(without_words=False)], metadata=mixed)
        frame = findings["words"].to_dataframe()
        assert (frame.word.isna() | frame.word.str.startswith("class")).mean() >= 0.95
        assert frame.advantage_word.isna().mean() >= 0.95
        slices += len(findings["slices"].to_dataframe())
    assert slices <= 2  # each run may err once in twenty


def test_each_study_takes_as_many_samples_as_it_wants() -> None:
    alone = asked([Readout(max_samples=400)])["readout"].to_dataframe()
    both = asked([Readout(max_samples=400), Words(), Slices()])["readout"].to_dataframe()
    pd.testing.assert_frame_equal(alone, both)


def test_the_untrained_copy_runs_once_for_all() -> None:
    found, seen = world(), []

    def count(*_: Any) -> None:
        seen.append(1)

    numbers = []
    for studies in ([], [Readout()], [Matches(net())], [Readout(), Matches(net())]):
        seen.clear()
        handle = found.model.register_forward_hook(count)
        asked(studies, metadata=None)
        handle.remove()
        numbers.append(len(seen))
    plain, one, other, together = numbers
    assert other > one > plain
    assert together == one


def test_too_little_to_tell_is_said() -> None:
    found = world()
    right = asked([Slices(), Groups(), Readout()], baseline=lambda batch: batch[1])
    for name in ("slices", "groups", "readout"):
        assert right[name].state == "refused", name
        assert "validation set" in right[name].why or "right for the model" in right[name].why
    words = [Words(), Slices(without_words=False)]
    same = asked(words, metadata={"same": np.ones(len(found.y))})
    assert "the same for every sample" in " ".join(same["words"].notes)
    assert len(same["slices"].to_dataframe()) == 0


def test_the_file_keeps_all_of_it(tmp_path: Path) -> None:
    found = world()
    report = compare(
        found.model, found.loader, found.baseline, target=1, attribution=False,
        metadata=found.metadata, studies=[Words(), Slices(), Readout(untrained=False)],
    )  # fmt: skip
    again = NeuronReport.load(report.save(tmp_path / "report.npz"))
    for name, finding in report.studies.items():
        assert repr(again.studies[name]) == repr(finding)


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


def own(studies: Any) -> NeuronAdvantage:
    found = world()
    return NeuronAdvantage(
        found.baseline, target=1, metadata=found.metadata, studies=studies, visualizer=None,
        attribution=False, sample_id=2,
    )  # fmt: skip


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


def net() -> nn.Module:
    """Another network of the same make."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(13, 6), nn.ReLU(), nn.Linear(6, 4))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_find_the_same(tmp_path: Path, world_size: int) -> None:
    alone = run_all(["own_studies"])["own_studies"]
    command = [sys.executable, "-m", "tests.test_own_studies", str(world_size), str(tmp_path)]
    done = subprocess.run(
        [*command, "own_studies"], cwd=Path(__file__).parents[1], capture_output=True, text=True,
        timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    first = torch.load(tmp_path / "0.pt", weights_only=False)["own_studies"]
    assert "failure" not in first, first
    assert first["states"] == alone["states"]
    for name in ("words", "slices", "groups", "readout", "matches"):
        for column, values in alone[name].items():
            if not values or isinstance(values[0], str) or values[0] is None:
                assert first[name][column] == values, (name, column)
            else:
                np.testing.assert_allclose(first[name][column], values, atol=2e-4, err_msg=column)


if __name__ == "__main__":
    main()
