"""Layers chosen, their outputs recorded and pooled, on modules of many kinds."""

import copy
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from lightning_neurocorr.activations import (
    ActivationRecorder,
    OutputRecorder,
    aside,
    batch_axis,
    check_pooling,
    choose_layers,
    eager,
    first_tensor,
    layer_names,
    pool,
    record,
    unit_axis,
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
    assert list(choose_layers(model)) == ["linear1", "linear2"]
    assert list(choose_layers(model, "self_attn.*")) == ["self_attn.out_proj"]
    assert list(choose_layers(model, "*")) == ["linear1", "linear2"]


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


# --- pooling --------------------------------------------------------------------------------------

RNNS = [nn.LSTM(3, 4), nn.GRU(3, 4), nn.RNN(3, 4), nn.LSTM(3, 4, bidirectional=True)]
CASES = {
    "conv1d": (nn.Conv1d(3, 4, 2), (6, 3, 9), (2,)),
    "conv2d": (nn.Conv2d(3, 4, 2), (6, 3, 9, 7), (2, 3)),
    "conv3d": (nn.Conv3d(3, 4, 2), (6, 3, 5, 5, 4), (2, 3, 4)),
    "transposed 1d": (nn.ConvTranspose1d(3, 4, 2), (6, 3, 9), (2,)),
    "transposed 2d": (nn.ConvTranspose2d(3, 4, 2), (6, 3, 9, 7), (2, 3)),
    "linear": (nn.Linear(3, 4), (6, 3), ()),
    "linear on tokens": (nn.Linear(3, 4), (6, 5, 3), (1,)),
    "linear on images": (nn.Linear(3, 4), (6, 5, 7, 3), (1, 2)),
    "norm 1d": (nn.BatchNorm1d(3), (6, 3), ()),
    "norm 1d in space": (nn.BatchNorm1d(3), (6, 3, 8), (2,)),
    "norm 2d": (nn.BatchNorm2d(3), (6, 3, 8, 8), (2, 3)),
    "group norm": (nn.GroupNorm(1, 3), (6, 3, 8), (2,)),
    "layer norm": (nn.LayerNorm(3), (6, 5, 7, 3), (1, 2)),
    "ReLU in space": (nn.ReLU(), (6, 3, 8, 8), (2, 3)),
    "ReLU on tokens": (nn.ReLU(), (6, 5, 3), (1,)),
    "encoder layer": (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (6, 5, 4), (1,)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_space_and_tokens_are_pooled_away(case: str, pooling: str) -> None:
    module, shape, axes = CASES[case]
    output = module(torch.randn(shape))
    pooled = pool(output, module, pooling)
    reduce = torch.mean if pooling == "mean" else torch.amax
    expected = reduce(output, axes) if axes else output
    assert pooled.shape == expected.shape
    assert len(pooled) == 6
    assert torch.allclose(pooled, expected)
    assert not pooled.requires_grad
    assert pooled.untyped_storage().data_ptr() != output.untyped_storage().data_ptr()


@pytest.mark.parametrize("rnn", RNNS, ids=lambda rnn: type(rnn).__name__)
def test_recurrent_layers_say_where_their_samples_lie(rnn: nn.RNNBase) -> None:
    x = torch.randn(7, 6, 3)  # steps, samples, features
    first = copy.deepcopy(rnn)
    first.batch_first = True
    expected = torch.stack([rnn(x[:, i : i + 1])[0][:, 0].mean(0) for i in range(6)])
    for module, given in ((rnn, x), (first, x.transpose(0, 1))):
        assert torch.allclose(pool(module(given), module), expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_packed_sequences_count_their_own_steps_only(pooling: str) -> None:
    lengths = [2, 5, 1, 4]
    x = [torch.randn(length, 3) for length in lengths]
    rnn = nn.LSTM(3, 4)
    reduce = torch.mean if pooling == "mean" else torch.amax
    expected = torch.stack([reduce(rnn(one[:, None])[0][:, 0], 0) for one in x])
    packed = pack_sequence(x, enforce_sorted=False)
    assert torch.allclose(pool(rnn(packed), rnn, pooling), expected, atol=1e-6)
    assert torch.allclose(pool(rnn(packed)[0], nn.Identity(), pooling), expected, atol=1e-6)
    padded = nn.utils.rnn.pad_sequence(x, batch_first=True)
    again = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
    first = copy.deepcopy(rnn)
    first.batch_first = True
    assert torch.allclose(pool(first(again), first, pooling), expected, atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
def test_transformers_say_where_their_samples_lie(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=batch_first)
    decoder = nn.TransformerDecoderLayer(4, 2, 8, batch_first=batch_first)
    stacked = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    output = torch.randn(6, 5, 4) if batch_first else torch.randn(5, 6, 4)
    modules = [layer, decoder, stacked, layer.self_attn, nn.TransformerDecoder(decoder, 1)]
    whole = nn.Transformer(4, 2, 1, 1, 8, custom_encoder=stacked, batch_first=batch_first)
    for module in [*modules, whole]:
        assert batch_axis(module, output) == (0 if batch_first else 1)
        assert unit_axis(module, output) == 2
        assert torch.allclose(pool(output, module), output.mean(1 if batch_first else 0))
    attended = layer.self_attn(output, output, output)
    assert pool(attended, layer.self_attn).shape == (6, 4)


def test_encoders_record_their_inner_layers_also_in_evaluation_mode() -> None:
    """PyTorch has a fused path there, which calls no submodule."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with torch.no_grad(), record(model) as recorder:
        model(torch.randn(6, 5, 4))
        taken, problems = recorder.take(6)
    assert len(taken) == 4
    assert not problems


def test_unbatched_and_scalar_outputs() -> None:
    assert pool(torch.arange(5), nn.Identity()).shape == (5, 1)
    assert pool(torch.tensor(3.0), nn.Identity()).shape == (1, 1)


@dataclass
class Output:
    hidden: Tensor | None
    logits: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, x + 1),
        lambda x: [x],
        lambda x: {"a": None, "b": x, "c": x + 1},
        lambda x: ((x, x + 1), x + 2),
        lambda x: Output(None, x),
        lambda x: (None, {"deep": [x]}),
    ],
)
def test_the_first_tensor_in_a_nest_counts(wrap) -> None:
    x = torch.randn(4, 3)
    assert first_tensor(wrap(x)) is x
    assert pool(wrap(x), nn.Identity()).equal(x)


@pytest.mark.parametrize("output", [None, (), {}, 3.0, "text", [None], Output(None, None)])
def test_outputs_without_a_tensor(output) -> None:
    with pytest.raises(TypeError, match="Expected a layer's output to hold a tensor, but got"):
        first_tensor(output)


@pytest.mark.parametrize(
    ("dtype", "pooled"),
    [
        (torch.int64, torch.float32),
        (torch.uint8, torch.float32),
        (torch.bool, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex64, torch.float32),
    ],
)
def test_outputs_of_every_type(dtype: torch.dtype, pooled: torch.dtype) -> None:
    x = (30 * torch.randn(4, 3, 500)).to(dtype)
    conv = nn.Conv1d(1, 3, 1)
    wide = x.abs() if x.is_complex() else x.double()
    found = pool(x, conv)
    assert found.dtype == pooled
    assert torch.allclose(found.double(), wide.double().mean(2), rtol=1e-5)
    assert torch.allclose(pool(x, conv, "max").double(), wide.double().amax(2))


def test_a_callable_pools_as_it_likes() -> None:
    x = torch.randn(4, 3, 9)
    assert pool(x, nn.Conv1d(1, 3, 1), lambda y: y[:, :, 0]).equal(x[:, :, 0])
    own = pool(y := torch.randn(4, 3), nn.Linear(3, 3), lambda z: z)
    assert own.equal(y)
    assert own.data_ptr() != y.data_ptr()
    for wrong, got in ((lambda z: z, r"\(4, 3, 9\)"), (lambda z: 0, "int")):
        with pytest.raises(ValueError, match=rf"`pooling` to return a tensor .* but got {got}"):
            pool(x, nn.Conv1d(1, 3, 1), wrong)


def test_names_of_poolings() -> None:
    for pooling in ("mean", "max", torch.amax):
        check_pooling(pooling)
    for wrong in ("median", None, 3):
        with pytest.raises(ValueError, match="Expected `pooling` to be 'mean', 'max' or a call"):
            check_pooling(wrong)
        with pytest.raises(ValueError, match="Expected `pooling`"):
            record(Net(), pooling=wrong)


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
    assert problems["0"].startswith("it gave 10 rows for 5 samples; pass `pooling`")


def test_torchscript_takes_no_hooks() -> None:
    model = nn.Sequential(torch.jit.script(nn.Linear(3, 4)), nn.Linear(4, 2))
    with record(model, ["0", "1"]) as recorder:
        model(torch.zeros(5, 3))
        taken, problems = recorder.take(5)
    assert recorder.refused == {"0": "TorchScript modules take no hooks"}
    assert list(taken) == ["1"]
    assert not problems


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
        assert not output.called
        recorder.clear()
        output.clear()
        expected = model(x)
        taken, _ = recorder.take(5)
        assert output.output.equal(expected)
        assert output.arguments == ((x,), {})
    assert taken["first"].equal(model.first(x))


def test_forwards_aside_are_not_recorded() -> None:
    model, x = Net(), images()
    with record(model) as recorder, OutputRecorder(model) as output:
        with aside():
            model(x)
            with aside():
                model(x)
            model(x)
        assert not output.called
        assert not recorder.take()[0]
        with pytest.raises(RuntimeError), aside():
            model(torch.zeros(1))
        expected = model(x)
        assert output.output.equal(expected)
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
            assert recorder.output.equal(2 * model.layer(x))
            assert recorder.arguments == ((x,), {"scale": 2.0})
            recorder.clear()
            assert not recorder.called
        model(x)
        last = model(x + 1)  # of calls side by side the last
        assert recorder.output is last
    model(x)
    assert not recorder.called
    assert recorder.output is None


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
