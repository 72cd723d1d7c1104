"""Reports that are drawn into event files, and event files read back by TensorBoard itself."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lightning_neurocorr.report import COLUMNS, NeuronReport, Outcomes
from lightning_neurocorr.report.history import HistoryEntry
from lightning_neurocorr.report.panels import Panel, Sample
from lightning_neurocorr.show.tensorboard import draw_report, draw_sheets

NASTY = "a|b`c`<script>alert(1)</script>\n# **d** _e_ [f](g) ~h~ \\ &amp; 1."


def a_report(layers: Sequence[str] = ("conv", "head"), size: int = 6, **fields) -> NeuronReport:
    """A report with a value for every column of ``size`` neurons a layer."""
    rng = np.random.default_rng(fields.get("validation", 0))
    columns = {name: rng.normal(size=size * len(layers)) for name in COLUMNS}
    columns["r"] = columns["r"].clip(-2, 2) / 4
    columns["r_low"], columns["r_high"] = columns["r"] - 0.1, columns["r"] + 0.1
    columns["q_value"] = rng.random(size * len(layers)) ** 8
    if fields.pop("ablated", True) is False:
        del columns["ablation"]
    fields = {"outcomes": Outcomes(60, 25, 10, 5, 0.017), "n": 100, "baseline": "a rule"} | fields
    return NeuronReport(tuple(layers), (size,) * len(layers), columns, **fields)


def panel(layer: str, unit: int = 0) -> Panel:
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    return Panel(layer, unit, exemplars=(Sample(3, 1.0, "both", 2, image),))


def drawn(folder: Path, *reports: NeuronReport, top_k: int = 16) -> EventAccumulator:
    """An event file with these validations of one run, read back."""
    history: list[HistoryEntry] = []
    writer = SummaryWriter(str(folder))
    for report in reports:
        history.append(HistoryEntry.from_report(report, history[-1] if history else None))
        draw_report(report, history, writer, top_k)
        draw_sheets(report, writer)
    writer.close()
    return read(folder)


def read(folder: Path) -> EventAccumulator:
    everything = dict.fromkeys(("tensors", "images", "histograms", "scalars"), 0)
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def tags(events: EventAccumulator) -> set[str]:
    return {tag for kind in events.Tags().values() if isinstance(kind, list) for tag in kind}
