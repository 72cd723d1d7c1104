"""The page as one file: what is in it, that it starts from disk, and that it asks for nothing."""

import base64
import gzip
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_neurocorr.inspector import export, static_files
from lightning_neurocorr.inspector.exported import Exported
from lightning_neurocorr.inspector.reading import stored_in
from lightning_neurocorr.report import NeuronReport, Outcomes, Samples, Thumbnails
from lightning_neurocorr.report.history import HistoryEntry
from tests.event_files import a_report
from tests.microscope import history, table_of

NASTY = "</script><!--<script>alert(1)</script>\"'&\u202e" + "x" * 500

PAGE = {
    "style.css": "main { color: red }",
    "page.js": 'import { told } from "./parts/told.js";\n'
    "import {html} from \"./vendor/lib.js\"; // a `</b>` and <!-- comment\n"
    'document.getElementById("app").textContent = told() + html`<b></b>`;\n',
    "parts/told.js": 'import { html } from "../vendor/lib.js";\n'
    'export const told = () => html`<i></i>` + JSON.parse('
    'document.getElementById("neurocorr-manifest").textContent).series[0].name;\n',
    "vendor/lib.js": "export const html = strings => strings.join('');\n",
    "index.js": 'import "./page.js";\n',
}  # fmt: skip


@pytest.fixture
def page(tmp_path, monkeypatch) -> None:
    """A small page in the place of the real one, whose own tests open it."""
    folder = tmp_path / "static"
    for name, text in PAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(static_files, "_FOLDER", folder)
    static_files.static_files.cache_clear()
    yield
    static_files.static_files.cache_clear()


