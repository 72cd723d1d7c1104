"""The kernels of the metric against blocks and float64, run by Triton's interpreter on the CPU.

``test_metric_kernels.py`` runs this file in a process of its own, with ``TRITON_INTERPRET=1``: that
must be known before Triton is imported.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_neurocorr.functional import Moments, correlation
from lightning_neurocorr.metric import Cells, NeuronAdvantageCorrelation, on_device
from tests.helpers import all_pearson, assert_same_r, seeded, streamed
from tests.neurons import ROWS, related

WHOLE = ["add_whole"]
AT_ONCE = ["prepare", "add_in"]
IN_STEPS = ["prepare", "add_up", "merge"]

# Where a GPU makes infinity or NaN, NumPy under the interpreter warns too.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The CPU plays the GPU; the names of kernels in the order of their launches."""
    found: list[str] = []
    launch = on_device._launch

    def told(name: str, *given: Any, **settings: Any) -> None:
        found.append(name)
        launch(name, *given, **settings)

    monkeypatch.setattr(on_device, "DEVICES", {"cpu"})
    monkeypatch.setattr(on_device, "_launch", told)
    monkeypatch.setattr(on_device, "_unable", [])
    monkeypatch.setattr(on_device, "_proved", set())
    yield found
    assert not on_device._unable, on_device._unable


def in_blocks(*given: Any, **settings: Any) -> NeuronAdvantageCorrelation:
    """A metric that has had one batch, by the path without kernels."""
    metric = NeuronAdvantageCorrelation(*settings.pop("args"), **settings)
    devices, on_device.DEVICES = on_device.DEVICES, set()
    metric.update(*given)
    on_device.DEVICES = devices
    return metric


# --- against float64 ------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_r_is_exact_to_1e_6(row: str, launches: list[str]) -> None:
    x, a = related(700)
    x = ROWS[row](x)
    assert_same_r(streamed(x, a, (200, 7, 300)), all_pearson(x, a))
    assert bool(launches) == x.is_floating_point()  # integers go the way of blocks


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e9, 3e38])
def test_constant_neurons_are_nan(constant: float) -> None:
    x, a = torch.full((300, 3), constant), torch.randn(300, generator=seeded())
    assert np.isnan(streamed(x, a, (100,))).all()


def test_a_constant_advantage_is_nan() -> None:
    assert np.isnan(streamed(related(60)[0], torch.ones(60), (30,))).all()


@pytest.mark.parametrize("covariates", [0, 1])
@pytest.mark.parametrize("constant", [0.0, 5.3])
def test_constant_neurons_of_a_fold_have_no_r_there(constant: float, covariates: int) -> None:
    x, a = related(200)
    fold, more = torch.arange(200) % 2, torch.rand(200, covariates, generator=seeded())
    x[fold == 1] = constant
    metric = NeuronAdvantageCorrelation(x.shape[1], folds=2, num_covariates=covariates)
    for rows in torch.arange(200).split(50):
        metric.update(x[rows], a[rows], more[rows] if covariates else None, fold[rows])
    first, second = metric.moments()[1]
    assert correlation(second).isnan().all()
    assert_same_r(correlation(first), all_pearson(x[fold == 0], a[fold == 0]))


