"""A network from a file: loaded safely, or an error that says what is wrong with the file."""

import copy
import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_neurocorr.baselines import CheckpointBaseline
from tests.baseline_nets import Net, batch, in_eval_mode, random_states, trained


class WithConfig(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.net = Net(config.hidden, config["classes"])

    def forward(self, x):
        return self.net(x)


class Open(nn.Module):
    def __init__(self, hidden, **kwargs):
        super().__init__()
        self.net, self.kwargs = Net(hidden), kwargs

    def forward(self, x):
        return self.net(x)


class Needy(nn.Module):
    def __init__(self, hidden, loss, backbone):
        super().__init__()


class Broken(nn.Module):
    def __init__(self, hidden=3):
        raise KeyError("no such backbone")


class Late(nn.Module):
    """Like a LightningModule that makes its layers late and changes the checkpoint."""

    strict_loading = False

    def __init__(self):
        super().__init__()

    def configure_model(self):
        self.net = Net()
        self.extra = nn.Linear(2, 2)

    def on_load_checkpoint(self, checkpoint):
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k.replace("old.", "net."): v for k, v in weights.items()}

    def forward(self, x):
        return self.net(x)


def saved(path: Path, module: nn.Module, prefix: str = "", **content) -> Path:
    """A file as Lightning writes it."""
    weights = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    torch.save({"state_dict": weights, "pytorch-lightning_version": "2.5.0", **content}, path)
    return path


def test_checkpoint_with_hyper_parameters(tmp_path):
    module = trained(Net(hidden=7))
    hparams = {"hidden": 7, "lr": 0.1, "_class_path": "x.Net", "_instantiator": "y"}
    path = saved(tmp_path / "last.ckpt", module, hyper_parameters=hparams)
    baseline = CheckpointBaseline(path, Net)
    want = in_eval_mode(module, batch()[0])
    assert torch.equal(baseline(batch()), want)
    with torch.inference_mode():
        baseline = CheckpointBaseline(str(path), Net)
        assert torch.equal(baseline(batch()), want)
    assert not any(p.is_inference() for p in baseline._loaded.module.parameters())


def test_plain_state_dict_and_hparams_override(tmp_path):
    module = trained(Net(hidden=7))
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    baseline = CheckpointBaseline(tmp_path / "weights.pt", Net, hparams={"hidden": 7}, inputs=0)
    assert torch.equal(baseline(batch()), in_eval_mode(module, batch()[0]))
    path = saved(tmp_path / "last.ckpt", module, hyper_parameters={"hidden": 2})
    over = CheckpointBaseline(path, Net, hparams={"hidden": 7})
    assert torch.equal(over(batch()), baseline(batch()))


def test_hyper_parameters_that_were_one_argument_or_any(tmp_path):
    module = trained(Net(hidden=7))
    stored = {"hidden": 7, "classes": 3}
    path = saved(
        tmp_path / "a.ckpt", module, "net.", hyper_parameters=stored, hparams_name="config"
    )
    assert torch.equal(
        CheckpointBaseline(path, WithConfig)(batch()), in_eval_mode(module, batch()[0])
    )
    path = saved(
        tmp_path / "b.ckpt", module, "net.", hyper_parameters=stored, hparams_name="kwargs"
    )
    baseline = CheckpointBaseline(path, Open)
    baseline.check()
    assert baseline._loaded.module.kwargs == {"classes": 3}


def test_late_layers_and_a_changed_checkpoint(tmp_path):
    module = trained(Net())
    path = saved(tmp_path / "late.ckpt", module, "old.")
    assert torch.equal(CheckpointBaseline(path, Late)(batch()), in_eval_mode(module, batch()[0]))


def test_checkpoint_loads_once_lazily_and_leaves_no_trace(tmp_path):
    path = saved(tmp_path / "last.ckpt", trained(Net()))
    states = random_states()
    baseline = CheckpointBaseline(path, Net)
    assert baseline._loaded is None
    first = baseline.to("cpu")(batch())
    path.unlink()
    assert torch.equal(baseline(batch()), first)
    assert random_states() == states


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_checkpoint_pickles_as_its_path(tmp_path, twin_of):
    path = saved(tmp_path / "last.ckpt", trained(Net()))
    baseline = CheckpointBaseline(path, Net)
    answer = baseline(batch())
    assert len(pickle.dumps(baseline)) < 1000
    assert torch.equal(twin_of(baseline)(batch()), answer)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"state_dict": {}, "hyper_parameters": {"lr": np.float64(0.1)}}, "numpy"),
        ({"state_dict": {}, "path": Path("x")}, "pathlib"),
        ({"state_dict": {}, "act": nn.ReLU}, "torch.nn.modules.activation.ReLU"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_weights_only_refuses_is_named_with_a_way_out(tmp_path, content, names, zipped):
    path = tmp_path / "unsafe.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    baseline = CheckpointBaseline(path, Net)
    match = f"nothing but tensors.*'{names}.*can run code.*weights_only=False.*`hparams=`"
    with pytest.raises(ValueError, match=match):
        baseline.check(None)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    for zipped in (True, False):
        torch.save(
            {"state_dict": {}, "x": Bomb()},
            tmp_path / "bomb.ckpt",
            _use_new_zipfile_serialization=zipped,
        )
        with pytest.raises(ValueError, match="exec', which is not read"):
            CheckpointBaseline(tmp_path / "bomb.ckpt", Net).check()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", bytes(range(256)) * 4])
def test_what_is_no_checkpoint_is_an_error(tmp_path, content):
    (tmp_path / "broken.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"^Expected `path` to be a file that torch.load can read"):
        CheckpointBaseline(tmp_path / "broken.ckpt", Net).check()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "a list"),
        ({"model": {}, "epoch": 3}, "'model', 'epoch'"),
        ({}, "a dict"),
        (torch.zeros(3), "a Tensor"),
    ],
)
def test_a_file_without_weights_is_named(tmp_path, content, found):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(
        ValueError, match=f"or a state_dict of tensors, but got .*other.pt' with {found}"
    ):
        CheckpointBaseline(tmp_path / "other.pt", Net).check()


