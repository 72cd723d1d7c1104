"""The pictures of the case study: what the exported page shows, and samples of its slices."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Page, sync_playwright

SEES = 'section[aria-label="What it sees"]'


def pictures(page: Path, output: Path, found: dict[str, Any], sees: Sequence[str]) -> None:
    """Photographs of the exported page.

    Args:
        page: The page.
        output: Where the pictures go.
        found: The numbers, which name the neuron that has a page of its own.
        sees: Neurons of which only what they see is shown, one below the other.
    """
    first = next(row["neuron"] for row in found["neurons"] if "encodes" in row["claims"])
    whole = {
        "case_overview": ("", 1400, 1010),
        "case_samples": ("page=samples&cell=only_model", 1200, 760),
        "case_neuron": (f"page=neuron&neuron={first}", 1400, 1060),
    }
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        options = {"executable_path": chromium, "args": ["--no-sandbox", "--disable-gpu"]}
        browser = playwright.chromium.launch(**options)

        def at(place: str, width: int = 1400, height: int = 1000) -> Page:
            size = {"width": width, "height": height}
            opened = browser.new_page(viewport=size, color_scheme="light")
            opened.goto(f"file://{page.resolve()}#{place}")
            opened.wait_for_selector("#app[data-state=ready]")
            opened.wait_for_timeout(800)
            return opened

        for name, (place, width, height) in whole.items():
            keep([at(place, width, height).screenshot()], output / f"{name}.webp")
        cards = [at(f"page=neuron&neuron={name}").locator(SEES).screenshot() for name in sees]
        keep(cards, output / "case_sees.webp", sees)
        browser.close()


def keep(seen: Sequence[bytes], path: Path, titles: Sequence[str] = ()) -> None:
    """Photographs below each other in one picture, with titles above them."""
    parts = [Image.open(io.BytesIO(each)).convert("RGB") for each in seen]
    room = 26 if titles else 0
    size = (max(part.width for part in parts), sum(part.height + room for part in parts))
    whole, top = Image.new("RGB", size, "white"), 0
    for part, title in zip(parts, titles or [""] * len(parts), strict=True):
        ImageDraw.Draw(whole).text((8, top + 4), title, "black", ImageFont.load_default(16))
        whole.paste(part, (0, top + room))
        top += part.height + room
    whole.save(path, quality=82, method=6)


def slices(found: dict[str, Any], images: np.ndarray, path: Path) -> None:
    """Samples of each slice that only the network gets right, a line for each slice.

    Args:
        found: The numbers.
        images: Those of the validation, ``(N, 28, 28)`` uint8; ids end with their places.
        path: Where the picture goes.
    """
    rows, tile, left = found["slices"], 64, 210
    whole = Image.new("RGB", (left + 8 * (tile + 6), len(rows) * (tile + 8)), "white")
    for i, row in enumerate(rows):
        top = i * (tile + 8) + 2
        words = ImageDraw.Draw(whole)
        words.text((4, top + 20), row["slice"], "black", ImageFont.load_default(16))
        for k, name in enumerate(row["examples"].split(", ")[:8]):
            image = Image.fromarray(images[int(name.rsplit("-", 1)[1])])
            place = (left + k * (tile + 6), top)
            whole.paste(image.resize((tile, tile), Image.Resampling.NEAREST), place)
    whole.save(path, quality=82, method=6)
