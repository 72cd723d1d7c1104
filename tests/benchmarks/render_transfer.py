"""Do pictures show what a neuron sees? A second network, trained on its own, is asked.

    python -m tests.benchmarks.render_transfer [--fast]

A unit's class is the most frequent class of its 20 strongest real images. *Transfer* is how often
the next, independently trained network sees that class in the unit's picture; *own* how often the
unit's network does. *Draw* is the transfer of the same start before any optimisation: without it
the others mean little. Units are those that go most with each class.
"""

import argparse
import statistics
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_neurocorr.activations import ActivationRecorder, Place, find_sites
from lightning_neurocorr.visualization import (
    FeatureVisualizer,
    ImagePrior,
    LucentVisualizer,
    Target,
    Visualizer,
)
from lightning_neurocorr.visualization.parametrization import choose, make
from tests.benchmarks.render_data import DATA, Net, train
from tests.benchmarks.timing import machine

TRAINING = {"xray": (3000, 16), "digits": (900, 80), "pileup": (2000, 8)}  # images, epochs


@dataclass
class Case:
    """A network, the units looked at, their classes and their strongest real images."""

    net: Net
    places: dict[str, Place]
    targets: list[Target]
    classes: Tensor
    exemplars: list[Tensor]


def choose_units(
    net: Net, name: str, images: Tensor, labels: Tensor, per_class: int, at: str
) -> Case:
    """The units whose activation correlates most with each class, if they go with it at all."""
    _, layer, classes = DATA[name]
    with torch.no_grad():
        places = find_sites(net, lambda: net(images[:2]), layer, at=at)
    with ActivationRecorder(places) as recorder, torch.no_grad():
        net(images)
        activations = recorder.take()[0][layer]
    centred = activations - activations.mean(0)
    centred = centred / centred.norm(dim=0).clamp(min=1e-9)
    units: list[int] = []
    for label in range(classes):
        indicator = (labels == label).float()
        r = centred.T @ (indicator - indicator.mean())
        order = r.argsort(descending=True)[: int((r > 0).sum())]  # of a dead unit r is 0
        units += [unit for unit in order.tolist() if unit not in units][:per_class]
    strongest = activations[:, units].argsort(0, descending=True)[:20]
    return Case(
        net,
        places,
        [Target(layer, unit) for unit in units],
        labels[strongest].mode(0).values,
        [images[row] for row in strongest[0]],
    )


def agreement(net: Net, images: Tensor, classes: Tensor) -> float:
    """Share of the images in which the network sees the class asked for."""
    with torch.no_grad():
        return float((net(images).argmax(1) == classes).float().mean())


def draws(visualizer: Visualizer, case: Case, prior: ImagePrior) -> Tensor:
    """What the optimisation starts from."""
    noise = torch.randn(len(case.targets), *prior.shape, generator=torch.Generator().manual_seed(7))
    if isinstance(visualizer, FeatureVisualizer):
        kind = visualizer.parametrization
        real = torch.stack(case.exemplars) if visualizer.start == "exemplar" else None
        kind = choose(prior) if kind == "auto" else kind
        return make(kind, prior, noise, real, torch.device("cpu")).images().detach()
    middle = (prior.low + prior.high) / 2  # Lucent starts grey
    return middle[:, None, None] + 0.01 * noise


def row(visualizer: Visualizer, cases: list[Case], prior: ImagePrior) -> str:
    """Mean numbers of all pictures, and the spread of transfer over the networks."""
    numbers = []
    for case, judge in zip(cases, [*cases[1:], cases[0]], strict=True):
        pictures = visualizer.render(
            case.net, case.places, case.targets, prior, exemplars=case.exemplars
        )
        blank = prior.images.mean(0).numpy()
        made = torch.stack(
            [torch.from_numpy(p.image if p.image is not None else blank) for p in pictures]
        )
        numbers.append(
            (
                np.nanmean([p.activation_ratio for p in pictures]),  # NaN: could not be made
                np.nanmean([p.augmented_ratio for p in pictures]),
                statistics.mean(float(p.readable) for p in pictures),
                agreement(judge.net, draws(visualizer, case, prior), case.classes),
                agreement(case.net, made, case.classes),
                agreement(judge.net, made, case.classes),
            )
        )
    activation, augmented, readable, draw, own, transfer = map(
        statistics.mean, zip(*numbers, strict=True)
    )
    spread = statistics.pstdev(entry[-1] for entry in numbers)
    return (
        f"{activation:.2f} | {augmented:.2f} | {readable:.2f} | {draw:.2f} | {own:.2f} | "
        f"**{transfer:.2f}** ± {spread:.2f}"
    )


def visualizers(steps: int) -> dict[str, Visualizer]:
    """All rows of the table."""
    rows: dict[str, Visualizer] = {
        "default": FeatureVisualizer(steps=steps, time_budget_s=None),
        "default, from noise": FeatureVisualizer(steps=steps, start="noise", time_budget_s=None),
        "default, no limit": FeatureVisualizer(steps=steps, strength=None, time_budget_s=None),
    }
    for kind in ("pca", "maco", "fourier", "pixel"):
        for start in ("exemplar", "noise"):
            rows[f"{kind}, from {start}"] = FeatureVisualizer(
                parametrization=kind, start=start, steps=steps, time_budget_s=None
            )
    rows["Lucent, our adapter"] = LucentVisualizer(steps=steps, time_budget_s=None)
    return rows


def main() -> None:
    """Print one table per kind of data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a smoke run: the numbers mean nothing")
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first network")
    parser.add_argument("--rows", nargs="*", help="only these rows")
    parser.add_argument("--per-class", type=int, default=2)
    parser.add_argument("--data", nargs="*", choices=list(DATA), default=list(DATA))
    parser.add_argument("--at", choices=["activation", "raw"], default="activation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.data:
        count, epochs = (200, 1) if options.fast else TRAINING[name]
        models = 2 if options.fast else options.models
        seeds = range(options.first_seed, options.first_seed + models)
        images, labels = DATA[name][0](200 if options.fast else 2000, 1)
        prior = ImagePrior.fit(images.split(64))
        nets = [train(name, seed, count, epochs) for seed in seeds]
        cases = [
            choose_units(net, name, images, labels, options.per_class, options.at) for net in nets
        ]
        accuracy = statistics.mean(agreement(net, images, labels) for net in nets)
        real = statistics.mean(
            agreement(judge.net, torch.stack(case.exemplars), case.classes)
            for case, judge in zip(cases, [*cases[1:], cases[0]], strict=True)
        )
        units = sum(len(case.targets) for case in cases)
        print(
            f"\n{name}: {models} networks (accuracy {accuracy:.2f}), {units} units "
            f"in all; auto is {choose(prior)}; transfer of the strongest real image {real:.2f}\n"
        )
        print("| picture | activation | augmented | readable | draw | own | transfer |")
        print("|---|---|---|---|---|---|---|")
        for label, visualizer in visualizers(2 if options.fast else 64).items():
            if options.rows and label not in options.rows:
                continue
            print(f"| {label} | {row(visualizer, cases, prior)} |", flush=True)
    print(f"\n{machine('torch-lucent')}")


if __name__ == "__main__":
    main()
