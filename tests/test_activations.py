"""Layers chosen, their outputs recorded and pooled, on modules of many kinds."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import (
    ActivationRecorder,
    OutputRecorder,
    aside,
    choose_layers,
    eager,
    layer_names,
    output_module,
    record,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 4, 3), norm=nn.BatchNorm2d(4), relu=nn.ReLU(inplace=True)
            )
        )
        self.body = nn.ModuleDict({"conv2": nn.Conv2d(4, 6, 3), "flat": nn.Flatten()})
        self.head = nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body["flat"](self.body["conv2"](self.features(x))))


def images(n: int = 5) -> Tensor:
    return torch.randn(n, 1, 8, 8)


# --- choosing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (None, ["features.conv1", "body.conv2", "head"]),
        ("head", ["head"]),
        ("features", ["features"]),
        ("features.norm", ["features.norm"]),
        ("features.*", ["features.conv1"]),
        ("*conv?", ["features.conv1", "body.conv2"]),
        ("*", ["features.conv1", "body.conv2", "head"]),
        ("*.flat", ["body.flat"]),
        (["head", "features.*"], ["features.conv1", "head"]),
        (("features.relu", "features.relu"), ["features.relu"]),
        (lambda name, module: isinstance(module, nn.ReLU), ["features.relu"]),
        (lambda name, module: name.endswith("2"), ["body.conv2"]),
    ],
)
def test_layers_by_name_glob_list_and_predicate(layers, names: list[str]) -> None:
    model = Net()
    chosen = choose_layers(model, layers)
    assert list(chosen) == names
    assert all(module is model.get_submodule(name) for name, module in chosen.items())


class Aliased(nn.Module):
    """Parts of its network have names of their own, as in many a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.encoder = nn.Sequential(self.net.features, nn.Conv2d(4, 4, 1))
        self.classifier = self.net.head


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (None, ["net.features.conv1", "net.body.conv2", "net.head", "encoder.1"]),
        ("classifier", ["classifier"]),
        (["net.head", "classifier"], ["net.head"]),
        ("encoder.*", ["encoder.0.conv1", "encoder.1"]),
        ("encoder.0.conv?", ["encoder.0.conv1"]),
        ("*conv?", ["net.features.conv1", "net.body.conv2"]),
    ],
)
def test_every_name_of_a_module_is_known(layers, names: list[str]) -> None:
    model = Aliased()
    chosen = choose_layers(model, layers)
    assert list(chosen) == names
    assert all(module is model.get_submodule(name) for name, module in chosen.items())
    assert output_module(model, "classifier") is model.net.head


def test_modules_that_hold_each_other() -> None:
    model = Net()
    model.head.owner = model
    assert list(choose_layers(model, "head")) == ["head"]
    with pytest.raises(ValueError, match="which matches none"):
        choose_layers(model, "tail")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("features.conv2", r"got 'features.conv2', which matches none. Did you mean '.*conv"),
        ("xyz", r"which matches none. There are: 'features.conv1', 'body.conv2', 'head'\."),
        (["head", "x.*"], r"got 'x\.\*', which matches none"),
        (lambda *_: False, r"chose none of the 8 submodules of Net\. There are: 'features.conv1'"),
        ([], r"but \[\] chose none"),
    ],
)
def test_layers_that_are_not_there(layers, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_layers(Net(), layers)


@pytest.mark.parametrize("layers", [3, ["head", 3], {"head"}, nn.Linear(1, 1)])
def test_what_cannot_name_layers(layers) -> None:
    with pytest.raises(TypeError, match="Expected `layers` to be None, a name, a glob, a list of"):
        choose_layers(Net(), layers)


def test_models_without_convolutions_or_submodules() -> None:
    with pytest.raises(ValueError, match=r"None chose none of the 1 submodules.* There are: '0'"):
        choose_layers(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="It has no submodules"):
        choose_layers(nn.Linear(2, 2))
    many = nn.Sequential(*(nn.Linear(1, 1) for _ in range(20)))
    with pytest.raises(ValueError, match="'11' and 8 more"):
        choose_layers(many, "nothing-like-it")


def test_attention_reads_the_weights_of_its_projection_by_itself() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert list(choose_layers(model)) == ["self_attn", "linear1", "linear2"]
    assert list(choose_layers(model, "self_attn.*")) == ["self_attn.out_proj"]
    assert list(choose_layers(model, "*")) == ["self_attn", "linear1", "linear2"]


def test_parametrized_layers_are_layers() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3)), nn.ReLU())
    assert list(choose_layers(model)) == ["0"]
    with record(model) as recorder:
        expected = model[0](images()).mean((2, 3))
        recorder.clear()
        model(images_ := images())
        taken, _ = recorder.take(5)
    assert torch.allclose(taken["0"], model[0](images_).mean((2, 3)))
    assert expected.shape == taken["0"].shape


