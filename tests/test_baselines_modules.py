"""A network as a baseline: right answers, and no trace on the module or a random state."""

import copy
import functools
import pickle
import random

import pytest
import torch
from torch import nn

from lightning_neurocorr.baselines import ModuleBaseline
from tests.baseline_nets import (
    Net,
    Noisy,
    Returning,
    batch,
    everything_about,
    in_eval_mode,
    random_states,
    taken,
    trained,
)


def test_module_answers_as_in_eval_mode_and_is_left_as_it_was():
    module = trained(Net())
    module.body[1].eval()  # a part that somebody froze
    before, x = everything_about(module), batch()[0]
    answer = ModuleBaseline(module)(batch())
    assert torch.equal(answer, in_eval_mode(module, x))
    assert not answer.requires_grad
    assert everything_about(module) == before
    assert module.training
    assert not module.body[1].training


def test_module_flags_come_back_after_an_exception():
    def fail(x):
        raise KeyboardInterrupt

    module = nn.Sequential(Returning(fail), nn.Dropout())
    with pytest.raises(KeyboardInterrupt):
        ModuleBaseline(module)(batch())
    assert [part.training for part in module.modules()] == [True, True, True]


def test_a_module_that_is_trained_on_is_a_baseline_that_learns():
    module = Net()
    baseline = ModuleBaseline(module)
    first = baseline(batch())
    trained(module)
    assert not torch.equal(first, baseline(batch()))


@pytest.mark.parametrize(
    ("inputs", "given"),
    [
        (None, ((6, 4), {})),
        (0, ((6, 4), {})),
        (lambda b: (b[0], b[1]), ((6, 4), (6,), {})),
        (lambda b: {"x": b[0], "mask": b[1]}, ({"x": (6, 4), "mask": (6,)},)),
        (lambda b: [b[0], b[1]], ([(6, 4), (6,)], {})),
    ],
)
def test_inputs_are_given_as_arguments(inputs, given):
    seen = []

    def remember(*args, **kwargs):
        shape = functools.partial(map, lambda t: tuple(t.shape))
        shapes = [list(shape(a)) if isinstance(a, list) else tuple(a.shape) for a in args]
        seen.append((*shapes, {name: tuple(t.shape) for name, t in kwargs.items()}))
        return torch.zeros(6, 2)

    ModuleBaseline(Returning(remember), inputs=inputs)(batch())
    assert seen == [given]


def test_inputs_of_dict_batches():
    x, y = batch()
    module = Net()
    want = in_eval_mode(module, x)
    assert torch.equal(ModuleBaseline(module)({"image": x, "label": y}), want)
    assert torch.equal(ModuleBaseline(module, inputs="a.b")({"a": {"b": x}}), want)
    with pytest.raises(ValueError, match=r"`inputs` to name a part of the batch.*'c'"):
        ModuleBaseline(module, inputs="c")({"a": x})


@pytest.mark.parametrize(
    "how",
    [
        lambda x: {"logits": x, "loss": None},
        lambda x: {"preds": x},
        lambda x: type("Output", (), {"logits": x})(),
        lambda x: x,
    ],
)
def test_the_prediction_is_found_in_the_output(how):
    assert torch.equal(ModuleBaseline(Returning(how))(batch()), batch()[0])


def test_an_output_without_prediction_is_named():
    with pytest.raises(ValueError, match=r"Returning to return one tensor.*\[0\] .*`output=`"):
        ModuleBaseline(Returning(lambda x: (x, x + 1)))(batch())
    with pytest.raises(TypeError, match=r"Returning to return a tensor.*but got str"):
        ModuleBaseline(Returning(lambda x: "text"))(batch())


@pytest.mark.parametrize("output", [1, lambda found: found[1], "1"], ids=["index", "call", "key"])
def test_the_answer_is_where_output_says(output):
    for baseline in (
        ModuleBaseline(Returning(lambda x: (x + 1, x)), output=output),
        taken(Returning(lambda x: (x + 1, x)), output=output),
    ):
        assert torch.equal(baseline(batch()), batch()[0])
        assert "output=" in repr(baseline)
    with pytest.raises(ValueError, match="`output` to name a part"):
        ModuleBaseline(Returning(lambda x: (x + 1, x)), output=2)(batch())
    with pytest.raises(TypeError, match="`output` to be a key"):
        ModuleBaseline(Returning(lambda x: x), output=True)


def test_module_keeps_its_own_precision():
    module = trained(Net())
    x, y = batch()
    want = in_eval_mode(module, x)
    baseline = ModuleBaseline(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.eval()(x).dtype == torch.bfloat16  # or the test shows nothing
        assert torch.equal(baseline((x, y)), want)
        assert torch.is_autocast_enabled("cpu")
    half = x.bfloat16()  # what precision="bf16-true" makes of the batch
    assert torch.equal(baseline((half, y)), in_eval_mode(module, half.float()))
    double = ModuleBaseline(copy.deepcopy(module).double())((x, y))
    assert double.dtype == torch.float64


def test_integer_inputs_are_not_cast():
    embedding = nn.Embedding(10, 3)
    assert ModuleBaseline(embedding)((torch.tensor([1, 2]), None)).shape == (2, 3)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_module_in_every_gradient_mode(mode):
    module = trained(Net())
    want = in_eval_mode(module, batch()[0])
    with mode():
        answer = ModuleBaseline(module)(batch())
    assert torch.equal(answer, want)
    trained(module)  # can still be trained


def test_module_moves_to_the_batch_and_moving_in_inference_mode_does_no_harm():
    module = Net()
    assert ModuleBaseline(module).to("cpu").module is module
    with torch.inference_mode():
        ModuleBaseline(module).to("meta")
    assert all(p.is_meta and not p.is_inference() for p in module.parameters())
    followed = ModuleBaseline(nn.Linear(4, 2))
    assert followed((torch.zeros(3, 4, device="meta"), None)).is_meta


@pytest.mark.parametrize("wrap", [ModuleBaseline, "snapshot"])
def test_random_states_are_kept_and_the_baselines_own_goes_on(wrap):
    def make():
        return taken(Noisy()) if wrap == "snapshot" else wrap(Noisy())

    baseline, twin = make(), make()
    states = random_states()
    first, second = baseline(batch()), baseline(batch())
    assert not torch.equal(first, second)  # a random baseline is random for every batch
    torch.rand(3)  # what training draws meanwhile does not matter
    random.random()
    assert torch.equal(twin(batch()), first)
    assert torch.equal(twin(batch()), second)
    torch.set_rng_state(torch.tensor(states[2], dtype=torch.uint8))
    random.setstate(states[0])
    assert random_states() == states


def test_module_arguments():
    with pytest.raises(TypeError, match=r"`module` to be a torch.nn.Module.*function of the batch"):
        ModuleBaseline(lambda x: x)
    with pytest.raises(TypeError, match="`inputs` to be a key"):
        ModuleBaseline(Net(), inputs=1.5)
    assert repr(ModuleBaseline(Net(), inputs="x")) == "ModuleBaseline(Net, inputs='x')"


def test_module_pickles_with_its_weights():
    module = trained(Net())
    twin = pickle.loads(pickle.dumps(ModuleBaseline(module)))
    assert torch.equal(twin(batch()), in_eval_mode(module, batch()[0]))