def slow_moments(x: Tensor, columns: Tensor, rows: Tensor) -> Moments:
    """By their definition, in float64."""
    x, columns = x.double()[rows], columns.double()[rows]
    n = torch.tensor(float(len(x)))
    mean, w = (part.sum(0) / n.clamp_min(1) for part in (x, columns))
    y, v = x - mean, columns - w
    return Moments(n.double(), w, v.T @ v, mean, (y * y).sum(0), (x != 0).sum(0).double(), v.T @ y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n", "d", "folds", "covariates"),
    [
        (1, 1, 1, 0),
        (700, 130, 1, 0),
        (1, 1, 2, 3),
        (2, 129, 2, 0),
        (257, 3, 2, 0),
        (300, 130, 3, 3),
        (33, 40, 1, 20),
    ],
)
def test_moments_of_each_fold_are_those_of_its_samples(
    n: int, d: int, folds: int, covariates: int, dtype: torch.dtype, launches: list[str]
) -> None:
    x, a = related(2 * n, d)
    x = (x.relu() + 3 * (torch.arange(d) % 2)).to(dtype)
    more = torch.rand(2 * n, covariates, generator=seeded(1)).to(dtype)
    fold = torch.randint(0, folds, (2 * n,), generator=seeded(2))
    settings = {"num_covariates": covariates, "folds": folds, "count_active": True}
    metric = NeuronAdvantageCorrelation(d, **settings)
    for rows in torch.arange(2 * n).split(n):
        given = (None if not covariates else more[rows], None if folds == 1 else fold[rows])
        metric.update(x[rows], a[rows], *given)
    _, found = metric.moments()
    for f in range(folds):
        expected = slow_moments(x, torch.cat([a[:, None], more], 1), fold == f)
        for name in ("n", "w", "ww", "mean", "m2", "active", "c"):
            torch.testing.assert_close(
                getattr(found[f], name),
                getattr(expected, name),
                rtol=1e-6,
                atol=2e-6 * max(1, n) ** 0.5,
                msg=lambda text, name=name: f"{name}: {text}",
            )
    assert launches == 2 * (IN_STEPS if covariates else WHOLE if folds == 1 else AT_ONCE)


# --- against blocks -------------------------------------------------------------------------------


def pooled(channels_last: bool) -> Tensor:
    maps = torch.randn(20, 33, 4, 5, generator=seeded())
    kind = torch.channels_last if channels_last else torch.contiguous_format
    return maps.to(memory_format=kind).mean((2, 3))


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: torch.randn(7, 20, generator=seeded()).T,
    "every second row and column": lambda: torch.randn(40, 14, generator=seeded())[::2, ::2],
    "columns of a wider one": lambda: torch.randn(20, 99, generator=seeded())[:, 3:80],
    "one row for all": lambda: torch.randn(1, 5, generator=seeded()).expand(20, -1),
    "mean of maps": lambda: pooled(False),
    "mean of maps, channels_last": lambda: pooled(True),
    "a channel of maps, channels_last": lambda: torch.randn(20, 3, 4, 4).to(
        memory_format=torch.channels_last
    )[:, :, 1, 1],
    "flipped": lambda: torch.randn(20, 6, generator=seeded()).flip(0),
}


@pytest.mark.parametrize("covariates", [0, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_however_the_batch_lies_in_memory(
    layout: str, covariates: int, launches: list[str]
) -> None:
    x = LAYOUTS[layout]()
    a = torch.randint(-1, 2, (40,), generator=seeded(1)).double()[::2]
    fold = torch.stack([torch.randint(0, 2, (20,), generator=seeded(2))] * 2, 1)[:, 0]
    columns = torch.rand(2, 20, generator=seeded(3)).T if covariates else None
    settings: dict[str, Any] = {"folds": 2, "num_covariates": covariates, "count_active": True}
    metric = NeuronAdvantageCorrelation(x.shape[1], **settings)
    metric.update(x, a, columns, fold)
    same = in_blocks(x, a, columns, fold, args=(x.shape[1],), **settings)
    torch.testing.assert_close(metric.state, same.state, rtol=1e-6, atol=1e-6)
    assert launches == (IN_STEPS if covariates else AT_ONCE)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float64])
