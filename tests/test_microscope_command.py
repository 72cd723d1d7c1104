"""``python -m lightning_neurocorr``, as somebody types it."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_neurocorr.inspector import Inspector, static_files
from lightning_neurocorr.inspector.command import main
from lightning_neurocorr.inspector.writer import RunWriter
from tests.event_files import a_report


@pytest.fixture
def runs(tmp_path):
    """Two runs in a folder, and what they found."""
    found = {}
    for run, seed in (("first", 1), ("second", 2)):
        found[run] = a_report(validation=seed, baseline="a rule")
        writer = SummaryWriter(str(tmp_path / run))
        RunWriter(Inspector()).write(found[run], None, [writer], validations=1)
        writer.close()
    return tmp_path, found


def test_top_prints_what_the_report_prints(runs, capsys):
    folder, found = runs
    assert main(["top", str(folder / "first"), "-k", "4"]) == 0
    shown = capsys.readouterr().out
    assert str(found["first"].shown(4)) in shown
    assert found["first"].headline in shown
    path = found["second"].save(folder / "report")
    assert main(["top", str(path), "--by", "attribution", "--layer", "head", "-k", "2"]) == 0
    expected = found["second"].top(2, "attribution", layer="head")
    assert str(expected) in capsys.readouterr().out


def test_compare_prints_the_neurons_that_moved_most(runs, capsys):
    folder, found = runs
    assert main(["compare", str(folder / "first"), str(folder / "second"), "-k", "3"]) == 0
    text = capsys.readouterr().out
    a, b = (report.column("r") for report in found.values())
    order = sorted(range(len(a)), key=lambda i: -abs(b[i] - a[i]))[:3]
    lines = re.findall(r"^  (\w+):(\d)\s+(\S+)\s+(\S+)\s+(\S+)$", text, re.MULTILINE)
    assert [("conv", "head").index(layer) * 6 + int(unit) for layer, unit, *_ in lines] == order
    for (_, _, before, after, change), i in zip(lines, order, strict=True):
        assert [float(n) for n in (before, after, change)] == pytest.approx(
            [a[i], b[i], b[i] - a[i]], abs=1e-3
        )
    assert "12 neurons are in both" in text
    assert "both 60, only_model 25" in text
    assert "Note:" not in text


@pytest.mark.parametrize("command", ["top", "compare"])
def test_a_validation_without_a_table_is_said(tmp_path, capsys, command):
    nothing = "The model is never right where the baseline is wrong."
    full = a_report(validation=1, step=10)
    silent = replace(a_report(validation=2, step=20), message=nothing)
    for run, reports in (("both", (full, silent)), ("alone", (silent,))):
        writer = SummaryWriter(str(tmp_path / run))
        told = RunWriter(Inspector(every_n_validations=1))
        for validations, report in enumerate(reports, 1):
            told.write(report, None, [writer], validations=validations)
        writer.close()
    given = [command, *[str(tmp_path / "both")] * (1 + (command == "compare"))]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert f"This is validation 1: the last one, 2, has no table. {nothing}" in text
    assert (str(full.shown(10)) if command == "top" else "0.000") in text
    given = [command, *[str(tmp_path / "alone")] * (1 + (command == "compare"))]
    assert main(given) == 2
    assert f"there is none. {nothing}" in capsys.readouterr().err


def test_compare_says_what_cannot_be_compared(tmp_path, capsys):
    a = a_report(baseline="a rule").save(tmp_path / "a")
    b = a_report(["head"], size=4, baseline="another", n=50).save(tmp_path / "b")
    assert main(["compare", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "the baselines differ" in text
    assert "numbers of samples differ" in text
    assert "4 neurons are in both, of 12 in A and 4 in B" in text


def test_export_writes_all_runs_or_some(runs, capsys, monkeypatch):
    folder, _ = runs
    files = {"page.js": b"// the page", "style.css": b""}
    monkeypatch.setattr("lightning_neurocorr.inspector.export.static_files", lambda: files)
    monkeypatch.setattr(static_files, "static_files", lambda: files)
    page = folder / "page.html"
    assert main(["export", str(folder), str(page)]) == 0
    assert '"run":"first"' in page.read_text()
    assert '"run":"second"' in page.read_text()
    assert "2 runs" in capsys.readouterr().out
    assert main(["export", str(folder), str(page), "--run", "second"]) == 0
    assert '"run":"first"' not in page.read_text()
    report = a_report().save(folder / "saved.report")
    assert main(["export", str(report), str(page), "--title", "mine"]) == 0
    assert "<title>mine</title>" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["top", "{}/nothing"], "but there is no"),
        (["top", "{}"], "'first' (neurocorr), 'second' (neurocorr). Name the folder of one run"),
        (["top", "{}/first", "--name", "other"], "found 'first'|found '.' (neurocorr)"),
        (["top", "{}/first", "--layer", "heat"], "Close ones are 'head'"),
        (["top", "{}/first", "--by", "size"], "Expected a column of numbers, but got 'size'"),
        (["export", "{}", "{}/page.html", "--run", "third"], "no 'third'. There are: 'first', "),
        (["export", "{}/empty", "{}/page.html"], "found none"),
    ],
)
def test_what_cannot_be_done_is_said(runs, capsys, arguments, said):
    folder = runs[0]
    (folder / "empty").mkdir()
    assert main([part.format(folder) for part in arguments]) == 2
    text = capsys.readouterr().err
    assert any(part in text for part in said.split("|"))
    assert text.startswith("error: ")


def test_of_many_runs_some_are_named(tmp_path, capsys):
    for i in range(9):
        writer = SummaryWriter(str(tmp_path / f"run {i}"))
        RunWriter(Inspector()).write(a_report(), None, [writer], validations=1)
        writer.close()
    for command in (["top", str(tmp_path)], ["export", str(tmp_path), "x.html", "--run", "none"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "'run 5'" in said
        assert "'run 6'" not in said
        assert " and 3 more. " in said.replace("\n", " ")


def test_help_names_every_command_and_exits(capsys):
    for arguments in (["--help"], ["export", "--help"], ["top", "--help"], ["compare", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    text = capsys.readouterr().out
    for word in ("export", "top", "compare", "--run", "--by", "example:"):
        assert word in text
    with pytest.raises(SystemExit, match="2"):
        main(["top", "x", "-k", "0"])


@pytest.mark.parametrize("command", [["top"], ["export"], ["compare"]])
def test_a_source_that_is_not_there_is_said(command, tmp_path, capsys):
    nowhere = str(tmp_path / "nope")
    more = {"export": [str(tmp_path / "page.html")], "compare": [nowhere]}.get(command[0], [])
    assert main([*command, nowhere, *more]) == 2
    assert "but there is no" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_reader_may_have_had_enough(runs):
    folder, _ = runs
    top = [sys.executable, "-m", "lightning_neurocorr", "top", str(folder / "first"), "-k", "9999"]
    with subprocess.Popen(top, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert b"Error" not in process.stderr.read()
    assert process.returncode == 0
