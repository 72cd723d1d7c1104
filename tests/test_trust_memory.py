"""Memory is flat: batches and activations die, and nothing but the history grows."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_neurocorr import BatchBaseline, NeuronAdvantage
from tests.flat_memory import EVERY, VALIDATIONS
from tests.paper_model import PaperModule, PaperSet, paper_loader, paper_trainer

WARM = 80


def test_memory_is_flat_over_two_hundred_validations(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.flat_memory", str(tmp_path)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["history"] == VALIDATIONS
    assert found["seen"] >= VALIDATIONS * 2 * 5
    # Lightning itself may hold on to the last batch; nothing piles up.
    assert max(found["alive"]) <= 10
    assert len(set(found["tensors"][1:])) == 1
    if found["resident"]:
        late = found["resident"][WARM // EVERY :]
        growth = np.polyfit(EVERY * np.arange(len(late)), late, 1)[0]
        assert growth < 24_000  # bytes per validation, of which history takes about 500


def test_loaders_and_model_are_let_go_after_a_run() -> None:
    callback = NeuronAdvantage(BatchBaseline(2), "model.detector", target=1, visualizer=None)

    def run() -> tuple[Any, Any]:
        module, data = PaperModule(), PaperSet()
        loader = torch.utils.data.DataLoader(data, 10)
        paper_trainer(callback, max_epochs=1).fit(module, paper_loader(), loader)
        return weakref.ref(module), weakref.ref(data)

    refs = run()
    for name in ("log", "log_dict"):  # Lightning hangs the module's own on every callback
        vars(callback).pop(name)
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
