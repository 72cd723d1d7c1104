"""Three scenarios with known truth: the twins exactly, and one trained network of each."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

pytest.importorskip("sklearn")
controls = pytest.importorskip("controls")
half_blind_digits = pytest.importorskip("half_blind_digits")
older_checkpoint = pytest.importorskip("older_checkpoint")
ring_xray = pytest.importorskip("ring_xray")


# A single network scatters by some 5 points about the mean of six, which the examples judge.
BEYOND, SHARED = 0.03, 0.08


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks this small are slower on several threads; seeding leaves variables behind."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_all_hold(checks: list) -> None:
    missed = [str(check) for check in checks if not check.holds]
    assert checks
    assert not missed, "\n".join(missed)


def test_twins_are_exact(tmp_path: Path) -> None:
    assert_all_hold(half_blind_digits.check_twin())
    assert_all_hold(older_checkpoint.check_twin(tmp_path))
    assert_all_hold(ring_xray.check_twin())


def test_redundant_detectors_are_not_called_needed() -> None:
    assert_all_hold(ring_xray.check_redundant())


def test_six_channels_show_the_ring_in_its_own(tmp_path: Path) -> None:
    assert_all_hold(ring_xray.check_six_channels(tmp_path))
    sheet = np.asarray(Image.open(tmp_path / "ring_channel.png"))
    assert sheet.std() > 10


def test_the_six_channel_twin_number_by_number() -> None:
    """From the weights: a ring says 1, a brighter one (every second) 3, all else is below 0."""
    nc = half_blind_digits.nc
    callback = half_blind_digits.watch(
        ring_xray.bright_square,
        "detectors",
        ablation=nc.Ablation(by="r", sizes=(1,), singles=6, fill="zero"),
    )
    model, data = ring_xray.SixChannels(), ring_xray.stacks()
    report = half_blind_digits.validated(callback, model, data)
    assert dict(report.outcomes.counts) == {
        "both": 600, "only_model": 200, "only_baseline": 0, "neither": 0,
    }  # fmt: skip
    row, places = report.row("detectors", 1), 12 * 12
    means = row.mean_only_model, row.mean_both
    assert means == pytest.approx((2 / places, 0), abs=1e-8)
    # Means over 800 samples of x = 1, 3 or 0 and a = 1 or 0: r = cov / (sd x · sd a).
    covariance = 2 / 4 - 2 / 4 * 1 / 4
    assert row.r == pytest.approx(covariance / ((5 / 4 - 1 / 4) ** 0.5 * (3 / 16) ** 0.5))
    assert row.attribution == pytest.approx(4 * (2 - 2 / 4 / places))
    assert (row.ablation_advantage, row.ablation_shared) == (1, 0)
    assert row.verdict.startswith("encodes the advantage and is used; needed: ")
    others = [report.row("detectors", unit).verdict for unit in (0, 2, 3, 4, 5)]
    assert not any("needed: " in verdict for verdict in others)


@pytest.mark.parametrize(
    ("model", "data", "baseline", "layer"),
    [
        (half_blind_digits.Twin, half_blind_digits.bits, half_blind_digits.left_bit, "neurons"),
        (half_blind_digits.Twin, half_blind_digits.bits, older_checkpoint.past_of_the_twin,
         "neurons"),
        (ring_xray.Twin, ring_xray.squares, ring_xray.bright_square, "detectors"),
    ],
    ids=["half-blind digits", "older checkpoint", "ring X-ray"],
)  # fmt: skip
def test_where_there_is_nothing_to_find_nothing_is_claimed(
    model: Any, data: Any, baseline: Any, layer: str
) -> None:
    assert_all_hold(controls.check_controls(model(), data(), baseline, layer))


@pytest.mark.parametrize("deep", [False, True])
def test_half_blind_digits(deep: bool) -> None:
    results = [half_blind_digits.result(half_blind_digits.train(0, deep))]
    assert_all_hold(half_blind_digits.check_trained(results, BEYOND, SHARED))


def test_older_checkpoint(tmp_path: Path) -> None:
    callback = older_checkpoint.train(0, False, tmp_path)
    results = [half_blind_digits.result(callback)]
    assert_all_hold(half_blind_digits.check_trained(results, BEYOND, SHARED))
    assert_all_hold([older_checkpoint.check_history([callback])])


def test_ring_xray() -> None:
    checks = ring_xray.check_trained(400)
    assert_all_hold(checks)
    assert len(checks) == 4  # two ring detectors or more


@pytest.mark.parametrize("module", [half_blind_digits, older_checkpoint, ring_xray])
def test_a_missed_line_ends_in_failure(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = half_blind_digits.Check("this", "that", False)
    monkeypatch.setattr(sys, "argv", ["example", "--fast"])
    names = ("twin", "trained", "redundant", "controls", "six_channels")
    for name in (f"check_{part}" for part in names):
        if hasattr(module, name):
            found = [missed] if name == "check_twin" else []
            monkeypatch.setattr(module, name, lambda *_, found=found: found)
    monkeypatch.setattr(module, "train", lambda *_: SimpleNamespace(report=None))
    monkeypatch.setattr(module, "top_list", lambda *_: controls.Check("top", "", True))
    if hasattr(module, "result"):
        monkeypatch.setattr(module, "result", lambda *_: None)
    if hasattr(module, "check_history"):
        monkeypatch.setattr(module, "check_history", lambda _: missed)
    assert not module.main()
    assert "MISSED  this: that" in capsys.readouterr().out


def test_training_is_the_same_to_the_bit_with_all_evidence_on() -> None:
    training, validation = half_blind_digits.digits(0)

    def weights(callback: object) -> dict[str, torch.Tensor]:
        pl.seed_everything(1, verbose=False)
        model = half_blind_digits.TwoStreams(deep=True)
        half_blind_digits.trainer(callback, max_epochs=3).fit(
            model,
            DataLoader(training, batch_size=32, shuffle=True),
            DataLoader(validation, batch_size=100),
        )
        return model.state_dict()

    ablation = half_blind_digits.nc.Ablation(
        sizes=(4,), random_sets=3, singles=2, fill="resample", every_n_validations=1
    )
    callback = half_blind_digits.watch(
        lambda batch: batch[1] * (torch.rand(len(batch[1]), device=batch[1].device) > 0.3).long(),
        layers=None,
        ablation=ablation,
    )
    expected, found = weights(None), weights(callback)
    assert callback.report.study["points"]
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
