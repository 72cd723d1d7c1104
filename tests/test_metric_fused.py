"""The compiled sums against those of blocks."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_neurocorr.metric import NeuronAdvantageCorrelation, reduction
from lightning_neurocorr.metric import fused as fusing
from tests.helpers import all_pearson, assert_same_r, seeded, streamed
from tests.neurons import ROWS, D, related


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A kernel that is traced but not compiled; gives the numbers of samples that went its way."""
    monkeypatch.setattr(fusing, "BACKEND", "eager")
    taken: list[int] = []
    add = reduction.add_fused_
    monkeypatch.setattr(
        reduction, "add_fused_", lambda *parts: taken.append(add(*parts)) or taken[-1]
    )
    torch.compiler.reset()
    compiled = fusing._compiled
    compiled.cache_clear()
    yield taken
    compiled.cache_clear()
    torch.compiler.reset()


@pytest.mark.parametrize("row", ROWS)
def test_a_fused_sum_is_exact_to_1e_6(row: str, fused: list[int]) -> None:
    x, a = related(2000)
    x = ROWS[row](x)
    assert_same_r(streamed(x, a, (300,), compile=True), all_pearson(x, a))
    assert fused == [288] * 6 + [192]


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e9, 3e38])
def test_constant_neurons_are_nan_fused_too(constant: float, fused: list[int]) -> None:
    x, a = torch.full((300, 3), constant), torch.randn(300, generator=seeded())
    assert np.isnan(streamed(x, a, (100,), compile=True)).all()
    assert fused == [96] * 3


def test_fused_moments_are_those_of_blocks(fused: list[int]) -> None:
    x, a = related(700, 40_000)
    x = x.relu() * (torch.arange(40_000) % 5)
    columns = torch.rand(700, 2, generator=seeded(3)).double()
    settings = {"num_covariates": 2, "count_active": True}
    whole, blocks = (
        NeuronAdvantageCorrelation(40_000, compile=on, **settings) for on in (True, False)
    )
    whole.update([x[:650]], a[:650], columns[:650])
    whole.update(x[650:], a[650:], columns[650:])
    blocks.update(x, a, columns)
    chunks = math.ceil(40_000 / reduction._CHUNK)
    assert fused == [640] * chunks + [48] * chunks
    # Some processors sum float32 products one after the other: 4e-5 of a second moment.
    torch.testing.assert_close(whole.state, blocks.state, rtol=1e-4, atol=1e-3)


def test_many_columns_and_few_samples_are_not_fused(fused: list[int]) -> None:
    x, a = related(60)
    columns = torch.rand(60, 9, generator=seeded(3))
    metric = NeuronAdvantageCorrelation(D, num_covariates=9, compile=True)
    metric.update(x, a, columns)
    few = NeuronAdvantageCorrelation(D, compile=True)
    few.update(x[:15], a[:15])
    assert fused == []
    assert_same_r(metric.compute(), all_pearson(x, a))


def test_without_a_compiler_the_metric_goes_on(
    fused: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*parts: object) -> None:
        raise OSError("no g++ here")

    monkeypatch.setattr(fusing, "_compiled", lambda: failing)
    monkeypatch.setattr(fusing, "_unable", [])
    x, a = related(400)
    metric = NeuronAdvantageCorrelation(D, compile=True)
    with pytest.warns(UserWarning, match="but got OSError: no g\\+\\+ here. The metric goes on"):
        metric.update(x[:200], a[:200])
    metric.update(x[200:], a[200:])
    assert fused == [0]
    assert_same_r(metric.compute(), all_pearson(x, a))


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_the_compiled_kernel_is_exact() -> None:
    """In a process of its own: the compiler leaves threads and variables behind."""
    code = """if True:
        import torch
        from helpers import all_pearson, assert_same_r, streamed
        from lightning_neurocorr.metric import fused
        x, a = torch.randn(300, 12), torch.randint(-1, 2, (300,)).float()
        x += 1e4 + torch.linspace(-1, 1, 12) * a[:, None]
        assert_same_r(streamed(x, a, (300,), compile=True), all_pearson(x, a))
        assert not fused._unable, fused._unable
    """
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert not done.returncode, done.stderr
