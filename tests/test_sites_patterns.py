"""Patterns of real models: all that a layer says goes through the place it is read at.

The second implementation knows nothing of tracing. It changes what a layer returns. Then only that
neuron may change at the place; and with the place put back, the model must answer as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_neurocorr.activations import (
    Place,
    Site,
    SiteRecorder,
    choose_layers,
    first_tensor,
    listen,
)

N = 7


class Net(nn.Module):
    """Parts, and a function of them and of the input."""

    def __init__(self, run: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.run(self, *args, **kwargs)


class FrozenNorm(nn.Module):
    """As torchvision's `FrozenBatchNorm2d`: a batch norm that has become a factor and a term."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Buffer(torch.rand(1, channels, 1, 1) + 0.5)
        self.shift = nn.Buffer(torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def conv(inside: int, outside: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, padding=size // 2)


def squeeze_excite(net: Any, x: Tensor) -> Tensor:
    h = F.silu(net.norm(net.a(x)))
    h = h * torch.sigmoid(net.excite(F.relu(net.squeeze(h.mean((2, 3), keepdim=True)))))
    return net.head(h.mean((2, 3)))


def gated(net: Any, x: Tensor) -> Tensor:
    return net.down(net.act(net.gate(x)) * net.up(x))


def halves(net: Any, x: Tensor) -> Tensor:
    value, gate = net.a(x).chunk(2, -1)
    return net.head(value * F.gelu(gate))


def pre_norm(net: Any, x: Tensor) -> Tensor:
    x = x + net.mix(net.norm1(x))
    x = x + net.down(F.gelu(net.up(net.norm2(x))))
    return net.head(x)


def shared_act(net: Any, x: Tensor) -> Tensor:
    for layer in (net.a, net.b, net.c):
        x = net.act(layer(x))
    return net.head(x.mean((2, 3)))


def in_place_on_a_slice(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    h[:, :2].relu_()
    return net.b(h)


def view_and_base(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    F.relu_(h.view(len(h), 4, 64))
    return net.b(h)


def buffer_of_two(net: Any, x: Tensor) -> Tensor:
    both = torch.zeros(len(x), 8, 8, 8)
    both[:, :4], both[:, 4:] = net.a(x), net.b(x)
    return net.c(F.relu(both))


def buffer_and_relu(net: Any, x: Tensor) -> Tensor:
    h, kept = net.a(x), torch.zeros(len(x), 4, 8, 8)
    kept[:] = h
    return net.b(kept) + net.c(F.relu(h))


def residual_through_a_buffer(net: Any, x: Tensor) -> Tensor:
    shifted = torch.zeros_like(x)
    shifted[:, :, 1:] = x[:, :, 1:]
    return net.b(F.relu(net.a(x) + shifted))


def sequence_first(net: Any, x: Tensor) -> Tensor:
    steps = net.lstm(net.embed(x.transpose(0, 1)))[0]
    return net.head(net.act(net.a(steps)).mean(0))


def packed(net: Any, x: Tensor) -> Tensor:
    lengths = (x[:, :, 0] > -9).sum(1).cpu()
    inside = pack_padded_sequence(net.embed(x), lengths, batch_first=True, enforce_sorted=False)
    steps = pad_packed_sequence(net.gru(inside)[0], batch_first=True, total_length=x.shape[1])[0]
    return net.head(F.relu(net.a(steps)).mean(1))


def patches(net: Any, x: Tensor) -> Tensor:
    parts = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 4, 4)
    return net.head(F.relu(net.a(parts)).mean((2, 3)).view(-1, 4, 5).mean(1))


def unfolded(net: Any, x: Tensor) -> Tensor:
    parts = F.unfold(x, 4, stride=4).transpose(1, 2).reshape(-1, 3, 4, 4)
    return net.head(F.relu(net.a(parts)).mean((2, 3)).view(-1, 4, 5).mean(1))


def folded(net: Any, x: Tensor) -> Tensor:
    parts = net.a(F.unfold(x, 2, stride=2).transpose(1, 2)).transpose(1, 2)
    return net.head(F.relu(net.b(F.fold(parts, (8, 8), 2, stride=2))).mean((2, 3)))


def windows(net: Any, x: Tensor) -> Tensor:
    parts = x.view(-1, 3, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 3)
    q, k, v = net.a(parts).view(-1, 16, 2, 9).split(3, 3)
    mask = torch.arange(16).expand(16, 16) % 3  # what it takes goes by PyTorch's own softmax
    with sdpa_kernel(SDPBackend.MATH):
        said = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask.float()
        )
    h = F.relu(net.b(said.transpose(1, 2).reshape(-1, 16, 6)))
    return net.head(h.view(-1, 4, 16, 5).mean((1, 2)))


def mixer(net: Any, x: Tensor) -> Tensor:
    mixed = net.down(F.gelu(net.up(net.norm(x).transpose(1, 2)))).transpose(1, 2)
    return net.head((x + mixed).mean(1))


IMAGES, TOKENS, ROWS = (3, 8, 8), (5, 6), (6,)
SQUARE = (N, 6)  # as many steps as samples

Pattern = tuple[Callable[..., Tensor], tuple[int, ...], dict[str, Any], dict[str, str]]
PATTERNS: dict[str, Pattern] = {
    "squeeze and excite": (
        squeeze_excite, IMAGES,
        {"a": conv(3, 6), "norm": nn.BatchNorm2d(6), "squeeze": conv(6, 2, 1),
         "excite": conv(2, 6, 1), "head": nn.Linear(6, 3)},
        {"a": "norm", "squeeze": "input of excite"},
    ),
    "gated mlp": (
        gated, ROWS,
        {"gate": nn.Linear(6, 8), "up": nn.Linear(6, 8), "act": nn.SiLU(), "down": nn.Linear(8, 3)},
        {"gate": "act"},
    ),
    "glu": (
        lambda net, x: net.head(F.glu(net.a(x))), ROWS,
        {"a": nn.Linear(6, 8), "head": nn.Linear(4, 3)}, {},
    ),
    "gate of halves": (halves, TOKENS, {"a": nn.Linear(6, 16), "head": nn.Linear(8, 3)}, {}),
    "pre-norm": (
        pre_norm, TOKENS,
        {"norm1": nn.LayerNorm(6), "mix": nn.Linear(6, 6), "norm2": nn.LayerNorm(6),
         "up": nn.Linear(6, 12), "down": nn.Linear(12, 6), "head": nn.Linear(6, 2)},
        {"up": "input of down"},
    ),
    "one function for all": (
        shared_act, IMAGES,
        {"a": conv(3, 4), "b": conv(4, 5), "c": conv(5, 6), "act": nn.ReLU(),
         "head": nn.Linear(6, 2)},
        {"a": "input of b", "b": "input of c", "c": "input of head"},
    ),
    "in place on a slice": (in_place_on_a_slice, IMAGES, {"a": conv(3, 4), "b": conv(4, 2)}, {}),
    "in place on a view": (view_and_base, IMAGES, {"a": conv(3, 4), "b": conv(4, 2)}, {}),
    "two layers into a buffer": (
        buffer_of_two, IMAGES, {"a": conv(3, 4), "b": conv(3, 4), "c": conv(8, 2)}, {},
    ),
    "kept in a buffer": (
        buffer_and_relu, IMAGES, {"a": conv(3, 4), "b": conv(4, 2), "c": conv(4, 2)}, {},
    ),
    "a residual through a buffer": (
        residual_through_a_buffer, IMAGES, {"a": conv(3, 3), "b": conv(3, 2)}, {},
    ),
    "frozen norm and residual": (
        lambda net, x: net.b(F.relu(net.norm(net.a(x)) + net.skip(x))), IMAGES,
        {"a": conv(3, 4), "norm": FrozenNorm(4), "skip": conv(3, 4, 1), "b": conv(4, 2)},
        {"a": "norm"},
    ),
    "keywords": (
        lambda net, x: net.b(input=net.act(input=net.norm(input=net.a(input=x)))), IMAGES,
        {"a": conv(3, 4), "norm": nn.BatchNorm2d(4), "act": nn.ReLU(), "b": conv(4, 2)},
        {"a": "act"},
    ),
    "keywords of a function": (
        lambda net, x: net.b(input=F.relu(net.a(input=x))), IMAGES,
        {"a": conv(3, 4), "b": conv(4, 2)}, {"a": "input of b"},
    ),
    "maximum over places": (
        lambda net, x: net.b(F.relu(net.a(x)).amax((2, 3))), IMAGES,
        {"a": conv(3, 4), "b": nn.Linear(4, 2)}, {},
    ),
    "maximum over steps": (
        lambda net, x: net.b(F.relu(net.a(x)).max(1).values), TOKENS,
        {"a": nn.Linear(6, 4), "b": nn.Linear(4, 2)}, {},
    ),
    "maximum over units": (
        lambda net, x: net.b(net.a(x).view(-1, 4, 2).amax(-1)), ROWS,
        {"a": nn.Linear(6, 8), "b": nn.Linear(4, 2)}, {},
    ),
    "two heads": (
        lambda net, x: net.b(h := F.relu(net.a(x)).mean((2, 3))) + net.c(h), IMAGES,
        {"a": conv(3, 4), "b": nn.Linear(4, 2), "c": nn.Linear(4, 2)}, {},
    ),
    "sequence first": (
        sequence_first, TOKENS,
        {"embed": nn.Linear(6, 6), "lstm": nn.LSTM(6, 4, 2, bidirectional=True),
         "a": nn.Linear(8, 5), "act": nn.ReLU(), "head": nn.Linear(5, 2)},
        {"a": "act"},
    ),
    "sequence first, as long as the batch": (
        sequence_first, SQUARE,
        {"embed": nn.Linear(6, 6), "lstm": nn.LSTM(6, 4), "a": nn.Linear(4, 5), "act": nn.ReLU(),
         "head": nn.Linear(5, 2)},
        {"a": "act"},
    ),
    "packed": (
        packed, TOKENS,
        {"embed": nn.Linear(6, 6), "gru": nn.GRU(6, 4, batch_first=True, bidirectional=True),
         "a": nn.Linear(8, 5), "head": nn.Linear(5, 2)},
        {"a": "input of head"},
    ),
    "patches as samples": (
        patches, IMAGES, {"a": conv(3, 5), "head": nn.Linear(5, 2)}, {"a": "input of head"},
    ),
    "patches of unfold": (
        unfolded, IMAGES, {"a": conv(3, 5), "head": nn.Linear(5, 2)}, {"a": "input of head"},
    ),
    "patches and fold": (
        folded, IMAGES,
        {"a": nn.Linear(12, 16), "b": conv(4, 5), "head": nn.Linear(5, 2)},
        {"b": "input of head"},
    ),
    "windows": (
        windows, IMAGES,
        {"a": nn.Linear(3, 18), "b": nn.Linear(6, 5), "head": nn.Linear(5, 2)},
        {"b": "input of head"},
    ),
    "tokens are mixed": (
        mixer, TOKENS,
        {"norm": nn.LayerNorm(6), "up": nn.Linear(5, 7), "down": nn.Linear(7, 5),
         "head": nn.Linear(6, 2)},
        {"up": "input of down"},
    ),
    "weights of a parametrization": (
        lambda net, x: net.b(F.relu(net.a(x))), IMAGES,
        {"a": nn.utils.parametrizations.weight_norm(conv(3, 4)), "b": conv(4, 2)},
        {"a": "input of b"},
    ),
}  # fmt: skip


def read(net: Net, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Place]]:
    """Found in the first of two forwards, listened to in the second."""
    with torch.no_grad(), SiteRecorder(net, choose_layers(net)) as recorder:
        for _ in range(2):
            recorder.begin(x)
            net(x)
            recorder.pause()
            taken, problems = recorder.take(len(x))
            assert not problems
    assert recorder._finder.trace.fault is None
    return taken, dict(recorder.places)


@contextmanager
def each(place: Place, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """What is said at a place, changed at every call."""
    handle = listen(place, lambda _, value: change(first_tensor(value)))
    yield
    handle.remove()


@pytest.mark.parametrize("name", PATTERNS)
def test_all_that_a_layer_says_goes_through_its_place(name: str) -> None:
    run, shape, parts, expected = PATTERNS[name]
    net, x = Net(run, **parts).eval(), torch.randn(N, *shape)
    for part in net.modules():
        part.register_forward_hook(lambda *_: None)  # other hooks do not disturb
    taken, places = read(net, x)
    found = {n: p.name for n, p in places.items() if isinstance(p, Site) and p.name != n}
    assert found == expected
    for i in range(N):
        alone, _ = read(net, x[i : i + 1])
        for layer, values in alone.items():
            torch.testing.assert_close(values, taken[layer][i : i + 1], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        before = net(x)
        for layer in expected:
            place, raw, unit, said = places[layer], net.get_submodule(layer), 1, []
            assert isinstance(place, Site)
            assert place.units is not None
            axis = 1 if isinstance(raw, nn.Conv2d) else -1

            def louder(output: Tensor, axis: int = axis, unit: int = unit) -> Tensor:
                changed = output.clone()
                changed.select(axis, unit).add_(1 + torch.rand(()))
                return changed

            with each(place, lambda value, said=said: said.append(value.clone())):
                net(x)
            again = [value.clone() for value in said]
            with each(raw, louder):
                with each(place, lambda value, said=said: said.append(value.clone())):
                    net(x)
                with each(place, lambda _, again=again: again.pop(0)):
                    restored = net(x)
            torch.testing.assert_close(restored, before, msg=f"{layer}: more than its place hears")
            for was, now in zip(said, said[len(said) // 2 :], strict=False):
                changed = (now != was).movedim(place.units, 0).flatten(1).any(1)
                assert changed.nonzero().flatten().tolist() == [unit], layer


def test_axes_that_cannot_be_followed_are_not_guessed() -> None:
    """Steps as long as the batch, on tensors that the trace has never seen."""

    class Lost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            steps = torch.tensor(x.tolist()).transpose(0, 1)  # no longer of the batch
            return self.head(self.a(steps).relu().mean(0))

    for steps in (N, 5):
        net, x = Lost(), torch.randn(N, steps, 6)
        with torch.no_grad(), SiteRecorder(net, choose_layers(net)) as recorder:
            recorder.begin(x)
            net(x)
            recorder.pause()
            taken, problems = recorder.take(N)
        assert taken.keys() == {"head"}
        reason = "take another batch size" if steps == N else "it gave 5 rows for 7 samples"
        assert reason in problems["a"]


class Sample:
    """A batch of one's own class."""

    def __init__(self, x: Tensor) -> None:
        self.parts = {"x": [x]}


def test_tensors_of_the_batch_are_found_inside_of_objects() -> None:
    """Else the input that is added would look like a constant."""
    x = torch.randn(N, 3, 8, 8)
    net = Net(
        lambda net, sample: net.b(F.relu(net.a(sample.parts["x"][0]) + sample.parts["x"][0])),
        a=conv(3, 3),
        b=conv(3, 2),
    )
    for begun in (Sample(x), None):  # told to the recorder, or what the forward gets
        with torch.no_grad(), SiteRecorder(net, choose_layers(net)) as recorder:
            recorder.begin(begun)
            net(Sample(x))
            recorder.pause()
            recorder.take(N)
        assert recorder.found is not None
        assert recorder.found.names["a"] == "a"
