"""Which of the doors that a layer's tensors came by is the one to listen at."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_neurocorr.activations.spoken import Passage, Spoken


def reading_places(family: list[Spoken], heard: list[Passage], averages: bool) -> Iterator[Passage]:
    """Places to read, the best first: behind the last change, as near to it as possible."""
    kinds = [("same",), ("same", "pool"), ("same", "pool", "average")]
    changes = [s for s in family if s.kind == "change" and _is_whole(family, s)]
    for change in reversed(changes):
        for allowed in kinds if averages else kinds[:-1]:
            chain = {change}
            chain |= {s for s in family if s.kind in allowed and _follows(s, chain)}
            yield from (one for one in heard if one.spoken in chain and _is_alone(one, chain))
    yield from (one for one in heard if one.spoken.kind == "raw")


def _follows(spoken: Spoken, chain: set[Spoken]) -> bool:
    if any(parent not in chain for parent in spoken.parents):
        return False
    chain.add(spoken)
    return True


def _is_whole(family: list[Spoken], spoken: Spoken) -> bool:
    """Whether all that the layer said before has gone into this tensor, and nowhere else."""
    earlier = [s for s in family if s.index < spoken.index]
    return all(
        made is not None and index <= spoken.index for s in earlier for index, made, _ in s.uses
    )


def _is_alone(heard: Passage, chain: set[Spoken]) -> bool:
    """Whether all that comes after goes through this door."""
    path, waiting = {heard.spoken}, [heard.spoken]
    while waiting:
        new = [p for p in waiting.pop().parents if p in chain and p not in path]
        path |= set(new)
        waiting += new
    if any(made not in path for s in path - {heard.spoken} for _, made, _ in s.uses):
        return False
    if heard.argument is None:
        return all(index > heard.index for index, _, _ in heard.spoken.uses)
    return all(heard.call in calls for _, _, calls in heard.spoken.uses)
