"""Pictures on a GPU against forward and gradient alone, and a small network with everything on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import (
    Ablation,
    BatchBaseline,
    FeatureVisualizer,
    ImagePrior,
    SecondPass,
    compare,
)
from lightning_neurocorr.visualization import Target
from tests.benchmarks.gpu_epoch import network
from tests.benchmarks.gpu_table import Bench, Row

_LAYERS = ("layer2", "layer4")


def pictures(bench: Bench) -> list[Row]:
    """Neurons of two layers of ResNet-50, in both precisions."""
    sizes, device, rows = bench.sizes, bench.device, []
    model: Any = network("resnet50", device, sizes.small).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    shape = (64, 3, sizes.side, sizes.side)
    prior = ImagePrior.fit([torch.randn(shape, generator=generator)])
    units = torch.arange(sizes.pictures, device=device)
    for layer in _LAYERS[: 1 if sizes.small else 2]:
        stem = nn.Sequential(*list(model.children())[: 6 + 2 * (layer == "layer4")])
        targets = [Target(layer, unit) for unit in range(sizes.pictures)]

        def bare(stem: nn.Module = stem) -> None:
            x = torch.randn(sizes.pictures, *shape[1:], device=device)
            x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
            for _ in range(sizes.steps):
                torch.autograd.grad(stem(x)[units, units].mean((1, 2)).sum(), x)

        def drawn(precision: Any, targets: list[Target] = targets, graph: bool = True) -> None:
            visualizer = FeatureVisualizer(
                steps=sizes.steps, start="noise", precision=precision, cuda_graph=graph
            )
            visualizer.render(model, None, targets, prior)

        found = bench.medians(
            {
                "forward and gradient": bare,
                "float32": lambda run=drawn: run("float32"),
                "bfloat16": lambda run=drawn: run("bfloat16"),
                "float32 without CUDA graph": lambda run=drawn: run("float32", graph=False),
            },
            cap_s=10,
            repeats=min(3, sizes.repeats),
        )
        floor = found.pop("forward and gradient")
        slow = found.pop("float32 without CUDA graph")
        beside = f"forward and gradient in float32 {floor:.2f} s"
        for (precision, seconds), goal in zip(found.items(), (1.3, 1.0), strict=True):
            without = f", without CUDA graph {slow:.2f} s" if precision == "float32" else ""
            rows.append(
                Row(
                    f"pictures, {sizes.pictures} neurons of {layer}, {sizes.steps} steps, "
                    f"{sizes.side}², {precision}",
                    f"{seconds:.2f} s, {seconds / floor:.2f} of forward and gradient",
                    beside + without,
                    f"≤ {goal:.1f}" + (" where readings agree" if precision == "bfloat16" else ""),
                    seconds <= goal * floor,
                )
            )
    return rows


def small_network(hidden: int = 224) -> nn.Sequential:
    """330 neurons with the standard width."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(1024, hidden), nn.ReLU(), nn.Linear(hidden, 10),
    )  # fmt: skip


def drawn_data(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images of 28 × 28 with a place for each class, labels, and a baseline that misses some."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 10, (count,), generator=generator)
    places = torch.randn(10, 1, 28, 28, generator=generator)
    x = places[target] + 2 * torch.randn(count, 1, 28, 28, generator=generator)
    missed = (target % 2 == 1) & (torch.rand(count, generator=generator) < 0.3)
    return x, target, torch.where(missed, (target + 1) % 10, target)


def trained(bench: Bench, data: tuple[Tensor, Tensor, Tensor]) -> nn.Sequential:
    """A few hundred steps: it knows the classes."""
    torch.manual_seed(0)
    model = small_network(16 if bench.sizes.small else 224).to(bench.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, target = data[0].to(bench.device), data[1].to(bench.device)
    for step in range(20 if bench.sizes.small else 300):
        rows = torch.arange(step * 128, (step + 1) * 128, device=bench.device) % len(x)
        loss = nn.functional.cross_entropy(model(x[rows]), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def studies(bench: Bench) -> list[Row]:
    """Ablation, a second pass and pictures, with their default settings."""
    sizes = bench.sizes
    data = drawn_data(sizes.images)
    model = trained(bench, data)
    loader = DataLoader(TensorDataset(*(part.to(bench.device) for part in data)), batch_size=256)
    settings: dict[str, Any] = {
        "ablation": Ablation(),
        "second_pass": SecondPass(),
        "visualizer": FeatureVisualizer(),
    }
    if sizes.small:
        settings = {
            "ablation": Ablation(sizes=(1,), random_sets=2, singles=1, max_samples=16),
            "second_pass": SecondPass(neurons=4, permutations=10),
            "visualizer": FeatureVisualizer(steps=2, reference_images=8),
        }

    def validation(**more: Any) -> None:
        compare(model, loader, BatchBaseline(2), target=1, **more)

    validation()  # warm
    alone = bench.seconds(validation)
    total = bench.seconds(lambda: validation(**settings)) - alone
    beside = f"validation with attribution {alone:.1f} s"
    if bench.passed + 2 * total < bench.total_s:
        each = {
            name.replace("_", " "): bench.seconds(lambda: validation(**{name: one})) - alone  # noqa: B023
            for name, one in settings.items()
        }
        beside += "; alone: " + ", ".join(f"{name} {value:.1f} s" for name, value in each.items())
    neurons = sum(m.weight.shape[0] for m in model if isinstance(m, (nn.Conv2d, nn.Linear)))
    return [
        Row(
            f"ablation, second pass and pictures of a small CNN ({neurons} neurons, "
            f"{sizes.images:,} images of 28 × 28)",
            f"{total:.1f} s",
            beside,
            "≤ 10 s",
            total <= 10,
        )
    ]
