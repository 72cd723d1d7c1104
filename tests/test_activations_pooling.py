"""What layers of many kinds return becomes one number per sample and neuron."""

import copy
import gc
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from lightning_neurocorr.ablation import silence
from lightning_neurocorr.activations import (
    Site,
    batch_axis,
    check_pooling,
    choose_layers,
    find_sites,
    first_tensor,
    layer_of,
    pool,
    record,
    unit_axis,
)

RNNS = [nn.LSTM(3, 4), nn.GRU(3, 4), nn.RNN(3, 4), nn.LSTM(3, 4, bidirectional=True)]
RELU = nn.ReLU()
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
    "ReLU in space": (Site(RELU, RELU, "0", None, 4, 1, 0), (6, 3, 8, 8), (2, 3)),
    "ReLU of channels last": (Site(RELU, RELU, "0", None, 4, 3, 0), (6, 8, 7, 3), (1, 2)),
    "ReLU on tokens": (Site(RELU, RELU, "0", None, 3, 2, 0), (6, 5, 3), (1,)),
    "encoder layer": (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (6, 5, 4), (1,)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_space_and_tokens_are_pooled_away(case: str, pooling: str) -> None:
    module, shape, axes = CASES[case]
    output = layer_of(module)(torch.randn(shape))
    pooled = pool(output, module, pooling)
    reduce = torch.mean if pooling == "mean" else torch.amax
    expected = reduce(output, axes) if axes else output
    assert pooled.shape == expected.shape
    assert len(pooled) == 6
    assert torch.allclose(pooled, expected)
    assert not pooled.requires_grad
    assert pooled.untyped_storage().data_ptr() != output.untyped_storage().data_ptr()


def test_axes_of_a_plain_function_are_not_guessed() -> None:
    """The same ReLU stands behind a convolution, and in a block that keeps channels last."""
    swapped = nn.Sequential(nn.Conv2d(1, 3, 1), Swap(), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(6, 1, 4, 5)
    with (
        pytest.raises(ValueError, match="ReLU does not say so: pass find_sites"),
        silence(swapped, {"2": [2]}, "zero"),
    ):
        swapped[2](x)  # the model itself is not called
    with torch.no_grad():
        expected = swapped[:3](x)
        expected[..., 2] = 0
        sites = find_sites(swapped, lambda: swapped(x), ["2"])
        for model in (sites, swapped):  # the second follows by itself, before the first forward
            with silence(model, {"2": [2]}, "zero"):
                assert torch.equal(swapped(x), swapped[3](expected))
        with record(swapped, ["0", "2"]) as recorder:  # follows by itself, in the first forward
            for _ in range(2):
                said = swapped[0](x)
                swapped(x)
                taken, problems = recorder.take(6)
                assert not problems
                assert torch.allclose(taken["0"], said.mean((2, 3)), atol=1e-6)
                assert torch.allclose(taken["2"], said.relu().mean((2, 3)), atol=1e-6)


class Swap(nn.Module):
    """To channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


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


class SequenceFirst(nn.Module):
    """Embeds ``(N, steps)`` and hands ``(steps, N, D)`` on, as older code does."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=batch_first)
        self.embed = nn.Embedding(9, 4)
        self.encoder = nn.TransformerEncoder(
            layer, 2, norm=nn.LayerNorm(4), enable_nested_tensor=False
        )
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        if self.batch_first:
            return self.head(self.encoder(hidden).mean(1))
        return self.head(self.encoder(hidden.transpose(0, 1)).mean(0))


@pytest.mark.parametrize("layers", [None, "encoder.*", ["encoder.norm", "encoder.layers.0.norm1"]])
@pytest.mark.parametrize("steps", [6, 5])
def test_layers_inside_a_sequence_first_transformer_know_their_samples(layers, steps: int) -> None:
    """With as many steps as samples nothing else could tell; by hand: every sample alone."""
    model, tokens = SequenceFirst(batch_first=False).eval(), torch.randint(0, 9, (6, steps))
    with torch.no_grad(), record(model, layers) as recorder:
        model(tokens)
        found, problems = recorder.take(6)
        alone = []
        for one in tokens:
            model(one[None])
            alone.append(recorder.take(1)[0])
    assert not problems
    assert {"encoder.layers.1.linear2", "encoder.norm"} & found.keys()
    for name, activation in found.items():
        expected = torch.cat([sample[name] for sample in alone])
        assert torch.allclose(activation, expected, atol=1e-6), name
    other = SequenceFirst(batch_first=True).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad(), record(other, layers) as recorder:
        other(tokens)
        for name, activation in recorder.take(6)[0].items():
            assert torch.allclose(activation, found[name], atol=1e-6), name


def test_a_transformer_that_is_gone_is_forgotten() -> None:
    from lightning_neurocorr.activations import sequences

    gc.collect()
    before = len(sequences._inside)
    model = SequenceFirst(batch_first=False)
    choose_layers(model)
    assert len(sequences._inside) > before
    del model
    gc.collect()
    assert len(sequences._inside) == before


def test_encoders_record_their_inner_layers_also_in_evaluation_mode() -> None:
    """PyTorch has a fused path there, which calls no submodule."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with torch.no_grad(), record(model) as recorder:
        model(torch.randn(6, 5, 4))
        taken, problems = recorder.take(6)
    # Two linear layers and the attention of each block.
    assert len(taken) == 6
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
        with pytest.raises(ValueError, match="be 'mean', 'max', 'cls', 'last' or a call"):
            check_pooling(wrong)
        with pytest.raises(ValueError, match="Expected `pooling`"):
            record(nn.Sequential(nn.Linear(1, 1)), pooling=wrong)
