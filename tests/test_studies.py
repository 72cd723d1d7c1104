"""One door for every new question: a made-up study in this file, and nothing else touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lightning_neurocorr.studies import (
    Column,
    Figure,
    Finding,
    Heard,
    Listener,
    Look,
    Start,
    Study,
    Table,
)


# --- the rehearsal of docs/contributing.md: a study of forty lines ------------------------------
class Sums(Listener):
    """The sum of every neuron over samples that only the model gets right."""

    def __init__(self) -> None:
        self.n, self.total = torch.zeros(()), {}

    def add(self, heard: Heard) -> None:
        mine = (heard.advantage > 0).double()
        self.n = self.n + mine.sum()
        for layer, part in heard.activations.items():
            self.total[layer] = self.total.get(layer, 0) + mine @ part.double()

    def merge(self, other: Sums) -> None:
        self.n = self.n + other.n
        for layer, total in other.total.items():
            self.total[layer] = self.total.get(layer, 0) + total


@dataclass(frozen=True)
class Won(Study):
    """Listens, runs samples again, and reads the report."""

    about = "The mean activation where only the model is right, heard once and run again."
    needs = ("outcomes", "positions")
    most: int = 1000

    def listen(self, start: Start) -> Listener:
        return Sums()

    def find(self, look: Look) -> Finding:
        won = look.drawn(self.most, look.samples.outcome == 1)
        again = [heard.activations for heard in look.again(won)]
        sizes = dict(zip(look.report.layers, look.report.sizes, strict=True))
        columns: dict[str, Any] = {
            "layer": np.repeat(list(sizes), list(sizes.values())).tolist(),
            "unit": np.concatenate([np.arange(n) for n in sizes.values()]),
            "heard": torch.cat([look.heard.total[name] / look.heard.n for name in sizes]).numpy(),
            "again": torch.cat([torch.cat([a[n] for a in again]).mean(0) for n in sizes]).numpy(),
            "r": look.report.column("r"),
        }
        formats = {"layer": "text", "unit": "count", "r": "signed"}
        declared = tuple(Column(c, f"the {c}", format=formats.get(c, "number")) for c in columns)
        picture = Figure("white", np.full((4, 4, 3), 255, np.uint8), "nothing to see")
        n = int(look.heard.n)
        table = Table("neuron", declared, columns)
        return Finding(
            "Won", self.about, headline=f"Won {n} samples.", tables=(table,), figures=(picture,),
            numbers={"won": n},
        )  # fmt: skip


# --- its end -------------------------------------------------------------------------------------
