"""The clothes: their files, the four baselines, and what the case study makes of a run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from lightning_neurocorr.report import NeuronReport

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "fashion.py"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("data.fashion_mnist")


@pytest.fixture
def fashion(files: ModuleType) -> ModuleType:
    return importlib.import_module("fashion")


def test_what_is_written_is_read(files: ModuleType, tmp_path: Path) -> None:
    files.make_files(tmp_path, 60)
    parts = files.read_clothes(tmp_path)
    assert [part.shape for part in parts] == [(60, 28, 28), (60,)] * 2
    assert [str(part.dtype) for part in parts] == ["uint8"] * 4
    again = tmp_path / "again.gz"
    files.write_idx(again, parts[0])
    assert np.array_equal(files.read_idx(again), parts[0])


def test_a_missing_file_is_named_with_the_ways_to_get_it(files: ModuleType, tmp_path: Path) -> None:
    files.make_files(tmp_path, 20)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as error:
        files.read_clothes(tmp_path)
    for words in ("t10k-labels-idx1-ubyte.gz are", "dataset-fashion-mnist", "--data", "--digits"):
        assert words in str(error.value)
    assert "train-images" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", b"\x1f\x8b", b"short", b"text that is long enough", b"shape"]
)
def test_a_file_of_another_kind_is_refused(
    files: ModuleType, content: bytes, tmp_path: Path
) -> None:
    import gzip

    packed = {
        b"short": gzip.compress(b"\0\0"),
        b"text that is long enough": gzip.compress(b"text that is long enough"),
        b"shape": gzip.compress(b"\0\0\x08\x01" + (99).to_bytes(4, "big") + b"few"),
    }
    (tmp_path / "a.gz").write_bytes(packed.get(content, content))
    with pytest.raises(ValueError, match=r"Expected .*a.gz to be a gzipped IDX file, but got"):
        files.read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize("wrong", ["fewer", "classes", "size"])
def test_labels_have_to_fit_the_images(files: ModuleType, wrong: str, tmp_path: Path) -> None:
    files.make_files(tmp_path, 20)
    name = tmp_path / (
        "t10k-images-idx3-ubyte.gz" if wrong == "size" else "t10k-labels-idx1-ubyte.gz"
    )
    part = files.read_idx(name)
    files.write_idx(name, {"fewer": part[:9], "classes": part + 5, "size": part[..., :5]}[wrong])
    with pytest.raises(ValueError, match=r"a class from 0 to 9 for each, but got"):
        files.read_clothes(tmp_path)


def test_digits_have_the_same_form(files: ModuleType) -> None:
    parts = files.read_digits()
    assert [part.shape[1:] for part in parts] == [(28, 28), ()] * 2
    assert parts[0].max() == 255


@pytest.mark.filterwarnings("ignore::UserWarning")  # the example's own filter is pytest's to undo
@pytest.mark.parametrize("kind", ["half", "checkpoint", "small", "readings"])
def test_every_baseline_answers(
    fashion: ModuleType, files: ModuleType, kind: str, tmp_path: Path
) -> None:
    files.make_files(tmp_path, 120)
    parts = files.read_clothes(tmp_path)
    train, held_out = fashion.Clothes(*parts[:2], "train"), fashion.Clothes(*parts[2:], "test")
    baseline = fashion.make_baseline(kind, train, held_out, tmp_path)
    batch = [held_out.x[:30], held_out.y[:30], held_out.ids[:30]]
    with torch.no_grad():
        told = torch.as_tensor(baseline(batch))
    answers = told.argmax(1) if told.ndim == 2 else told
    assert answers.shape == (30,)
    assert set(answers.tolist()) <= set(range(10))
    if kind == "readings":
        assert 0.7 < float((answers == held_out.y[:30]).double().mean()) < 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fast run on files of the format that are made up."""
    folder = tmp_path_factory.mktemp("fashion")
    code = "import sys; from data import fashion_mnist as f; from pathlib import Path; "
    code += "f.make_files(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "files")],
        cwd=ROOT / "examples", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    command = [sys.executable, str(EXAMPLE), "--fast", "--data", str(folder / "files")]
    done = subprocess.run(
        [*command, "--output", str(folder / "output")],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr[-3000:]
    return folder / "output" / "runs" / "version_0"


def test_all_evidence_is_there_on_files_that_are_made_up(made: Path) -> None:
    report = NeuronReport.load(made / "report.npz")
    states = {name: found.state for name, found in report.studies.items()}
    assert set(states.values()) == {"measured"}, states
    assert report.outcomes.n == 1200
    assert (made / "neurons.html").stat().st_size > 100_000
    assert report.samples is not None
    assert (report.samples.tile >= 0).all(), "every image is on the page"


def test_the_numbers_of_the_case_study_come_from_a_run(
    made: Path, fashion: ModuleType, files: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    numbers, tables, mirror = (
        importlib.import_module(f"case_study_{part}") for part in ("numbers", "tables", "mirror")
    )
    report = NeuronReport.load(made / "report.npz")
    found = numbers.numbers(report)
    images, labels = files.read_clothes(made.parents[2] / "files")[2:]
    weights = next((made / "checkpoints").glob("*.ckpt"))
    net = fashion.ClothesNet.load_from_checkpoint(weights, weights_only=True).eval()
    x = fashion.Clothes(images, labels, "test").x
    _, answers = mirror.ask(net, report, x)
    assert report.samples is not None
    assert answers.tolist() == report.samples.model.tolist()
    found["mirrored"] = mirror.mirrored(net, report, x, "net.conv3:1")
    rows = report.samples.exemplars["any"][report.layout.position("net.conv3", 1)]
    shown = report.samples.activations["any"][report.layout.position("net.conv3", 1)]
    assert report.samples.position[rows].tolist() == rows.tolist()
    assert found["mirrored"]["one"]["whole"] == pytest.approx(float(shown.mean()), rel=1e-4)
    assert [row["n"] for row in found["mirrored"]["answers"]] == [
        sum(labels[i] not in (5, 7, 9) for i in report.samples.rows_in(group))
        for group in ("both", "only_model")
    ]
    found["baselines"] = {"half": numbers.counts(report)}
    found["made"] = {"date": "2026-01-01", "seed": 0, "versions": {"torch": "2"}}
    made_tables = tables.tables(json.loads(json.dumps(found)))
    assert f"**{report.outcomes.only_model:,}**" in made_tables["outcomes"]
    assert found["outcomes"]["model"] == float((answers == labels).mean())
    pairs = list(zip(labels.tolist(), report.samples.baseline.tolist(), strict=True))
    won = [pair for pair, right in zip(pairs, answers == labels, strict=True)
           if right and pair[0] != pair[1]]  # fmt: skip
    first = found["confusions"][0]
    names = {name: i for i, name in report.class_names.items()}
    assert first["n"] == won.count((names[first["is"]], names[first["said"]]))
    assert first["n"] == max(map(won.count, won))
    for layer in found["layers"]:
        verdicts = [row.verdict for row in report.rows if row.layer == layer["layer"]]
        assert layer["encodes"] == sum("encodes the advantage" in text for text in verdicts)
        assert layer["used"] == sum("is used" in text for text in verdicts)
        assert layer["needed"] == sum("needed: " in text for text in verdicts)
    assert all(text.count("\n") >= 1 for name, text in made_tables.items() if name != "made")