def test_an_advantage_of_any_dtype(dtype: torch.dtype) -> None:
    x, a = related(50)
    a = (a > 0).to(dtype)
    fold = (torch.arange(50) % 2).to(torch.bool if dtype == torch.bool else torch.int32)
    metric = NeuronAdvantageCorrelation(x.shape[1], folds=2)
    metric.update(x, a, fold=fold)
    same = in_blocks(x, a, None, fold, args=(x.shape[1],), folds=2)
    torch.testing.assert_close(metric.state, same.state, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("limits", [(1 << 18, 1 << 22), (0, 0)], ids=["together", "each alone"])
def test_layers_of_several_widths_and_dtypes(
    limits: tuple[int, int], launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(("_SMALL", "_TOGETHER"), limits, strict=True):
        monkeypatch.setattr(f"lightning_neurocorr.functional.side_by_side.{name}", value)
    sizes = [3, 1, 140, 40]
    x, a = related(90, sum(sizes))
    parts = list(x.split(sizes, 1))
    parts[1], parts[3] = parts[1].half(), parts[3].bfloat16()
    fold = torch.randint(0, 2, (90,), generator=seeded(5))
    metric = NeuronAdvantageCorrelation(sum(sizes), folds=2, count_active=True)
    for rows in torch.arange(90).split(40):
        metric.update([part[rows] for part in parts], a[rows], fold=fold[rows])
    each_alone = [*IN_STEPS[:2] * len(sizes), "merge"]
    assert launches == 3 * (AT_ONCE if limits[0] else each_alone)
    assert_same_r(metric.compute(), all_pearson(torch.cat([p.float() for p in parts], 1), a))
    metric.update([part[:0] for part in parts], a[:0], fold=fold[:0])  # a batch of no samples


@pytest.mark.parametrize("covariates", [0, 1])
def test_what_is_not_finite_is_so_in_every_fold_as_in_blocks(covariates: int) -> None:
    x, a = related(60)
    x[5, 1], x[6, 2], x[7, 3], x[30, 4] = torch.nan, torch.inf, -torch.inf, torch.nan
    x[:, 5] = torch.nan
    fold = torch.arange(60) % 2
    columns = torch.rand(60, 1, generator=seeded(1)) if covariates else None
    settings: dict[str, Any] = {"folds": 2, "num_covariates": covariates, "count_active": True}
    metric = NeuronAdvantageCorrelation(x.shape[1], **settings)
    given = (x, a, columns, fold)
    metric.update(*given)
    same = in_blocks(*given, args=(x.shape[1],), **settings)
    for found in (metric, same):
        rows = found.layout.rows(found.state)
        finite = rows[:, [0, 1, *range(3, 4 + covariates)]].isfinite().all(1)
        assert finite[:, [0, *range(6, x.shape[1])]].all()
        assert not finite[:, 1:6].any()
        assert rows[:, 2].isfinite().all()
    with pytest.warns(UserWarning, match=r"5 of 12 neurons had activations that are not finite"):
        assert metric.compute().isnan().nonzero().flatten().tolist() == [1, 2, 3, 4, 5]


def test_later_folds_have_samples_first() -> None:
    """The shift comes from whichever fold knows a mean."""
    x, a = related(90)
    x += 1e6
    metric = NeuronAdvantageCorrelation(x.shape[1], folds=3)
    for rows, fold in zip(torch.arange(90).split(30), (2, 0, 1), strict=True):
        metric.update(x[rows], a[rows], fold=torch.full((30,), fold))
    assert_same_r(metric.compute(), all_pearson(x, a))


def test_chunks_of_samples_add_up_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, a = related(700)
    fold = torch.randint(0, 2, (700,), generator=seeded(5))
    given = (x, a, None, fold)
    expected = in_blocks(*given, args=(x.shape[1],), folds=2, count_active=True)
    found = []
    for most in (4096, 40, 40):
        monkeypatch.setattr(on_device, "_MOST", most)
        assert on_device._chunks(700, x.shape[1], 2) == (1 if most == 4096 else 18)
        metric = NeuronAdvantageCorrelation(x.shape[1], folds=2, count_active=True)
        metric.update(*given)
        torch.testing.assert_close(metric.state, expected.state, rtol=1e-6, atol=1e-4)
        found.append(metric.state)
    assert found[1].equal(found[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count_active", [False, True])
def test_one_launch_gives_the_bits_of_two(
    count_active: bool, dtype: torch.dtype, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a CUDA graph is made a batch is added in place, to the state that the graph knows."""
    x, a = related(700, 300)
    x[3, 2], x[5, 4] = torch.nan, torch.inf
    x, a = (x.relu() + 5).to(dtype), a + 0.3
    one, two = (NeuronAdvantageCorrelation(300, count_active=count_active) for _ in range(2))
    state = two.state
    for rows in torch.arange(700).split(300):
        one.update(x[rows], a[rows])
        with monkeypatch.context() as patch:
            patch.setattr(on_device, "is_recorded", lambda device: True)
            two.update(x[rows], a[rows])
    assert launches == 3 * [*WHOLE, *AT_ONCE]
    assert one.state.isnan().any()
    torch.testing.assert_close(one.state, two.state, rtol=0, atol=0, equal_nan=True)
    assert two.state is state


def test_later_updates_follow_those_of_inference_mode(launches: list[str]) -> None:
    x, a = related(90)
    metric = NeuronAdvantageCorrelation(x.shape[1])
    with torch.inference_mode():
        metric.update(x[:50], a[:50])
    assert not metric.state.is_inference()
    metric.update(x[50:], a[50:])
    assert_same_r(metric.compute(), all_pearson(x, a))
    assert launches == 2 * WHOLE


# --- faults ---------------------------------------------------------------------------------------


def through(kernel: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of a metric whose batches go through a kernel."""
    if kernel in IN_STEPS[1:]:
        monkeypatch.setattr(on_device, "_MOST", 30)
    return {"folds": 1 if kernel in WHOLE else 2}


@pytest.mark.parametrize("kernel", {*WHOLE, *AT_ONCE, *IN_STEPS})
def test_a_kernel_that_fails_is_one_warning_and_the_same_numbers(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = through(kernel, monkeypatch)
    launch = on_device._launch

    def failing(name: str, *given: Any, **settings: Any) -> None:
        if name == kernel:
            raise RuntimeError("PTX codegen failed\nand pages more")
        launch(name, *given, **settings)

    monkeypatch.setattr(on_device, "_launch", failing)
    x, a = related(90)
    metric = NeuronAdvantageCorrelation(x.shape[1], **settings)
    with pytest.warns(UserWarning, match=r"but got RuntimeError: PTX codegen failed\. The metric"):
        metric.update(x[:50], a[:50])
    metric.update(x[50:], a[50:])  # warnings are errors
    assert_same_r(metric.compute(), all_pearson(x, a))
    on_device._unable.clear()


@pytest.mark.parametrize("kernel", ["sort_cells", "add_cells"])
def test_cells_go_on_without_their_kernels(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, calls = on_device._launch, 0

    def failing(name: str, *given: Any, **settings: Any) -> None:
        nonlocal calls
        calls += name == kernel
        if name == kernel and (name == "sort_cells" or calls == 2):
            raise RuntimeError("no")
        launch(name, *given, **settings)

    monkeypatch.setattr(on_device, "_launch", failing)
    with pytest.warns(UserWarning, match="but got RuntimeError: no"):
        found = cells(with_kernels=True)
    assert_same_cells(found, cells(with_kernels=False))
    on_device._unable.clear()


@pytest.mark.parametrize("which", range(8))
@pytest.mark.parametrize("kernel", ["add_whole", "add_in", "merge"])
def test_kernels_that_err_are_noticed_on_the_first_batch(
    kernel: str, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that is wrong in each of the kinds of moments, as a bad compiler would leave it."""
    x, a = related(60)
    settings = through(kernel, monkeypatch)
    metric = NeuronAdvantageCorrelation(x.shape[1], **settings, count_active=True)
    fold = torch.arange(60) % 2 if metric.folds == 2 else None
    rows = [slice(None, 40), slice(40, None)]
    batches = [(x[r], a[r], None, None if fold is None else fold[r]) for r in rows]
    launch = on_device._launch
    head = metric.layout.head(metric.state).shape[1]
    place = [0, 1, 2, *(head + row * x.shape[1] + 3 for row in range(4)), -1][which]

    def erring(name: str, *given: Any, **settings: Any) -> None:
        launch(name, *given, **settings)
        if name == kernel:
            state = given[-1] if kernel in WHOLE else metric.state
            state[-1, place] += 0.7 * max(1.0, float(state[-1, place].abs()))

    monkeypatch.setattr(on_device, "_launch", erring)
    with pytest.warns(UserWarning, match=r"but got sums that are not those of PyTorch's operators"):
        metric.update(*batches[0])
    metric.update(*batches[1])
    assert_same_r(metric.compute(), all_pearson(x, a))
    on_device._unable.clear()


def wrong(monkeypatch: pytest.MonkeyPatch, kernel: str, add: int) -> None:
    """A kernel adds a number to what it gives."""
    launch = on_device._launch

    def changed(name: str, grid: Any, *given: Any, **settings: Any) -> None:
        launch(name, grid, *given, **settings)
        if name == kernel:
            given[add][..., -1] += 3e3

    monkeypatch.setattr(on_device, "_launch", changed)


@pytest.mark.parametrize(
    ("kernel", "given"),
    [("add_whole", 7), ("prepare", 13), ("add_in", 10), ("add_up", 9), ("merge", 3)],
)
def test_each_kernel_that_errs_is_noticed(
    kernel: str, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = through(kernel, monkeypatch)
    wrong(monkeypatch, kernel, given)
    x, a = related(90)
    metric = NeuronAdvantageCorrelation(x.shape[1], **settings)
    with pytest.warns(UserWarning, match="but got sums that are not those of"):
        metric.update(x[:50], a[:50])
    metric.update(x[50:], a[50:])
    assert_same_r(metric.compute(), all_pearson(x, a))
    on_device._unable.clear()


@pytest.mark.parametrize(("first", "folds"), [("at once", 1), ("at once", 2), ("in steps", 2)])
def test_the_other_way_to_add_a_batch_is_compared_too(
    first: str, folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another size it may go through other kernels, of which the first ones prove nothing."""
    most = {"at once": (4096, 40), "in steps": (40, 4096)}[first]
    x, a = related(180)
    metric = NeuronAdvantageCorrelation(x.shape[1], folds=folds)
    monkeypatch.setattr(on_device, "_MOST", most[0])
    metric.update(x[:90], a[:90])
    monkeypatch.setattr(on_device, "_MOST", most[1])
    wrong(monkeypatch, *{"at once": ("merge", 3), "in steps": ("add_in", 10)}[first])
    with pytest.warns(UserWarning, match="but got sums that are not those of"):
        metric.update(x[90:], a[90:])
    assert_same_r(metric.compute(), all_pearson(x, a))
    on_device._unable.clear()


@pytest.mark.parametrize(("kernel", "given"), [("sort_cells", 5), ("add_cells", 7)])
def test_each_kernel_for_classes_that_errs_is_noticed(
    kernel: str, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(monkeypatch, kernel, given)
    with pytest.warns(UserWarning, match="but got sums that are not those of"):
        found = cells(with_kernels=True)
    assert_same_cells(found, cells(with_kernels=False))
    on_device._unable.clear()


@pytest.mark.parametrize("scale", [1e-12, 1, 1e12])
def test_rounding_is_no_error(scale: float) -> None:
    """Columns and neurons of which rounding is all that is left: a false alarm is a warning."""
    x, _ = related(60)
    fold = torch.arange(60) % 3
    x[:, 1], x[:, 2], x[:, 3] = 5.1 * fold, 0.1, 1e4 + 0.1 * fold
    columns = torch.rand(60, 3, generator=seeded(1)).double() * scale
    columns[:, 1] = 0.1 * scale
    columns[:, 2] += 1e6 * scale
    metric = NeuronAdvantageCorrelation(x.shape[1], folds=3, num_covariates=3)
    metric.update(x * scale, torch.full((60,), 0.1 * scale), columns, fold)
    metric.update(x[:2], torch.tensor([0.0, torch.inf]), columns[:2], fold[:2])


def test_what_kernels_cannot_read_goes_through_blocks(launches: list[str]) -> None:
    x, a = related(40)
    for wide in (x.double(), (10 * x).long()):
        assert_same_r(streamed(wide, a, (20,)), all_pearson(wide, a))
    many = NeuronAdvantageCorrelation(x.shape[1], num_covariates=40)
    many.update(x, a, torch.rand(40, 40, generator=seeded(1)))
    assert_same_r(many.compute(), all_pearson(x, a))
    assert launches == []


# --- cells ----------------------------------------------------------------------------------------


def cells(with_kernels: bool, n: int = 200, rows: int = 3, dtype: torch.dtype | None = None):
    """Sums by class after some batches of two parts."""
    x, a = related(n, 140)
    row, group, half = (torch.randint(0, m, (n,), generator=seeded(m)) for m in (rows, 4, 2))
    devices = on_device.DEVICES
    on_device.DEVICES = devices if with_kernels else set()
    found = Cells(140, rows)
    for some in torch.arange(n).split(70):
        parts = [part.to(dtype or part.dtype) for part in x[some].split([130, 10], 1)]
        found.add(parts, a[some], row[some], group[some], half[some])
    on_device.DEVICES = devices
    return found.moments(range(rows), by_class=True)


def assert_same_cells(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        for name in ("counts", "advantage", "shift", "sums", "squares"):
            np.testing.assert_allclose(
                getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-12, err_msg=name
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int32])
def test_sums_by_class_are_those_without_kernels(dtype: torch.dtype, launches: list[str]) -> None:
    found = cells(with_kernels=True, dtype=dtype)
    assert_same_cells(found, cells(with_kernels=False, dtype=dtype))
    each = ["sort_cells"] if dtype == torch.int32 else ["sort_cells", "add_cells", "add_cells"]
    tried = [] if dtype == torch.int32 else ["add_cells"]  # once, to compare
    assert launches == [each[0], *tried, *each[1:], *each, *each]


def test_cells_of_one_sample_and_of_none() -> None:
    for n, rows in ((1, 1), (3, 9)):
        args: dict[str, Any] = {"n": n, "rows": rows}
        assert_same_cells(cells(True, **args), cells(False, **args))


# --- numbers that do not fit ----------------------------------------------------------------------


@pytest.mark.parametrize("covariates", [0, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_pytorch_makes_by_default_is_not_what_kernels_write(
    dtype: torch.dtype, covariates: int
) -> None:
    x, a = torch.randn(60, 5), torch.randn(60)
    more = torch.randn(60, covariates) if covariates else None
    given = (x, a, more, torch.arange(60) % 2)
    settings: dict[str, Any] = {"args": (5,), "folds": 2, "num_covariates": covariates}
    expected = in_blocks(*given, **settings)
    torch.set_default_dtype(dtype)
    try:
        metric = NeuronAdvantageCorrelation(5, folds=2, num_covariates=covariates)
        metric.update(*given)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(metric.state, expected.state, rtol=1e-6, atol=1e-5)


def test_folds_that_lie_beyond_32_bits(launches: list[str]) -> None:
    """Three folds of 2^30 numbers each, of which only those of two neurons are ever touched."""
    size, folds, neurons = (1 << 30) + 8, 3, 2
    unreserved = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
    try:
        memory = mmap.mmap(-1, 8 * size * folds, flags=unreserved)
    except OSError:
        pytest.skip("no room for so many addresses")

    def part(fold: int) -> Tensor:
        """The numbers of a fold that are used."""
        start = 8 * size * fold
        return torch.frombuffer(memory, dtype=torch.float64, count=11, offset=start)

    x, a, fold = torch.randn(30, neurons), torch.randn(30), torch.arange(30) % folds
    metric = NeuronAdvantageCorrelation(neurons, folds=folds)
    metric.update(x, a, fold=fold)
    layout, order = metric.layout, torch.empty(30, dtype=torch.int32)
    bounds, left = torch.empty(folds, 2, dtype=torch.int32), torch.empty(1, 30)
    heads, shift = torch.empty(3, folds, layout.head_size, dtype=torch.float64), torch.empty(2)
    read = (x, *x.stride(), *x.shape)
    small: dict[str, Any] = {"ROWS": 16, "COLS": 16, "F": folds}
    on_device._launch(
        "prepare", (folds + 1,), *read, a, a, fold, part(0), size, 0, order, bounds, left, heads,
        shift, **small, K=1, WIDE=1, FOLDED=True,
    )  # fmt: skip
    on_device._launch(
        "add_in", (1,), *read, order, bounds, left, shift, heads, part(0), size, **small,
        ACTIVE=False, AHEAD=1,
    )  # fmt: skip
    found = torch.stack([part(fold) for fold in range(folds)])
    torch.testing.assert_close(found, metric.state, rtol=1e-6, atol=1e-6)
