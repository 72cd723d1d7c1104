"""Every test starts from the same random state and may leave nothing behind."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

# Prefixes of what other libraries set once per process and leave; harmless afterwards.
_FOREIGN_VARIABLES = (
    "CUDA_", "KMP_", "PYTEST_", "PYTORCH_NVML_", "TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TRITON_",
)  # fmt: skip
# Kept until the process ends: sockets of worker processes, what compilers cache.
_FOREIGN_FILES = ("pymp-", "torch", "triton")
_HOOK_DICTS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU that PyTorch can use")


@pytest.fixture(scope="session")
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where temporary files go; one folder, because libraries remember it."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest, temporary_folder: Path) -> Iterator[None]:
    """Fail a test that leaves a thread, a variable, a temporary file, a hook of ours or a mode."""
    _seed_everything()
    modules: list[weakref.ref[nn.Module]] = []
    construct = nn.Module.__init__

    def remember(self: nn.Module, *args, **kwargs) -> None:
        construct(self, *args, **kwargs)
        modules.append(weakref.ref(self))

    environment, threads, modes, rng = dict(os.environ), _threads(), _modes(), _rng_state()
    # Not the `monkeypatch` fixture: what a test sets with it must be undone before we look.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "__init__", remember)
        patch.setattr(tempfile, "tempdir", str(temporary_folder))
        yield
    leaks = _changed_variables(environment)
    leaks += [f"thread {thread.name}" for thread in _threads() - threads if _outlives(thread)]
    leaks += [f"{name} is now {value}" for name, value in _modes().items() if value != modes[name]]
    leaks += [
        f"hook of ours on {type(module).__name__}" for ref in modules if _hooked(module := ref())
    ]
    leaks += [f"temporary file {name}" for name in _left_in(temporary_folder)]
    if request.node.get_closest_marker("keeps_rng") and _rng_state() != rng:
        leaks.append("global random state")
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(modes["the working folder"])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    assert not leaks, "the test leaves behind: " + "; ".join(leaks)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium to look at pages with; CI installs it where it is missing."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None and os.environ.get("CI"):
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], check=True)
        path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium on the path (on Debian: apt-get install chromium)")
    return path


@pytest.fixture(scope="session")
def microscope_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with a run of digits that the callback wrote, and the callback."""
    from tests.make_microscope_run import make_run

    folder = tmp_path_factory.mktemp("microscope")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice
        callback = make_run(folder, epochs=4)
    return folder, callback


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs for the browser tests: microscope_runs.Written."""
    from tests.microscope_runs import Written

    return Written(tmp_path_factory.mktemp("written"))


@pytest.fixture(scope="session")
def addresses(written: Any) -> Iterator[Callable[[str], str]]:
    """Where the runs are shown: a TensorBoard for each data path, started once, or the file."""
    from tests.microscope import PATHS, serving
    from tests.microscope_runs import COUNT

    found = {"file": f"file://{written.file}"}
    with ExitStack() as stack:

        def address(path: str) -> str:
            if path not in found:
                served = stack.enter_context(serving(written.folder, *PATHS[path]))
                served.runs(COUNT)
                found[path] = served.address
            return found[path]

        yield address


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """A Chromium, closed after each file: its loop of events is in the way of others."""
    from playwright.sync_api import sync_playwright

    from tests.microscope_views import ARGUMENTS

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=["data server", "slow", "file"])
def view(request: pytest.FixtureRequest, addresses: Any, browser: Any) -> Iterator[Any]:
    """The page in TensorBoard on both data paths, and in the file."""
    from tests.microscope_views import SIZE, View

    page = browser.new_page(viewport=SIZE)
    yield View(page, addresses(request.param), inside=request.param != "file")
    page.close()


def _seed_everything() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- the global state is what Lightning users have
    torch.manual_seed(0)


def _rng_state() -> tuple:
    """All three global random states, in a form that compares with ``==``."""
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002
    torch_state = torch.random.get_rng_state().numpy().tobytes()
    return random.getstate(), numpy_state[1].tobytes(), numpy_state[2:], torch_state


def _modes() -> dict[str, Any]:
    """Global switches that a run must hand back as it found them."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return {
        "the process group": torch.distributed.is_available()
        and torch.distributed.is_initialized(),
        "the compile stance": dynamo._stance.stance if dynamo else "default",
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
        "mixed precision": torch.is_autocast_enabled("cpu"),
        "the working folder": os.getcwd(),
        "the hook for uncaught exceptions": sys.excepthook,
        "determinism": torch.are_deterministic_algorithms_enabled(),
    }


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.daemon}


def _outlives(thread: threading.Thread) -> bool:
    """Whether the thread is still there after a moment to finish in."""
    thread.join(timeout=2)
    return thread.is_alive()


def _left_in(folder: Path) -> list[str]:
    """What was left in the folder for temporary files, which is empty afterwards."""
    left = [path for path in folder.iterdir() if not path.name.startswith(_FOREIGN_FILES)]
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [path.name for path in left]


def _changed_variables(before: dict[str, str]) -> list[str]:
    names = sorted(os.environ.keys() | before.keys())
    names = [name for name in names if not name.startswith(_FOREIGN_VARIABLES)]
    return [f"variable {name}" for name in names if os.environ.get(name) != before.get(name)]


def _hooked(module: nn.Module | None) -> bool:
    """Whether a hook defined in our package is still on the module."""
    for name in _HOOK_DICTS:
        for hook in (getattr(module, name, None) or {}).values():
            function = getattr(hook, "func", hook)
            if getattr(function, "__module__", "").startswith("lightning_neurocorr"):
                return True
    return False
