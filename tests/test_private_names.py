"""Private names of Lightning are touched in one file."""

from __future__ import annotations

import re
from pathlib import Path

import lightning_neurocorr

CALLBACK = Path(lightning_neurocorr.__file__).parent / "callback"

# An attribute of something that is not ours, or its name in a string.
_PRIVATE = re.compile(
    r"(?:\b(?:loop|loops|trainer|strategy|loaders?|held_out|pl_module|callback)"
    r"|\b[a-z_]*(?:_loop|_source|_connector|_plugin|_callback))\._[a-z]"
    r"|attr\([^)\n]*, \"_[a-z]\w*\""
    r"|\._generate_state_key"
)


def touches(text: str) -> list[str]:
    """Lines of a file that touch private names of Lightning."""
    return [line.strip() for line in text.splitlines() if _PRIVATE.search(line)]


def test_lightning_is_touched_in_one_file() -> None:
    found = {path.name: touches(path.read_text()) for path in sorted(CALLBACK.glob("*.py"))}
    assert len(found.pop("lightning_private.py")) >= 6  # the pattern sees them
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_other_ways_are_seen() -> None:
    for line in (
        "x = trainer.fit_loop._data_source.instance",
        'getattr(strategy, "_device_mesh", None)',
        "trainer._checkpoint_connector.restore()",
        "self._generate_state_key(name=1)",
    ):
        assert touches(line) == [line]
    assert touches("self._loaders = trainer.val_dataloaders") == []
