"""The code in docs/baselines.md runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

PAGE = Path(__file__).parents[1] / "docs" / "baselines.md"


class Model(nn.Module):
    def __init__(self, hidden: int = 16):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Linear(hidden, 2))

    def forward(self, x):
        return self.net(x)


class Fusion(nn.Module):
    def forward(self, image, age):
        return image.flatten(1)[:, :2] + age[:, None]


def test_every_block_of_the_page(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    model = Model()
    torch.save(
        {"state_dict": model.state_dict(), "hyper_parameters": {"hidden": 16}}, "last_week.ckpt"
    )
    torch.save({"state_dict": model.state_dict(), "rate": np.float64(0.1)}, "trusted.ckpt")
    torch.save({}, "weights.pt")
    np.save("predictions.npy", np.array([0, 1, 1]))
    Path("readings.csv").write_text("case_id,reader_1,p0,p1\na,1,0.5,0.5\nb,0,0.1,0.9\nc,1,1,0\n")

    names = {"Model": Model, "network": model, "fusion": Fusion()}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)

    x, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 1])
    for name in ("logistic", "left_half"):
        names[name].fit([(x, y)])
        assert names[name]((x, y)).shape == (3, 2)
    batch = {"image": x, "age": torch.ones(3), "case": ["b", "a", "c"], "y": y}
    assert names["by_id"](batch).tolist() == [0, 1, 1]
    assert names["scores"](batch).shape == (3, 2)
    assert names["by_position"].predict_at(batch, torch.tensor([2])).tolist() == [1]
    assert names["two_inputs"](batch).shape == (3, 2)
    names["early"].observe(model, 2)
    with torch.no_grad():
        want = model(x)
    for name in ("last_week", "weights", "teacher", "early", "once"):
        assert torch.equal(names[name]((x, y)), want), name
    assert names["always_healthy"]((x, y)).tolist() == [0, 0, 0]
    assert names["bright_is_ill"]((x, y)).dtype == torch.bool
    nearest = names["NearestMean"]()
    nearest.fit([(x, y)])
    assert nearest((x, y)).argmax(dim=1)[0] == 0
