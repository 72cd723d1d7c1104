"""What the callback wrote comes back out of a real TensorBoard, on both ways to the data."""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from lightning_neurocorr import Inspector
from lightning_neurocorr.inspector.writer import RunWriter
from lightning_neurocorr.report import COLUMNS
from lightning_neurocorr.report.history import HistoryEntry
from tests.event_files import a_report
from tests.microscope import PATHS, Served, history, serving, table_of

NASTY = "</script><script>alert(1)</script>\"'\u202e ../..%2f" + "x" * 300


@pytest.fixture(scope="module")
def many(tmp_path_factory, microscope_run) -> Path:
    """The callback's run, one of hostile names, and one of many validations."""
    folder = microscope_run[0]
    report = a_report([NASTY, "plain"], baseline=NASTY, name=NASTY, notes=(NASTY,))
    with_writer(folder / "nasty", [report])
    with_writer(folder / "long", [a_report(validation=v, step=v) for v in range(200)])
    return folder


def with_writer(folder: Path, reports) -> None:
    writer, microscope = SummaryWriter(str(folder)), RunWriter(Inspector())
    for i, report in enumerate(reports):
        microscope.write(report, None, [writer], validations=i + 1, last=i == len(reports) - 1)
    writer.close()


@pytest.fixture(scope="module", params=PATHS, ids=PATHS)
def served(request, many):
    with serving(many, *PATHS[request.param]) as found:
        found.runs(3)
        yield found


def series(served: Served, run: str = "digits/version_0") -> dict:
    (found,) = (one for one in served.runs() if one["run"] == run)
    return found


def test_every_number_of_the_last_table_is_the_reports(served, microscope_run):
    report, one = microscope_run[1].report, series(served)
    metas = served.get("meta", run=one["run"], tag=one["tags"]["meta"]).json
    assert [meta["validation"] for meta in metas] == [0, 1, 2, 3, 3]  # the last has found more
    last = metas[-1]
    assert last["full"]
    assert last["headline"] == report.headline
    assert last["outcomes"]["only_model"] == report.outcomes.only_model
    index, parts = table_of(served.items(one["run"], one["tags"]["parts"], last["step"]))
    for name in COLUMNS:
        column = report.column(name)
        if not np.isfinite(column).any():
            assert f"c/{name}" not in parts
            continue
        found = parts[f"c/{name}"]
        assert np.array_equal(np.isnan(found), np.isnan(column)), name
        np.testing.assert_allclose(found, column, rtol=1.3e-4, atol=1e-38, err_msg=name)
    assert [index["verdicts"][i] for i in parts["verdict"]] == list(report.verdicts)
    assert [part["name"] for part in index["layers"]] == list(report.layers)
    assert index["classes"][3] == [3, "three"]


def test_samples_and_exemplars_are_the_reports(served, microscope_run):
    report, one = microscope_run[1].report, series(served)
    index, parts = table_of(served.items(one["run"], one["tags"]["parts"], one["last_step"]))
    samples = report.samples
    for name in ("position", "target", "model", "baseline", "outcome"):
        assert np.array_equal(parts[f"s/{name}"], getattr(samples, name)), name
    for i, group in enumerate(("both", "only_model", "only_baseline", "neither")):
        assert (parts["s/outcome"] == i).sum() == getattr(report.outcomes, group)
    for group in ("any", "only_model", "matched"):
        assert np.array_equal(parts[f"e/{group}"], samples.exemplars[group])
    assert index["K"] == 8
    for panel in report.panels:  # which were found in another way, neuron by neuron
        row = report.layout.position(panel.layer, panel.unit)
        shown = [sample.position for sample in panel.exemplars]
        assert parts["s/position"][parts["e/any"][row]][: len(shown)].tolist() == shown
        shown = [sample.position for sample in panel.matched]
        assert parts["s/position"][parts["e/matched"][row]][: len(shown)].tolist() == shown


