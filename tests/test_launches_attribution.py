"""What attribution asks of a GPU beside forward and backward, counted where there is none."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Attribution, BatchBaseline, choose_layers, compare
from lightning_neurocorr.activations import first_tensor as logits_of
from lightning_neurocorr.attribution import AttributionSums, SampleChoice
from lightning_neurocorr.functional import BOTH, ONLY_MODEL
from lightning_neurocorr.isolation.swapping import preserved_buffers
from lightning_neurocorr.validation.rerun import Rerun
from lightning_neurocorr.validation.rerun.arguments import Axis
from lightning_neurocorr.validation.waiting import Piece, Waiting
from tests.launches import Launches, on_meta
from tests.neurons import seeded
from tests.test_host_cost import counted

N, WIDTH = 8, 6


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none on meta tensors, which play those of a GPU."""
    monkeypatch.setattr("torch.is_autocast_enabled", lambda *_: False)


# --- a pass ---------------------------------------------------------------------------------------


def network(layers: int) -> nn.Sequential:
    blocks = [nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU()) for _ in range(layers)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(16 * WIDTH, 3)).eval()


def of_a_pass(layers: int, dtype: torch.dtype) -> Counter[str]:
    """What a pass asks for beyond forward and backward; who waits for a meta tensor fails."""
    model, x = network(layers).to("meta", dtype), on_meta(N, WIDTH, 4, 4, dtype=dtype)
    target, watched, rows = on_meta(N, dtype=torch.int64), choose_layers(model), torch.arange(N)
    centres = {name: torch.zeros(len(layer.weight)) for name, layer in watched.items()}
    sums = AttributionSums(centres, 4, device="meta")
    with Launches("meta") as floor:
        start = model[0](x).detach().requires_grad_()
        torch.autograd.grad(model[1:](start).sum(), start)
    with Launches("meta") as whole:
        rest = (rows % 2, rows // 4, rows // 2, torch.ones(N, dtype=torch.float64))
        sums.update(lambda: model(x), watched, target, target, *rest)
    return whole.found - floor.found


@pytest.mark.parametrize(
    ("dtype", "each"),
    [
        (torch.float32, {"clone": 1, "sub": 1, "mul_": 1, "sum": 2}),
        (torch.bfloat16, {"clone": 1, "addcmul": 1, "sum": 2}),
    ],
)
def test_a_layer_is_a_handful_of_launches_in_a_pass(
    dtype: torch.dtype, each: dict[str, int]
) -> None:
    few, many = of_a_pass(2, dtype), of_a_pass(7, dtype)
    assert many - few == {name: 5 * count for name, count in each.items()}
    assert few.total() <= 2 * sum(each.values()) + 50


# --- while samples wait ---------------------------------------------------------------------------


def of_waiting(size: int, samples: int = 2560) -> int:
    """What samples that wait ask of their device, where a loader's batches have this size."""
    choice = SampleChoice(Attribution(max_samples=60))
    waiting = Waiting(choice, 10**9, Rerun(nn.Identity(), logits_of))
    waiting.rerun.layout = (Axis(0),)
    number, draw = torch.arange(samples), torch.rand(samples, generator=seeded())
    outcome, asked = torch.where(number % 7 == 0, ONLY_MODEL, BOTH), 0
    for part in number.split(size):
        rows, group, score = choice(part * 0, outcome[part], draw[part])
        inputs, integers = on_meta(len(rows), 8), torch.stack([part[rows], *[group] * 4], 1)
        with Launches("meta") as launches:
            waiting.add(Piece(((inputs,), {}), inputs, integers, score))
        asked += launches.found.total()
    with Launches("meta") as launches:
        assert sum(map(len, waiting.calls(256))) == len(waiting.scores())
    assert max(choice.scale) < 0.3  # they were dropped again and again
    return asked + launches.found.total()


def test_samples_that_wait_ask_for_little_whatever_the_batches_of_the_loader() -> None:
    assert [of_waiting(size) <= 110 for size in (1, 16, 64, 256)] == [True] * 4


def test_buffers_are_kept_and_put_back_in_an_operation_for_each_dtype() -> None:
    model = nn.Sequential(*(nn.BatchNorm1d(3) for _ in range(20)))
    with Launches() as launches, preserved_buffers(model):
        pass
    assert launches.found == {"_foreach_copy_": 4}  # float32 and int64, there and back


# --- a validation ---------------------------------------------------------------------------------


def compared(size: int) -> Callable[[bool], None]:
    """A validation in batches of a size, with attribution or without."""
    model = network(10)
    x = torch.randn(640, WIDTH, 4, 4, generator=seeded())
    target = model(x).argmax(1).detach()
    wrong = torch.arange(640) % 3 == 0
    data = TensorDataset(x, target, torch.where(wrong, (target + 1) % 3, target))
    settings = Attribution(max_samples=60, samples_per_pass=60)

    def run(attribution: bool) -> None:
        asked = settings if attribution else False
        compare(model, DataLoader(data, size), BatchBaseline(2), target=1, attribution=asked)

    return run


def added(size: int) -> int:
    """Operators that attribution adds to a validation in batches of a size, wherever they run."""
    run, found = compared(size), []
    for attribution in (True, False):
        with Launches() as launches:
            run(attribution)
        found.append(launches.found.total())
    return found[0] - found[1]


def test_attribution_of_a_validation_is_a_bounded_number_of_operators() -> None:
    few, many = added(640), added(32)
    assert few <= 530  # two passes of 11 layers are about 370 of them
    assert many - few <= 19 * 4.5  # batches more


def calls_added(size: int) -> int:
    """Calls of functions that attribution adds to such a validation."""
    run, found = compared(size), []
    run(True)  # what is looked up once in a process
    for attribution in (True, False):
        with counted() as calls:
            run(attribution)
        found.append(calls[0])
    return found[0] - found[1]


def test_attribution_of_a_validation_is_a_bounded_number_of_calls() -> None:
    """Measured with Python 3.11: 16,300 and 400 a batch. Before: 24,100 and 530."""
    few, many = calls_added(640), calls_added(32)
    assert few <= 18_000
    assert many - few <= 19 * 450
