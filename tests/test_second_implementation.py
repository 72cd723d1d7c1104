"""Every kind of layer against a loop: one sample at a time, without padding, pooled by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from lightning_neurocorr import Ablation, compare
from tests.helpers import pearson

N, C, D = 70, 2, 4

pytestmark = pytest.mark.filterwarnings("ignore:.*nested.*:UserWarning")


class Net(nn.Module):
    """Parts, and how they make logits of a batch."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def over(tokens: Tensor, x: Tensor) -> Tensor:
    """Real tokens ``(N, T, D)`` of ids ``(N, T)`` to one row per sample: their mean square."""
    real = (x != 0)[..., None]
    return (tokens**2).masked_fill(~real, 0).sum(1) / real.sum(1)


def maps(net: Any, x: Tensor) -> Tensor:
    return net.head((net.layer(x) ** 2).flatten(2).mean(2))


def channels_last(net: Any, x: Tensor) -> Tensor:
    return net.head((net.layer(x.movedim(1, -1)) ** 2).flatten(1, -2).mean(1))


def sequence_first(net: Any, x: Tensor) -> Tensor:
    hidden = net.encoder(net.embed(x).transpose(0, 1), src_key_padding_mask=x == 0)
    return net.head(over(hidden.transpose(0, 1), x))


def encoded(net: Any, x: Tensor) -> Tensor:
    hidden = net.encoder(net.layer(net.embed(x)), src_key_padding_mask=x == 0)
    return net.head(over(hidden, x))


def decoded(net: Any, x: Tensor) -> Tensor:
    hidden = net.embed(x)
    memory = hidden[:, :2]  # of another length
    return net.head(over(net.decoder(hidden, memory, tgt_key_padding_mask=x == 0), x))


def attended(net: Any, x: Tensor) -> Tensor:
    hidden = net.embed(x)
    return net.head(over(net.layer(hidden, hidden, hidden, key_padding_mask=x == 0)[0], x))


def recurrent(net: Any, x: Tensor) -> Tensor:
    return net.head((net.layer(x)[0] ** 2).mean(1))


def packed(net: Any, x: Tensor) -> Tensor:
    lengths = (x != 0).sum(1)
    inside = pack_padded_sequence(net.embed(x), lengths, batch_first=True, enforce_sorted=False)
    said = net.layer(inside)[0]
    # As long as its input, so that it can also be run on some rows of a padded batch.
    back = pad_packed_sequence(said, batch_first=True, total_length=x.shape[1])[0]
    return net.head(over(back, x))


def embedding(size: int = D) -> nn.Module:
    return nn.Embedding(9, size, padding_idx=0)


def block(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.0, **options)


def rows(output: Any) -> Tensor:
    """``(1, T, D)`` to ``(T, D)``."""
    return output[0]


def channels(output: Any) -> Tensor:
    """``(1, D, ...)`` to ``(positions, D)``."""
    return output[0].flatten(1).T


@dataclass
class Kind:
    """A network, its layers with units along which axis, and the shape of a sample.

    Attributes:
        net: Builds it.
        layers: By name, the axis of the units for a batch of one.
        shape: Of a sample; None for ids of several lengths.
    """

    net: Callable[[], nn.Module]
    layers: dict[str, int]
    shape: tuple[int, ...] | None = None


def head(size: int = D) -> nn.Linear:
    return nn.Linear(size, C)


