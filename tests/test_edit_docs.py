"""The code in docs/edit.md runs as it stands, and its edited weights load."""

import re
from pathlib import Path

import torch
from torch import nn

PAGE = Path(__file__).parents[1] / "docs" / "edit.md"


class Model(nn.Module):
    """Looks at the mark (input 1) more than at what counts (input 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(2, 4), nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 3], [0, -3]]))
            self.hidden.bias.zero_()
            self.head.weight.copy_(torch.tensor([[0.0, 1, 0, 1], [1, 0, 1, 0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(x).relu())


def test_every_block_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x = torch.randn(1000, 2)
    y = (x[:, 0] > 0).long()
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = {"model": model, "x": x, "y": y, "marked": x[:, 1].abs() > 1}
    names["baseline"] = lambda x: (x[:, 0] > -0.3).long()
    choose, load = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(choose, str(PAGE), "exec"), names)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert names["report"].helps
    assert set(names["units"]["hidden"]) <= {2, 3}  # those that see the mark
    assert names["report"].summary() in capsys.readouterr().out

    exec(compile(load, str(PAGE), "exec"), names)
    accuracy = float((model(x[500:]).argmax(1) == y[500:]).double().mean())
    assert accuracy == names["report"].after.accuracy