@pytest.mark.parametrize(
    ("model_class", "hparams", "match"),
    [
        (
            Needy,
            {},
            r"all arguments that Needy needs, but got no 'loss', 'backbone'.*hparams={'loss'",
        ),
        (
            Net,
            {"hiden": 3},
            r"`hparams` to be arguments of Net, but got 'hiden'; it takes 'hidden'",
        ),
        (Net, {"hidden": 8}, r"to fit Net, but got other weights: size mismatch for body.0.weight"),
        (Broken, {}, r"Broken to be built from 'hidden', but got KeyError.*no such backbone"),
        (
            Late,
            {},
            r"hold weights of Late, but got none: the file has 'body.0.weight', .*'net.body",
        ),
        (
            Open,
            {},
            r'"net.body.0.bias", "net.body.1.weight" and 5 more. Unexpected key\(s\).*and 6 more',
        ),
    ],
)
def test_a_model_that_does_not_fit_is_named(tmp_path, model_class, hparams, match):
    path = saved(tmp_path / "last.ckpt", Net(7), hyper_parameters={"hidden": 7})
    with pytest.raises(ValueError, match="(?s)" + match):
        CheckpointBaseline(path, model_class, hparams=hparams).check()


def test_lax_loading(tmp_path):
    grown = nn.ModuleDict({"body": Net().body})
    path = saved(tmp_path / "part.ckpt", grown)
    with pytest.raises(ValueError, match=r'Missing key\(s\) in state_dict: "head.weight"'):
        CheckpointBaseline(path, Net).check()
    CheckpointBaseline(path, Net, strict=False).check()


def test_checkpoint_arguments(tmp_path):
    path = saved(tmp_path / "last.ckpt", Net())
    with pytest.raises(FileNotFoundError, match=r"`path` to be a checkpoint file.*missing.ckpt"):
        CheckpointBaseline(tmp_path / "missing.ckpt", Net)
    for wrong in (Net(), "Net", dict):
        with pytest.raises(TypeError, match=r"`model_class` to be a class of torch.nn.Module"):
            CheckpointBaseline(path, wrong)
    assert repr(CheckpointBaseline(path, Net)) == f"CheckpointBaseline({str(path)!r}, Net)"


def test_a_real_lightning_checkpoint(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Model(lightning.LightningModule):
        def __init__(self, hidden: int, rate: float = 0.1):
            super().__init__()
            self.save_hyperparameters()
            self.net = Net(hidden)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.hparams.rate)

    model = Model(6)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch(8)), batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            accelerator="cpu",
        )
        trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    baseline = CheckpointBaseline(tmp_path / "last.ckpt", Model)
    assert torch.equal(baseline(batch()), in_eval_mode(model.net, batch()[0]))
    baseline = CheckpointBaseline(tmp_path / "last.ckpt", Model, hparams={"hidden": 9})
    with pytest.raises(ValueError, match=r"size mismatch for net.body.0.weight"):
        baseline.check()


GOOD = io.BytesIO()
torch.save({"state_dict": {"weight": torch.zeros(1), "bias": torch.zeros(1)}}, GOOD)


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(GOOD.getvalue()) - 1), st.integers(0, 255)), max_size=6
    ),
    cut=st.integers(0, len(GOOD.getvalue())),
)
def test_any_bytes_are_a_checkpoint_or_an_error_of_ours(tmp_path, changes, cut):
    content = bytearray(GOOD.getvalue())
    for place, value in changes:
        content[place] = value
    path = tmp_path / "any.ckpt"
    path.write_bytes(content[:cut] if cut % 2 else content)
    try:
        CheckpointBaseline(path, nn.Linear, hparams={"in_features": 1, "out_features": 1}).check()
    except ValueError as error:
        assert str(error).startswith("Expected ")  # noqa: PT017 - either outcome is right