KINDS = {
    "conv1d": Kind(lambda: Net(maps, layer=nn.Conv1d(2, D, 3), head=head()), {"layer": 1}, (2, 7)),
    "conv2d": Kind(
        lambda: Net(maps, layer=nn.Conv2d(2, D, 3), head=head()), {"layer": 1}, (2, 5, 4)
    ),
    "conv3d": Kind(
        lambda: Net(maps, layer=nn.Conv3d(2, D, 2), head=head()), {"layer": 1}, (2, 3, 3, 2)
    ),
    "linear": Kind(
        lambda: Net(lambda net, x: net.head(net.layer(x) ** 2), layer=nn.Linear(3, D), head=head()),
        {"layer": 1, "head": 1},
        (3,),
    ),
    "token linear": Kind(
        lambda: Net(
            lambda net, x: net.head((net.layer(x) ** 2).mean(1)), layer=nn.Linear(3, D), head=head()
        ),
        {"layer": 2},
        (5, 3),
    ),
    "channels last": Kind(
        lambda: Net(channels_last, layer=nn.LayerNorm(3), head=head(3)), {"layer": 3}, (3, 4, 2)
    ),
    "batch norm": Kind(
        lambda: Net(maps, layer=nn.BatchNorm2d(3), head=head(3)), {"layer": 1}, (3, 4, 4)
    ),
    "group norm": Kind(
        lambda: Net(maps, layer=nn.GroupNorm(1, 3), head=head(3)), {"layer": 1}, (3, 4, 4)
    ),
    "lstm": Kind(
        lambda: Net(recurrent, layer=nn.LSTM(3, D, batch_first=True), head=head()),
        {"layer": 2},
        (5, 3),
    ),
    "gru, packed": Kind(
        lambda: Net(packed, embed=embedding(), layer=nn.GRU(D, D, batch_first=True), head=head()),
        {"layer": 2},
    ),
    "attention": Kind(
        lambda: Net(
            attended,
            embed=embedding(),
            layer=nn.MultiheadAttention(D, 2, batch_first=True),
            head=head(),
        ),
        {"embed": 2, "layer": 2},
    ),
    "encoder": Kind(
        lambda: Net(
            encoded,
            embed=embedding(),
            layer=nn.Linear(D, D),
            encoder=nn.TransformerEncoder(block(batch_first=True), 2),
            head=head(),
        ),
        {"embed": 2, "layer": 2, "encoder.layers.0.linear2": 2, "encoder.layers.1.norm2": 2},
    ),
    "encoder, sequence first": Kind(
        lambda: Net(
            sequence_first,
            embed=embedding(),
            encoder=nn.TransformerEncoder(block(), 1, enable_nested_tensor=False),
            head=head(),
        ),
        {"encoder.layers.0.linear2": 2, "encoder.layers.0.self_attn": 2},
    ),
    "decoder": Kind(
        lambda: Net(
            decoded,
            embed=embedding(),
            decoder=nn.TransformerDecoder(
                nn.TransformerDecoderLayer(D, 2, 8, dropout=0.0, batch_first=True), 1
            ),
            head=head(),
        ),
        {"embed": 2, "decoder.layers.0.linear2": 2, "decoder.layers.0.multihead_attn": 2},
    ),
}


def samples(kind: Kind) -> list[Tensor]:
    if kind.shape is not None:
        return list(torch.randn(N, *kind.shape))
    return [torch.randint(1, 9, (int(length),)) for length in torch.randint(2, 8, (N,))]


def labelled(net: nn.Module, xs: list[Tensor]) -> tuple[list[int], list[int]]:
    """Labels that the network mostly gets right, and answers of a baseline that often does not."""
    with torch.no_grad():
        scores = torch.cat([net(x[None]) for x in xs])
    y = (scores - scores.mean(0)).argmax(1)
    with torch.no_grad():  # so that both classes are predicted
        net.get_submodule("head").bias -= scores.mean(0)
    flip = torch.rand(N) < 0.1
    y = torch.where(flip, 1 - y, y)
    answers = torch.where(torch.rand(N) < 0.6, 1 - y, y)
    return y.tolist(), answers.tolist()


