"""The metric and the report in plain PyTorch: no Trainer, no logger, no callback.

The model sees whole digits, the baseline (a logistic regression) their left half. First the metric
alone, for one layer; then the whole report, for all of them. Made to be pasted into a notebook.
"""

import argparse
from html import escape
from tempfile import TemporaryDirectory

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_neurocorr import NeuronAdvantageCorrelation, compare, record
from lightning_neurocorr.report import noise_ceiling

parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("--fast", action="store_true", help="little training, to see that it works")
arguments = parser.parse_args()

# Any model, any data, any baseline.
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
order = torch.randperm(len(labels))
x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 8, 8)[order]
y = torch.tensor(labels, dtype=torch.long)[order]
half_blind = LogisticRegression(max_iter=2000).fit(x[:700, :, :4].flatten(1), y[:700])
model = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(30 if arguments.fast else 200):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[:700]), y[:700]).backward()
    optimizer.step()
model.eval()
loader = DataLoader(TensorDataset(x[700:], y[700:]), batch_size=100)


def baseline(batch: list[torch.Tensor]) -> torch.Tensor:
    """Class ids (N,)."""
    return torch.tensor(half_blind.predict(batch[0][:, :, :4].flatten(1)))


# 1. The metric: r of every neuron of one layer with the advantage of model over baseline.
metric = NeuronAdvantageCorrelation(num_neurons=32)
with record(model, "4") as recorder, torch.no_grad():
    for batch in loader:
        model_right = model(batch[0]).argmax(1) == batch[1]
        baseline_right = baseline(batch) == batch[1]
        activations, _ = recorder.take()
        metric.update(activations["4"], model_right.float() - baseline_right.float())
r = metric.compute().nan_to_num(-1)
print(f"Layer 4: the largest r of 32 neurons is {r.max():+.3f}, of unit {int(r.argmax())}.")
print(f"By chance it would be about {noise_ceiling(32, len(x[700:])):.3f}.")

# 2. The report: intervals, corrected significance, within-class r, attribution, verdicts.
report = compare(model, loader, baseline, layers=["2", "4"])
print(f"\n{report.headline}\n")
print(report.top(5))  # a notebook shows a top list as a table: report.top(5) as the last line
print(f"\n{report.top(5, by='attribution')}")

# 3. The microscope: every neuron to look through. In a notebook, IPython.display.HTML(frame) as the
# last line of a cell shows it there.
with TemporaryDirectory() as folder:
    page = report.export(f"{folder}/neurons.html").read_text()
frame = f'<iframe srcdoc="{escape(page)}" width="100%" height="800"></iframe>'
print(f"\nThe microscope is {len(page) / 1e6:.1f} MB, its data inside.")
