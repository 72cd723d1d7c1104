"""Attribution of odd models and precisions, and that it leaves every model as it was."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import choose_layers
from lightning_neurocorr.attribution import attribute
from tests.small_nets import C, Checkpointed, LastStep, N, Net, Wild, conv_net, data


def wild_by_hand(
    model: Wild, x: Tensor, target: Tensor, rival: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """The forward written out, with every activation kept as it was before what follows it."""
    a: dict[str, Tensor] = {}
    a["left"] = model.left(x).detach().requires_grad_()
    a["right"] = model.right(x)
    right = a["right"].relu()
    a["shared1"], a["shared2"] = model.shared(a["left"].tanh()), model.shared(right)
    a["block.0"] = model.block[0](a["shared1"].relu() + a["shared2"].relu())
    a["block.2"] = model.block[2](a["block.0"].tanh())
    a["as_dict"] = a["block.2"] * 1.5
    a["head"] = model.head(torch.cat([a["as_dict"], right], 1))
    rows = torch.arange(len(x))
    margin = (a["head"][rows, target] - a["head"][rows, rival]).sum()
    gradients = torch.autograd.grad(margin, list(a.values()))
    found = {
        name: ((value * g).detach().double(), g.double())
        for (name, value), g in zip(a.items(), gradients, strict=True)
    }
    first, second = found.pop("shared1"), found.pop("shared2")
    return {**found, "shared": (first[0] + second[0], first[1] + second[1])}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", [Wild, Checkpointed])
def test_models_with_branches_shared_layers_and_checkpoints(kind: type, frozen: bool) -> None:
    model = kind().eval()
    x, target, rival = data((4,))
    expected = wild_by_hand(model, x, target, rival)
    model.requires_grad_(not frozen)
    names = ["left", "right", "shared", "block.0", "block.2", "as_dict", "unused", "head"]
    layers = {name: model.get_submodule(name) for name in names}
    found = attribute(lambda: model(x), layers, target, rival)
    assert set(found) == set(names) - {"unused"}
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_path_through_a_checkpoint() -> None:
    model, straight = Checkpointed().eval(), Wild().eval()
    straight.load_state_dict(model.state_dict())
    x, target, rival = data((4,))
    found = [
        attribute(lambda m=m: m(x), {"0": m.block[0]}, target, rival, method="path")["0"]
        for m in (model, straight)
    ]
    torch.testing.assert_close(found[0], found[1])


def test_sequence_first_modules_have_their_samples_on_the_second_axis() -> None:
    rnn, head = nn.LSTM(4, 5), nn.Linear(5, C)
    x, target, rival = data((3, 4))
    model = Net(rnn=nn.LSTM(4, 5, batch_first=True), last=LastStep(), h=head)
    model.parts.rnn.load_state_dict(rnn.state_dict())
    expected = attribute(lambda: model(x), {"rnn": model.parts.rnn}, target, rival)
    found = attribute(lambda: head(rnn(x.transpose(0, 1))[0][-1]), {"rnn": rnn}, target, rival)
    torch.testing.assert_close(found, expected)


def test_layers_whose_rows_are_not_samples_are_left_out() -> None:
    layer, head = nn.Linear(2, 4), nn.Linear(8, C)
    x, target, rival = data((4,))
    found = attribute(
        lambda: head(layer(x.reshape(-1, 2)).reshape(N, 8)), {"l": layer}, target, rival
    )
    assert found == {}


def test_inference_mode_and_autocast() -> None:
    model, (x, target, rival) = conv_net(), data((2, 7, 7))
    exact = attribute(lambda: model(x), choose_layers(model), target, rival)
    with torch.inference_mode():
        made_here = x * 1.0
        with torch.autocast("cpu", torch.bfloat16):
            model(made_here)  # may leave weights in the cache that were cast in inference mode
            half = attribute(lambda: model(made_here.clone()), choose_layers(model), target, rival)
        found = attribute(lambda: model(made_here.clone()), choose_layers(model), target, rival)
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(found, exact)
    for name in exact:
        assert half[name][0].dtype == torch.float64
        assert (
            torch.corrcoef(torch.stack([half[name][0].flatten(), exact[name][0].flatten()]))[0, 1]
            > 0.99
        )


def test_a_large_mean_does_not_drown_the_contribution() -> None:
    torch.manual_seed(1)
    activation = 1e4 + torch.randn(64, 3, 5, 5)
    conv, weight = nn.Identity(), torch.randn(2, 3, 5, 5)
    target = torch.arange(64) % 2

    def forward() -> Tensor:
        return (conv(activation)[:, None] * weight * activation[:, :1, None]).flatten(2).sum(2)

    u, v = attribute(forward, {"conv": conv}, target, 1 - target)["conv"]
    g = (weight[target] - weight[1 - target]).double() * activation[:, :1].double()
    a, mean = activation.double(), activation.double().mean((0, 2, 3))
    expected = ((a - mean[:, None, None]) * g).sum((2, 3))
    torch.testing.assert_close(u - mean * v, expected, rtol=1e-3, atol=1e-3 * expected.std().item())


# --- nothing changes -----------------------------------------------------------------------------


@pytest.mark.keeps_rng
@pytest.mark.parametrize("fails", [False, True])
def test_changes_nothing(fails: bool) -> None:
    state = torch.get_rng_state()
    model = conv_net()
    model.parts.fc.weight.requires_grad_(False)
    x, target, rival = data((2, 7, 7))
    torch.set_rng_state(state)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reached = []
    handles = [p.register_hook(reached.append) for p in model.parameters() if p.requires_grad]

    def forward() -> Tensor:
        noisy = model(x + 1e-3 * torch.randn_like(x))  # draws from the global state
        if fails:
            raise KeyboardInterrupt
        return noisy

    if fails:
        with pytest.raises(KeyboardInterrupt):
            attribute(forward, choose_layers(model), target, rival)
    else:
        attribute(forward, choose_layers(model), target, rival)
    for handle in handles:
        handle.remove()
    assert reached == [], "a weight was differentiated"
    assert all(p.grad is None for p in model.parameters())
    assert not model.parts.fc.weight.requires_grad
    assert model.parts.conv1.weight.requires_grad
    assert not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_nothing_in_front_of_the_first_layer_is_kept_for_a_backward() -> None:
    class Box:
        """Stands for a tensor kept for a backward that never comes."""

    stem, layer, head = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, C)
    boxes: list[weakref.ref[Box]] = []
    alive: list[int] = []

    def pack(_: Tensor) -> Box:
        boxes.append(weakref.ref(box := Box()))
        return box

    def unpack(_: Box) -> Tensor:
        raise AssertionError("something in front of the first layer was differentiated")

    def forward() -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            hidden = layer(stem(x).tanh().sigmoid())
        alive.append(sum(box() is not None for box in boxes))
        return head(hidden)

    x, target, rival = data((4,))
    attribute(forward, {"layer": layer}, target, rival)
    assert len(boxes) > 0
    assert alive == [0]


def test_predictions_that_are_no_logits_are_refused() -> None:
    layer = nn.Conv2d(2, 3, 3)
    with pytest.raises(ValueError, match=r"logits of shape \(6, C\), but got \(6, 3, 5, 5\)"):
        attribute(lambda: layer(torch.randn(6, 2, 7, 7)), {"l": layer}, torch.zeros(6))
    with pytest.raises(ValueError, match=r"logits of shape \(6, C\), but got \(5, 3\)"):
        attribute(lambda: torch.zeros(5, 3), {"l": layer}, torch.zeros(6))
