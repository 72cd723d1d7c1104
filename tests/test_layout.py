"""The shape of the package: names load lazily, imports go one way, the wheel is whole."""

import ast
import importlib
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lightning_neurocorr

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lightning_neurocorr"
ROOMS = sorted(
    path.stem
    for path in PACKAGE.iterdir()
    if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem != "__init__"
)
NAMES = sorted(set(lightning_neurocorr.__all__) - {"__version__"})


def run(*command: str) -> str:
    """Standard output of a command run in the repository's root; fails with what it printed."""
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("room", ["report", "show.sheets", "show.loggers", "show.tensorboard"])
def test_reading_and_drawing_reports_loads_neither_torch_nor_lightning(room: str) -> None:
    heavy = "{'torch', 'torchmetrics', 'lightning', 'pytorch_lightning', 'matplotlib.pyplot'}"
    code = f"import sys, lightning_neurocorr.{room}; print(sorted({heavy} & sys.modules.keys()))"
    assert run(sys.executable, "-c", code).strip() == "[]"


def test_every_room_but_the_callback_works_without_lightning() -> None:
    rooms = [f"lightning_neurocorr.{room}" for room in ROOMS if room != "callback"]
    code = (
        "import importlib, sys; sys.modules.update(lightning=None, pytorch_lightning=None);"
        f"[importlib.import_module(room) for room in {rooms}]"
    )
    run(sys.executable, "-W", "ignore", "-c", code)


def test_importing_the_package_loads_no_room() -> None:
    code = (
        "import sys, lightning_neurocorr; dir(lightning_neurocorr);"
        "print([name for name in sys.modules if name.startswith('lightning_neurocorr.')])"
    )
    assert run(sys.executable, "-c", code).strip() == "[]"


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_an_attribute(room: str) -> None:
    module = importlib.import_module(f"lightning_neurocorr.{room}")
    assert getattr(lightning_neurocorr, room) is module
    assert room in dir(lightning_neurocorr)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_resolves_and_pickles(name: str) -> None:
    value = getattr(lightning_neurocorr, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(lightning_neurocorr)
    assert pickle.loads(pickle.dumps(value)) is value


def test_public_names_are_imported_as_usual() -> None:
    namespace: dict[str, object] = {}
    exec("from lightning_neurocorr import *", namespace)
    assert namespace.keys() >= set(NAMES)
    with pytest.raises(ImportError, match="cannot import name 'NeuronAdvantag'"):
        from lightning_neurocorr import NeuronAdvantag  # noqa: F401


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'lightning_neurocorr' has no attribute 'nothing'"):
        _ = lightning_neurocorr.nothing


def test_type_checkers_see_the_same_names_as_the_interpreter() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    rooms = lightning_neurocorr._ROOM_OF.items()
    assert seen == {name: f"lightning_neurocorr.{room}" for name, room in rooms}


def test_every_public_name_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in NAMES if f"- {name}\n" not in page] == []


def test_imports_go_down_the_table_of_rooms() -> None:
    lint_imports = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert "0 broken" in run(lint_imports or "lint-imports", "--no-cache")


def test_wheel_holds_the_rooms_the_types_and_the_licence(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    assert "lightning_neurocorr/py.typed" in files
    assert any(file.endswith("licenses/LICENSE") for file in files)
    packed = {Path(file).parts[1].removesuffix(".py") for file in files if file[-3:] == ".py"}
    assert packed == {*ROOMS, "__init__"}
