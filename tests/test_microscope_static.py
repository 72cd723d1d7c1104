"""The page's own files: they run nothing they are given, ask no network and decide no claim."""

import hashlib
import re
from pathlib import Path

import pytest

from lightning_neurocorr import inspector
from lightning_neurocorr.inspector.static_files import modules, static_files

STATIC = Path(inspector.__file__).with_name("static")
OURS = {
    path.relative_to(STATIC).as_posix(): path.read_text()
    for path in sorted(STATIC.rglob("*.js"))
    if path.parent.name != "vendor"
}
# lit-html 3.3.3 as npm has it (`npm pack lit-html@3.3.3`), BSD-3-Clause.
LIT_HTML = "b878e7f95dec8a9b6e9b217faca6b6a11bad82ebc44c0caa77419ed83edd81f2"
LICENSE = "2b66f9390afde29edfe4314daff93f01fb182e1178053e228120178987e5db75"


def test_vendored_code_is_what_its_author_published():
    for name, expected in {"lit-html.js": LIT_HTML, "LICENSE": LICENSE}.items():
        found = hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest()
        assert found == expected, name
    assert b"BSD 3-Clause" in static_files()["vendor/LICENSE"]


@pytest.mark.parametrize("name", OURS)
def test_no_module_makes_markup_or_code_of_what_it_is_given(name):
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|unsafeHTML|unsafeSVG|document\.write|srcdoc\s*="
        r"|\beval\(|new Function|setTimeout\(\s*[\"'`]|DOMParser|createContextualFragment"
    )
    assert not re.findall(forbidden, OURS[name])


@pytest.mark.parametrize("name", [*OURS, "style.css"])
def test_no_file_names_an_address(name):
    text = static_files()[name].decode().replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"(?:https?:)?//[\w-]+\.\w+|@import|url\(", text)


def test_imports_are_static_and_lead_to_files_of_the_page():
    for entry in ("page.js", "index.js"):
        found = modules(entry)
        assert {"app.js", "vendor/lit-html.js", entry} <= set(found)
        assert not any(re.search(r'\bfrom\s+["\']\.', text) for text in found.values())
    used = {*modules("page.js"), *modules("index.js")}
    assert used == {*OURS, "vendor/lit-html.js"}, "a module that nothing uses"


def _code(text: str) -> str:
    """A module without its comments, the text in its strings and the examples that it shows."""
    apart = r"//[^\n]*|/\*.*?\*/|\"[^\"\n]*\"|<code>[^<]*</code>"
    return re.sub(apart, "", text, flags=re.DOTALL)


@pytest.mark.parametrize("name", OURS)
def test_claims_are_bits_from_python(name):
    """No level of significance and no part of a verdict's sentence stands in a module."""
    assert not re.findall(r"(?<![\w.])(?:0?\.00?[15]|[15]e-[23])\b", _code(OURS[name]))
    said = 'goes with the|too sparse|not shown to encode|the same on every sample"|speaks for'
    assert not re.findall(said, OURS[name])


def test_each_state_of_a_missing_number_has_the_word_that_the_guide_explains():
    block = OURS["format.js"].partition("STATE_WORDS = {")[2].partition("}")[0]
    words = dict(re.findall(r'(\w+): "([^"]+)"', block))
    assert words == {"measured": "no value", "not_asked": "not asked for", "refused": "refused",
                     "not_finished": "not finished", "not_chosen": "not chosen",
                     "not_kept": "not kept", "not_watched": "not watched"}  # fmt: skip
    guide = (Path(__file__).parents[1] / "docs" / "microscope.md").read_text()
    assert all(f"\n| {word} |" in guide for word in words.values())


def test_modules_can_be_read_in_one_sitting():
    assert {name: len(text.splitlines()) for name, text in OURS.items()
            if len(text.splitlines()) > 300} == {}  # fmt: skip


# --- colours -------------------------------------------------------------------------------------

TEXT = ("ink", "muted", "faint", "accent", "yes", "no", "baseline-ink")
PAPERS = ("paper", "card")


def _themes() -> dict[str, dict[str, str]]:
    css = (STATIC / "style.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{3,6})\b", block))
        for block in re.findall(r":root(?:\[data-theme=\"dark\"\])? \{(.*?)\}", css, re.DOTALL)[:2]
    )
    return {"light": light, "dark": {**light, **dark}}


def _luminance(colour: str) -> float:
    channels = [channel / 255 for channel in _channels(colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(a: str, b: str) -> float:
    """WCAG's ratio of two colours."""
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_a_contrast_of_at_least_four_and_a_half(theme):
    colours = _themes()[theme]
    assert _contrast("#000", "#fff") == pytest.approx(21)
    pairs = [(text, paper) for text in TEXT for paper in PAPERS]
    pairs += [("ink", f"{group}-soft") for group in ("both", "only_model", "only_baseline")]
    pairs += [("ink", "neither-soft"), ("ink", "warn"), ("ink", "bad"), ("ink", "accent-soft")]
    pairs += [("accent", "accent-soft"), ("yes", "yes-soft"), ("only_model", "card")]
    pairs += [("muted", "hover"), ("faint", "hover"), ("ink", "band"), ("muted", "accent-soft")]
    low = {pair: round(_contrast(*(colours[name] for name in pair)), 2) for pair in pairs}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_numbers_in_shaded_cells_can_be_read(theme):
    """However many samples a cell of the samples page has: its shade is mixed by CSS."""
    colours, style = _themes()[theme], (STATIC / "style.css").read_text()
    deepest = re.findall(r"--deepest: (\d+)%", style)
    assert len(deepest) == 2
    for share in (step / 20 for step in range(21)):
        part = 0.12 + int(deepest[theme == "dark"]) / 100 * share
        pairs = zip(*(_channels(colours[name]) for name in ("only_model", "card")), strict=True)
        mixed = "#" + "".join(f"{round(part * a + (1 - part) * b):02x}" for a, b in pairs)
        assert _contrast(colours["ink"], mixed) >= 4.5, (share, mixed)


def _channels(colour: str) -> list[int]:
    digits = colour.lstrip("#")
    digits = "".join(c * 2 for c in digits) if len(digits) == 3 else digits
    return [int(digits[i : i + 2], 16) for i in (0, 2, 4)]