def test_every_thumbnail_is_the_image_of_its_sample(served, microscope_run):
    one, run = microscope_run[1].report, series(served)
    index, parts = table_of(served.items(run["run"], run["tags"]["parts"], run["last_step"]))
    items = served.items(run["run"], run["tags"]["tiles"], run["last_step"])
    about = json.loads(gzip.decompress(items[0]))
    grid = about["tile"]
    assert grid == index["tile"]
    from tests.make_microscope_run import data

    digits, found = data()[1].tensors[0], 0
    for page, blob in zip(about["pages"], items[1:], strict=True):
        sheet = np.asarray(Image.open(io.BytesIO(blob)).convert("L"))
        for tile in range(page["count"]):
            (row,) = np.flatnonzero(parts["s/tile"] == page["first"] + tile)
            y, x = divmod(tile, grid["per_row"])
            cut = sheet[y * grid["h"] :, x * grid["w"] :][: grid["h"], : grid["w"]]
            image = digits[parts["s/position"][row], 0].numpy()
            assert np.abs(cut / 255 - image).max() < 0.01
            found += 1
    assert found == len(one.samples)


def test_history_has_r_of_every_validation(served, microscope_run):
    callback, one = microscope_run[1], series(served)
    for layer, tag in one["history"].items():
        head, values = history(served.get("history", run=one["run"], tag=tag).unpacked)
        assert (head["layer"], head["units"]) == (layer, None)
        assert values.shape[1] == len(head["steps"]) == 5
        for row, entry in enumerate(callback.history):
            r = [entry.r_of(layer, unit) for unit in range(head["size"])]
            np.testing.assert_allclose(values[0, row], r, atol=1e-3)
        shown = callback.report.layout.span(layer)
        attribution = callback.report.column("attribution")[shown]
        np.testing.assert_allclose(values[1, -1], attribution, rtol=1e-3, atol=1e-4)


def test_two_hundred_validations_are_all_there_and_first_and_last_have_a_table(served):
    one = series(served, "long")
    metas = served.get("meta", run="long", tag=one["tags"]["meta"]).json
    assert [meta["validation"] for meta in metas] == list(range(200))
    index = served.get("index", run="long", tag=one["tags"]["parts"]).json
    steps = [step["step"] for step in index["steps"]]
    assert steps[:10] == list(range(10))
    assert steps[-1] == 199
    assert steps == [meta["step"] for meta in metas if meta["full"]]
    for step in (0, 199):
        _, parts = table_of(served.items("long", one["tags"]["parts"], step))
        expected = a_report(validation=step).column("r")
        np.testing.assert_allclose(parts["c/r"], expected, rtol=1.3e-4)
    later = served.get("meta", run="long", tag=one["tags"]["meta"], since=197).json
    assert [meta["step"] for meta in later] == [198, 199]


def test_hostile_names_come_back_as_they_were(served):
    one = series(served, "nasty")
    assert one["name"] == NASTY
    assert set(one["history"]) == {NASTY, "plain"}
    (meta,) = served.get("meta", run="nasty", tag=one["tags"]["meta"]).json
    assert meta["baseline"] == NASTY
    assert meta["layers"][0]["name"] == NASTY
    head, _ = history(served.get("history", run="nasty", tag=one["history"][NASTY]).unpacked)
    assert head["layer"] == NASTY
    answer = served.get("meta", run="nasty", tag=one["tags"]["meta"])
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_what_is_not_there_is_a_4xx_that_says_so(served):
    one = series(served)
    run, tags = one["run"], one["tags"]
    key = served.get("index", run=run, tag=tags["parts"]).json["steps"][0]["keys"][0]
    other = served.get("index", run=run, tag=tags["tiles"]).json["steps"][0]["keys"][0]
    for code, route, query in (
        (404, "meta", {"run": "nobody", "tag": tags["meta"]}),
        (404, "meta", {"run": run, "tag": "loss"}),
        (404, "history", {"run": run, "tag": tags["meta"]}),
        (404, "index", {"run": run, "tag": tags["meta"]}),
        (404, "part", {"run": "nobody", "tag": tags["parts"], "key": key}),
        (404, "export", {"run": "nobody", "tag": tags["meta"]}),
        (400, "meta", {"run": run}),
        (400, "meta", {"tag": tags["meta"]}),
        (400, "meta", {"run": run, "tag": tags["meta"], "since": "soon"}),
        (400, "part", {"run": run, "tag": tags["parts"]}),
        (400, "part", {"run": run, "tag": tags["parts"], "key": "rubbish"}),
        (400, "part", {"run": run, "tag": tags["parts"], "key": "'\"\n\x00"}),
        (400, "part", {"run": run, "tag": tags["parts"], "key": other}),
        (400, "parts", {"run": run, "tag": tags["parts"], "keys": f"{key},rubbish"}),
        (400, "parts", {"run": run, "tag": tags["parts"], "keys": ",".join([key] * 65)}),
        (400, "export", {"run": run}),
    ):
        answer = served.get(route, **query)
        assert answer.code == code, (route, query)
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["../plugin.py", "%2e%2e/plugin.py", "..%2fplugin.py", "a/../../plugin.py", "no.js", "",
     "%2fetc%2fpasswd", "..\\plugin.py", "static/index.js"],
)  # fmt: skip
def test_nothing_but_the_page_is_handed_out(served, path):
    assert served.get(f"static/{path}").code == 404


