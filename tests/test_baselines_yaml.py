"""Baselines written in YAML: what LightningCLI makes of the type hints."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_neurocorr.baselines import Baseline

jsonargparse = pytest.importorskip("jsonargparse")
yaml = pytest.importorskip("yaml")


class Net(nn.Module):
    def __init__(self, hidden: int = 3):
        super().__init__()
        self.head = nn.Linear(4, hidden)

    def forward(self, x):
        return self.head(x)


def rule(batch):
    return batch["y"]


class Holder:
    """Stands for the callback."""

    def __init__(self, baseline: Baseline):
        self.baseline = baseline


CASES = {
    "EstimatorBaseline(LogisticRegression, features='image', fit=True)": """
        class_path: lightning_neurocorr.EstimatorBaseline
        init_args:
          estimator: {class_path: sklearn.linear_model.LogisticRegression, init_args: {C: 0.5}}
          fit: true
          features: image
    """,
    "ModuleBaseline(Net, inputs=0)": f"""
        class_path: lightning_neurocorr.ModuleBaseline
        init_args:
          module: {{class_path: {__name__}.Net, init_args: {{hidden: 2}}}}
          inputs: 0
    """,
    "CheckpointBaseline('weights.pt', Net)": f"""
        class_path: lightning_neurocorr.CheckpointBaseline
        init_args: {{path: weights.pt, model_class: {__name__}.Net, hparams: {{hidden: 5}}}}
    """,
    "TableBaseline('table.csv', id='meta.case', column=['p0', 'p1'])": """
        class_path: lightning_neurocorr.TableBaseline
        init_args: {table: table.csv, id: meta.case, column: [p0, p1]}
    """,
    "TableBaseline('table.npy')": """
        class_path: lightning_neurocorr.TableBaseline
        init_args: {table: table.npy}
    """,
    "TableBaseline(<list of 3>, id=2)": """
        class_path: lightning_neurocorr.TableBaseline
        init_args: {table: [0, 1, 1], id: 2}
    """,
    "BatchBaseline('reader')": """
        class_path: lightning_neurocorr.BatchBaseline
        init_args: {field: reader}
    """,
    "MajorityBaseline(2)": """
        class_path: lightning_neurocorr.MajorityBaseline
        init_args: {class_id: 2}
    """,
    "CachedBaseline(SnapshotBaseline(epoch=3))": """
        class_path: lightning_neurocorr.CachedBaseline
        init_args:
          baseline: {class_path: lightning_neurocorr.SnapshotBaseline, init_args: {epoch: 3}}
    """,
    "SnapshotBaseline(epoch=3)": """
        class_path: lightning_neurocorr.SnapshotBaseline
        init_args: {epoch: 3}
    """,
}


def parsed(text: str) -> object:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "callback")
    config = parser.parse_object({"callback": {"baseline": yaml.safe_load(text)}})
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return instantiate(config).callback.baseline


@pytest.mark.parametrize(("shown", "text"), CASES.items(), ids=CASES.keys())
def test_every_built_in_can_be_written_in_yaml(tmp_path, monkeypatch, shown, text):
    if "sklearn" in text:
        pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    torch.save(Net(5).state_dict(), "weights.pt")
    np.save("table.npy", np.array([0, 1]))
    (tmp_path / "table.csv").write_text("id,p0,p1\na,0.5,0.5\n")
    assert repr(parsed(text)) == shown


def test_a_function_can_be_named_in_yaml():
    assert parsed(f"{__name__}.rule")({"y": 1}) == 1


def test_what_is_no_baseline_is_refused():
    with pytest.raises(jsonargparse.ArgumentError, match="implement protocol Baseline"):
        parsed("class_path: torch.utils.data.Dataset")
