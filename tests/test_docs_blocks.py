"""A stranger types what README and pages show: it runs, and the API page has what it imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_neurocorr
from lightning_neurocorr import NeuronAdvantage, TableBaseline, compare
from lightning_neurocorr.inspector.command import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def run(block: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(block, "page", "exec"), names)
    return names


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        self.head = nn.Linear(4 * 6 * 6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).flatten(1))

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-5)


def images() -> TensorDataset:
    x = torch.rand(96, 1, 8, 8)
    return TensorDataset(x, (x[:, 0, :, 5] > 0.5).sum(1).gt(3).long())


class Data(pl.LightningDataModule):
    """Validation labels are what ``model`` says, training labels are chance: the model wins."""

    def __init__(self, model: Net) -> None:
        super().__init__()
        x = torch.rand(96, 1, 8, 8)
        with torch.no_grad():
            scores = model(x).diff(dim=1)[:, 0]
            model.head.bias[1] -= scores.median()
            self.watched = TensorDataset(x, model(x).argmax(1))
        self.noise = TensorDataset(torch.rand(96, 1, 8, 8), torch.arange(96) % 2)

    def train_dataloader(self) -> Any:
        return DataLoader(self.noise, 32)

    def val_dataloader(self) -> Any:
        return DataLoader(self.watched, 32)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What README and the first page take for granted; a fit ends after two epochs."""
    monkeypatch.chdir(tmp_path)
    short = partial(
        pl.Trainer, max_epochs=2, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    monkeypatch.setattr(pl, "Trainer", short)
    model = Net()
    data = Data(model)
    x, y = data.noise.tensors
    return {
        "Trainer": short,
        "model": model,
        "datamodule": data,
        "logistic_regression": linear_model().LogisticRegression().fit(x.flatten(1), y),
    }


def linear_model() -> Any:
    return pytest.importorskip("sklearn.linear_model")


@pytest.mark.filterwarnings("ignore:.*log_every_n_steps.*", "ignore:.*shuffle.*")
@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_block_watches_what_it_says(page: str, started: dict[str, Any]) -> None:
    (block,) = blocks(page)
    callback = run(block, started)["callback"]
    assert callback.report.layers == ("features.0",)
    assert len(callback.history) == 2
    assert callback.report.outcomes.model_accuracy > 0.9
    assert callback.report.outcomes.only_model > 20


@pytest.mark.filterwarnings("ignore:.*log_every_n_steps.*", "ignore:.*shuffle.*")
def test_the_commands_read_the_run_and_its_report(
    started: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    callback = run(blocks("README.md")[0], started)["callback"]
    callback.report.save("report.npz")
    text = (ROOT / "docs" / "microscope.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python -m lightning_neurocorr (\w+.*)$", text, flags=re.MULTILINE)
    assert {command.split()[0] for command in commands} == {"export", "top", "compare"}
    for command in commands:
        words = command.split("#")[0].split()
        assert not main(words), command
    assert Path("page.html").stat().st_size > 50_000
    assert "features.0" in capsys.readouterr().out


def test_a_table_by_id_is_given_as_the_page_on_inputs_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("readings.csv").write_text("id,prediction\na,1\nb,0\n", encoding="utf-8")
    (block,) = blocks("docs/inputs.md")
    names: dict[str, Any] = {"TableBaseline": TableBaseline, "NeuronAdvantage": NeuronAdvantage}
    baseline = run(block, names)["baseline"]
    assert baseline({"case": ["b", "a"]}).tolist() == [0, 1]


class Tokens(nn.Module):
    """Token ids, and for the last line of the page an image of 197 patches beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.see, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.patch = nn.Linear(3, 4)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        real = (batch["ids"] != 0)[..., None]
        text = (self.see(self.embed(batch["ids"])) * real).sum(1) / real.sum(1)
        return self.head(text + self.patch(batch["image"]).mean(1))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_the_page_on_neurons_gives_masks_of_three_kinds() -> None:
    ids = torch.randint(1, 9, (64, 6))
    ids[::2, 4:] = 0
    samples = [
        {"ids": ids[i], "image": torch.rand(197, 3), "label": ids[i, 0] % 2} for i in range(64)
    ]
    model = Tokens()
    names: dict[str, Any] = {
        "NeuronAdvantage": NeuronAdvantage,
        "torch": torch,
        "model": model,
        "loader": DataLoader(samples, 16),  # type: ignore[arg-type]
        "baseline": lambda batch: batch["ids"][:, 1] % 2,
        "text_mask": lambda batch: batch["ids"] != 0,
    }
    made: list[Any] = []

    def compared(*args: Any, **options: Any) -> None:
        made.append(compare(*args, **options, inputs=lambda batch: batch, visualizer=None))

    (block,) = blocks("docs/neurons.md")
    run(block, {**names, "compare": compared})
    one_length, two_lengths = made
    with torch.no_grad():
        real = ids != 0
        seen = model.see(model.embed(ids))
        expected = ((seen * real[..., None]).sum(1) / real.sum(1, keepdim=True)).mean(0)
    assert "patch" not in one_length.layers
    assert "patch" in two_lengths.layers
    for report in made:
        rows = report.column("mean")[[row.layer == "see" for row in report.rows]]
        torch.testing.assert_close(torch.from_numpy(rows).float(), expected, rtol=1e-4, atol=1e-5)


def test_the_page_in_a_notebook_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    monkeypatch.chdir(tmp_path)
    data = DataLoader(images(), 32)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    report = compare(model, data, lambda batch: batch[1] * 0, visualizer=None)
    begin, notebook = blocks("docs/microscope.md")
    assert run(begin, {"baseline": lambda batch: batch[1] * 0})["callback"].class_names
    assert len(run(notebook, {"report": report})["page"]) > 50_000


def imported(page: Path) -> set[str]:
    """What the blocks of a page import from the package: ``Name`` or ``module.Name``."""
    found = set()
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(
                "lightning_neurocorr"
            ):
                found |= {name.name for name in node.names}
    return found


def test_the_api_page_has_what_pages_import_and_what_the_package_exports() -> None:
    listed = set(re.findall(r"^        - (\w+)$", API, flags=re.MULTILINE))
    modules = set(re.findall(r"^::: lightning_neurocorr\.([\w.]+)$", API, flags=re.MULTILINE))
    listed |= {module.split(".")[-1] for module in modules}
    used = set().union(*(imported(page) for page in PAGES))
    assert len(used) > 20
    assert used - listed == set()
    assert set(lightning_neurocorr.__all__) - {"__version__"} - listed == set()


def test_every_heading_of_the_api_page_says_where_to_import_from() -> None:
    for module in re.findall(r"^::: (\S+)$", API, flags=re.MULTILINE):
        assert f"`{module}`\n\n::: {module}\n" in API


def test_reliability_counts_the_cases_that_there_are() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"\(`(test_trust_\w+)\.py`, (\d+) cases\)", text))
    (modules,) = re.findall(r"(\d+) kinds of LightningModule", text)
    (ddp,) = re.findall(r"`test_trust_ddp.py` runs (\d+) cases", text)
    (same,) = re.findall(r"(\d+) of them have to give", text)
    assert len(said) > 5
    files = [f"tests/{name}.py" for name in (*said, "test_trust_modules")]
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *files],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=240,
    ).stdout  # fmt: skip
    for name, count in said.items():
        assert collected.count(f"tests/{name}.py::") == int(count), name
    assert collected.count("::test_training_is_bit_identical[") == int(modules)

    from tests import ddp_cases, test_trust_ddp

    own = [run for run in ddp_cases.CASES.values() if run.__module__ == ddp_cases.__name__]
    assert (len(own), len(test_trust_ddp.SAME)) == (int(ddp), int(same))