def test_a_browser_keeps_blobs_only_of_a_known_time(served):
    """A run that is written again, in the same folder, has the same keys."""
    one = series(served)
    run, tag = one["run"], one["tags"]["parts"]
    step = served.get("index", run=run, tag=tag).json["steps"][0]
    query = {"run": run, "tag": tag, "key": step["keys"][0]}
    assert (
        "max-age=86400" in served.get("part", **query, stamp=step["stamp"]).headers["Cache-Control"]
    )
    answer = served.get("part", **query)
    assert "no-cache" in answer.headers["Cache-Control"]
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.json["schema"] == 1


def test_a_run_that_is_being_written_grows(tmp_path):
    writer, microscope = SummaryWriter(str(tmp_path / "now")), RunWriter(Inspector())

    def write(step: int) -> None:
        report = a_report(validation=step, step=step)
        microscope.write(report, None, [writer], validations=step + 1)
        writer.flush()

    write(0)
    with serving(tmp_path) as served:
        served.runs(1)
        write(1)
        (one,) = served.runs(1, steps=1)
        metas = served.get("meta", run="now", tag=one["tags"]["meta"]).json
        assert [meta["validation"] for meta in metas] == [0, 1]
        _, parts = table_of(served.items("now", one["tags"]["parts"], 1))
        expected = a_report(validation=1).column("r")
        np.testing.assert_allclose(parts["c/r"], expected, rtol=1.3e-4)
    writer.close()


def test_of_many_neurons_history_has_those_that_were_kept(tmp_path):
    """Units come with their values, and what was not kept at a step is unknown there."""
    from lightning_neurocorr.inspector.reading import stored_in

    writer, microscope = SummaryWriter(str(tmp_path)), RunWriter(Inspector())
    for step, kept in enumerate(([0, 3, 8], [3, 4, 8])):
        report = a_report(validation=step, step=step)
        microscope.write(report, np.array(kept), [writer], validations=step + 1)
    writer.close()
    store = stored_in(tmp_path)
    (one,) = store.series()
    head, values = history(store.history(one.run, one.history["conv"]))
    assert head["units"] == [0, 3, 4]
    r = [a_report(validation=step).column("r")[:6] for step in (0, 1)]
    expected = [[r[0][0], r[0][3], np.nan], [np.nan, r[1][3], r[1][4]]]
    np.testing.assert_allclose(values[0], expected, atol=1e-3)
    head, values = history(store.history(one.run, one.history["head"]))
    assert head["units"] == [2]  # the ninth neuron is the third of the second layer
    entry = HistoryEntry.from_report(a_report())
    assert values[0, 0, 0] == pytest.approx(entry.r_of("head", 2), abs=1e-3)


def test_the_plugin_loads_without_torch():
    """TensorBoard imports it when it starts, also where PyTorch is missing."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['pytorch_lightning'] = None;"
        "import lightning_neurocorr.inspector.plugin as plugin;"
        "assert not any(name.startswith(('torchmetrics', 'lightning.')) for name in sys.modules);"
        "print(plugin.NeurocorrPlugin.plugin_name)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "neurocorr"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ['a"b', "a\\b"])
def test_a_name_that_the_data_server_cannot_read_is_said(path, name, tmp_path):
    """Its keys are JSON, and it cannot read an escape; TensorBoard's other way to the data can."""
    with_writer(tmp_path / name, [a_report()])
    with serving(tmp_path, *PATHS[path]) as served:
        (one,) = served.runs(1)
        query = {"run": one["run"], "tag": one["tags"]["parts"]}
        (step,) = served.get("index", **query).json["steps"]
        answer = served.get("part", **query, key=step["keys"][0])
        if path == "slow":
            assert answer.json["schema"] == 1
        else:
            assert answer.code == 400
            assert "--load_fast=false" in answer.unpacked.decode()
