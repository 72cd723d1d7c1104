"""The sums of a batch on a GPU: few launches, each activation read once, nothing waits.

Where there is no Triton the sums are those of blocks, with which these agree to 1e-6.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from lightning_neurocorr.functional.devices import sent
from lightning_neurocorr.functional.side_by_side import side_by_side
from lightning_neurocorr.metric.packing import PackedState
from lightning_neurocorr.metric.proving import (
    agree,
    can_wait,
    cells_agree,
    is_recorded,
    scalars_agree,
)

Kind = tuple[Any, ...]  # a device, and what tells apart the kernels that are compiled
DEVICES = {"cuda"}  # which is AMD's name too
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_COLUMNS = 33  # sums of 32 covariates stay in registers
_MOST_FOLDS = 256

# Measured on an H100 over shapes of tiles and how many are on their way from memory at a time.
_TILE = {"ROWS": 4, "COLS": 128, "AHEAD": 4, "num_warps": 2, "num_stages": 1}
# Products of matrices, as covariates need them, are of 16 rows at least.
_WITH_COVARIATES = {"ROWS": 16, "COLS": 128, "AHEAD": 1, "num_warps": 8, "num_stages": 1}
_PROGRAMS = 4 * 132  # that an H100's multiprocessors work on
_FEWEST, _MOST = 512, 4096  # samples in a chunk: what pays, and what float32 adds up well
_SORTED = 256  # samples that are sorted at a time
_CELL = {"ROWS": 4, "COLS": 128}  # a cell has few samples of a batch

_FEW = 64  # neurons whose sums by class are compared

_unable: list[str] = []  # why kernels cannot run here
_proved: set[Kind] = set()  # kinds of batches on which they were compared


def add_batch(
    state: Tensor,
    layout: PackedState,
    count_active: bool,
    parts: Sequence[Tensor],
    given: tuple[Tensor, Tensor | None, Tensor | None],
    in_blocks: Callable[[Tensor], None],
) -> Tensor | None:
    """The state with a batch, in place or new; None, with nothing changed, where kernels cannot.

    Args:
        state: The packed state, ``(F, size)``.
        layout: Where what lies in it.
        count_active: Whether to count where activations are not 0.
        parts: Activations ``(N, D_1)``, ``(N, D_2)``, ... whose neurons follow each other, on one
            device.
        given: Advantage ``(N,)``, covariates ``(N, K - 1)``, folds ``(N,)``.
        in_blocks: Adds the batch to a state without kernels, to compare with.
    """
    folds, n, device = state.shape[0], parts[0].shape[0], parts[0].device
    fits = folds <= _MOST_FOLDS and layout.columns <= _MOST_COLUMNS and state.is_contiguous()
    if not (fits and device == state.device and _suit(device, parts, _DTYPES)):
        return None
    if not n:
        return state
    passes = list(side_by_side(parts))
    chunks = _chunks(n, layout.neurons, folds)
    at_once = chunks == layout.columns == len(passes) == 1
    # A CUDA graph goes on with the state that it was made with.
    whole = at_once and folds == 1 and not is_recorded(device)
    dtypes = frozenset([x.dtype for _, x in passes])
    kind = (device, folds, given[2] is None, layout.columns, count_active, dtypes, at_once, whole)
    expected = state.clone() if _is_new(kind) else None
    found = _another(state) if whole else state
    if whole:
        run = partial(_add_whole, state, found, count_active, passes[0][1], given[0])
    else:
        run = partial(_add_in_place, state, layout, count_active, passes, given, chunks, at_once)
    if not _try(device, run):
        return None
    if expected is not None:
        in_blocks(expected)
        if not _prove(kind, agree(layout.unpack(found), layout.unpack(expected))):
            found.copy_(expected)
    return found


def _another(state: Tensor) -> Tensor:
    """A tensor for the next state; one of inference mode could not be changed by later updates."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return _another(state)
    return torch.empty(state.shape, dtype=state.dtype, device=state.device)


