"""Both of Lightning's namespaces, alone and together, in code and from YAML."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning

from lightning_neurocorr import BatchBaseline, MajorityBaseline, NeuronAdvantage
from tests.paper_model import PaperModule, paper_loader

SPACES = [pytorch_lightning, lightning.pytorch]
QUIET: dict[str, Any] = {
    "max_epochs": 1,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def module_of(space: Any) -> Any:
    """``PaperModule`` as a module of one namespace."""
    body = {k: v for k, v in vars(PaperModule).items() if k not in ("__dict__", "__weakref__")}

    def init(self: Any) -> None:
        space.LightningModule.__init__(self)
        made = PaperModule()
        self.model, self.returns, self.through = made.model, "nothing", "self"

    return type("PaperModule", (space.LightningModule,), {**body, "__init__": init})()


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.__name__)
@pytest.mark.parametrize("alone", [False, True], ids=["in a list", "as a single argument"])
def test_every_trainer_takes_it(space: Any, alone: bool) -> None:
    callback = NeuronAdvantage(BatchBaseline(2), "model.detector", target=1, visualizer=None)
    assert isinstance(callback, space.Callback)
    trainer = space.Trainer(callbacks=callback if alone else [callback], **QUIET)
    module = module_of(space)
    trainer.fit(module, paper_loader(), paper_loader())
    trainer.validate(module, paper_loader(), verbose=False)
    assert len(callback.history) == 2
    assert callback.report.rows[0].r == pytest.approx(1)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.__name__)
def test_test_and_predict_are_left_alone(space: Any) -> None:
    callback = NeuronAdvantage(BatchBaseline(2), "model.detector", target=1, visualizer=None)
    module = module_of(space)
    type(module).test_step = lambda self, batch, batch_idx: None  # type: ignore[attr-defined]
    type(module).predict_step = lambda self, batch, batch_idx: self(batch[0])  # type: ignore[attr-defined]
    trainer = space.Trainer(callbacks=[callback], **QUIET)
    trainer.test(module, paper_loader(), verbose=False)
    trainer.predict(module, paper_loader())
    assert callback.report is None


BLOCKED = """
import sys
sys.modules[{blocked!r}] = None
import torch
from {present} import Callback, LightningModule, Trainer
from lightning_neurocorr import BatchBaseline, NeuronAdvantage
class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 2)
    def forward(self, x):
        return self.net(x)
    def validation_step(self, batch, batch_idx):
        self(batch[0])
callback = NeuronAdvantage(BatchBaseline(2), target=1, visualizer=None)
assert isinstance(callback, Callback)
data = torch.utils.data.TensorDataset(
    torch.randn(40, 3), torch.arange(40) % 2, torch.arange(40) // 2 % 2
)
trainer = Trainer(callbacks=callback, accelerator="cpu", logger=False, enable_checkpointing=False,
                  enable_progress_bar=False, enable_model_summary=False)
trainer.validate(Net(), torch.utils.data.DataLoader(data, 10), verbose=False)
print("n", callback.report.n)
"""


@pytest.mark.parametrize(
    ("present", "blocked"),
    [("lightning.pytorch", "pytorch_lightning"), ("pytorch_lightning", "lightning")],
)
def test_one_namespace_is_enough(present: str, blocked: str) -> None:
    code = BLOCKED.format(present=present, blocked=blocked)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=Path(__file__).parents[1],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["n", "40"]


YAML = """
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_neurocorr.NeuronAdvantage
      init_args:
        baseline:
          class_path: lightning_neurocorr.MajorityBaseline
        layers: [model.detector, model.head]
        advantage: log_prob
        pooling: max
        top_k: 5
        every_n_validations: 1
        attribution:
          class_path: lightning_neurocorr.Attribution
          init_args: {max_samples: 64, method: path}
        ablation:
          class_path: lightning_neurocorr.Ablation
          init_args: {random_sets: 3, sizes: [1], singles: 2, by: r}
        visualizer:
          class_path: lightning_neurocorr.FeatureVisualizer
          init_args: {steps: 4, parametrization: pixel}
        num_classes: 2
        dataloaders: [0]
        name: from_yaml
"""


@pytest.mark.filterwarnings("ignore")  # deprecations between Lightning and jsonargparse
@pytest.mark.parametrize("space", ["pytorch_lightning", "lightning.pytorch"])
def test_every_option_comes_from_yaml(
    space: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    cli = pytest.importorskip(f"{space}.cli")
    file = tmp_path / "config.yaml"
    file.write_text(YAML)
    model = type(module_of(sys.modules[space]))
    made = cli.LightningCLI(
        model,
        run=False,
        args=["--config", str(file)],
        save_config_callback=None,
        seed_everything_default=False,
    )
    (callback,) = [c for c in made.trainer.callbacks if isinstance(c, NeuronAdvantage)]
    assert isinstance(callback.baseline, MajorityBaseline)
    assert callback.layers == ["model.detector", "model.head"]
    assert (callback.advantage, callback.pooling, callback.top_k) == ("log_prob", "max", 5)
    assert (callback.attribution.max_samples, callback.attribution.method) == (64, "path")
    assert (callback.ablation.random_sets, tuple(callback.ablation.sizes)) == (3, (1,))
    assert (callback.visualizer.steps, callback.visualizer.parametrization) == (4, "pixel")
    assert (callback.num_classes, callback.dataloaders, callback.name) == (2, (0,), "from_yaml")


@pytest.mark.filterwarnings("ignore")
def test_a_wrong_class_in_yaml_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    from pytorch_lightning.cli import LightningCLI

    file = tmp_path / "config.yaml"
    wrong = YAML.replace("lightning_neurocorr.FeatureVisualizer", "torch.nn.Linear")
    file.write_text(wrong)
    with pytest.raises(SystemExit):
        LightningCLI(PaperModule, run=False, args=["--config", str(file)])
    assert "visualizer" in capsys.readouterr().err
