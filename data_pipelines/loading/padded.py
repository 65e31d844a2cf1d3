"""Padded arrays whose memory is used again when nothing refers to them any more.

The system clears each page of new memory, which costs as much as filling it: half the time of a
batch of images, most of whose bytes are features of texts.
"""

import collections
import threading
import weakref

import numpy as np

_KEPT = 4  # pieces of memory that nobody uses, the largest; one may have a gigabyte


class Rows:
    """Memory for an array of float16 [rows, length, width]: rows of values, and zeros behind."""

    def __init__(self, rows: int, length: int, width: int):
        self.values = np.zeros((rows, length, width), np.float16)
        self._used = np.zeros(rows, np.int64)  # how far each row may differ from zero

    def put(self, row: int, value_LE: np.ndarray):
        """Sets a row."""
        length = len(value_LE)
        self.values[row, :length] = value_LE
        self.values[row, length : self._used[row]] = 0
        self._used[row] = length


class Pool:
    """Lends memory, from any thread."""

    def __init__(self):
        self._idle: list[Rows] = []
        self._returned: collections.deque[Rows] = collections.deque()
        self._lock = threading.Lock()

    def take(self, rows: int, length: int, width: int) -> Rows:
        """Returns memory for so many rows or more; the first ones of it have to be put."""
        with self._lock:
            while self._returned:
                self._idle.append(self._returned.popleft())
            self._idle = sorted(self._idle, key=lambda memory: memory.values.nbytes)[-_KEPT:]
            for number, memory in enumerate(self._idle):
                if len(memory.values) >= rows and memory.values.shape[1:] == (length, width):
                    return self._idle.pop(number)
        return Rows(rows, length, width)

    def lend(self, memory: Rows, rows: int) -> np.ndarray:
        """Returns the first rows of `memory`, read-only.

        The memory is taken again when this array and all that look into it are gone, also the
        buffers of devices that are still to be filled from it.
        """
        values = memory.values[:rows]
        # not a view of `values`: NumPy would let views of views refer to those alone
        content = np.frombuffer(memoryview(values).toreadonly().cast("B"), values.dtype)
        # may run anywhere, even inside `take`: appending needs no lock
        weakref.finalize(content, self._returned.append, memory).atexit = False
        return content.reshape(values.shape)
