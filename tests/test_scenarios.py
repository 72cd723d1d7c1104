"""Three scenarios with known truth: the twins exactly, and one trained network of each."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

pytest.importorskip("sklearn")
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


def test_where_there_is_nothing_to_find_nothing_is_claimed() -> None:
    assert_all_hold(half_blind_digits.check_controls())


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
    assert len(checks) == 3  # two ring detectors or more


@pytest.mark.parametrize("module", [half_blind_digits, older_checkpoint, ring_xray])
def test_a_missed_line_ends_in_failure(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = half_blind_digits.Check("this", "that", False)
    monkeypatch.setattr(sys, "argv", ["example", "--fast"])
    for name in ("check_twin", "check_trained", "check_redundant", "check_controls"):
        if hasattr(module, name):
            found = [missed] if name == "check_twin" else []
            monkeypatch.setattr(module, name, lambda *_, found=found: found)
    monkeypatch.setattr(module, "train", lambda *_: None)
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
