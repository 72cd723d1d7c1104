"""What a sheet says about a neuron, a sample and a picture."""

from __future__ import annotations

import math

from lightning_neurocorr.report import NeuronRow
from lightning_neurocorr.report.panels import Picture, Sample
from lightning_neurocorr.report.written import fixed, printable, significant

TITLES = {
    "exemplars": ("strongest", "samples"),
    "only_model": ("only the model", "is right"),
    "matched": ("same class,", "both right"),
}
PICTURE = ("made for", "the neuron")
OUTCOMES = {
    "only_model": "only the model right",
    "both": "both right",
    "only_baseline": "only the baseline right",
    "neither": "both wrong",
}
LEGEND = "With each sample: its class and the neuron's activation."
BAR_LEGEND = "The bar is its outcome:"
PICTURE_LEGEND = (
    "×: activation on the picture, relative to the 99th percentile over real images; "
    "moved: after small shifts, turns and zooms."
)
SCALE_LEGEND = "Each image is shown over its own range, the same for all of its channels."


def correlation(row: NeuronRow) -> str:
    """The correlation and its interval."""
    if math.isnan(row.r):
        return "r undefined"
    if math.isnan(row.r_low):
        return f"r = {fixed(row.r)}"
    return f"r = {fixed(row.r)} [{fixed(row.r_low)}, {fixed(row.r_high)}]"


def caption(sample: Sample) -> tuple[str, str]:
    """Class and activation; empty where there is none."""
    target = "" if sample.target < 0 else printable(sample.class_name) or str(sample.target)
    return target, "" if math.isnan(sample.activation) else significant(sample.activation)


def ratio(value: float) -> str:
    """How many times as strong as real images."""
    return "?" if math.isnan(value) else f"{fixed(value, 1)}×"


def short_facts(picture: Picture) -> list[str]:
    """A picture's numbers, a few words a line, the most important first."""
    lines = [
        f"{ratio(picture.activation_ratio)} real p99",
        f"{ratio(picture.augmented_ratio)} when moved",
    ]
    if not picture.readable:
        lines[1] = f"best real: {ratio(picture.real_best)}"
    if picture.sign < 0:
        lines.append("drives it down")
    sample = "from top sample" if picture.sign > 0 else "from lowest sample"
    return [*lines, sample if picture.start == "exemplar" else "from noise"]


def facts(picture: Picture) -> str:
    """The same as a sentence."""
    sample = "the top exemplar" if picture.sign > 0 else "the lowest sample"
    start = sample if picture.start == "exemplar" else "noise"
    down = "drives the neuron down; " if picture.sign < 0 else ""
    best = "" if picture.readable else f" (the best real image {ratio(picture.real_best)})"
    return (
        f"{down}{ratio(picture.activation_ratio)} the 99th percentile of real images{best}, "
        f"{ratio(picture.augmented_ratio)} shifted and turned; started from {start}"
    )
