"""Is it the half that the baseline cannot see? The network is asked with mirrored halves.

Clothes and bags are nearly symmetric: an image whose right half is the mirrored left one still
looks like one, and tells nothing of the right half. Shoes are not, and are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr.report import NeuronReport, rules

SHOES = ("sandal", "sneaker", "ankle boot")


def mirrored(net: nn.Module, report: NeuronReport, images: Tensor, name: str) -> dict[str, Any]:
    """What is left of answers and activations where one half stands for both.

    Args:
        net: The trained network.
        report: Of its last validation.
        images: Those of the validation, ``(N, 1, 28, 28)``.
        name: A neuron to look at on the images that drive it most.
    """
    left, right = images[..., :14], images[..., 14:]
    whole, _ = ask(net, report, images)
    lefts, mirrored_left = ask(net, report, torch.cat([left, left.flip(-1)], -1))
    rights, mirrored_right = ask(net, report, torch.cat([right.flip(-1), right], -1))
    samples = report.samples
    if samples is None:
        raise ValueError("Expected a report that keeps its samples.")
    shoes = [number for number, name in report.class_names.items() if name in SHOES]
    shoe = np.isin(samples.target, shoes)
    found: dict[str, Any] = {"answers": [], "neurons": []}
    for group, words in (("both", "both"), ("only_model", "only the network")):
        rows = samples.rows_in(group)
        rows = rows[~shoe[rows]]
        truth, place = samples.target[rows], samples.position[rows]
        shares = {
            "left": float((mirrored_left[place] == truth).mean()),
            "right": float((mirrored_right[place] == truth).mean()),
        }
        found["answers"].append({"group": words, "n": len(rows), **shares})
    columns = {"r": report.column("r"), **report.columns}
    others = samples.position[~shoe]
    r, used = same(whole[others], lefts[others]), rules.used(columns)
    for layer, span in report.layout.slices.items():
        mine, known = used[span], np.isfinite(r[span])
        groups = {"used": r[span][mine & known], "others": r[span][~mine & known]}
        means = {name: float(some.mean()) if len(some) else None for name, some in groups.items()}
        found["neurons"].append({"layer": layer, **means})
    neuron = [row.name for row in report.rows].index(name)
    most = samples.position[samples.exemplars["any"][neuron]]
    kinds = {"whole": whole, "left": lefts, "right": rights}
    found["one"] = {kind: float(of[most, neuron].mean()) for kind, of in kinds.items()}
    return {**found, "name": name}


def ask(net: nn.Module, report: NeuronReport, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Activations ``(N, D)`` of all neurons of the report, and answers ``(N,)``."""
    heard: dict[str, list[Tensor]] = {name: [] for name in report.read_at}

    def hook(name: str) -> Any:
        def keep(_: nn.Module, __: Any, out: Tensor) -> None:
            heard[name].append(out.mean((2, 3)) if out.ndim == 4 else out)

        return keep

    handles = [net.get_submodule(name).register_forward_hook(hook(name)) for name in heard]
    with torch.inference_mode():
        answers = torch.cat([net(part).argmax(1) for part in images.split(500)])
    for handle in handles:
        handle.remove()
    return torch.cat([torch.cat(parts) for parts in heard.values()], 1).numpy(), answers.numpy()


def same(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r of the columns of two arrays, ``(D,)``."""
    x, y = x - x.mean(0), y - y.mean(0)
    with np.errstate(invalid="ignore"):
        return (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))