def test_names_of_compiled_models_are_those_of_the_models_inside() -> None:
    plain = Net()
    names = list(layer_names(plain))
    assert list(layer_names(torch.compile(plain, backend="eager"))) == names
    inner = copy.deepcopy(plain)
    inner.features = torch.compile(inner.features, backend="eager")
    assert list(layer_names(inner)) == names
    assert layer_names(inner)["features"] is inner.features._orig_mod
    assert list(choose_layers(inner)) == list(choose_layers(plain))


# --- recording ------------------------------------------------------------------------------------


def test_recorded_are_the_outputs_of_every_layer() -> None:
    model, x = Net(), images()
    with record(model) as recorder:
        output = model(x)
        taken, problems = recorder.take(5)
        assert recorder.take(5)[1] == dict.fromkeys(taken, "its forward was not called")
    assert not problems
    assert taken["head"].equal(output)
    fresh = Net()
    fresh.load_state_dict(model.state_dict())
    assert torch.allclose(taken["features.conv1"], fresh.features.conv1(x).mean((2, 3)))
    before = len(taken)
    model(x)  # the hooks are gone
    assert recorder.take()[0] == {}
    assert before == 3


def test_an_in_place_activation_after_the_layer_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    x = torch.randn(20, 3)
    with torch.no_grad(), record(model) as recorder:
        model(x)
        taken, _ = recorder.take()
        assert taken["0"].equal(model[0](x))
    assert (taken["0"] < 0).any()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(x) + self.shared(-x) + self.shared(2 * x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_called_several_times_is_pooled_over_its_calls(dtype: torch.dtype) -> None:
    model, x = Twice().to(dtype), torch.randn(6, 3, dtype=dtype)
    calls = torch.stack([model.shared(x), model.shared(-x), model.shared(2 * x)]).detach()
    with record(model) as mean, record(model, pooling="max") as largest:
        with record(model, pooling=lambda y: y * 2) as double:
            model(x)
            assert torch.allclose(double.take()[0]["shared"].float(), 2 * calls.float().mean(0))
        assert torch.allclose(mean.take()[0]["shared"].float(), calls.float().mean(0), atol=1e-6)
        assert largest.take()[0]["shared"].equal(calls.amax(0))


def test_calls_of_different_shapes_are_a_problem() -> None:
    model = Twice()
    with record(model) as recorder:
        model.shared(torch.zeros(2, 3))
        model.shared(torch.zeros(5, 3))
        model.shared(torch.zeros(2, 3))
        taken, problems = recorder.take()
    assert not taken
    assert problems == {"shared": "its calls in one forward gave (2, 4) and (5, 4)"}


def test_rows_that_are_no_samples_are_a_problem() -> None:
    model = nn.Linear(3, 4)
    with record(nn.Sequential(model)) as recorder:
        model(torch.zeros(10, 3))
        _, problems = recorder.take(5)
    assert problems["0"].startswith("it gave 10 rows for 5 samples, so it has no row")


def test_torchscript_takes_no_hooks() -> None:
    model = nn.Sequential(torch.jit.script(nn.Linear(3, 4)), nn.Linear(4, 2))
    with record(model, ["0", "1"]) as recorder:
        model(torch.zeros(5, 3))
        taken, problems = recorder.take(5)
    assert recorder.refused == {"0": "TorchScript modules take no hooks"}
    assert list(taken) == ["1"]
    assert problems == recorder.refused


def test_our_faults_never_end_the_forward_of_the_user() -> None:
    def broken(_: Tensor) -> Tensor:
        raise RuntimeError("no such pooling")

    class Text(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "text"

    model = nn.Sequential(nn.Linear(3, 4), Text())
    with record(model, ["0"], broken) as first, record(model, ["1"]) as second:
        assert model(torch.zeros(2, 3)) == "text"
        assert first.take()[1] == {"0": "RuntimeError: no such pooling"}
        assert "TypeError: Expected a layer's output to hold a tensor" in second.take()[1]["1"]
        model(torch.zeros(2, 3))
        assert first.take()[1]  # and the next batch is tried again


def test_hooks_are_gone_whatever_happens() -> None:
    model = Net()
    with pytest.raises(KeyboardInterrupt), record(model):  # noqa: PT012
        model(images())
        raise KeyboardInterrupt
    recorder = record(model)
    with pytest.raises(AttributeError, match="register_forward_hook"):
        ActivationRecorder({**recorder.layers, "x": "no module"}).__enter__()
    assert not any(module._forward_hooks for module in model.modules())
    recorder.close()
    recorder.close()


class Fussy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if x.isnan().any():
            raise RuntimeError("a bad batch")
        return self.second(hidden)


def test_the_batch_after_a_failed_one_is_recorded_alone() -> None:
    model, x = Fussy(), torch.randn(5, 3)
    with record(model) as recorder, OutputRecorder(model) as output:
        with pytest.raises(RuntimeError, match="a bad batch"):
            model(x * torch.nan)
        assert not output.calls
        recorder.clear()
        output.clear()
        expected = model(x)
        taken, _ = recorder.take(5)
        (call,) = output.calls
        assert call.output.equal(expected)
        assert call.arguments == ((x,), {})
    assert taken["first"].equal(model.first(x))


def test_forwards_aside_are_not_recorded() -> None:
    model, x = Net(), images()
    with record(model) as recorder, OutputRecorder(model) as output:
        with aside():
            model(x)
            with aside():
                model(x)
            model(x)
        assert not output.calls
        assert not recorder.take()[0]
        with pytest.raises(RuntimeError), aside():
            model(torch.zeros(1))
        expected = model(x)
        assert [call.output.equal(expected) for call in output.calls] == [True]
        assert recorder.take(5)[0]["head"].equal(expected)


class Step(nn.Module):
    """As Lightning's strategies do: the forward of the outer call runs a step that calls again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.outer = False

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor | str:
        if self.outer:
            self.outer = False
            self(x, scale=2.0)
            return "a loss"
        return self.layer(x) * scale


def test_the_innermost_of_nested_calls_is_the_prediction() -> None:
    model, x = Step(), torch.randn(4, 3)
    with OutputRecorder(model) as recorder:
        for _ in range(2):
            model.outer = True
            assert model(x) == "a loss"
            (call,) = recorder.calls
            assert call.output.equal(2 * model.layer(x))
            assert call.arguments == ((x,), {"scale": 2.0})
            recorder.clear()
            assert not recorder.calls
        side_by_side = [model(x), model(x + 1)]
        for i, (call, output) in enumerate(zip(recorder.calls, side_by_side, strict=True)):
            assert call.output is output
            assert call.index == i
    model(x)
    assert not recorder.calls


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    @torch.compile(backend="eager")
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()


def compiled_models() -> dict[str, nn.Module]:
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, 2), nn.ReLU())

    compiled, inner, method = net(), net(), nn.Sequential(net())
    compiled.compile(backend="eager")
    inner.forward = torch.compile(inner.forward, backend="eager")
    method[0] = torch.compile(method[0], backend="eager")
    return {
        "module": torch.compile(net(), backend="eager"),
        ".compile()": compiled,
        "inner module": method,
        "forward": inner,
        "decorated": Decorated(),
    }


@pytest.mark.parametrize("kind", compiled_models())
def test_hooks_fire_in_models_that_were_compiled_and_run_before(kind: str) -> None:
    torch._dynamo.reset()
    model, x = compiled_models()[kind], torch.randn(4, 3)
    expected = model(x)  # a graph without hooks
    with record(model) as recorder, eager(model):
        assert torch.allclose(model(x), expected)
        taken, problems = recorder.take(4)
    assert not problems
    (name,) = taken
    assert taken[name].equal(layer_names(model)[name](x))
    assert torch.allclose(model(x), expected)
    with pytest.raises(KeyboardInterrupt), eager(model):
        raise KeyboardInterrupt


def test_eager_leaves_models_alone_that_are_not_compiled(monkeypatch) -> None:
    monkeypatch.setattr(torch.compiler, "set_stance", None)  # would fail if it were called
    with eager(Net()):
        pass
