"""Every example runs from anywhere, says what it found, and writes where it was told to."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_neurocorr import NeuronReport
from tests.example_runs import ExampleRuns

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


Run = Callable[..., str]


@pytest.fixture(scope="module")
def runs() -> Iterator[ExampleRuns]:
    with ExampleRuns() as opened:
        yield opened


@pytest.fixture
def run(runs: ExampleRuns, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What examples print that are called in a folder with these arguments, one after another."""
    output = tmp_path_factory.mktemp("printed") / "text"
    return lambda *calls, folder: runs.run(calls, folder, output)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_writes_nothing_outside_its_output_folder(example, run, tmp_path):
    folder, output = tmp_path / "here", tmp_path / "output"
    folder.mkdir()
    told = ["--output", str(output)] if '"--output"' in example.read_text() else []
    text = run([str(example), "--fast", *told], folder=folder)
    assert re.search(r"only_model|advantage", text), text
    assert not list(folder.rglob("*")), "files beside the output folder"
    assert output.exists() == bool(told)


def test_digits_runs_with_every_kind_of_baseline_and_says_where_to_look(run, tmp_path):
    digits = str(next(path for path in EXAMPLES if path.stem == "digits"))
    kinds = ["estimator", "majority", "table", "snapshot", "checkpoint"]
    fast = ["--fast", "--visualizer", "none", "--seed", "1"]
    calls = [[digits, *fast, "--baseline", kind, "--output", kind] for kind in kinds]
    text = run(*calls, folder=tmp_path)
    found = [NeuronReport.load(tmp_path / kind / "runs/version_0/report.npz") for kind in kinds]
    for kind, report in zip(kinds, found, strict=True):
        assert report.headline in " ".join(text.split())
        assert f"tensorboard --logdir {Path(kind, 'runs')}\n" in text
        assert list((tmp_path / kind / "runs").glob("*/events.out.tfevents.*"))
        for top in (report.shown(5), report.top(5, by="attribution")):
            assert bool(report.message) or str(top) in text
    for counts in ("both", "only_model"), ("only_baseline", "neither"):
        numbers = [getattr(found[0].outcomes, name) for name in counts]
        assert re.search(rf"model \w+ +{numbers[0]} +{numbers[1]}\b", text)
    estimator, _, table, *_ = found
    assert table.outcomes == estimator.outcomes  # the table holds the estimator's answers
    assert {path.name for path in tmp_path.iterdir()} == set(kinds)
