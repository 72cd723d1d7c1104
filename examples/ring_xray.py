"""Ring X-ray: a rule sees bright blobs, only the network sees faint rings. Which neurons see them?

An image shows a disease as a bright blob or as a ring that is no brighter than its surroundings.
The baseline is a rule that thresholds smoothed brightness. What the network knows more than the
rule is carried by few detectors, and correlation finds those.

First a network wired by hand, whose numbers are known exactly: its ring detector is encoding, used
and needed. With a second, redundant one neither is needed, and must not be called so. In images of
six channels the ring is in one of them, and the detector's picture must show it there. Then
controls in which there is nothing to find (``controls.py``), and networks trained by Lightning,
whose ring detectors are looked for on fresh images:

    python examples/ring_xray.py
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from controls import Check, check_controls, needed, show, top_list, trainer, validated, watch
from half_blind_digits import auroc
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_neurocorr as nc
from lightning_neurocorr.activations import find_sites
from lightning_neurocorr.show.sheets import contact_sheet
from lightning_neurocorr.visualization import ImagePrior, Target

NONE, BLOB, RING = 0, 1, 2  # what an image shows; the last two are the disease

# --- the twin ------------------------------------------------------------------------------------

FILLED = torch.ones(5, 5)
HOLLOW = FILLED.clone()
HOLLOW[1:4, 1:4] = 0


class Twin(pl.LightningModule):
    """Six 5 x 5 detectors whose strongest answers are weighed.

    Detector 0 answers filled squares, 1 hollow ones, 2 to 5 lines, which mean nothing.

    Args:
        redundant: Whether detector 2 answers hollow squares too. The stronger one counts.
    """

    def __init__(self, redundant: bool = False) -> None:
        super().__init__()
        self.convolution, self.detectors = nn.Conv2d(1, 6, 5), nn.ReLU()
        hollow = torch.where(HOLLOW > 0, 1.0, -1.0)
        with torch.no_grad():
            self.convolution.weight.zero_()
            self.convolution.weight[0, 0], self.convolution.weight[1, 0] = FILLED, hollow
            for i in range(2, 6):
                self.convolution.weight[i, 0, i - 1] = 1
            if redundant:
                self.convolution.weight[2, 0] = hollow
            bias = torch.tensor([-24.0, -15, -15 if redundant else 0, 0, 0, 0])
            self.convolution.bias = nn.Parameter(bias)
        self.redundant = redundant

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2) of images (N, 1, 16, 16): 0 for healthy, 4 blob + 4 ring - 2 for ill."""
        blob, ring, other = self.detectors(self.convolution(x)).amax((2, 3))[:, :3].unbind(1)
        ring = torch.maximum(ring, other) if self.redundant else ring
        ill = 4 * blob + 4 * ring - 2
        return torch.stack([torch.zeros_like(ill), ill], 1)

    def validation_step(self, batch: list[Tensor]) -> Tensor:
        """The logits."""
        return self(batch[0])


