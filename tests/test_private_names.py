"""Private names of other libraries stand in one file each, so that a new version breaks one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn
from torchmetrics import MeanMetric, Metric

import lightning_neurocorr

PACKAGE = Path(lightning_neurocorr.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Where each library's are; a metric is one of torchmetrics, so that it has them itself.
HOMES = {
    "PyTorch": "isolation/torch_private.py",
    "Lightning": "callback/lightning_private.py",
    "TensorBoard": "inspector/tensorboard_private.py",
    "torchmetrics": "isolation/torchmetrics_private.py",
}
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}  # public, for all their looks
PYTHON = {"_getframe"}
OF_METRICS = {
    name for name in {*dir(Metric), *vars(MeanMetric())} if not hasattr(nn.Module(), name)
}
OF_METRICS |= {"_apply"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined(tree: ast.AST) -> Iterator[str]:
    """Private names that a file makes itself: of functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name("self" | "found"), attr=name, ctx=ast.Store()):
                yield name


OURS = {n for file in FILES for n in defined(ast.parse(file.read_text())) if is_private(n)}


def touches(text: str, ours: set[str] = OURS) -> list[str]:
    """Private names of others in a file."""
    tree = ast.parse(text)
    ours = {*ours, *defined(tree)}
    metric = "torchmetrics" in text
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name):
                theirs = name not in {*ours, *NAMED_TUPLE, *PYTHON}
                theirs |= isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
                found += [name] if theirs or (metric and name in OF_METRICS) else []
            case ast.Call(func=ast.Name("getattr" | "hasattr" | "setattr"), args=[_, name, *_]):
                found += _strings(name)
            case ast.ImportFrom(module=module, names=names) if module is not None:
                if not module.startswith("lightning_neurocorr"):
                    found += [*module.split("."), *(one.name for one in names)]
            case ast.Import(names=names):
                found += [part for one in names for part in one.name.split(".")]
    return sorted(filter(is_private, found))


def _strings(node: ast.AST) -> list[str]:
    texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
    return [text for text in texts if isinstance(text, str) and text not in NAMED_TUPLE]


def test_each_library_is_touched_in_one_file() -> None:
    found = {str(file.relative_to(PACKAGE)): touches(file.read_text()) for file in FILES}
    for home in HOMES.values():
        assert len(found.pop(home)) > 2  # they are seen
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    [
        "x = trainer.fit_loop._data_source.instance",
        'getattr(strategy, "_device_mesh", None)',
        "trainer._checkpoint_connector.restore()",
        "self._generate_state_key(name=1)",
        "from torch.utils import _pytree as pytree",
        "from torch.utils._python_dispatch import TorchDispatchMode",
        "import torch._dynamo",
        "torch._C.do()",
        "count = buffer._version",
        'getattr(part, f"_forward_{kind}")',
        "writer._get_file_writer()",
        "import torchmetrics; self._computed = None",
        "super()._apply(fn)",
    ],
)
def test_a_private_name_is_noticed(line: str) -> None:
    assert touches(line)


@pytest.mark.parametrize(
    "line", ["self._loaders = trainer.val_dataloaders", "part._replace(data=1)", "self.__dict__"]
)
def test_ours_and_public_ones_are_not(line: str) -> None:
    assert not touches(line)
