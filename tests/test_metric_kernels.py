"""The metric's kernels for GPUs where there is no GPU: interpreted, and compiled but not run."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton comes with PyTorch for CUDA on Linux",
)


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: Triton must know how to run kernels before it is imported."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), str(here), *sys.path])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command],
        check=False,
        capture_output=True,
        text=True,
        cwd=here.parent,
        env=environment | {"PYTHONPATH": path, **variables},
    )


def test_interpreted_kernels_give_what_blocks_and_float64_give() -> None:
    version = importlib.metadata.version("triton").split(".")
    if tuple(map(int, version[:2])) < (3, 4):
        pytest.skip("the interpreter of Triton before 3.4 does not know NumPy of today")
    cases = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/kernel_cases.py")
    done = run(*cases, TRITON_INTERPRET="1")
    assert not done.returncode, done.stdout + done.stderr
    assert "skipped" not in done.stdout


COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lightning_neurocorr.metric import kernels, on_device

INTEGERS = dict.fromkeys(("order", "bounds"), "*i32") | {"fold": "*i64", "cell": "*i64"}
WIDE = dict.fromkeys(("state", "heads", "sums", "scalars"), "*fp64")
FLOATS = dict.fromkeys(("x", "advantage", "covariates", "left", "shift"), "*fp32")


def make(name, pointers=None, **constants):
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages") if key in constants}
    kernel, types = getattr(kernels, name), INTEGERS | WIDE | FLOATS | (pointers or {})
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "i32")
        for argument in kernel.arg_names
    }
    source, target = ASTSource(kernel, signature, constants), GPUTarget("cuda", 90, 32)
    compile(source, target=target, options=options)


for folds, columns, x in ((2, 1, "*bf16"), (1, 4, "*fp32")):
    shared = {"F": folds, "K": columns}
    make("prepare", {"x": x}, **shared, WIDE=columns, FOLDED=folds > 1, ROWS=256, COLS=128)
    tile = on_device._TILE if columns == 1 else on_device._WITH_COVARIATES
    make("add_up", {"x": x}, **shared, MORE=16, ACTIVE=True, **tile)
    make("merge", **shared, HEAD=32, COLS=128)
    make("add_in", {"x": x}, F=folds, ACTIVE=True, **on_device._TILE)
    whole = {"ACTIVE": True, "MANY": on_device._SORTED}
    make("add_whole", {"x": x, "to": "*fp64"}, **whole, **on_device._TILE)
make("sort_cells", ROWS=256)
make("add_cells", {"shift": "*fp64"}, **on_device._CELL)
print("compiled")
"""


def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """Types, which the interpreter does not check, for an H100."""
    done = run("-c", COMPILED, TRITON_CACHE_DIR=str(tmp_path))
    assert "compiled" in done.stdout, done.stderr