def _add_whole(state: Tensor, to: Tensor, count_active: bool, x: Tensor, advantage: Tensor) -> None:
    """One launch: its programs read the old state, and each writes its part of the new one."""
    _launch(
        "add_whole", (-(-x.shape[1] // _TILE["COLS"]),),
        x, *x.stride(), *x.shape, _on(x.device, advantage), state, to,
        ACTIVE=count_active, MANY=_SORTED, **_TILE,
    )  # fmt: skip


def _add_in_place(
    state: Tensor,
    layout: PackedState,
    count_active: bool,
    passes: Sequence[tuple[slice, Tensor]],
    given: tuple[Tensor, Tensor | None, Tensor | None],
    chunks: int,
    at_once: bool,
) -> None:
    """Two launches; where not all is added at once one more, and two for each further tensor."""
    (folds, size), (n, _), device = state.shape, passes[0][1].shape, state.device
    whole: dict[str, Any] = {"device": device, "dtype": torch.int32}
    order, bounds = torch.empty(n, **whole), torch.empty(folds, 2, **whole)
    left = torch.empty(layout.columns, n, dtype=torch.float32, device=device)
    heads = state.new_empty(3, folds, layout.head_size)
    shift = torch.empty(layout.neurons, dtype=torch.float32, device=device)
    sums = None if at_once else state.new_empty(chunks, folds, 3 + layout.columns, layout.neurons)
    first, more, ids = (None if x is None else _on(device, x) for x in given)
    f, k = {"F": folds}, {"K": layout.columns}
    wide = _power(layout.columns)
    tile = {"ACTIVE": count_active, **(_TILE if layout.columns == 1 else _WITH_COVARIATES)}
    for slot, x in passes:
        blocks, read = -(-x.shape[1] // _TILE["COLS"]), (x, *x.stride(), *x.shape)
        _launch(
            "prepare", (folds + blocks,),
            *read, first, first if more is None else more, order if ids is None else ids,
            state, size, slot.start, order, bounds, left, heads, shift,
            **f, **k, WIDE=wide, FOLDED=ids is not None,
            ROWS=max(16, min(_SORTED, 4096 // wide)), COLS=_TILE["COLS"],
        )  # fmt: skip
        if at_once:
            _launch(
                "add_in", (blocks,),
                *read, order, bounds, left, shift, heads, state, size, **f, **tile,
            )  # fmt: skip
        else:
            _launch(
                "add_up", (blocks, folds * chunks),
                *read, order, bounds, left, shift, sums, layout.neurons, slot.start, chunks,
                **f, **k, MORE=max(16, _power(layout.columns - 1)), **tile,
            )  # fmt: skip
    if not at_once:
        _launch(
            "merge", (-(-layout.neurons // _TILE["COLS"]), folds),
            sums, shift, heads, state, size, layout.neurons, chunks,
            **f, **k, HEAD=_power(layout.head_size), COLS=_TILE["COLS"],
        )  # fmt: skip


@dataclass(frozen=True)
class SortedCells:
    """The samples of a batch, cell by cell.

    Attributes:
        cell: Their cells, ``(N,)``.
        order: The samples, ``(N,)``.
        bounds: Where those of each cell begin, and how many there are, ``(cells, 2)``.
        scalars: Their number and the sum of their advantage, ``(cells, 2)``.
    """

    cell: Tensor
    order: Tensor
    bounds: Tensor
    scalars: Tensor


def sort_cells(cell: Tensor, advantage: Tensor, cells: int) -> SortedCells | None:
    """Sort the samples of a batch by their cell ``(N,)``; None where kernels cannot."""
    if not _suit(cell.device, [cell], (torch.int64,)):
        return None
    whole: dict[str, Any] = {"device": cell.device, "dtype": torch.int32}
    found = SortedCells(
        cell.contiguous(),
        torch.empty(len(cell), **whole),
        torch.empty(cells, 2, **whole),
        torch.empty(cells, 2, dtype=torch.float64, device=cell.device),
    )
    better = _on(cell.device, advantage)
    given = (found.cell, better, len(cell), found.order, found.bounds, found.scalars)
    done = _try(cell.device, partial(_launch, "sort_cells", (cells,), *given, ROWS=_SORTED))
    if done and _is_new(kind := (cell.device, "sort", better.dtype)):
        done = _prove(kind, scalars_agree(found.scalars, better, cell))
    return found if done else None


def add_cells_(sums: Tensor, x: Tensor, shift: Tensor, found: SortedCells) -> bool:
    """Add activations ``(N, d)`` and their squares to ``sums`` ``(2, cells, d)``, a view, in place.

    Args:
        sums: The sums so far.
        x: Activations.
        shift: What is taken off first, ``(d,)``, float64.
        found: Which sample is in which cell.

    Returns:
        False, with nothing changed, where kernels cannot.
    """
    if x.device != sums.device or not _suit(x.device, [x], (*_DTYPES, torch.float64)):
        return False

    def run(sums: Tensor, x: Tensor) -> bool:
        grid = (-(-x.shape[1] // _CELL["COLS"]), len(found.bounds))
        given = (x, *x.stride(), x.shape[1], found.order, found.bounds, shift, sums)
        strides = sums.stride()[:2]
        return _try(x.device, partial(_launch, "add_cells", grid, *given, *strides, **_CELL))

    if _is_new(kind := (x.device, "cells", x.dtype)):
        few = x[:, :_FEW]
        tried = sums.new_zeros(*sums.shape[:2], few.shape[1])
        y = few.double() - shift[:_FEW]
        if not run(tried, few) or not _prove(kind, cells_agree(tried, y, found.cell)):
            return False
    return run(sums, x)


def _chunks(n: int, neurons: int, folds: int) -> int:
    """Into how many parts the samples of a fold go, so that there is work for all processors."""
    programs = folds * -(-neurons // _TILE["COLS"])
    wanted = min(-(-_PROGRAMS // programs), n // (folds * _FEWEST))
    return max(1, wanted, -(-n // _MOST))


def _suit(device: torch.device, parts: Sequence[Tensor], dtypes: Collection[torch.dtype]) -> bool:
    """Whether kernels can read these, which lie on a device."""
    fit = device.type in DEVICES and {x.dtype for x in parts} <= {*dtypes}
    return fit and not _unable and not torch.compiler.is_compiling() and _kernels() is not None


def _on(device: torch.device, values: Tensor) -> Tensor:
    """Values of samples, one behind the other on a device."""
    return sent(values.detach(), device).contiguous()


def _try(device: torch.device, run: Callable[[], None]) -> bool:
    """Launch kernels; False, and a warning once, where one can't be compiled or launched."""
    try:
        if _is_current(device):
            run()
        else:
            with torch.cuda.device(device):
                run()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 -- compilers raise anything; we can do without
        _give_up(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        return False
    return True


def _is_current(device: torch.device) -> bool:
    """Whether kernels go to this device as it is: to say so takes as long as a launch."""
    return device.type != "cuda" or device.index == torch.cuda.current_device()


def _is_new(kind: Kind) -> bool:
    """Whether batches of a kind are still to be compared."""
    return kind not in _proved and can_wait(kind[0])


def _prove(kind: Kind, right: bool) -> bool:
    """Remember how a comparison came out; a warning once where kernels are wrong."""
    if right:
        _proved.add(kind)
    else:
        _give_up("sums that are not those of PyTorch's operators")
    return right


def _give_up(why: str) -> None:
    """From now on do without."""
    _unable.append(why)
    warnings.warn(
        f"The fast kernels of the metric need Triton to work here, but got {why}. The metric goes "
        "on without them: more slowly, with the same numbers.",
        stacklevel=2,
    )


def _launch(name: str, grid: tuple[int, ...], *given: Any, **settings: Any) -> None:
    """One launch of a kernel."""
    getattr(_kernels(), name)[grid](*given, **settings)


@cache
def _kernels() -> Any:
    """The kernels; None where there is no Triton, as on Windows and with PyTorch for CPUs."""
    try:
        from lightning_neurocorr.metric import kernels
    except ImportError:
        return None
    return kernels


def _power(least: int) -> int:
    """The next power of two."""
    return 1 << max(0, least - 1).bit_length()
