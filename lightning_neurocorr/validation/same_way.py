"""What the first batch showed holds for every other."""

from __future__ import annotations

from typing import Any


class SameWay:
    """Refuses a batch in which something is found elsewhere than in the first."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[Any, str]] = {}

    def check(self, what: str, way: Any, words: str) -> None:
        """Raise if something is found another way than before.

        Args:
            what: What is found.
            way: How.
            words: The same in words.

        Raises:
            ValueError: Saying both ways.
        """
        first, told = self._first.setdefault(what, (way, words))
        if first != way:
            raise ValueError(
                f"Expected {told} in every batch, as in the first, but got {words}. Say with "
                "`predictions` or `target` how to read every batch, or with `dataloaders` which "
                "loaders to use."
            )
