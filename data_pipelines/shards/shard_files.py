"""Reads single records straight from a shard, at the speed of memory.

An ArrayRecord file holds Riegeli chunks in blocks of 64 KiB, each of which begins with a header of
24 bytes (https://github.com/google/riegeli, `doc/riegeli_records_file_format.md`). A record that is
alone in its chunk and not compressed lies there as it is, interrupted by headers only. Its place
and size, which the index of a data set holds, are enough to read it with one call of the system
into memory that is used again and again; the library copies it several times into new memory.

Nothing here has to be believed: every read is compared with the record's digest, and where that is
wrong, the library reads the record again.
"""

import os
from collections.abc import Sequence

import numpy as np
from array_record.python import array_record_module

BLOCK, HEADER = 1 << 16, 24  # bytes
_DATA = BLOCK - HEADER
_BLOCKS_A_CALL = 500  # the system takes 1024 pieces at once
_HEAD_BYTES, _WINDOW_BYTES = 32, 4 * BLOCK  # what is looked for between two records, and how far


class Shard:
    """An open shard; it closes when nothing refers to it any more.

    Raises:
        OSError: If there is no such file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def read(self, place: int, size: int, buffer: np.ndarray | None = None) -> memoryview:
        """Returns `size` bytes of the records part of the file.

        Args:
            place: Where they begin, block headers not counted.
            size: How many; fewer come back at the end of the file.
            buffer: Memory for them, uint8, that the result is a view of; None: new memory.
        """
        if buffer is None or len(buffer) < size:
            buffer = np.empty(size, np.uint8)
        target, skipped, done = memoryview(buffer), bytearray(HEADER), 0
        while done < size:
            pieces, offset, start = [], _offset(place + done), done
            while done < size and len(pieces) < 2 * _BLOCKS_A_CALL:
                count = min(_DATA - (place + done) % _DATA, size - done)
                pieces += [target[done : done + count], skipped]
                done += count
            got = os.preadv(self._handle, pieces[:-1], offset)
            if got < _offset(place + done - 1) + 1 - offset:
                last = start if got <= 0 else _place(offset + got - 1) + 1 - place
                return target[: max(last, start)]  # the file is shorter
        return target[:size]

    def library(self) -> array_record_module.ArrayRecordReader:
        """Returns a reader of the library."""
        # without reading ahead: rows come in random order
        return array_record_module.ArrayRecordReader(self.path, "readahead_buffer_size:0")


def find(path: str | os.PathLike, heads: Sequence[bytes], sizes: Sequence[int]) -> list[int]:
    """Returns the places of the records of a shard, for `Shard.read`; -1 where one is not found.

    Args:
        path: The shard.
        heads: The first bytes of each record, see `head`.
        sizes: Bytes of each record.
    """
    shard, places, place = Shard(path), [], 0
    for start, size in zip(heads, sizes, strict=True):
        between = bytes(shard.read(place, _WINDOW_BYTES)).find(start)
        if size == 0 or between < 0:
            places.append(-1)
            continue
        places.append(place + between)
        place += between + size
    return places


def head(content: bytes) -> bytes:
    """Returns the bytes of a record by which `find` knows it."""
    return content[:_HEAD_BYTES]


def _place(offset: int) -> int:
    """The place of an offset in the file, or of the next one in a block's header."""
    block, rest = divmod(offset, BLOCK)
    return block * _DATA + max(0, rest - HEADER)


def _offset(place: int) -> int:
    """Where in the file a place is."""
    block, rest = divmod(place, _DATA)
    return block * BLOCK + HEADER + rest