def collated(parts: list[tuple[Tensor, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    xs, ys, answers = zip(*parts, strict=True)
    same = all(x.is_floating_point() for x in xs)
    x = torch.stack(xs) if same else pad_sequence(list(xs), batch_first=True)
    return x, torch.tensor(ys), torch.tensor(answers)


@contextmanager
def instead(net: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The first tensor of what a layer says, changed; packed sequences by their only sample."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return change(output)
        first, *rest = output
        if isinstance(first, nn.utils.rnn.PackedSequence):
            return (first._replace(data=change(first.data[None])[0]), *rest)
        return (change(first), *rest)

    handle = net.get_submodule(name).register_forward_hook(hook)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it makes nested tensors of padded batches
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        handle.remove()


class Loop:
    """One sample at a time."""

    def __init__(self, net: nn.Module, xs: list[Tensor], ys: list[int], answers: list[int]) -> None:
        self.net, self.xs, self.ys, self.answers = net, xs, ys, answers

    def spoken(self, name: str, axis: int) -> list[Tensor]:
        """What a layer says of each sample, ``(positions, D)``."""
        found: list[Tensor] = []

        def keep(output: Tensor) -> Tensor:
            found.append(output.detach().movedim(axis, -1).flatten(0, -2).double())
            return output

        with torch.no_grad(), instead(self.net, name, keep):
            for x in self.xs:
                self.net(x[None])
        return found

    def gain(self) -> list[int]:
        with torch.no_grad():
            right = [
                int(self.net(x[None]).argmax()) == y for x, y in zip(self.xs, self.ys, strict=True)
            ]
        return [int(r) - int(a == y) for r, a, y in zip(right, self.answers, self.ys, strict=True)]

    def wins(self) -> list[int]:
        return [i for i, gain in enumerate(self.gain()) if gain > 0]

    def margin(self, i: int) -> Tensor:
        logits = self.net(self.xs[i][None])[0]
        return logits[self.ys[i]] - logits[self.answers[i]]

    def attribution(self, name: str, axis: int, mean: Tensor) -> np.ndarray:
        total: list[Tensor] = []
        leaves: list[Tensor] = []

        def leaf(output: Tensor) -> Tensor:
            leaves.append(output.detach().requires_grad_())
            return leaves[-1]

        for i in self.wins():
            leaves.clear()
            with instead(self.net, name, leaf):
                (gradient,) = torch.autograd.grad(self.margin(i), leaves)
            a, g = (
                t.detach().movedim(axis, -1).flatten(0, -2).double() for t in (leaves[0], gradient)
            )
            total.append(((a - mean) * g).sum(0))
        return torch.stack(total).mean(0).numpy()

    def lost(self, name: str, axis: int, unit: int, mean: float) -> float:
        def silent(output: Tensor) -> Tensor:
            changed = output.clone()
            changed.select(axis, unit).fill_(mean)
            return changed

        lost = []
        with torch.no_grad():
            for i in self.wins():
                before = self.margin(i)
                with instead(self.net, name, silent):
                    lost.append(float(before - self.margin(i)))
        return float(np.mean(lost))


@pytest.mark.parametrize("name", KINDS)
def test_r_attribution_and_ablation_are_those_of_a_loop(name: str) -> None:
    kind = KINDS[name]
    net, xs = kind.net().eval(), samples(kind)
    ys, answers = labelled(net, xs)
    loop = Loop(net, xs, ys, answers)
    spoken = {layer: loop.spoken(layer, axis) for layer, axis in kind.layers.items()}
    gain = np.array(loop.gain())
    means = {layer: torch.cat(said).mean(0) for layer, said in spoken.items()}
    attributed = {n: loop.attribution(n, axis, means[n]) for n, axis in kind.layers.items()}
    settings = Ablation(sizes=(), singles=D, random_sets=1, by="mean")
    ablated: dict[tuple[str, int], float] = {}
    for size, pooling in ((1, "mean"), (7, "max"), (7, "mean"), (N, "mean")):
        loader = DataLoader(
            list(zip(xs, ys, answers, strict=True)), batch_size=size, collate_fn=collated
        )
        found = compare(
            net, loader, lambda batch: batch[2], list(kind.layers), target=1, pooling=pooling,
            at="raw",
            ablation=settings if pooling == "mean" else None,
        )  # fmt: skip
        assert set(found.layers) == set(kind.layers), found.notes
        for layer in kind.layers:
            reduce = (lambda a: a.mean(0)) if pooling == "mean" else (lambda a: a.amax(0))
            pooled = torch.stack([reduce(said) for said in spoken[layer]]).numpy()
            at = [row for row in found.rows if row.layer == layer]
            r = [pearson(pooled[:, unit], gain) for unit in range(len(at))]
            np.testing.assert_allclose([row.r for row in at], r, atol=2e-5, err_msg=layer)
            np.testing.assert_allclose(
                [row.mean_over_positions for row in at], means[layer], atol=2e-5, err_msg=layer
            )
            np.testing.assert_allclose(
                [row.attribution for row in at], attributed[layer], atol=2e-4, err_msg=layer
            )
        for neuron in found.study["neurons"] if pooling == "mean" else ():
            layer, unit = neuron["layer"], neuron["unit"]
            if (layer, unit) not in ablated:
                mean = float(means[layer][unit])
                ablated[layer, unit] = loop.lost(layer, kind.layers[layer], unit, mean)
            effect = neuron["effect"]["advantage_margin"]
            assert effect == pytest.approx(ablated[layer, unit], abs=2e-4)
    assert {layer for layer, _ in ablated} == set(kind.layers)