def squares(n: int = 800) -> TensorDataset:
    """A quarter blobs, a quarter rings of two brightnesses, and lines in every image."""
    random = np.random.default_rng(0)
    shows = torch.tensor([NONE, BLOB, NONE, RING]).repeat(n // 4)
    x = torch.zeros(n, 1, 16, 16)
    for i, what in enumerate(shows.tolist()):
        row, column, line, start = random.integers(0, (6, 12, 4, 12))
        if what != NONE:
            shape = FILLED if what == BLOB else HOLLOW * (1 + 0.125 * (i % 8 == 3))
            x[i, 0, row : row + 5, column : column + 5] = shape
        x[i, 0, 12 + line, start : start + 5] = 1
    return TensorDataset(x, (shows != NONE).long())


def bright_square(batch: list[Tensor]) -> Tensor:
    """The twin's baseline: ill where a 5 x 5 window of the first channel holds more than 20."""
    return (25 * nn.functional.avg_pool2d(batch[0][:, :1], 5, 1).amax((1, 2, 3)) > 20).long()


def check_twin() -> list[Check]:
    """The ring is in detector 1: at one of 144 places it says 1, or 3 in a brighter ring."""
    return _exactly(Twin(), squares())


def _exactly(model: Twin, data: TensorDataset) -> list[Check]:
    report = validated(watch(bright_square, "detectors", ablation=_singles()), model, data)
    row, outcomes = report.row("detectors", 1), report.outcomes
    expected = 4 * (2 - 0.25 * 2 / 144)
    losses = row.ablation_advantage, row.ablation_shared
    words = ("encodes the advantage and is used", "needed: silencing it costs 100.0 points")
    return [
        top_list(report, 3, "r"),
        Check(
            "the rule misses the 200 rings", f"{outcomes.only_model}", outcomes.only_model == 200
        ),
        Check("r of the ring is the highest", f"{row.r:.3f}", report.top(1)[0].unit == 1),
        Check(
            f"its attribution is {expected:.6f}",
            f"{row.attribution:.6f}",
            bool(np.isclose(row.attribution, expected)),
        ),
        Check("silent, it costs every win and nothing else", f"{losses}", losses == (1, 0)),
        Check("encodes, used, needed", row.verdict, all(word in row.verdict for word in words)),
        Check("no other detector is needed", f"{needed(report)}", needed(report) == [1]),
        _without_the_ring(model, *data.tensors),
    ]


def _without_the_ring(model: Twin, x: Tensor, y: Tensor) -> Check:
    """Without its detector of rings the network knows what the rule knows."""
    sites = find_sites(model, lambda: model(x), "detectors")  # follows the axis of its units
    with torch.no_grad(), nc.silence(sites, {"detectors": [1]}, fill="zero"):
        answers, rule = model(x).argmax(1), bright_square([x])
    won, shared = (rule != y), (rule == y)
    accuracy = [float((answers == y)[group].float().mean()) for group in (won, shared)]
    same = torch.equal(answers, rule) and accuracy == [0, 1]
    return Check(
        "silent, every answer is the rule's, on 200 wins and 600 shared",
        f"accuracies {accuracy}, {int(won.sum())} and {int(shared.sum())}",
        same and int(won.sum()) == 200,
    )


def _singles() -> nc.Ablation:
    return nc.Ablation(by="r", sizes=(1,), singles=6, fill="zero")


def check_redundant() -> list[Check]:
    """Two detectors know the same: either can go."""
    callback = watch(bright_square, "detectors", ablation=_singles())
    report = validated(callback, Twin(redundant=True), squares())
    rows = [report.row("detectors", unit) for unit in (1, 2)]
    return [
        Check(
            f"detector {row.unit} encodes, but is not needed",
            row.verdict,
            "encodes the advantage" in row.verdict and "not shown to be needed" in row.verdict,
        )
        for row in rows
    ]


# --- six channels --------------------------------------------------------------------------------

CHANNELS, RING_CHANNEL = 6, 4


class SixChannels(Twin):
    """The twin for six channels: blobs are in channel 0, rings in 4, and lines in all of them.

    Detector 0 looks at channel 0 and 1 at channel 4, the others at the lines of one channel each.
    """

    def __init__(self) -> None:
        super().__init__()
        alone, self.convolution = self.convolution, nn.Conv2d(CHANNELS, 6, 5)
        with torch.no_grad():
            self.convolution.weight.zero_()
            for detector, channel in enumerate((0, RING_CHANNEL, 1, 2, 3, 5)):
                self.convolution.weight[detector, channel] = alone.weight[detector, 0]
        self.convolution.bias = alone.bias


def stacks(n: int = 800) -> TensorDataset:
    """The same blobs and rings, each in its channel; the lines in all channels are faint."""
    x, ill = squares(n).tensors
    images = torch.zeros(n, CHANNELS, 16, 16)
    random = np.random.default_rng(1)
    for i in range(n):
        ring = i % 4 == 3  # nothing, a blob, nothing, a ring in turns
        images[i, RING_CHANNEL if ring else 0, :12] = x[i, 0, :12]
        for channel, (line, start) in enumerate(random.integers(0, (4, 12), (CHANNELS, 2))):
            images[i, channel, 12 + line, start : start + 5] = 0.25
    return TensorDataset(images, ill)


def check_six_channels(folder: Path | None = None) -> list[Check]:
    """The same numbers, and pictures with the ring where it is; in ``folder`` a sheet of them."""
    model, data = SixChannels(), stacks()
    share, nothing = ring_share(model, data), ring_share(model, data, start="noise")
    if folder is not None:
        save_sheet(model, data, folder / "ring_channel.png")
    return [
        *_exactly(model, data),
        Check(
            "> 80 % of its picture is in the ring's channel", f"{100 * share:.1f} %", share > 0.8
        ),
        Check("> 80 % of a picture from nothing", f"{100 * nothing:.1f} %", nothing > 0.8),
    ]


def ring_share(model: SixChannels, data: TensorDataset, start: str = "exemplar") -> float:
    """Share of the ring channel in the energy of the ring detector's picture.

    Energy of a channel: sum over its pixels of the squared deviation from the data's mean image.
    The default visualizer starts from a real ring. From nothing is from the mean image and 1 % of
    noise, every pixel by itself, before the threshold that nothing would reach.
    """
    x = data.tensors[0]
    visualizer = nc.FeatureVisualizer()
    if start == "noise":
        visualizer = replace(visualizer, parametrization="pixel", start="noise")
    target = Target("convolution", 1)
    (picture,) = visualizer.render(model.eval(), None, [target], ImagePrior.fit([x]))
    if picture.image is None or not picture.readable:
        return 0.0
    energy = ((picture.image - x.mean(0).numpy()) ** 2).sum((1, 2))
    return float(energy[RING_CHANNEL] / energy.sum())


def save_sheet(model: SixChannels, data: TensorDataset, path: Path) -> None:
    """The contact sheet of the detectors, with their pictures."""
    callback = nc.NeuronAdvantage(
        bright_square, "convolution", pooling="max", visualizer=nc.FeatureVisualizer(), top_k=2
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    report = validated(callback, model, data)
    Image.fromarray(contact_sheet(report, "convolution")).save(path)
    print(f"\nContact sheet: {path}")


# --- trained networks ----------------------------------------------------------------------------


def xrays(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 24, 24) with smooth background and bars, and what they show: 60, 20, 20 %."""
    random = torch.Generator().manual_seed(seed)
    shows = torch.multinomial(torch.tensor([0.6, 0.2, 0.2]), n, True, generator=random)
    coarse = torch.randn(n, 1, 4, 4, generator=random)
    x = 0.2 * nn.functional.interpolate(coarse, (24, 24), mode="bicubic", align_corners=True)
    x = x + 0.1 * torch.randn(n, 1, 24, 24, generator=random)
    grid = torch.arange(24.0)
    bar = torch.randint(0, 24, (n, 2), generator=random)
    x[:, 0] += 0.6 * (grid == bar[:, :1])[:, :, None] + 0.6 * (grid == bar[:, 1:])[:, None, :]
    center = 7 + 10 * torch.rand(n, 2, 1, generator=random)
    square = (grid - center) ** 2
    distance = (square[:, 0, :, None] + square[:, 1, None, :]).sqrt()
    blob = 1.2 * torch.exp(-(distance**2) / 12)
    ring = 0.7 * torch.exp(-((distance - 5) ** 2) / 0.8)
    x[:, 0] += blob * (shows == BLOB)[:, None, None] + ring * (shows == RING)[:, None, None]
    return x, shows


def brightness(x: Tensor) -> Tensor:
    """The brightest 5 x 5 window."""
    return nn.functional.avg_pool2d(x, 5, 1).amax((1, 2, 3))


class RingNet(pl.LightningModule):
    """Three convolutions, the strongest answers of the last, and a linear readout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2), nn.ReLU(),
            nn.Conv2d(12, 24, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1),
        )  # fmt: skip
        self.readout = nn.Sequential(nn.Flatten(), nn.Linear(24, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2)."""
        return self.readout(self.features(x))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """The loss."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor]) -> Tensor:
        """The logits."""
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


LAYERS = ["features.1", "features.3", "features.6"]


def train(seed: int, n: int = 3000, epochs: int = 6) -> tuple[RingNet, nc.NeuronAdvantage]:
    """A network and what the callback found at the end."""
    (x, shows), (x_val, shows_val) = xrays(n, seed), xrays(2000, seed + 1000)
    threshold = best_threshold(brightness(x), shows != NONE)

    def rule(batch: list[Tensor]) -> Tensor:
        return (brightness(batch[0]) > threshold).long()

    settings = nc.Ablation(by="r", sizes=(1,), singles=6)
    callback = watch(rule, LAYERS, ablation=settings, pooling="max")
    pl.seed_everything(seed, verbose=False)
    model = RingNet()
    trainer(callback, max_epochs=epochs, check_val_every_n_epoch=epochs).fit(
        model,
        DataLoader(TensorDataset(x, (shows != NONE).long()), batch_size=50, shuffle=True),
        DataLoader(TensorDataset(x_val, (shows_val != NONE).long()), batch_size=200),
    )
    return model, callback


def best_threshold(value: Tensor, ill: Tensor) -> float:
    """The brightness above which calling an image ill is right most often."""
    candidates = value.quantile(torch.linspace(0.02, 0.98, 97))
    right = ((value[:, None] > candidates) == ill[:, None]).float().mean(0)
    return float(candidates[right.argmax()])


def ring_detectors(model: RingNet, seed: int) -> np.ndarray:
    """The truth: neurons that tell rings from nothing and from blobs on fresh images."""
    x, shows = xrays(1500, seed + 2000)
    model.eval()
    with torch.no_grad(), nc.record(model, LAYERS, pooling="max") as recorder:
        model(x)
        activations, _ = recorder.take()
    said = torch.cat(list(activations.values()), 1).numpy()
    truth = np.ones(said.shape[1], dtype=bool)
    for other in (NONE, BLOB):
        chosen = ((shows == RING) | (shows == other)).numpy()
        ring = (shows == RING).numpy()[chosen]
        truth &= np.array([auroc(a[chosen], ring) > 0.8 for a in said.T])
    return truth


def check_trained(seed: int) -> list[Check]:
    """What must hold in one network; without two ring detectors there is nothing to rank."""
    model, callback = train(seed)
    report: Any = callback.report
    truth, outcomes = ring_detectors(model, seed), report.outcomes
    better = outcomes.model_accuracy > 0.97 and 0.7 < outcomes.baseline_accuracy < 0.9
    accuracies = f"{outcomes.model_accuracy:.3f}, {outcomes.baseline_accuracy:.3f}"
    checks = [Check("accuracy of network and rule", accuracies, better)]
    if truth.sum() < 2:
        return [*checks, Check("ring detectors", f"{truth.sum()}: too few to rank, skipped", True)]
    r = np.nan_to_num(report.column("r"), nan=-1)
    found = auroc(r, truth)
    verdicts = [row.verdict for row, true in zip(report.rows, truth, strict=True) if true]
    encoded = sum("encodes the advantage" in verdict for verdict in verdicts)
    redundant = sum("not shown to be needed" in verdict for verdict in verdicts)
    about = f"{found:.3f} of {int(truth.sum())} among {len(truth)}"
    modest = f"{encoded} of {len(verdicts)}, of which {redundant} not shown to be needed"
    return [
        *checks,
        top_list(report, 5, "r"),
        Check("AUROC of r for ring detectors >= 0.95", about, found >= 0.95),
        Check("half of them or more are said to encode", modest, 2 * encoded >= len(verdicts)),
    ]


def main() -> bool:
    """Run all parts; whether everything held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fast", action="store_true", help="one network instead of six")
    parser.add_argument("--output", type=Path, default=Path("ring-xray-output"))
    args = parser.parse_args()
    held = show("The twin, exactly", check_twin())
    held &= show("The twin with a redundant detector", check_redundant())
    held &= show("Nothing to find", check_controls(Twin(), squares(), bright_square, "detectors"))
    held &= show("The twin for six channels", check_six_channels(args.output))
    for seed in range(400, 401 if args.fast else 406):
        held &= show(f"Trained, seed {seed}", check_trained(seed))
    print(f"\n{'Everything held.' if held else 'Something was MISSED.'}")
    return held


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
