"""The fixture that watches every test reports what a test leaves behind, of each kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Modes are put back by the test after the one that left them, which is in the report as well.
LEAKS = """
import os, random, sys, tempfile, threading, time
import numpy as np
import pytest
import torch
from torch._dynamo import eval_frame
from lightning_neurocorr.activations import record

KEPT = []

def test_hook():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    KEPT.append(model)
    record(model).__enter__()

@pytest.mark.keeps_rng
def test_torch_draw():
    torch.rand(1)

@pytest.mark.keeps_rng
def test_numpy_draw():
    np.random.rand()

@pytest.mark.keeps_rng
def test_python_draw():
    random.random()

def test_thread():
    threading.Thread(target=time.sleep, args=(4,)).start()

def test_temporary_file():
    os.close(tempfile.mkstemp()[0])

def test_temporary_folder():
    tempfile.mkdtemp()

def test_variable():
    os.environ["LEAKED"] = "1"

def test_working_folder(tmp_path):
    os.chdir(tmp_path)

def test_gradient_mode():
    torch.set_grad_enabled(False)

def test_stance():
    torch.compiler.set_stance("force_eager")
    torch.set_grad_enabled(True)

def test_mixed_precision():
    torch.compiler.set_stance("default")
    torch.autocast("cpu").__enter__()

def test_clean(tmp_path):
    torch.rand(1)
    (tmp_path / "kept").write_text("")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    KEPT.append(model)
    with record(model), tempfile.TemporaryDirectory():
        pass
"""


def test_every_kind_of_leak_is_reported(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-rE", "-p", "tests.conftest",
         "-p", "no:cacheprovider", "-c", str(root / "pyproject.toml"), str(tmp_path)],
        cwd=root, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    reported = {
        line.split("::")[1].split(" ")[0].strip()
        for line in done.stdout.splitlines()
        if line.startswith("ERROR")
    }
    written = {line[4:].split("(")[0] for line in LEAKS.splitlines() if line.startswith("def ")}
    assert reported == written - {"test_clean"}, done.stdout[-3000:]
