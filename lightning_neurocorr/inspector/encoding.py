"""Numbers as bytes that compress well and that a browser reads without a library.

Little-endian. Floats lose mantissa beyond 12 bits; bytes are shuffled (byte 0 of every number, then
byte 1, ...), then gzip. ``docs/microscope_data.md`` is the contract with the page.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Relative error at most 2**-13, as the mantissa is rounded to 12 bits.
_CUT = 11
_TYPES = {"float32": "<f4", "int32": "<i4", "uint32": "<u4", "uint16": "<u2", "uint8": "|u1"}
_SAFE = 1 << 53  # JavaScript's whole numbers end here


@dataclass(frozen=True)
class Part:
    """One array or JSON value of the page's data.

    Attributes:
        kind: ``"float32"``, ``"int32"``, ``"uint32"``, ``"uint16"``, ``"uint8"``, ``"json"`` or
            ``"image"``.
        shape: Of the array; of JSON its length; of an image its height and width.
        data: The gzip bytes; of an image the encoded picture.
    """

    kind: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def about(self) -> dict[str, Any]:
        """What the index says of it."""
        return {"type": self.kind, "shape": list(self.shape)}


def pack(values: np.ndarray, *, ordered: bool = False) -> Part:
    """An array as a part; floats become cut float32, whole numbers must fit their type.

    Args:
        values: The array.
        ordered: Neighbours are alike, as positions are: then longer repeats are looked for. Else
            single bytes repeat at most, and looking for more takes nine times as long for nothing.
    """
    kind = _kind(values)
    encoded = np.ascontiguousarray(values, dtype=_TYPES[kind])
    if kind == "float32":
        encoded = cut(encoded)
    raw = _shuffled(encoded)
    return Part(kind, values.shape, squeezed(raw) if ordered else _squeezed_fast(raw))


def unpack(part: Part) -> np.ndarray:
    """The reverse of :func:`pack`, as the page does it."""
    raw = np.frombuffer(gzip.decompress(part.data), np.uint8)
    dtype = np.dtype(_TYPES[part.kind])
    found = raw.reshape(dtype.itemsize, -1).T
    return np.ascontiguousarray(found).view(dtype).reshape(part.shape)


def pack_json(value: Any) -> Part:
    """A list, as a part."""
    return Part("json", (len(value),), squeezed(dumped(value)))


def dumped(value: Any) -> bytes:
    """JSON in UTF-8, where what is undefined is null."""
    return json.dumps(_plain(value), allow_nan=False, separators=(",", ":")).encode()


def squeezed(raw: bytes) -> bytes:
    """The bytes in gzip, the same for the same bytes."""
    return gzip.compress(raw, 6, mtime=0)


def _squeezed_fast(raw: bytes) -> bytes:
    """Gzip that knows runs of a byte and how often each comes, no longer repeats."""
    wrapped = 16 + zlib.MAX_WBITS  # as gzip
    packer = zlib.compressobj(1, zlib.DEFLATED, wrapped, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return packer.compress(raw) + packer.flush()


def cut(values: np.ndarray) -> np.ndarray:
    """float32 rounded to 12 bits of mantissa; NaN and infinities stay what they are."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(1 << (_CUT - 1))) & np.uint32(0xFFFFFFFF << _CUT & 0xFFFFFFFF)
    # Rounding up must not make infinity of the largest numbers, or a number of NaN.
    huge = bits & np.uint32(0x7F800000) == 0x7F800000
    over = rounded & np.uint32(0x7F800000) == 0x7F800000
    return np.where(huge | over, bits, rounded).view(np.float32)


def _kind(values: np.ndarray) -> str:
    if values.dtype.kind == "f":
        return "float32"
    if values.dtype.kind == "i":
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if not -(1 << 31) <= low <= high < 1 << 31:
            raise ValueError(f"Expected whole numbers of 32 bits, but got {low} to {high}.")
        return "int32"
    return values.dtype.name


def _shuffled(values: np.ndarray) -> bytes:
    return values.reshape(-1).view(np.uint8).reshape(-1, values.dtype.itemsize).T.tobytes()


def _plain(value: Any) -> Any:
    """Only what JSON and JavaScript know."""
    if isinstance(value, Mapping):
        return {text(key): _plain(part) for key, part in value.items()}
    if isinstance(value, str):
        return text(value)
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (Sequence, set)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _SAFE:
        return str(value)
    return value


def text(value: Any) -> str:
    """Text that UTF-8 can hold."""
    return str(value).encode("utf-8", "replace").decode("utf-8")
