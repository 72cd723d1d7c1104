"""Is it the half that the baseline cannot see? The network is asked with mirrored halves.

Clothes are nearly symmetric: an image whose right half is the mirrored left one still looks like
one, and tells nothing of the right half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_neurocorr.report import NeuronReport, verdict


def mirrored(net: nn.Module, report: NeuronReport, images: Tensor) -> dict[str, Any]:
    """What is left of answers and activations where one half stands for both.

    Args:
        net: The trained network.
        report: Of its last validation.
        images: Those of the validation, ``(N, 1, 28, 28)``.
    """
    left, right = images[..., :14], images[..., 14:]
    whole, _ = ask(net, report, images)
    lefts, answers = ask(net, report, torch.cat([left, left.flip(-1)], -1))
    _, others = ask(net, report, torch.cat([right.flip(-1), right], -1))
    samples = report.samples
    if samples is None:
        raise ValueError("Expected a report that keeps its samples.")
    found: dict[str, Any] = {"answers": [], "neurons": []}
    for group, words in (("both", "both"), ("only_model", "only the network")):
        rows = samples.rows_in(group)
        truth, place = samples.target[rows], samples.position[rows]
        shares = {
            "left": float((answers[place] == truth).mean()),
            "right": float((others[place] == truth).mean()),
        }
        found["answers"].append({"group": words, "n": len(rows), **shares})
    columns = {"r": report.column("r"), **report.columns}
    r, used = same(whole, lefts), verdict.used(columns)
    for layer, span in report.layout.slices.items():
        mine, known = used[span], np.isfinite(r[span])
        groups = {"used": r[span][mine & known], "others": r[span][~mine & known]}
        means = {name: float(some.mean()) if len(some) else None for name, some in groups.items()}
        found["neurons"].append({"layer": layer, **means})
    return found


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
