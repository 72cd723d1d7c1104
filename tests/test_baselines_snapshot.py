"""The model itself, frozen: it stays while the model trains, and does not disturb it."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lightning_neurocorr.baselines import SnapshotBaseline
from tests.baseline_nets import Counting, Net, batch, everything_about, in_eval_mode, taken, trained


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x).relu())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.lstm(x[:, None])[0][:, -1]


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


MODELS = {
    "batch-norm": Net,
    "tied": Tied,
    "lstm": Recurrent,
    "transformer": encoder,
    "weight-norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    "compiled": lambda: torch.compile(Net(), backend="eager"),
    "compiled-inside": lambda: nn.Sequential(torch.compile(nn.Linear(4, 3), backend="eager")),
    "no-parameters": nn.Identity,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_snapshot_stays_while_the_model_trains_and_does_not_disturb_it(make):
    module = make().train()
    baseline = taken(module)
    x = batch()[0]
    want = in_eval_mode(module, x)
    if list(module.parameters()):
        trained(module)
    live, before = in_eval_mode(module, x), everything_about(module)
    for _ in range(2):
        torch.testing.assert_close(baseline(batch()), want, rtol=0, atol=0)
    assert everything_about(module) == before
    assert torch.equal(in_eval_mode(module, x), live)


def test_snapshot_is_taken_at_the_first_validation_at_or_after_its_epoch():
    module, baseline = Net(), SnapshotBaseline(epoch=3)
    baseline.observe(module, 1)
    assert not baseline.ready
    with pytest.raises(RuntimeError, match=r"SnapshotBaseline\(epoch=3\) has none yet"):
        baseline(batch())
    trained(module)
    baseline.observe(module, 4)
    assert baseline.ready
    assert baseline.taken_at == 4
    want = in_eval_mode(module, batch()[0])
    trained(module)
    baseline.observe(module, 5)
    assert torch.equal(baseline(batch()), want)


def test_buffers_are_frozen_even_if_the_model_writes_to_them():
    module = Counting()
    baseline = taken(module)
    assert baseline(batch())[0, 0] == baseline(batch())[0, 0] == 1
    assert module.calls == 0


def test_a_buffer_that_is_not_saved_is_frozen_too():
    module = Net()
    baseline = taken(module)
    want = in_eval_mode(module, batch()[0])
    module.scale.fill_(7.0)
    assert torch.equal(baseline(batch()), want)


def test_same_weights_give_the_same_answer_under_mixed_precision():
    module = trained(Net())
    baseline = taken(module)
    module.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(baseline(batch()), module(batch()[0]))
        assert baseline(batch()).dtype == torch.bfloat16


def test_snapshot_in_inference_mode_is_not_made_of_inference_tensors():
    module = trained(Net())
    with torch.inference_mode():
        baseline = taken(module)
        answer = baseline(batch())
    assert torch.equal(answer, in_eval_mode(module, batch()[0]))
    state = baseline.state_dict()
    assert not any(
        t.is_inference() for part in ("parameters", "buffers") for t in state[part].values()
    )


def resumed(baseline: SnapshotBaseline, **kwargs) -> SnapshotBaseline:
    """Through a checkpoint file and back."""
    file = io.BytesIO()
    torch.save(baseline.state_dict(), file)
    file.seek(0)
    twin = SnapshotBaseline(**({"epoch": baseline.epoch} | kwargs))
    twin.load_state_dict(torch.load(file, weights_only=True))
    return twin


def test_snapshot_comes_back_on_resume():
    module = trained(Net())
    baseline = taken(module, epoch=2)
    want = in_eval_mode(module, batch()[0])
    twin = resumed(baseline)
    assert not twin.ready  # it has not seen the model yet
    live = trained(Net())
    twin.observe(live, 9)
    assert twin.ready
    assert twin.taken_at == 2
    assert torch.equal(twin(batch()), want)


def test_a_resumed_snapshot_takes_the_precision_of_the_model():
    twin = resumed(taken(trained(Net())))
    twin.observe(Net().bfloat16(), 1)
    assert twin(batch()).dtype == torch.bfloat16


def test_resuming_before_the_snapshot_and_with_another_epoch():
    assert resumed(SnapshotBaseline(3)).taken_at is None
    with pytest.warns(UserWarning, match=r"asked for at epoch 0 and this run asks for epoch=4"):
        twin = resumed(taken(Net()), epoch=4)
    assert twin.taken_at is None


def test_a_snapshot_of_another_model_is_refused():
    baseline = taken(Net())
    with pytest.raises(ValueError, match=r"'body.0.weight': \(5, 4\) in the snapshot, \(6, 4\)"):
        baseline.observe(Net(hidden=6), 1)
    grown = Net()
    grown.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"'extra.weight': no such parameter in the snapshot"):
        baseline.observe(grown, 1)
    with pytest.raises(ValueError, match=r"no such parameter in the model"):
        baseline.observe(nn.Identity(), 1)


def test_sharded_models_are_refused():
    module = Net()
    module.head.weight.full_tensor = None  # what a DTensor has
    with pytest.raises(ValueError, match=r"sharded.*CheckpointBaseline"):
        taken(module)


def test_snapshot_pickles_without_the_live_model():
    module = trained(Net())
    baseline = taken(module)
    for twin in (pickle.loads(pickle.dumps(baseline)), copy.deepcopy(baseline)):
        assert not twin.ready
        twin.observe(module, 1)
        assert torch.equal(twin(batch()), baseline(batch()))


def test_snapshot_arguments():
    assert repr(SnapshotBaseline(3, inputs=0)) == "SnapshotBaseline(epoch=3, inputs=0)"
    for epoch in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match="`epoch` to be an integer of at least 0"):
            SnapshotBaseline(epoch)


class Annealed(nn.Module):
    """Answers by numbers that are neither parameters nor buffers."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.inner.sharpness, self.side = 1.0, "left"
        self.prototypes = {0: torch.ones(3), 1: [torch.zeros(3)]}
        self.seen, self.kept = 0, None

    def forward(self, x):
        self.seen, self.kept = self.seen + 1, x
        x = x if self.side == "left" else x.flip(1)
        z = self.inner(x) * self.inner.sharpness + self.prototypes[0] * self.prototypes[1][0]
        return z * self.late if hasattr(self, "late") else z


