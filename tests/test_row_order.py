"""Rows in another order than that of the samples are noticed, and nothing else is taken for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from lightning_neurocorr import NeuronAdvantage, TableBaseline, compare
from lightning_neurocorr.samples import LoaderPositions, collates_in_order, reordered

N = 48


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(N, 4, generator=generator)
    return TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 0).long())


def plain(samples: list[Any]) -> Any:
    return default_collate(samples)


def numbered(samples: list[Any]) -> Any:
    return [*default_collate(samples), torch.arange(len(samples))]


def packed(samples: list[Any]) -> Any:
    x = pack_sequence([x[: 1 + int(y)] for x, y in samples], enforce_sorted=False)
    return x, torch.stack([y for _, y in samples])


def noisy(samples: list[Any]) -> Any:
    return default_collate([(x + torch.rand(4), y) for x, y in samples])


def broken(samples: list[Any]) -> Any:
    return default_collate(samples) if len(samples) == N else 1 / 0


def by_value(samples: list[Any]) -> Any:
    return default_collate(sorted(samples, key=lambda sample: -float(sample[0][0])))


def by_label(samples: list[Any]) -> Any:  # with ties, as lengths have
    x, y = default_collate(sorted(samples, key=lambda sample: int(sample[1])))
    return {"inputs": {"x": x}, "labels": y}


def turned(samples: list[Any]) -> Any:
    return default_collate(samples[::-1])


@pytest.mark.parametrize("collate", [plain, numbered, packed, noisy, broken])
def test_a_collate_fn_that_keeps_the_order(collate: Callable[..., Any]) -> None:
    assert LoaderPositions(DataLoader(data(), 24, collate_fn=collate)).known


@pytest.mark.parametrize("collate", [by_value, by_label, turned])
def test_a_collate_fn_that_sorts(collate: Callable[..., Any]) -> None:
    loader = DataLoader(data(), 24, collate_fn=collate)
    before = torch.get_rng_state()
    assert LoaderPositions(loader).unknown.endswith("in another order")
    assert torch.equal(torch.get_rng_state(), before)
    net = nn.Sequential(nn.Linear(4, 3))
    inputs = (lambda batch: batch["inputs"]["x"]) if collate is by_label else None
    table = TableBaseline(torch.zeros(N).numpy())
    with pytest.raises(ValueError, match=r"its `collate_fn` puts the samples .* give the table"):
        compare(net, loader, table, inputs=inputs)


def test_files_that_a_data_set_opens_are_not_those_of_its_workers() -> None:
    class Lazy(TensorDataset):
        opened = False

        def __getitem__(self, index: int) -> Any:
            self.opened = True
            return super().__getitem__(index)

    lazy = Lazy(*data().tensors)
    assert not collates_in_order(DataLoader(Subset(lazy, range(40)), 20, collate_fn=by_value))
    assert not lazy.opened


def test_another_order_and_what_only_looks_like_it() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (40,), generator=generator)
    scores = torch.randn(40, 4, generator=generator)
    order = torch.randperm(40, generator=generator)
    assert reordered(labels[order], labels)
    assert reordered(scores[order], scores)
    assert not reordered(labels, labels)
    assert not reordered((labels + 1) % 4, labels)  # renamed
    swapped = labels.clone()
    first, second = int((labels == 0).int().argmax()), int((labels == 1).int().argmax())
    swapped[first], swapped[second] = 1, 0  # another reader, who says it twice otherwise
    assert not reordered(swapped, labels)
    assert not reordered(scores + 1, scores)
    assert not reordered(labels[:1], labels[:1])


class Sorting(LightningModule):
    """Sorts a batch before its forward, as recurrent networks are shown to."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net, self.how = nn.Linear(4, 3), how

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def validation_step(self, batch: Any, _: int) -> Any:
        x, y = batch
        order = x[:, 1].argsort() if "sorted" in self.how else torch.arange(len(x))
        logits, back = self(x[order]), order.argsort()
        forms: dict[str, Callable[[], Any]] = {
            "sorted": lambda: {"logits": logits, "target": y[order]},
            "sorted back": lambda: {"logits": logits[back], "target": y},
            "ids sorted back": lambda: {"preds": logits[back].argmax(1), "target": y},
            "labels only": lambda: {"logits": logits, "target": y[x[:, 1].argsort()]},
            "renamed": lambda: {"logits": logits, "target": 2 - y},
        }
        return forms[self.how]()


def validate(how: str) -> NeuronAdvantage:
    callback = NeuronAdvantage(lambda batch: batch[1] * 0, "net", visualizer=None)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[callback],
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.validate(Sorting(how), DataLoader(data(), 24), verbose=False)
    return callback


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("sorted", "target"),
        ("sorted back", "prediction"),
        ("ids sorted back", "prediction"),
        ("labels only", "target"),
    ],
)
def test_a_validation_step_that_sorts(how: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"Expected the {what} to have its rows in the order"):
        validate(how)


def test_labels_that_were_renamed_are_not_sorted() -> None:
    report = validate("renamed").report
    x, y = data().tensors
    right = Sorting("renamed").net(x).argmax(1) == 2 - y
    assert report is not None
    assert report.outcomes.model_accuracy == float(right.double().mean())
