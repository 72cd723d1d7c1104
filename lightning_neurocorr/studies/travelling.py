"""What listeners have heard, on its way from process to process."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from torch import Tensor

from lightning_neurocorr.studies.heard import Start
from lightning_neurocorr.studies.protocol import Listener, Study
from lightning_neurocorr.validation.processes import running

_DATA = (Tensor, np.ndarray, np.generic, bool, int, float, str, bytes)


def packed(listener: Listener) -> bytes | None:
    """What a listener has heard, all of it on the CPU, and as it travels where that is needed."""
    own = {name: value for name, value in vars(listener).items() if name not in listener.stays}
    heard = {name: value for name, value in own.items() if _travels(value)}
    moved = {name: _on_cpu(value) for name, value in heard.items()}
    vars(listener).update(moved)
    return pickle.dumps(moved) if running() else None


def _travels(value: Any) -> bool:
    """Whether it is data: a study, a module or the start of a validation stays where it is."""
    if isinstance(value, dict):
        return all(_travels(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, set)):
        return _plain(value) or all(map(_travels, value))
    if value is None or isinstance(value, _DATA):
        return True
    if callable(value) or isinstance(value, (Study, Start)) or not running():
        return False  # nobody else asks for it, and it may be large
    try:  # an object of the study's own
        pickle.Pickler(_Nowhere()).dump(value)
    except Exception:  # noqa: BLE001 -- anything can go wrong in other people's objects
        return False
    return True


class _Nowhere:
    """A file that forgets what is written: to see whether something can be, without a copy."""

    def write(self, data: Any) -> int:
        """Count it."""
        return len(data)


def _plain(values: Any) -> bool:
    """Whether all of a long column are of Python's own kinds; a look at each one takes longer."""
    return set(map(type, values)) <= {bool, int, float, str, type(None)}


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    if type(value) in (list, tuple) and not _plain(value):
        return type(value)(_on_cpu(part) for part in value)
    return value


def unpacked(like: Listener, state: bytes) -> Any:
    """A listener of the same kind with what another process of this run has heard."""
    other = object.__new__(type(like))
    vars(other).update(pickle.loads(state))  # noqa: S301 -- from our own processes
    return other
