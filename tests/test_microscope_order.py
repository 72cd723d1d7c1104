"""The page sorts and filters as NumPy does, with NaN, ties, infinities and both zeros."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lightning_neurocorr.inspector.static_files import static_files
from tests.microscope_views import ARGUMENTS

pytestmark = pytest.mark.browser

SIZES = (7, 300, 93)


@pytest.fixture(scope="module")
def page(chromium: str) -> Iterator[Any]:
    """An empty page that may import the modules."""
    from playwright.sync_api import sync_playwright

    def serve(route: Any) -> None:
        name = route.request.url.rpartition("page.test/")[2]
        kind = "text/javascript" if name.endswith("js") else "text/html"
        route.fulfill(body=static_files().get(name, b"<title>empty</title>"), content_type=kind)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        opened = browser.new_page()
        opened.route("http://page.test/**", serve)
        opened.goto("http://page.test/empty")
        yield opened
        browser.close()


def odd_numbers(seed: int, size: int = 400) -> np.ndarray:
    """Float32 with every kind of number, many of them equal."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size).astype(np.float32)
    values[rng.random(size) < 0.4] = rng.choice(np.float32([0, -0.0, 1, -1, 0.5]))
    values[rng.random(size) < 0.1] = np.nan
    values[rng.random(size) < 0.1] = rng.choice(np.float32([np.inf, -np.inf, 1e-42, -1e-42, 3e38]))
    values[:4] = [0.0, -0.0, np.nan, -np.nan]
    return values


def bits(values: np.ndarray) -> list[int]:
    """Floats as JSON can carry them."""
    return values.astype(np.float32).view(np.uint32).tolist()


FLOATS = "const floats = bits => new Float32Array(Uint32Array.from(bits).buffer);"


@pytest.mark.parametrize("descending", [False, True])
def test_sorting_is_numpys_stable_one_with_nan_last(page, descending):
    for seed in range(8):
        values = odd_numbers(seed)
        rows = np.sort(np.random.default_rng(seed).permutation(400)[: 400 - 40 * seed])
        found = page.evaluate(
            f"""async ([bits, rows, descending]) => {{ {FLOATS}
            const {{ sorted }} = await import("/order.js");
            return [...sorted(floats(bits), Uint32Array.from(rows), descending)]; }}""",
            [bits(values), rows.tolist(), descending],
        )
        keys = -values[rows] if descending else values[rows]
        expected = rows[np.argsort(keys.astype(np.float64), kind="stable")]
        assert found == expected.tolist()


def test_texts_are_sorted_stably(page):
    texts = ["b", "a", "c", "a", "", "b"]
    call = """async ([texts, down]) => {
        const { sortedByText, everyRow } = await import("/order.js");
        return [...sortedByText(texts, everyRow(texts.length), down)]; }"""
    assert page.evaluate(call, [texts, False]) == [4, 1, 3, 0, 5, 2]
    assert page.evaluate(call, [texts, True]) == [2, 0, 5, 1, 3, 4]


def filtered(page: Any, text: str, r: np.ndarray, q: np.ndarray, claims: np.ndarray) -> Any:
    """Rows that pass and what was not understood."""
    return page.evaluate(
        f"""async ([text, r, q, claims]) => {{ {FLOATS}
        const {{ parsed, passing }} = await import("/order.js");
        const columns = {{ r: floats(r), q_value: floats(q) }};
        const layers = {json.dumps([{"name": f"net.conv{i}", "size": n} for i, n in enumerate(SIZES)])};
        const found = parsed(text, {{ columns: Object.keys(columns), claims: ["encodes", "used"] }});
        const rows = passing(found.tests, {{ size: {sum(SIZES)}, layers,
            starts: [0, {SIZES[0]}, {SIZES[0] + SIZES[1]}], column: name => columns[name],
            claims: Uint32Array.from(claims), bits: {{ encodes: 0, used: 2 }},
            verdict: Uint16Array.from(claims, bits => bits & 1), verdicts: ["not shown", "Is Used"] }});
        return {{ rows: [...rows], faults: found.faults }}; }}""",  # noqa: E501
        [text, bits(r), bits(q), claims.tolist()],
    )


def test_filters_are_the_same_as_boolean_indexing(page):
    r, q = odd_numbers(1), odd_numbers(2)
    claims = np.random.default_rng(3).integers(0, 8, 400)
    layer = np.repeat(np.arange(3), SIZES)
    unit = np.concatenate([np.arange(n) for n in SIZES])
    name = np.array([f"net.conv{i}:{u}" for i, u in zip(layer, unit, strict=True)])
    with np.errstate(invalid="ignore"):
        cases = {
            "": np.ones(400, bool),
            "r>0.5": r > 0.5,
            "r>=0.5 q<0": (r >= 0.5) & (q < 0),
            "r<=0": r <= 0,
            "r=0": r == 0,
            "r!=0": ~np.isnan(r) & (r != 0),
            "r>\u22120.25": r > -0.25,
            "layer:conv1": layer == 1,
            "layer:=net.conv2": layer == 2,
            "layer:=conv2": layer == 9,
            "layer:net*1": layer == 1,
            "layer:*conv*": layer >= 0,
            "layer:conv*": layer == 9,
            "unit:5": unit == 5,
            "is:used": claims & 4 > 0,
            "not:encodes is:used r<1e3": (claims & 1 == 0) & (claims & 4 > 0) & (r < 1e3),
            'verdict:"is used"': claims & 1 == 1,
            "conv1:29": np.char.find(name, "conv1:29") >= 0,
            "CONV2 r>0": (layer == 2) & (r > 0),
        }
    for text, expected in cases.items():
        found = filtered(page, text, r, q, claims)
        assert found == {"rows": np.flatnonzero(expected).tolist(), "faults": []}, text


def test_what_a_filter_cannot_mean_is_said(page):
    r = odd_numbers(1)
    for text in ("s>1", "r>x", "is:nice", "unit:one"):
        found = filtered(page, text, r, r, np.zeros(400, int))
        assert len(found["rows"]) == 400
        assert len(found["faults"]) == 1, text
