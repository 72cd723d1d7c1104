"""A baseline of one's own: a rule of thumb in five lines, and a network that sees more.

Images are ill if they hold a bright blob or a dark ring. The rule looks at brightness, so it finds
the blobs only. Which neurons of the network find the rings?

Run ``python examples/custom_baseline.py`` (half a minute on two cores), then
``tensorboard --logdir logs/custom_baseline``. ``--fast`` shows that it runs.
"""

import argparse

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import FeatureVisualizer, NeuronAdvantage


def brightness_rule(batch: tuple[Tensor, Tensor]) -> Tensor:
    """Ill, where some spot of the image is bright: the whole baseline."""
    image, _ = batch
    brightest = functional.avg_pool2d(image, 3).amax(dim=(1, 2, 3))
    return brightest > 0.7


def make_images(count: int, seed: int) -> TensorDataset:
    """Half the images healthy, a quarter with a blob, a quarter with a ring; ``(N, 1, 20, 20)``."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(count) % 4  # 0 and 1 healthy, 2 blob, 3 ring
    centre = torch.randint(6, 14, (count, 2), generator=generator)
    axis = torch.arange(20)
    rows, columns = axis[:, None] - centre[:, 0, None, None], axis - centre[:, 1, None, None]
    distance = (rows**2 + columns**2).float().sqrt()
    image = 0.3 + 0.1 * torch.randn(count, 20, 20, generator=generator)
    image += 0.6 * (distance < 3) * (kind == 2)[:, None, None]
    image -= 0.3 * ((distance - 4).abs() < 1) * (kind == 3)[:, None, None]
    return TensorDataset(image[:, None], (kind >= 2).long())


class Classifier(pl.LightningModule):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(16, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(N, 2)``."""
        return self.head(self.features(image))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Cross-entropy."""
        image, label = batch
        return functional.cross_entropy(self(image), label)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """The callback reads the prediction from ``forward``."""
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="fewer images, no pictures")
    parser.add_argument("--output", default="logs", help="folder for the TensorBoard files")
    arguments = parser.parse_args()
    count, epochs = (256, 1) if arguments.fast else (1024, 6)

    pl.seed_everything(0)
    callback = NeuronAdvantage(
        brightness_rule,
        layers="features.*",
        visualizer=None if arguments.fast else FeatureVisualizer(),
    )
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[callback],
        logger=TensorBoardLogger(arguments.output, name="custom_baseline"),
        log_every_n_steps=4,
    )
    training = DataLoader(make_images(count, seed=1), batch_size=32, shuffle=True)
    validation = DataLoader(make_images(count // 2, seed=2), batch_size=128)
    trainer.fit(Classifier(), training, validation)

    report = callback.report
    assert report is not None  # one per validation
    print(f"\n{report.headline}\n\n{report.shown(5)}")
    print("\nTheir activations over the epochs and their pictures:")
    print(f"    tensorboard --logdir {arguments.output}/custom_baseline")


if __name__ == "__main__":
    main()