class Read(HTMLParser):
    """The elements of a page: attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), ""))

    def handle_data(self, data):
        tag, attrs, text = self.found[-1] if self.found else ("", {}, "")
        if self.found:
            self.found[-1] = (tag, attrs, text + data)

    def of(self, **wanted: str) -> list[tuple[dict, str]]:
        keys = {name.rstrip("_"): value for name, value in wanted.items()}
        return [
            (attrs, text)
            for _, attrs, text in self.found
            if all(attrs.get(name) == value for name, value in keys.items())
        ]

    @property
    def manifest(self) -> dict:
        ((_, text),) = self.of(id="neurocorr-manifest")
        return json.loads(text)

    def blob(self, number: int) -> bytes:
        ((_, text),) = self.of(id=f"neurocorr-blob-{number}")
        return base64.b64decode(text)


def test_a_file_has_what_the_report_says(page, tmp_path):
    reports = [a_report(validation=v, step=10 * v) for v in range(3)]
    entries = [HistoryEntry.from_report(report) for report in reports]
    path = reports[-1].export(tmp_path / "deep" / "page.html", history=entries, title=NASTY)
    found = Read(path.read_text())
    (one,) = found.manifest["series"]
    assert [meta["validation"] for meta in one["meta"]] == [0, 1, 2]
    (frame,) = one["frames"]
    assert frame["step"] == 20
    _, parts = table_of([found.blob(number) for number in frame["blobs"]])
    np.testing.assert_allclose(parts["c/r"], reports[-1].column("r"), rtol=1.3e-4)
    head, values = history(gzip.decompress(found.blob(one["history"]["conv"])))
    assert head["steps"] == [0, 10, 20]
    for row, report in enumerate(reports):
        np.testing.assert_allclose(values[0, row], report.column("r")[:6], atol=1e-3)
    # What history does not keep is not made up.
    early = one["meta"][0]
    assert early["neurons"]["encodes"] is None
    assert early["layers"][0]["used"] is None
    assert early["evidence"]["attribution"]["state"] == "not_chosen"
    assert early["outcomes"]["only_model"] == 25


def test_a_report_from_a_file_exports_the_same(page, tmp_path, microscope_run):
    report = microscope_run[1].report
    loaded = NeuronReport.load(report.save(tmp_path / "report"))
    series = [export.of_report(part) for part in (report, loaded)]
    assert series[0] == series[1]
    found = Read(loaded.export(tmp_path / "page.html").read_text())
    (one,) = found.manifest["series"]
    index, parts = table_of([found.blob(i) for i in one["frames"][0]["blobs"]])
    assert np.array_equal(parts["s/model"], report.samples.model)
    assert np.array_equal(parts["e/any"], report.samples.exemplars["any"])
    (tiles,) = one["tiles"]
    about = json.loads(gzip.decompress(found.blob(tiles["blobs"][0])))
    assert sum(page["count"] for page in about["pages"]) == 1097
    assert {k: index["picture"][k] for k in ("w", "h")} == {"w": 8, "h": 8}
    (pictures,) = one["pictures"]
    sheet = Image.open(io.BytesIO(found.blob(pictures["blobs"][0])))
    assert sheet.width >= 8 * min(8, len(index["pictures"]))
    assert {p["row"] for p in index["pictures"]} == {
        report.layout.position(panel.layer, panel.unit) for panel in report.panels
    }


def test_a_log_folder_exports_what_was_logged(page, microscope_run):
    folder, callback = microscope_run
    store = stored_in(folder / "digits")
    (series,) = store.series()
    found = Read(export.page([export.stored(store, series)]))
    (one,) = found.manifest["series"]
    assert [frame["step"] for frame in one["frames"]] == [m["step"] for m in one["meta"]]
    _, parts = table_of([found.blob(i) for i in one["frames"][-1]["blobs"]])
    np.testing.assert_allclose(parts["c/r"], callback.report.column("r"), rtol=1.3e-4, atol=1e-38)
    assert set(one["history"]) == set(callback.report.layers)


def test_equal_blobs_are_stored_once(page):
    one = export.of_report(a_report())
    found = Read(export.page([one, one]))
    first, second = (series["frames"] for series in found.manifest["series"])
    assert first == second
    numbers = [attrs["id"] for attrs, _ in found.of(class_="neurocorr-blob")]
    assert len(numbers) == len(set(numbers)) <= len(one.frames[0][1]) + 2


def test_only_the_boot_script_may_run_and_nothing_may_be_asked_for(page):
    text = export.page([export.of_report(a_report([NASTY], name=NASTY, baseline=NASTY))], NASTY)
    found = Read(text)
    (meta,) = [attrs for attrs, _ in found.of(**{"http-equiv": "Content-Security-Policy"})]
    scripts = [(attrs, body) for tag, attrs, body in found.found if tag == "script"]
    live = [body for attrs, body in scripts if "type" not in attrs]
    assert len(live) == 1
    boot = base64.b64encode(hashlib.sha256(live[0].rstrip("\n").encode() + b"\n").digest())
    assert meta["content"] == (
        f"default-src 'none'; script-src 'sha256-{boot.decode()}' blob:; style-src "
        "'unsafe-inline'; img-src blob: data:; base-uri 'none'; form-action 'none'"
    )
    for _, attrs, _ in found.found:
        assert not attrs.keys() & {"src", "href", "onload", "onerror", "style"}
    assert found.manifest["series"][0]["name"] == NASTY
    assert {tag for tag, _, _ in found.found} == {
        "html", "head", "meta", "title", "style", "body", "main", "script",
    }  # fmt: skip


def test_modules_come_after_those_they_import(page):
    found = Read(export.page([]))
    modules = [(attrs["data-name"], text) for attrs, text in found.of(class_="neurocorr-module")]
    assert [name for name, _ in modules] == ["vendor/lib.js", "parts/told.js", "page.js"]
    assert '"neurocorr:vendor/lib.js"' in modules[1][1]
    assert '"neurocorr:parts/told.js"' in modules[2][1]


def test_a_module_that_is_not_there_or_turns_back_is_refused(page, tmp_path):
    (tmp_path / "static" / "vendor" / "lib.js").write_text('import "../page.js";')
    static_files.static_files.cache_clear()
    with pytest.raises(ValueError, match=r"'page.js' from \('page.js', 'parts/told.js'"):
        static_files.modules("page.js")
    (tmp_path / "static" / "vendor" / "lib.js").write_text('import "../../../secret.js";')
    static_files.static_files.cache_clear()
    with pytest.raises(ValueError, match=r"import, but got 'secret\.js'"):
        static_files.modules("page.js")


def large(validation: int) -> Exported:
    """A series with four tables and three pages of thumbnails."""
    rng = np.random.default_rng(validation)
    pages = tuple(rng.bytes(30_000) for _ in range(3))
    samples = Samples(
        *(np.arange(40) % 4 for _ in range(5)),
        tile=np.arange(40),
        thumbnails=Thumbnails(8, 8, 16, 256, pages, (0, 16, 32), (16, 16, 8)),
    )
    parts = [
        export.of_report(a_report(size=300, validation=v, step=v, samples=samples))
        for v in range(4)
    ]
    frames = tuple(frame for part in parts for frame in part.frames)
    metas = tuple(part.meta[-1] for part in parts)
    return Exported("a", "neurocorr", metas, parts[-1].history, frames, parts[-1].tiles)


@pytest.mark.parametrize(
    ("fits", "tables", "pages", "all_columns", "said"),
    [((4.5, 3), 4, 3, True, 0), ((2.1, 3), 2, 3, True, 1), ((1, 2.2), 1, 2, True, 2),
     ((0.8, 0), 1, 0, False, 3)],
)  # fmt: skip
def test_what_does_not_fit_is_left_out_in_order_and_said(
    page, fits, tables, pages, all_columns, said
):
    series = large(0)
    frame = sum(map(len, series.frames[-1][1]))
    around = len(export.page([])) + len(json.dumps(series.meta)) + 4 * len(series.meta) * 40
    budget = round((fits[0] * frame + fits[1] * 30_000 + 3_000) * 4 / 3) + around
    text = export.page([series], max_bytes=budget)
    found = Read(text)
    (one,) = found.manifest["series"]
    assert len(found.manifest["left_out"]) == said
    assert len(one["frames"]) == tables
    assert [frame["step"] for frame in one["frames"]] == [
        meta["step"] for meta in one["meta"] if meta["full"]
    ]
    assert one["frames"][-1]["step"] == 3
    assert sum(len(step["blobs"]) - 1 for step in one["tiles"]) == pages
    index, parts = table_of([found.blob(i) for i in one["frames"][-1]["blobs"]])
    assert ("c/rank_before" in parts) == all_columns
    assert "c/r" in parts
    assert {f"c/{column['name']}" for column in index["columns"]} == {
        name for name in parts if name.startswith("c/")
    }
    assert len(text) < budget + 10_000


def test_what_is_no_report_is_refused(page, tmp_path):
    with pytest.raises(TypeError, match="Expected `runs` to hold a NeuronReport each, but got 3"):
        a_report().export(tmp_path / "page.html", runs={"b": 3})
    with pytest.raises(TypeError, match="Expected `history` to hold a HistoryEntry each"):
        a_report().export(tmp_path / "page.html", history=[a_report()])
    assert not (tmp_path / "page.html").exists()


@pytest.mark.browser
def test_the_file_starts_from_disk_and_makes_no_request(page, tmp_path, chromium):
    from playwright.sync_api import sync_playwright

    path = tmp_path / "page.html"
    export.write(path, export.page([export.of_report(a_report(["a"], name=NASTY))]))
    asked, said = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(Path(path).as_uri())
        for _ in range(100):
            text = tab.evaluate("document.getElementById('app').textContent")
            if text:
                break
            tab.wait_for_timeout(50)
        browser.close()
    assert text == f"<i></i>{NASTY}<b></b>"
    assert not said
    assert all(re.match("(file|blob):", url) for url in asked)


def test_chance_is_known_of_earlier_validations_without_right_and_wrong(tmp_path):
    """Of a regression there are no outcome groups, but r is of as many samples."""
    reports = [a_report(outcomes=Outcomes(), validation=i, step=i) for i in range(2)]
    entries = [HistoryEntry.from_report(one) for one in reports]
    earlier = export._meta_of(entries[0], reports[1])
    assert earlier["n"] == 100
    assert [layer["chance"] for layer in earlier["layers"]] == [
        summary.noise_ceiling for summary in reports[0].summaries
    ]


def test_an_entry_of_before_knows_its_samples_by_their_outcomes():
    state = HistoryEntry.from_report(a_report()).to_dict()
    del state["n"]
    assert HistoryEntry.from_dict(state).n == 100
