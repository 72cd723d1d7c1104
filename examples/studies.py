"""What each of the five built-in studies answers, on one small case whose truth is known.

A sample is two photographs of one digit. Three in ten of the left ones are negatives, and one in
four of the right ones shows any digit. The model sees both, half of its first neurons the left one
and half the right one. The baseline sees the left one, and knows no negatives. So what the model
knows and the baseline does not are negatives and the right photograph.

    python examples/studies.py              # all five, in seconds
    python examples/studies.py --study words
"""

import argparse
import copy

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import Groups, Matches, Readout, Slices, Words, compare

STUDIES = ("words", "slices", "matches", "groups", "readout")


def pairs(images: np.ndarray, labels: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, ...]:
    """Photographs (n, 128, 1), digits (n,), and whose left one is a negative (n,)."""
    draw = np.random.default_rng(seed)
    y, negative = draw.integers(0, 10, n), draw.random(n) < 0.3
    right = np.where(draw.random(n) < 0.25, draw.integers(0, 10, n), y)
    rows = [[draw.choice(np.flatnonzero(labels == digit)) for digit in side] for side in (y, right)]
    left, right = (images[one].astype(np.float32) / 16 for one in rows)
    left[negative] = 1 - left[negative]
    return np.concatenate([left, right], 1)[..., None], y, negative


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    """Adam, in batches of 64."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()


parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("--study", choices=STUDIES, nargs="+", default=STUDIES)
parser.add_argument("--fast", action="store_true", help="little training, to see that it works")
arguments = parser.parse_args()
torch.manual_seed(0)

# Any model, any data, any baseline.
images, labels = map(np.asarray, load_digits(return_X_y=True))
x, y, is_negative = map(torch.tensor, pairs(images[:900], labels[:900], 4000, seed=0))
held_x, held_y, negative = pairs(images[900:], labels[900:], 2500, seed=1)
model = nn.Sequential(
    nn.Conv1d(128, 48, 1, groups=2), nn.ReLU(),  # neurons 0 to 23 see the left one
    nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10),
)  # fmt: skip
plain = x[~is_negative].clone()
plain[:, 64:] = 0
train(model, plain, y[~is_negative], 3 if arguments.fast else 10)
earlier = copy.deepcopy(model).eval()  # it has seen neither a negative nor a right photograph
train(model, x, y, 5 if arguments.fast else 20)
model.eval()
sees_left = LogisticRegression(max_iter=2000).fit(plain[:, :64, 0], y[~is_negative])
data = TensorDataset(torch.tensor(held_x), torch.tensor(held_y))

studies = {
    "words": Words(), "slices": Slices(), "matches": Matches(earlier), "groups": Groups(),
    "readout": Readout(),
}  # fmt: skip
report = compare(
    model, DataLoader(data, 250), lambda batch: sees_left.predict(batch[0][:, :64, 0]),
    class_names=[f"digit {i}" for i in range(10)],
    metadata={"negative": negative, "weekday": np.arange(2500) % 2 == 0},  # one says nothing
    studies=[studies[name] for name in arguments.study],
)  # fmt: skip
print(report.headline)

# What to read in each table, and what it does not say.
found = {name: finding.to_dataframe() for name, finding in report.studies.items()}
if "words" in found:
    said = found["words"].advantage_word.value_counts().to_dict()
    print(f"\nWords. Words of the advantage, and of how many neurons: {said}")
    print("These neurons fire for negatives, and there the model wins. A word says what goes with")
    print("a neuron, not what the neuron computes.")
if "slices" in found:
    columns = ["slice", "direction", "n", "advantage", "low", "high"]
    print(f"\nSlices.\n{found['slices'][columns].to_string(index=False)}")
    print("The model wins on negatives: nobody told the study that these matter. It does not say")
    print("why, and parts of the data that no word names may be missing.")
if "matches" in found:
    first = found["matches"][found["matches"].layer == "0"]
    new = first.novelty.groupby(first.unit.astype(int) >= 24).mean()
    print(f"\nMatches. Novelty of left neurons {new[False]:.2f}, of right neurons {new[True]:.2f}.")
    print("Right neurons are new since the earlier network. New does not mean useful.")
if "groups" in found:
    columns = ["layer", "units", "word", "ablation", "ablation_random"]
    print(f"\nGroups.\n{found['groups'][columns].to_string(index=False)}")
    print("The neurons of one photograph are one group. Compare what is lost without a group with")
    print("what is lost without random neurons. Where neurons mix both, there is no group to find.")
if "readout" in found:
    columns = ["layer", "accuracy_only_model", "untrained", "shuffled"]
    print(f"\nReadout.\n{found['readout'][columns].to_string(index=False)}")
    print("How well the digit can be read from each layer where only the model is right. The last")
    print("layer is flattered: the samples were chosen because the model is right about them.")
