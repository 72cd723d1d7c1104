"""Checksums of large records, fast.

TensorBoard's own goes over the bytes one by one in Python: a second for 14 MB, in which a training
run waits for the interpreter. What is written is the same, byte for byte.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import numpy as np
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from lightning_neurocorr.inspector.tensorboard_private import file_of, record_writer

_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed
_WORDS = 256  # of four bytes in a block; many blocks advance together
_SMALL = 1 << 14  # bytes up to which TensorBoard's own is as fast
_ALL = 0xFFFFFFFF


def quicken(writer: Any) -> None:
    """Let a ``SummaryWriter`` of PyTorch take large records; others are left as they are."""
    records = record_writer(writer)
    if records is not None and "write" not in vars(records):
        file = file_of(records)
        records.write = lambda data: file.write(record(data))


def record(data: bytes) -> bytes:
    """The data framed as a record of an event file."""
    head = struct.pack("<Q", len(data))
    return b"".join((head, _masked(crc32c(head)), data, _masked(crc32c(data))))


def crc32c(data: bytes) -> int:
    """The CRC-32C checksum.

    The data is cut into blocks whose checksums are worked out side by side, four bytes at a time
    (slicing-by-4, Kounavis and Berry 2005), and then joined: a checksum is linear in the bits.
    """
    if len(data) <= _SMALL:
        return pywrap_tensorflow.crc32c(data)
    blocks = len(data) // (4 * _WORDS)
    rest = data[blocks * 4 * _WORDS :]
    words = np.frombuffer(data, "<u4", blocks * _WORDS).reshape(blocks, _WORDS)
    first = np.zeros(blocks, np.uint32)
    first[0] = _ALL
    found = _advanced(first, np.ascontiguousarray(words.T)).tolist()
    low, second, third, high = _beyond_a_block()
    crc = found[0]
    for block in found[1:]:
        crc = low[crc & 255] ^ second[crc >> 8 & 255] ^ third[crc >> 16 & 255] ^ high[crc >> 24]
        crc ^= block
    table = _tables()[0].tolist()
    for byte in rest:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ _ALL


def _masked(crc: int) -> bytes:
    """As records store a checksum."""
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & _ALL)


def _advanced(crc: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Checksums ``(M,)`` that have gone over ``words`` ``(n, M)`` of their blocks."""
    ones, twos, threes, fours = _tables()
    for word in words:
        crc = crc ^ word
        crc = (
            fours[crc & 255] ^ threes[(crc >> 8) & 255] ^ twos[(crc >> 16) & 255] ^ ones[crc >> 24]
        )
    return crc


@cache
def _tables() -> tuple[np.ndarray, ...]:
    """What a byte becomes after itself and none, one, two and three bytes of zeros, ``(256,)``."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = (crc >> 1) ^ np.where(crc & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    found = [crc]
    for _ in range(3):
        found.append(found[0][found[-1] & 255] ^ (found[-1] >> 8))
    return tuple(found)


@cache
def _beyond_a_block() -> tuple[list[int], ...]:
    """What each byte of a checksum becomes after a block of zeros, by place, 256 numbers each."""
    start = np.concatenate([np.arange(256, dtype=np.uint32) << (8 * place) for place in range(4)])
    end = _advanced(start, np.zeros((_WORDS, 1), np.uint32))
    return tuple(part.tolist() for part in end.reshape(4, 256))
