"""The files of the page, by name; no path is ever made of what a browser asks for."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path, PurePosixPath

TYPES = {
    "js": "application/javascript",
    "css": "text/css",
    "html": "text/html",
    "svg": "image/svg+xml",
    "LICENSE": "text/plain",
    "txt": "text/plain",
    "md": "text/plain",
}

_FOLDER = Path(__file__).with_name("static")
_IMPORT = re.compile(r'(\bfrom\s*|^\s*import\s*)"(\.{1,2}/[^"\n]+)"', re.MULTILINE)


@cache
def static_files() -> dict[str, bytes]:
    """The content of every file of the page by its path below ``static/``."""
    return {
        path.relative_to(_FOLDER).as_posix(): path.read_bytes()
        for path in sorted(_FOLDER.rglob("*"))
        if path.is_file() and path.name.rpartition(".")[2] in TYPES
    }


def modules(entry: str) -> dict[str, str]:
    """The modules that ``entry`` needs, each after those that it imports, and itself last.

    Their imports are written ``"neurocorr:<name>"``, for a file that has no folder to look in.

    Raises:
        ValueError: If an import leads nowhere or in a circle.
    """
    found: dict[str, str] = {}
    _visit(entry, found, ())
    return found


def _visit(name: str, found: dict[str, str], above: tuple[str, ...]) -> None:
    if name in found:
        return
    if name in above or name not in static_files():
        raise ValueError(f"Expected a module to import, but got {name!r} from {above}.")
    text = static_files()[name].decode()
    for _, path in _IMPORT.findall(text):
        _visit(_resolved(name, path), found, (*above, name))
    found[name] = _IMPORT.sub(
        lambda match: f'{match[1]}"neurocorr:{_resolved(name, match[2])}"', text
    )


def _resolved(name: str, path: str) -> str:
    """The name of what a module imports."""
    parts: list[str] = []
    for part in (PurePosixPath(name).parent / path).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)
