"""Are pictures worse where neurons are read behind the activation function? The same units, twice.

    python -m tests.benchmarks.render_pairs [--models N] [--data xray digits pileup] [--fast]

Each unit's picture is made once for the layer's raw output and once behind its ReLU, from the same
real image, and the next, independently trained network is asked whether it shows the unit's class
(see ``render_transfer``). Units are all that are alive behind the ReLU, and the two per class that
``render_transfer`` chooses, by either reading. *p* is McNemar's exact test of the pairs.
"""

import argparse
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from lightning_neurocorr.activations import find_sites
from lightning_neurocorr.functional import mcnemar_p
from lightning_neurocorr.visualization import FeatureVisualizer, ImagePrior
from tests.benchmarks.render_data import DATA, Net, train
from tests.benchmarks.render_transfer import TRAINING, Case, choose_units
from tests.benchmarks.timing import machine, table

KINDS: tuple[Literal["raw", "activation"], ...] = ("raw", "activation")
HEAD = ["units", "pictures", "pairs", "no picture", "both", "only raw", "only activation", "p"]


def shows(case: Case, judge: Net, visualizer: FeatureVisualizer, prior: ImagePrior) -> Tensor:
    """Per unit, whether the judge sees its class in its picture; NaN where there is none."""
    pictures = visualizer.render(
        case.net, case.places, case.targets, prior, exemplars=case.exemplars
    )
    found = torch.full((len(pictures),), torch.nan)
    for row, (picture, label) in enumerate(zip(pictures, case.classes, strict=True)):
        if picture.image is not None:
            with torch.no_grad():
                answer = judge(torch.from_numpy(picture.image)[None]).argmax()
            found[row] = float(answer == label)
    return found


def rows(
    name: str, nets: list[Net], images: Tensor, labels: Tensor, steps: int
) -> Iterator[list[str]]:
    """One for each choice of units and way of making pictures."""
    prior = ImagePrior.fit(images.split(64))
    _, layer, classes = DATA[name]
    visualizers = {
        "default": FeatureVisualizer(steps=steps, time_budget_s=None),
        "from noise": FeatureVisualizer(steps=steps, start="noise", time_budget_s=None),
        "no limit": FeatureVisualizer(steps=steps, strength=None, time_budget_s=None),
    }
    for units, chosen_at, per_class in (
        ("all, by activation", "activation", 10**6),
        (f"{2 * classes}, by activation", "activation", 2),
        (f"{2 * classes}, by raw", "raw", 2),
    ):
        cases = [choose_units(net, name, images, labels, per_class, chosen_at) for net in nets]
        for label, visualizer in visualizers.items():
            seen: dict[str, list[Tensor]] = {at: [] for at in KINDS}
            for case, judge in zip(cases, [*cases[1:], cases[0]], strict=True):
                for at in KINDS:
                    with torch.no_grad():
                        places = find_sites(
                            case.net, lambda c=case: c.net(images[:2]), layer, at=at
                        )
                    drawn = Case(case.net, places, case.targets, case.classes, case.exemplars)
                    seen[at].append(shows(drawn, judge.net, visualizer, prior))
            raw, activation = (torch.cat(seen[at]) for at in KINDS)
            pairs = raw.isfinite() & activation.isfinite()
            raw, activation = raw[pairs] > 0, activation[pairs] > 0
            only = int((raw & ~activation).sum()), int((activation & ~raw).sum())
            yield [
                units,
                label,
                str(len(raw)),
                str(int((~pairs).sum())),
                str(int((raw & activation).sum())),
                *map(str, only),
                f"{mcnemar_p(*only):.2f}",
            ]


def main(arguments: list[str] | None = None) -> None:
    """Print one table per kind of data."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="a smoke run: the numbers mean nothing")
    parser.add_argument("--models", type=int, default=6)
    parser.add_argument("--data", nargs="*", choices=list(DATA), default=["xray"])
    options = parser.parse_args(arguments)
    for name in options.data:
        count, epochs = (200, 1) if options.fast else TRAINING[name]
        images, labels = DATA[name][0](200 if options.fast else 2000, 1)
        seeds = range(2 if options.fast else options.models)
        nets = [train(name, seed, count, epochs) for seed in seeds]
        print(f"{name}, {len(nets)} networks\n")
        print(table(HEAD, rows(name, nets, images, labels, 2 if options.fast else 64)), flush=True)
    print(machine())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
