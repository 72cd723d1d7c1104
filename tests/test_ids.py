"""An id is not a position: every exemplar shows its own image and the id that the user gave it.

The truth is a plain loop: each image through the first layer alone, sorted in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from lightning_neurocorr import Ablation, FeatureVisualizer, NeuronAdvantage, compare
from lightning_neurocorr.exemplars import PassingImages
from lightning_neurocorr.exemplars.passing import is_among
from lightning_neurocorr.report import NeuronReport
from tests.ddp_run import Net
from tests.paper_model import paper_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*shuffling enabled")
N = 60


class Pictures(Dataset[Any]):
    """``{x, y, answer, case}``: images in [0, 1], no two alike."""

    def __init__(self, ids: list[Any]) -> None:
        draw = torch.Generator().manual_seed(2)
        self.y = torch.randint(0, 3, (N,), generator=draw)
        self.x = torch.rand(N, 1, 6, 6, generator=draw) * 0.7 + 0.1 * self.y[:, None, None, None]
        self.answer = torch.where(torch.rand(N, generator=draw) < 0.5, self.y, (self.y + 1) % 3)
        self.ids = ids

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return {"x": self.x[i], "y": self.y[i], "answer": self.answer[i], "case": self.ids[i]}


class Stream(IterableDataset[Any]):
    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __iter__(self) -> Iterator[Any]:
        return (self.pictures[i] for i in torch.randperm(N).tolist())


MIXED = torch.randperm(N, generator=torch.Generator().manual_seed(0)).tolist()
IDS: dict[str, list[Any]] = {
    "permuted": MIXED,
    "large": [10_000 + 3 * i for i in MIXED],
    "larger than any integer of a tensor": [2**70 + i for i in MIXED],
    "negative": [-1 - i for i in MIXED],
    "text": [f"case-{i:03d}" for i in MIXED],
    "repeated": [i // 2 for i in range(N)],
}
LOADERS: dict[str, Callable[[Pictures], Any]] = {
    "sequential": lambda data: DataLoader(data, batch_size=8, collate_fn=collate),
    "shuffled": lambda data: DataLoader(data, batch_size=8, shuffle=True, collate_fn=collate),
    "iterable": lambda data: DataLoader(Stream(data), batch_size=8, collate_fn=collate),
}


def collate(samples: list[Any]) -> Any:
    """Ids as a list, because those beyond 64 bits are no tensor."""
    batch = default_collate([{k: v for k, v in s.items() if k != "case"} for s in samples])
    return batch | {"case": [sample["case"] for sample in samples]}


class Model(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - 0.5) * 6)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self(batch["x"])


def strongest(data: Pictures, layer: str, unit: int, among: list[int]) -> list[int]:
    """Indices of the samples that drive a neuron most, one image at a time."""
    model, found = Model().eval(), []
    for i in among:
        heard: list[Tensor] = []
        hook = model.get_submodule(layer).register_forward_hook(lambda *a, h=heard: h.append(a[2]))
        with torch.no_grad():
            model(data.x[i : i + 1])
        hook.remove()
        found.append((-float(heard[0][0, unit].mean()), i))
    return [i for _, i in sorted(found)]


def only_model(data: Pictures) -> list[int]:
    with torch.no_grad():
        right = Model().eval()(data.x).argmax(1) == data.y
    return (right & (data.answer != data.y)).nonzero().squeeze(1).tolist()


def looked_at(loader: Any, **more: Any) -> NeuronReport:
    options: dict[str, Any] = {
        "attribution": False,
        "at": "raw",  # as the loop listens
        "to_image": lambda x: x,
        "top_k": 3,
        "visualizer": FeatureVisualizer(steps=1),
    }
    callback = NeuronAdvantage(lambda batch: batch["answer"], **options | more)
    paper_trainer(callback).validate(Model(), loader, verbose=False)
    assert callback.report is not None
    return callback.report


def assert_shows_the_right(report: NeuronReport, data: Pictures, *, ids: bool) -> int:
    """Every exemplar is the one that the loop finds, with its own image; how many there were."""
    known = {data.x[i].numpy().tobytes(): i for i in range(N)}
    count = 0
    assert len(report.panels) == 3
    for panel in report.panels:
        for group, among in ((panel.exemplars, range(N)), (panel.only_model, only_model(data))):
            expected = strongest(data, panel.layer, panel.unit, list(among))[:4]
            assert len(group) == len(expected)
            for sample, index in zip(group, expected, strict=True):
                assert sample.image is not None
                assert known[sample.image.tobytes()] == index
                assert sample.target == data.y[index]
                assert sample.id == (data.ids[index] if ids else None)
                assert type(sample.id) is (type(data.ids[index]) if ids else type(None))
                count += 1
        for alone, match in zip(panel.only_model, panel.matched, strict=True):
            assert match.image is not None
            index = known[match.image.tobytes()]
            assert data.y[index] == alone.target == match.target
            assert match.outcome == "both"
            assert match.id == (data.ids[index] if ids else None)
    return count


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("ids", IDS)
def test_exemplars_show_their_own_image_and_id(kind: str, ids: str) -> None:
    data = Pictures(IDS[ids])
    report = looked_at(LOADERS[kind](data), sample_id="case")
    assert assert_shows_the_right(report, data, ids=True) > 12
    for panel in report.panels:
        for sample in (*panel.exemplars, *panel.only_model, *panel.matched):
            known = kind == "sequential"
            assert (sample.position >= 0) == known
            if known:
                assert np.array_equal(sample.image, data.x[sample.position].numpy())
    twice = [note for note in report.notes if "have an id that a sample before them has" in note]
    assert len(twice) == (ids == "repeated")
    assert not twice or twice[0].startswith("30 of 60 samples")
    assert not twice or "p and q count them as independent" in twice[0]


@pytest.mark.parametrize("kind", LOADERS)
def test_without_ids_exemplars_have_their_images_too(kind: str) -> None:
    data = Pictures(IDS["permuted"])
    report = looked_at(LOADERS[kind](data))
    assert assert_shows_the_right(report, data, ids=False) > 12
    assert not any("exemplars" in note for note in report.notes)


def test_a_notebook_has_ids_and_images_too() -> None:
    data = Pictures(IDS["text"])
    report = compare(
        Model().eval(), LOADERS["shuffled"](data), lambda batch: batch["answer"], inputs="x",
        attribution=False, visualizer=FeatureVisualizer(steps=1), to_image=lambda x: x, top_k=3,
        sample_id="case", at="raw",
    )  # fmt: skip
    assert assert_shows_the_right(report, data, ids=True) > 12


@pytest.mark.parametrize("ids", IDS)
def test_a_sample_is_in_the_same_half_whatever_the_order(ids: str) -> None:
    data = Pictures(IDS[ids])
    found = []
    for kind in ("sequential", "shuffled", "iterable"):
        report = looked_at(LOADERS[kind](data), sample_id="case", visualizer=None)
        found.append(report.column("r_replicated"))
        assert np.isfinite(found[-1]).all()
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)


def test_ids_do_not_stand_in_for_positions() -> None:
    data = Pictures(IDS["permuted"])
    options = {"sample_id": "case", "ablation": Ablation(by="r"), "visualizer": None}
    with pytest.warns(UserWarning, match="draws its samples by a RandomSampler, whose order"):
        report = looked_at(LOADERS["shuffled"](data), **options)
    assert np.isnan(report.columns.get("ablation", np.array([np.nan]))).all()


# --- in bounded memory ----------------------------------------------------------------------------


def test_what_is_wanted_stays_and_memory_is_bounded() -> None:
    one = torch.zeros(1, 4, 4)
    passing = PassingImages(budget=10 * one.numel() * 4)
    assert passing.room(one) == 7
    most = 0
    for start in range(0, 200, 5):
        numbers = torch.arange(start, start + 5)
        wanted = torch.cat([torch.tensor([0, 17]), numbers[1:4]])
        images = numbers[:, None, None, None].float().expand(5, 1, 4, 4)
        passing.add(images, numbers, wanted, lambda wanted=wanted: wanted)
        most = max(most, len(passing.images))
    assert most <= 10
    assert {0, 17, 196, 197, 198} <= set(passing.images)
    for number, image in passing.images.items():
        assert (image == number).all()
        assert image.untyped_storage().nbytes() == 64  # no view of a batch


def test_numbers_are_found_without_waiting() -> None:
    wanted = torch.tensor([9, 3, 3, 50, 0])
    numbers = torch.tensor([4, 3, 100, 0, 50, -1])
    assert is_among(numbers, wanted).tolist() == torch.isin(numbers, wanted).tolist()
    assert not is_among(numbers, wanted[:0]).any()


def test_accelerators_say_later_what_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        waits = 0

        def __init__(self, device: torch.device) -> None: ...
        def record(self) -> None: ...
        def synchronize(self) -> None:
            Event.waits += 1

    monkeypatch.setattr("lightning_neurocorr.exemplars.passing.may_wait", lambda tensor: False)
    monkeypatch.setattr(torch, "Event", Event)
    passing = PassingImages()
    for turn in range(4):
        numbers = torch.arange(3) + 10 * turn
        images = numbers[:, None, None, None].float()
        passing.add(images, numbers, numbers[1:2], lambda numbers=numbers: numbers)
        assert Event.waits == max(0, turn - 1)
    passing.close()
    assert sorted(passing.images) == [1, 11, 21, 31]


def test_images_that_do_not_fit_are_missed_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_neurocorr.exemplars.passing.BUDGET_BYTES", 24 * 36 * 4)
    data = Pictures(IDS["text"])
    with pytest.warns(UserWarning, match="exemplars have no image: where positions are not known"):
        report = looked_at(LOADERS["shuffled"](data), sample_id="case")
    known = {data.x[i].numpy().tobytes(): i for i in range(N)}
    samples = [s for panel in report.panels for s in (*panel.exemplars, *panel.only_model)]
    there = [sample for sample in samples if sample.image is not None]
    assert there
    for sample in there:
        assert data.ids[known[sample.image.tobytes()]] == sample.id
    assert all(sample.id is not None for sample in samples)


def test_no_images_no_memory() -> None:
    data = Pictures(IDS["text"])
    report = looked_at(LOADERS["shuffled"](data), sample_id="case", visualizer=None)
    assert report.panels == ()
