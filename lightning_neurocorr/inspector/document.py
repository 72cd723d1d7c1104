"""One HTML file: page and data inside, and nothing it could ask a network for."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_neurocorr.inspector.encoding import dumped
from lightning_neurocorr.inspector.exported import Exported, Steps
from lightning_neurocorr.inspector.static_files import static_files

# Makes a URL of each module in the order of their imports: a file may not import another.
_BOOT = """
const urls = {};
for (const element of document.querySelectorAll("script.neurocorr-module")) {
  const text = element.textContent.replace(/neurocorr:([\\w./-]+)/g, (all, name) => urls[name] ?? all);
  urls[element.dataset.name] = URL.createObjectURL(new Blob([text], {type: "text/javascript"}));
}
import(urls["page.js"]);
"""  # noqa: E501


def document(series: Sequence[Exported], about: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """The file's text.

    Args:
        series: What it shows.
        about: What its manifest says beside the series.
        files: The modules of the page by name, each after those that it needs.
    """
    numbers: dict[bytes, int] = {}
    manifest = {**about, "series": [_described(one, numbers) for one in series]}
    return _document(manifest, numbers, files)


def _described(series: Exported, numbers: dict[bytes, int]) -> dict[str, Any]:
    """What the manifest says of a series; equal blobs have one number."""

    def number(blob: bytes) -> int:
        return numbers.setdefault(blob, len(numbers))

    def listed(steps: Steps) -> list[dict[str, Any]]:
        return [{"step": step, "blobs": [number(b) for b in blobs]} for step, blobs in steps]

    return {
        "run": series.run,
        "name": series.name,
        "meta": list(series.meta),
        "history": {layer: number(blob) for layer, blob in series.history.items()},
        "frames": listed(series.frames),
        "tiles": listed(series.tiles),
        "pictures": listed(series.pictures),
    }


def _document(
    manifest: Mapping[str, Any], numbers: Mapping[bytes, int], files: Mapping[str, str]
) -> str:
    boot = base64.b64encode(hashlib.sha256(_BOOT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{boot}' blob:; style-src 'unsafe-inline'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'"
    )
    text = dumped(manifest).decode().replace("<", "\\u003c")
    blobs = (
        f'<script type="text/plain" class="neurocorr-blob" id="neurocorr-blob-{i}">'
        f"{base64.b64encode(blob).decode()}</script>"
        for blob, i in numbers.items()
    )
    scripts = (
        f'<script type="text/plain" class="neurocorr-module" data-name="{name}">'
        f"{_inert(text)}</script>"
        for name, text in files.items()
    )
    style = static_files()["style.css"].decode().replace("</", "<\\/")
    title = html.escape(str(manifest["title"]))
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>",
            f"<style>{style}</style></head><body>",
            '<main id="app"></main>',
            f'<script type="application/json" id="neurocorr-manifest">{text}</script>',
            *blobs,
            *scripts,
            f"<script>{_BOOT}</script>",
            "</body></html>\n",
        )
    )


def _inert(text: str) -> str:
    """A module's text inside a script element, which `</script` or `<!--` would end."""
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")