def test_plain_attributes_are_those_of_the_snapshot():
    module = Annealed()
    baseline = taken(module)
    x = batch()[0]
    want = in_eval_mode(module, x)
    with torch.no_grad():
        module.inner.weight.mul_(0.5)
    module.inner.sharpness, module.side, module.late = 0.25, "right", 3.0
    module.prototypes[0].mul_(7)  # in place, and as another tensor
    module.prototypes[1][0] = torch.tensor([1.0, 2.0, 3.0])
    prototypes = module.prototypes
    live = in_eval_mode(module, x)
    assert not torch.equal(live, want)
    del module.late
    baseline.observe(module, 5)
    for _ in range(2):
        assert torch.equal(baseline((x, None)), want)
    assert module.prototypes is prototypes
    assert (module.inner.sharpness, module.side) == (0.25, "right")


def test_plain_attributes_travel_in_the_checkpoint(tmp_path):
    module = Annealed()
    baseline = taken(module)
    want = in_eval_mode(module, batch()[0])
    torch.save(baseline.state_dict(), tmp_path / "state.pt")
    resumed = SnapshotBaseline()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    module.inner.sharpness = 9.0
    resumed.observe(module, 3)
    assert torch.equal(resumed((batch()[0], None)), want)


def test_what_a_forward_leaves_behind_is_no_part_of_a_snapshot():
    module = Annealed()
    module.kept = torch.zeros(1 << 23)  # 32 MB
    module.itself, module.function = [module], len
    baseline = taken(module)
    assert "kept" not in baseline.state_dict()["attributes"][""]
    assert set(baseline.state_dict()["attributes"][""]) == {"prototypes", "seen", "side"}
