"""Made-up validations with known truth, on unequal classes of unequal difficulty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_neurocorr.report import NeuronReport, rules
from lightning_neurocorr.validation import Batch, ValidationPass, report_of

KINDS = ("easiness", "failures", "advantage", "class", "noise")


@dataclass(frozen=True)
class MadeUp:
    """Samples, and what the model and the baseline answer.

    Attributes:
        target: True classes ``(N,)``.
        model: The model's answers.
        baseline: The baseline's.
        activations: ``(N, D)``: as many neurons of each kind, one kind after the other.
    """

    target: Tensor
    model: Tensor
    baseline: Tensor
    activations: Tensor

    def report(self, baseline: Tensor | None = None) -> NeuronReport:
        """What a validation finds, against another baseline if one is given."""
        given = self.baseline if baseline is None else baseline
        position = torch.arange(len(self.target))
        result = ValidationPass(num_classes=int(self.target.max()) + 1)
        for part in position.split(1000):
            batch = Batch(self.model[part], given[part], self.target[part], part)
            result.add(batch, {"layer": self.activations[part]}, {})
        found = result.finish(torch.device("cpu"))
        return report_of(found, name="made up", baseline="", advantage="correctness")

    def called(self, report: NeuronReport) -> dict[str, float]:
        """Share of the neurons of each kind that are called encoding."""
        found = rules.encodes({"r": report.column("r"), **report.columns})
        return dict(zip(KINDS, found.reshape(len(KINDS), -1).mean(1).tolist(), strict=True))


def validation(classes: int, n: int, each: int, knowing: float = 0.6) -> MadeUp:
    """A validation whose neurons go with one thing each, and whose classes are unequal in all.

    A sample is easy or hard for the model, easy or hard for the baseline, and one in five has a
    mark that the model knows and the baseline does not.

    Args:
        classes: How many; the first is about ten times as frequent as the last.
        n: Samples.
        each: Neurons of each of ``KINDS``: that go with samples the model finds easy, with those
            the baseline fails on, with the mark, with a class, with nothing.
        knowing: How much the mark tells a neuron of its kind, in standard deviations of its noise.
    """
    odds = torch.linspace(1, 0.1, classes)
    target = torch.multinomial(odds, n, replacement=True)
    easy, failing = torch.randn(n), torch.randn(n)
    marked = (torch.rand(n) < 0.2).float()
    skill = torch.randn(2, classes)  # of model and baseline, by class
    right = [
        torch.rand(n) < torch.sigmoid(1.5 + skill[0, target] + 1.5 * easy + 2.5 * marked),
        torch.rand(n) < torch.sigmoid(1.0 + skill[1, target] - 1.5 * failing - 2.5 * marked),
    ]
    other = (target + torch.randint(1, classes, (n,))) % classes
    answers = [torch.where(each_right, target, other) for each_right in right]
    signals = (easy, failing, marked * 2.5 * knowing / 0.6, 2.0 * (target == target[0]))
    neurons = [0.5 * signal[:, None] + torch.randn(n, each) for signal in signals]
    offsets = torch.randn(classes, len(KINDS) * each)  # every neuron knows the class a little
    activations = torch.cat([*neurons, torch.randn(n, each)], 1) + 0.3 * offsets[target]
    return MadeUp(target, *answers, activations=torch.relu(activations))


class TwoStreams(nn.Module):
    """Two noisy pictures of the class, half of the hidden units on each.

    ``hidden`` gives ``(N, 2 U)``: the units of the first picture, which the baseline sees too, then
    those of the second.
    """

    def __init__(self, features: int, units: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features, units), nn.Linear(features, units)
        self.hidden, self.head = nn.ReLU(), nn.Linear(2 * units, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, C)`` of inputs ``(N, 2 F)``."""
        one, two = x.chunk(2, 1)
        return self.head(self.hidden(torch.cat([self.first(one), self.second(two)], 1)))


@dataclass(frozen=True)
class Streams:
    """A trained network, held-out samples, and the answers of a baseline that sees one stream."""

    model: TwoStreams
    x: Tensor
    target: Tensor
    baseline: Tensor


def two_streams(classes: int, n: int, units: int = 24, features: int = 12) -> Streams:
    """Train a network on both streams and a linear baseline on the first.

    Classes are unequal in size and, by their noise, in difficulty; few of them are noisier.
    """
    patterns = torch.randn(2, classes, features)
    noise = torch.linspace(0.8, 1.6, classes) * {2: 3.5, 5: 2.0}.get(classes, 1.5)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        target = torch.multinomial(torch.linspace(1, 0.3, classes), count, replacement=True)
        clean = torch.cat([patterns[0, target], patterns[1, target]], 1)
        return clean + noise[target, None] * torch.randn(count, 2 * features), target

    model, linear = TwoStreams(features, units, classes), nn.Linear(features, classes)
    x, target = draw(2000)
    for module, seen in ((model, x), (linear, x[:, :features])):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
        for rows in torch.randint(0, len(target), (150, 256)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(seen[rows]), target[rows]).backward()
            optimizer.step()
    x, target = draw(n)
    with torch.no_grad():
        return Streams(model.eval(), x, target, linear(x[:, :features]).argmax(1))
