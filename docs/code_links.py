"""Links from pages to the code (a hook of MkDocs): they lead somewhere in the repository only."""

from __future__ import annotations

import re
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(\.\./lightning_neurocorr[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with names in place of links to files that the site does not have."""
    return LINK.sub(r"\1", markdown)
