"""The runner of the benchmarks: every script runs small, and tables go where they belong."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_neurocorr.functional import fisher_interval
from lightning_neurocorr.report import Outcomes
from tests.benchmarks import __main__ as runner
from tests.benchmarks import (
    gpu,
    gpu_epoch,
    gpu_table,
    gpu_update,
    pooling,
    reading,
    render_pairs,
    replication,
    replication_sizes,
    scaling,
)
from tests.benchmarks.scaling_plot import Panel, draw
from tests.helpers import make_report

SCRIPTS = [*runner.SCRIPTS, *runner.DEVICE, *runner.LONG]


def test_only_what_is_between_the_markers_is_replaced():
    page = (
        "a\n<!-- measured: x -->\nold\n<!-- end: x -->\nb\n<!-- measured: xy -->\n<!-- end: xy -->"
    )
    once = runner.replaced(page, "x", "\n| new |\n")
    assert once == page.replace("\nold\n", "\n\n| new |\n\n")
    assert runner.replaced(once, "x", "| new |") == once


@pytest.mark.parametrize(
    "page",
    [
        "nothing",
        "<!-- measured: x -->",
        "<!-- end: x --><!-- measured: x -->",
        2 * "<!-- measured: x --><!-- end: x -->",
    ],
)
def test_a_page_without_its_markers_is_an_error(page):
    with pytest.raises(ValueError, match="Expected one '<!-- measured: x -->'"):
        runner.replaced(page, "x", "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_has_a_place_for_each_script_and_names_it(name):
    page = runner.PAGE.read_text(encoding="utf-8")
    text = runner.replaced(page, name, "| new |")
    assert "| new |" in text
    assert re.search(rf"python -m tests\.benchmarks(\.| ){name}\b", page)
    assert Path(runner.__file__).with_name(f"{name}.py").is_file()


def test_a_script_that_fails_leaves_the_page_alone(tmp_path, monkeypatch, capsys):
    page = tmp_path / "performance.md"
    shutil.copy(runner.PAGE, page)
    before = page.read_text(encoding="utf-8")
    monkeypatch.setattr(runner, "measured", lambda *_: None)
    assert runner.main(["metric_update", "scaling", "--page", str(page)]) == 1
    assert page.read_text(encoding="utf-8") == before
    assert "Failed: metric_update, scaling" in capsys.readouterr().out


def test_what_a_script_prints_goes_into_the_page(tmp_path, monkeypatch):
    page = tmp_path / "performance.md"
    shutil.copy(runner.PAGE, page)
    monkeypatch.setattr(runner, "measured", lambda name, *_: f"| {name} was here |\n")
    assert runner.main(["validation_epoch", "--page", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    kept = runner.replaced(text, "validation_epoch", "")
    assert kept == runner.replaced(runner.PAGE.read_text(encoding="utf-8"), "validation_epoch", "")
    assert (
        "<!-- measured: validation_epoch -->\n\n| validation_epoch was here |\n\n<!-- end" in text
    )


def test_a_smoke_run_writes_nothing(tmp_path, monkeypatch):
    page = tmp_path / "performance.md"
    shutil.copy(runner.PAGE, page)
    before = page.read_text(encoding="utf-8")
    printed = []
    real = runner.measured
    monkeypatch.setattr(
        runner, "measured", lambda *command: printed.append(real(*command)) or printed[-1]
    )
    assert runner.main(["gpu", "--quick", "--page", str(page)]) == 0
    rows = [line.split("|")[1:-1] for line in printed[0].splitlines() if line.startswith("| ")][2:]
    said = [" ".join(cell.strip() for cell in row) for row in rows]
    for start in (
        "`update`, 8 × 1,000 float32",
        "`update`, 8 × 1,000 bfloat16",
        "`update` of 4 layers",
        "validation epoch, ResNet-50, batch 8, 2 batches",
        "validation epoch, ResNet-50, batch 8, 3 batches",
        "the same, ViT-B/16",
        "attribution of 8 of 32 samples, batches of 8",
        "attribution of 8 of 32 samples, batches of 4",
        "pictures, 2 neurons of layer2, 2 steps, 32², float32",
        "pictures, 2 neurons of layer2, 2 steps, 32², bfloat16",
        "ablation, second pass and pictures of a small CNN",
        "batches that wait for the device none",
    ):
        (row,) = [line for line in said if line.startswith(start)]
        assert "update`, 8" in row or row.endswith("not judged")
    assert len(said) == 12
    assert "failed" not in printed[0]
    assert page.read_text(encoding="utf-8") == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so only where there is no GPU")
def test_without_a_gpu_its_script_says_what_to_do():
    with pytest.raises(SystemExit, match=r"Expected a GPU.*--device cpu --fast"):
        gpu.main([])


def test_a_row_says_whether_its_goal_is_met():
    row = gpu_table.Row("what", "0.2 s", "floor 0.1 s", "≤ 0.25 s", True)
    assert row.cells(judged=True) == ["what", "0.2 s", "floor 0.1 s", "≤ 0.25 s", "met"]
    assert row.cells(judged=False)[-1] == "not judged"
    assert gpu_table.Row("what", "9 s", "", "≤ 1 s", False).cells(judged=True)[-1] == "**missed**"
    assert gpu_table.Row("what", "9 s").cells(judged=True)[-1] == ""


def test_a_part_that_fails_or_is_late_leaves_the_other_rows(monkeypatch, capsys):
    def fails(_):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setitem(gpu.PARTS, "vit", fails)
    monkeypatch.setitem(gpu.PARTS, "layers", lambda _: [gpu_table.Row("one", "1")])
    with pytest.raises(SystemExit, match="1"):
        gpu.main(["--device", "cpu", "--fast", "--only", "vit", "layers"])
    printed = capsys.readouterr()
    assert "| vit | failed: RuntimeError: out of memory |" in printed.out
    assert "| one | 1 |" in printed.out
    assert "s of 230: layers" in printed.err
    late = gpu_table.Bench(torch.device("cpu"), gpu_table.Sizes.fast(), total_s=-1)
    (row,), worked = gpu.measured(late, "layers")
    assert row.measured.startswith("not run")
    assert not worked


def test_rounds_stop_at_their_cap_and_launches_are_counted():
    bench = gpu_table.Bench(torch.device("cpu"), gpu_table.Sizes())
    calls = []
    found = bench.medians({"a": lambda: calls.append(1)}, cap_s=-1, repeats=9)
    assert len(calls) == 2  # to warm up, and the round that is always run
    assert found["a"] >= 0
    x = torch.ones(3)
    assert bench.launches(lambda: (x + 1) * 2) == (2, "operator calls (no GPU)")


def test_launches_of_a_profile_are_counted_once():
    kind = torch.autograd.DeviceType

    def event(name, device):
        return SimpleNamespace(name=name, device_type=device)

    kernels = [event("triton_one", kind.CUDA), event("Memcpy DtoH", kind.CUDA)]
    calls = [event("aten::add", kind.CPU), event("cudaMemcpyAsync", kind.CPU)]
    driver = [event("cuLaunchKernelEx", kind.CPU), event("cudaLaunchKernel", kind.CPU)]
    assert gpu_table.launched([*kernels, *calls, *driver]) == 2
    assert gpu_table.launched([*kernels, *calls]) == 1
    with pytest.raises(RuntimeError, match="saw no kernel"):
        gpu_table.launched(calls)


def test_the_floor_of_an_update_is_what_a_correlation_needs():
    x, a = torch.randn(50, 3, dtype=torch.float64).bfloat16(), torch.randn(50)
    totals, squares, products = (part.double().numpy() for part in gpu_update.plain_sums(x, a))
    n, wide = len(x), x.double()
    left = a.double().numpy()
    r = (products - totals * left.mean()) / (
        np.sqrt((squares - totals**2 / n) * ((left**2).sum() - n * left.mean() ** 2))
    )
    expected = [np.corrcoef(wide[:, i], left)[0, 1] for i in range(3)]
    np.testing.assert_allclose(r, expected, atol=1e-5)


def test_the_layers_of_the_table_are_those_of_the_network():
    widths = [
        module.weight.shape[0]
        for module in gpu_epoch.network("resnet50", torch.device("cpu"), False).modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    gpu_epoch.network.cache_clear()
    assert sorted(widths) == sorted(gpu_update.RESNET50)
    assert len(gpu_update.RESNET50) == 54


def test_a_validation_is_measured_against_the_bare_loop():
    case = scaling.Case(samples=8, batch=4, size=32, layers=2)
    assert case.watched(case.network()) == ["conv1", "fc"]
    assert scaling.epoch_ratios(case, repeats=1).keys() == {"correlation", "and attribution"}
    assert scaling.epoch_ratios(case, repeats=1, top_k=2)["correlation, drawn"] > 0


def test_the_peak_of_a_validation_grows_with_the_neurons():
    found = scaling.peaks(50_000)
    assert found["one batch of 64"] == 12.8
    assert 20 < found["validation"] <= found["and its report"] < 200


def test_panels_are_drawn_light_and_legible(tmp_path):
    values = [{"a": 1.5, "b": 20.0}, {"a": 1.2, "b": 30000.0}]
    panels = [
        Panel("sizes", "of the bare loop", (10, 1000), values),
        Panel("x", "MB", (1, 2), values),
    ]
    assert panels[0].rows() == [["10", "1.50", "20.00"], ["1,000", "1.20", "30,000.00"]]
    draw(panels, tmp_path / "panels.png")
    image = Image.open(tmp_path / "panels.png").convert("L")
    assert image.width > 1500
    assert np.median(image) > 230


def test_a_placebo_keeps_what_each_class_was_answered():
    target = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(0))
    answers = (target + (torch.arange(200) % 3 == 0)) % 4
    shuffled = replication.placebo(answers, target, seed=1)
    assert not torch.equal(shuffled, answers)
    for label in range(4):
        kept = target == label
        assert torch.equal(answers[kept].bincount(), shuffled[kept].bincount())


def test_replication_counts_both_ways_and_only_tested_neurons():
    tally = replication.Tally(
        called={"used": [np.array([1, 1, 0, 0], bool), np.array([1, 0, 0, 1], bool)]},
        tested={"used": [4, 3]},
    )
    assert tally.replicated("used", tally.called) == (2, 4)
    there = {"used": [np.array([1, 1, 1, 1], bool), np.array([1, 1, 0, 0], bool)]}
    assert tally.replicated("used", there) == (4, 4)
    assert tally.shares("used") == [0.5, 2 / 3]


def test_replication_runs_small_and_keeps_what_it_trained(tmp_path, capsys):
    replication.main(["--fast", "--cache", str(tmp_path)])
    first = capsys.readouterr()
    assert "| used | placebo |" in first.out
    assert "digits-0.npz made" in first.err
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    replication.main(["--fast", "--cache", str(tmp_path), "--max-pairs", "1024"])
    second = capsys.readouterr()
    assert "made" not in second.err
    assert second.out.rpartition("|")[0] == first.out.rpartition("|")[0]
    small = ["--only", "digits", "--first-seed", "0", "--seeds", "1", "--sizes", "250"]
    replication_sizes.main([*small, "--cache", str(tmp_path)])
    assert "| 250 | " in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == trained


def encoding(r, baseline_wrong, model_right, samples, *, q=0.0):
    """A report on neurons with the r of what *encodes* asks for; a part that is NaN is untested."""
    parts = {"baseline_wrong": baseline_wrong, "model_right": model_right}
    columns = {"r": r, "r_within_class": r, "r_replicated": r, "q_value": np.full(len(r), q)}
    columns |= {f"r_{part}": found for part, found in parts.items()}
    columns |= {f"q_{part}": np.where(np.isnan(found), np.nan, q) for part, found in parts.items()}
    columns |= dict.fromkeys(("q_within_class", "q_only_model"), columns["q_value"])
    low, high = fisher_interval(np.array(r), 10 * samples)
    columns |= {"r_low": low, "r_high": high}
    outcomes = Outcomes(6 * samples, 2 * samples, samples, samples)
    return make_report({"a": len(r)}, columns, outcomes=outcomes, n=10 * samples)


def test_how_often_a_true_claim_would_hold_against_drawing_it():
    found = ([0.1, 0.1, -0.02, 0.04], [0.1, 0.12, 0.2, 0.05], [0.15, np.nan, 0.2, 0.3])
    truth, part = encoding(*found, 1000), encoding(*found, 90)
    rng, counts = np.random.default_rng(0), (900, 2 * 90 + 6 * 90, 2 * 90 + 90)
    for neuron, chance in enumerate(replication_sizes.expected(truth, part)):
        held = 0
        for _ in range(4000):
            z = [
                np.arctanh(r[neuron]) * np.sqrt(n - 3) + rng.normal()
                for r, n in zip(found, counts, strict=True)
                if not np.isnan(r[neuron])
            ]
            held += min(z) > 1.96
        assert chance == pytest.approx(held / 4000, abs=0.03)


def test_what_a_part_calls_is_looked_at_on_the_others_and_on_those_kept_back():
    big, none, low = 0.3, 0.0, -0.1
    parts = [
        encoding([big, big, big], [big, big, big], [big, big, big], 90),
        encoding([big, none, big], [big, big, big], [big, big, none], 90),
        encoding([big, big, big], [big, big, big], [none, big, big], 90, q=0.2),
    ]
    truth = encoding([big, big, low], [big, big, big], [none, big, big], 1000)
    first, second, third = replication_sizes.judged(parts, truth)
    assert [each.called.tolist() for each in (first, second, third)] == [
        [True] * 3, [True, False, True], [False] * 3,
    ]  # fmt: skip
    assert first.again.tolist() == [0.5, 0.5, 0.5]
    assert second.again.tolist() == [0.5, 1.0, 1.0]
    assert first.kept.tolist() == [False, True, False]
    assert first.turned.tolist() == [False, False, True]
    shown = replication_sizes.row(900, [first, second, third])
    assert shown[:4] == ["900", "90", "1.67 (5 in 3 parts)", "0.60"]
    assert shown[5:] == ["0.20", "0.40"]


def test_readings_are_compared_on_both_halves(tmp_path, capsys):
    reading.main(["--fast", "--cache", str(tmp_path)])
    printed = capsys.readouterr().out
    for at in reading.KINDS:
        assert f"| {at} |" in printed
    assert reading.differing(np.array([0.1, 0.1005, np.nan, 0.3, 0.2])) == 3


def test_poolings_are_compared_on_both_halves(tmp_path, capsys):
    pooling.main(["--fast", "--cache", str(tmp_path)])
    table = capsys.readouterr().out
    for name in pooling.POOLINGS:
        assert f"| {name} | " in table


def test_replication_says_where_fashion_mnist_is_expected(tmp_path, capsys):
    replication.main(["--only", "fashion", "--data", str(tmp_path), "--cache", str(tmp_path)])
    assert f"four gzipped IDX files in {tmp_path}" in capsys.readouterr().out


def test_pictures_are_compared_unit_by_unit(capsys):
    render_pairs.main(["--fast"])
    rows = [
        line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if ", by" in line
    ]
    assert len(rows) == 9
    taken: dict[str, set[int]] = {}
    for units, _, pairs, none, *counts, _ in rows:
        taken.setdefault(units, set()).add(int(pairs) + int(none))
        assert sum(map(int, counts)) <= int(pairs)
    for units, numbers in taken.items():  # live ones of two networks, whatever makes the pictures
        (number,) = numbers
        assert 8 <= number <= (96 if "all" in units else 16)
