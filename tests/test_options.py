"""One list of options: both front doors take it, and refuse the same with the same words."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_neurocorr import (
    Ablation,
    BatchBaseline,
    FeatureVisualizer,
    NeuronAdvantage,
    TableBaseline,
    compare,
)
from lightning_neurocorr.validation.options import Options
from tests.paper_model import PaperNet, PaperSet, paper_loader, watch

OF_ONE_DOOR = {"every_n_validations", "dataloaders"}  # a call is one validation over one loader
OWN = {"self", "model", "loader", "progress"}


@pytest.mark.parametrize("door", [NeuronAdvantage, compare])
def test_a_door_has_every_option_with_its_default_and_its_line(door: Any) -> None:
    """Nothing that is asked for gets lost on the way, and nothing has two defaults."""
    taken = inspect.signature(door).parameters
    missing = set(Options.names()) - set(taken)
    assert missing == (OF_ONE_DOOR if door is compare else set())
    assert set(taken) - set(Options.names()) <= OWN
    defaults = {
        name: option.default for name, option in inspect.signature(Options).parameters.items()
    }
    for name in taken.keys() - OWN - {"attribution", "visualizer", "inspector"}:
        assert taken[name].default == defaults[name], name
        assert f"        {name}: " in (door.__doc__ or ""), name


WRONG: list[dict[str, Any]] = [
    {"advantage": "accuracy"},
    {"predictions": 3},
    {"class_names": "cat"},
    {"class_names": [1, 2]},
    {"class_names": {"cat": "dog"}},
    {"inspector": True},
    {"output": 2},
    {"pooling": "median"},
    {"top_k": 0},
    {"top_k": "x"},
    {"top_k": True},
    {"attribution": "yes"},
    {"attribution": 1},
    {"ablation": True},
    {"ablation": Ablation(by="attribution"), "attribution": False},
    {"placebo": 3},
    {"placebo": True, "advantage": "log_prob"},
    {"second_pass": {"neurons": 3}},
    {"visualizer": "lucent"},
    {"visualizer": FeatureVisualizer},
    {"sample_id": 1.5},
    {"sample_id": True},
    {"inputs": ""},
    {"to_image": "rgb"},
    {"num_classes": 1},
    {"num_classes": 3.0},
    {"name": ""},
    {"baseline": "majority"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_both_doors_refuse_the_same_with_the_same_words(wrong: dict[str, Any]) -> None:
    said = []
    for door in (
        lambda: watch(**wrong),
        lambda: compare(PaperNet(), paper_loader(), **{"baseline": BatchBaseline(2), **wrong}),
    ):
        with pytest.raises(
            (TypeError, ValueError), match=f"Expected `({'|'.join(wrong)}|by)`"
        ) as error:
            door()
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


def test_options_are_attributes_of_the_callback_and_stay_as_given() -> None:
    callback = watch(top_k=3, attribution=False, dataloaders=[0])
    assert (callback.top_k, callback.attribution, callback.dataloaders) == (3, None, (0,))
    assert isinstance(callback.baseline, BatchBaseline)
    for twin in (
        copy.deepcopy(callback),
        copy.copy(callback),
        pickle.loads(pickle.dumps(callback)),
    ):
        assert twin.top_k == 3
    with pytest.raises(AttributeError, match="no attribute 'topk'"):
        callback.topk  # noqa: B018
    with pytest.raises(AttributeError, match=r"`top_k`.*new NeuronAdvantage"):
        callback.top_k = 5
    assert callback.top_k == 3


def test_compare_reads_ids_and_an_inner_output() -> None:
    """A shuffled loader has ids for positions; ``output`` names the classifier."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = PaperNet()

        def forward(self, x: torch.Tensor) -> str:
            self.inner(x)
            return "no tensor"

    data = PaperSet(as_dict=True)
    rows = [{**data[i], "id": 100 + i} for i in range(len(data))]
    answers = TableBaseline({100 + i: int(a) for i, a in enumerate(data.answer)}, id="id")
    shuffled = DataLoader(rows, batch_size=10, shuffle=True)  # type: ignore[arg-type]
    found = compare(
        Wrapped(), shuffled, answers, "inner.*", output="inner", sample_id="id", attribution=True
    )
    plain = compare(PaperNet(), paper_loader(), BatchBaseline(2), target=1)
    assert found.outcomes == plain.outcomes
    for name in ("r", "attribution", "r_within_class"):
        np.testing.assert_allclose(found.column(name), plain.column(name), atol=1e-6, err_msg=name)
