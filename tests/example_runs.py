"""Runs scripts as a shell would, each in a process of its own that has imported PyTorch already.

``python -m tests.example_runs`` imports what examples import, then forks for each line of JSON on
its standard input. Importing is what costs; a fork starts with nothing but that done.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Self

ROOT = Path(__file__).parents[1]


class ExampleRuns:
    """Where scripts are run; use it in a ``with``."""

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.example_runs"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def run(self, calls: Sequence[Sequence[str]], folder: Path, output: Path) -> str:
        """What scripts print that are called in ``folder``, one after another in one process.

        Args:
            calls: The path of each script and its arguments.
            folder: The working folder.
            output: Files for what they print are called so, with an ending.
        """
        server = self._server
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps([calls, str(folder), str(output)]) + "\n")
        server.stdin.flush()
        code = server.stdout.readline().strip()
        printed, errors = (output.with_suffix(end).read_text() for end in (".out", ".err"))
        assert code == "0", errors[-3000:]
        assert "Warning" not in errors, errors[-3000:]
        return printed


def main() -> None:
    """Fork for each line that comes, and say how it ended."""
    import pytorch_lightning  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch.utils.tensorboard

    import lightning_neurocorr.callback  # noqa: F401

    assert torch.utils.tensorboard
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        worker = fork.Process(target=_work, args=json.loads(line))
        worker.start()
        worker.join()
        print(worker.exitcode, flush=True)


def _work(calls: list[list[str]], folder: str, output: str) -> None:
    for number, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(f"{output}{end}", os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.chdir(folder)
    for call in calls:
        sys.argv = call
        sys.path[0] = str(Path(call[0]).parent)  # as for a script: scenarios import each other
        runpy.run_path(call[0], run_name="__main__")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
