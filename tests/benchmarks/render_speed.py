"""CPU time and strength of pictures: ours against Lucent and against the bare network.

    python -m tests.benchmarks.render_speed [--fast]

ResNet-18 with random weights (batch norm calibrated on pink noise), images of 128 x 128, eight
neurons. CPU time of one thread, medians of runs that take turns; the time per step is the
difference between a long and a short run.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from lightning_neurocorr.visualization import FeatureVisualizer, ImagePrior, Target
from lightning_neurocorr.visualization.augmentation import draw_warps, warp
from tests.benchmarks.timing import machine

SIZE = 128
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
SPREAD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def pink(count: int, seed: int) -> Tensor:
    """Pink noise in the range of photographs, normalised as torchvision's models want it."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.fft.rfft2(torch.randn(count, 3, SIZE, SIZE, generator=generator))
    rows, columns = torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE)[None, :]
    noise = torch.fft.irfft2(white / torch.hypot(rows, columns).clamp(min=1 / SIZE), s=(SIZE, SIZE))
    return ((0.45 + 0.25 * noise / noise.std()).clamp(0, 1) - MEAN) / SPREAD


def network() -> nn.Module:
    """ResNet-18 whose batch norms know the mean and variance of pink noise."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(pink(32, 1))
    return model.eval()


def ours(layer: str, units: range) -> Callable[[int], Tensor]:
    """Pictures by number of steps, in Lucent's ways: from noise, Fourier, no limit."""
    model, prior = network(), ImagePrior.fit([pink(64, 2)])
    targets = [Target(layer, unit) for unit in units]

    def run(steps: int) -> Tensor:
        visualizer = FeatureVisualizer(
            parametrization="fourier",
            start="noise",
            strength=None,
            steps=steps,
            time_budget_s=None,
            reference_images=8,
        )
        pictures = visualizer.render(model, None, targets, prior)
        return torch.stack([torch.from_numpy(picture.image) for picture in pictures])

    return run


def lucent(layer: str, units: range, fixed: int | None) -> Callable[[int], Tensor]:
    """The same with Lucent as its tutorial has it: one neuron after the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lucent.optvis import render
    model = network()

    def run(steps: int) -> Tensor:
        images = []
        for unit in units:
            torch.manual_seed(unit)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                (image,) = render.render_vis(
                    model,
                    f"{layer}:{unit}",
                    thresholds=(steps,),
                    progress=False,
                    show_image=False,
                    fixed_image_size=fixed,
                )
            for module in model.modules():
                module._forward_hooks.clear()  # Lucent leaves them
            images.append(torch.from_numpy(image[0]).permute(2, 0, 1))
        return (torch.stack(images) - MEAN) / SPREAD

    return run


def floor(layer: str, units: range, memory_format: torch.memory_format) -> Callable[[int], Tensor]:
    """Forward to the layer and gradient of the image, nothing else."""
    model = network().requires_grad_(False)
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    for name in ("layer1", "layer2", "layer3", "layer4"):
        stem.append(getattr(model, name))
        if name == layer:
            break
    rows, columns = torch.arange(len(units)), torch.tensor(units)

    def run(steps: int) -> Tensor:
        images = pink(len(units), 3).contiguous(memory_format=memory_format).requires_grad_()
        for _ in range(steps):
            torch.autograd.grad(stem(images)[rows, columns].mean((1, 2)).sum(), images)
        return images.detach()

    return run


def per_step(
    runs: dict[str, Callable[[int], Tensor]], short: int, long: int, repeats: int
) -> dict[str, float]:
    """Median CPU milliseconds of one step for all neurons, the runs taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(1)
    for _ in range(repeats):
        for name, run in runs.items():
            marks = [time.process_time()]
            for steps in (short, long):
                run(steps)
                marks.append(time.process_time())
            extra = (marks[2] - marks[1]) - (marks[1] - marks[0])
            times[name].append(1000 * extra / (long - short))
    return {name: statistics.median(values) for name, values in times.items()}


def strengths(layer: str, units: range, images: Tensor) -> tuple[float, float, float]:
    """Mean activation at the real size, under small warps there, and enlarged to 224."""
    model, seen = network(), []
    getattr(model, layer).register_forward_hook(lambda _, __, output: seen.append(output))

    def drive(batch: Tensor) -> float:
        with torch.no_grad():
            model(batch)
        return float(seen.pop()[range(len(units)), list(units)].mean())

    generator = torch.Generator().manual_seed(9)
    warps = [
        draw_warps(len(images), SIZE, SIZE, shift=1 / 16, scale=0.1, degrees=5, generator=generator)
        for _ in range(8)
    ]
    large = nn.functional.interpolate(images, size=224, mode="bilinear", align_corners=True)
    warped = statistics.mean(drive(warp(images, each)) for each in warps)
    return drive(images), warped, drive(large)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a smoke run: the numbers mean nothing")
    fast = parser.parse_args().fast
    torch.set_num_threads(1)
    units = range(2 if fast else 8)
    layers = ("layer2",) if fast else ("layer2", "layer4")
    print("| layer | variant | CPU ms per step, all neurons | Lucent's default takes |")
    print("|---|---|---|---|")
    for layer in layers:
        runs = {
            "Lucent, default (224)": lucent(layer, units, None),
            "Lucent, fixed at 128": lucent(layer, units, SIZE),
            "ours": ours(layer, units),
            "bare forward and gradient": floor(layer, units, torch.contiguous_format),
            "bare, channels_last": floor(layer, units, torch.channels_last),
        }
        found = per_step(runs, 1, 2 if fast else 4, 1 if fast else 5)
        slowest = found["Lucent, default (224)"]
        for name, value in found.items():
            print(f"| {layer} | {name} | {value:.0f} | {slowest / value:.1f}x |", flush=True)
        ratio = found["ours"] / found["bare forward and gradient"]
        print(f"| {layer} | ours / bare | {ratio:.2f} | |", flush=True)
    print("\nActivation after equal steps, mean over four neurons\n")
    print("| layer | variant | at 128 | at 128, small warps | enlarged to 224 |")
    print("|---|---|---|---|---|")
    units, steps = range(2 if fast else 4), 2 if fast else 48
    for layer in layers:
        images = {
            "start: pink noise": pink(len(units), 3),
            "Lucent, default (224)": lucent(layer, units, None)(steps),
            "Lucent, fixed at 128": lucent(layer, units, SIZE)(steps),
            "ours": ours(layer, units)(steps),
            "ours, half the steps": ours(layer, units)(steps // 2),
        }
        for name, batch in images.items():
            plain, warped, large = strengths(layer, units, batch)
            print(f"| {layer} | {name} | {plain:.2f} | {warped:.2f} | {large:.2f} |", flush=True)
    print(f"\n{machine('torchvision', 'torch-lucent')}")


if __name__ == "__main__":
    main()
