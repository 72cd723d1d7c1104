"""Switch off what a model learned from a misleading mark, and keep the result as plain weights.

Scikit-learn's scanned digits, with a column beside each image. In the training images, a second
scanner scanned the digits from 5 on, and it leaves a bright line in this column. In later images
both scanners scan all digits, so the line says nothing. The model has learned to look at the line.
The baseline, a logistic regression, sees the digit without that column, so it is often right where
the line misleads the model. Which neurons go with that, and what is gained without them?

    python examples/edit.py

Neurons are chosen on a third of the later images, and the edit is judged on the others. The edited
weights are a plain state dict, which the last lines load into a new model.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from lightning_neurocorr.edit import EditSamples, choose_edit, judge_edit, save_edited


def scans(first: int, last: int, *, later: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 8, 9) whose last column may hold the line, digits (N,), and whether it does."""
    generator = torch.Generator().manual_seed(first)
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[first:last]
    x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 8, 8)[order]
    y = torch.tensor(labels, dtype=torch.long)[order]
    chance = torch.full(y.shape, 0.5) if later else torch.where(y >= 5, 0.98, 0.02)
    line = torch.rand(y.shape, generator=generator) < chance
    column = line.float()[:, None, None].expand(-1, 8, 1)
    return torch.cat([x, column], 2), y, line


def make_model() -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 64), nn.ReLU(), nn.Linear(64, 10))


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """A hundred steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fast", action="store_true", help="compare with few random edits")
    parser.add_argument("--output", default="logs", help="folder for the edited weights")
    parser.add_argument("--seed", type=int, default=0, help="of the model")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    x, y, _ = scans(0, 700, later=False)
    model = make_model()
    train(model, x, y)
    sees_digits = LogisticRegression(max_iter=2000).fit(x[:, :, :8].flatten(1), y)

    def later_scans(first: int, last: int) -> EditSamples:
        x, y, line = scans(first, last, later=True)
        answers = torch.tensor(sees_digits.predict(x[:, :, :8].flatten(1)))
        misled = line != (y >= 5)
        groups = {"the line misleads": misled, "the line is as in training": ~misled}
        return EditSamples([((x,), {})], y, answers == y, groups)

    to_choose_on, held_out = later_scans(700, 1060), later_scans(1060, 1797)

    # "1" is the hidden layer. Its neurons are read and silenced in front of the ReLU.
    units, values = choose_edit(model, to_choose_on, "1", max_units=20, candidates=64)
    report = judge_edit(
        model,
        held_out,
        units,
        values,
        chosen_on=to_choose_on,
        random_sets=5 if arguments.fast else 20,
    )
    print("The advantage of the model is negative where only the baseline is right: mostly where")
    print("the line misleads the model. Chosen are neurons that go with this.\n")
    print(report.summary())

    path = Path(arguments.output) / "edited_digits.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_edited(path, model, units, values)
    plain = make_model().eval()
    plain.load_state_dict(torch.load(path, weights_only=True))
    (images,), _ = held_out.chunks[0]
    accuracy = float((plain(images).argmax(1) == held_out.target).double().mean())
    print(f"\n{path} loads into a new model, without this package: {100 * accuracy:.1f} % right.")


if __name__ == "__main__":
    main()
