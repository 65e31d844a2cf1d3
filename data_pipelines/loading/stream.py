"""Which bucket and which rows a step takes: a pure function of (seed, step).

In each epoch every row belongs to one bucket or to none. The rows of a bucket, shuffled afresh for
each epoch, form one stream over all epochs; each batch takes the next rows of its bucket's stream.
What is left at the end of an epoch waits for the next one, so no row is dropped or repeated. How
many batches each bucket has in an epoch follows from this, and their order is shuffled.

Processes need not talk to agree on a step, and a run goes on from the number of its step alone,
with any number of processes.
"""

import bisect
import collections
import dataclasses
import functools
import threading
from collections.abc import Callable, MutableMapping, Sequence

import numpy as np

_SHUFFLE, _ORDER = 1, 2  # purposes of random numbers
_MAX_EMPTY_EPOCHS = 10_000


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """Where an epoch starts: its first step, and the place of each bucket's stream."""

    first_step: int
    counts: np.ndarray  # [bucket] rows of this epoch
    first_row: np.ndarray  # [bucket] rows of earlier epochs
    carried: np.ndarray  # [bucket] rows of earlier epochs that no batch has taken yet
    batches: np.ndarray  # [bucket] of this epoch


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step takes: the number of its bucket, its rows, and the epoch it belongs to."""

    bucket: int
    rows: np.ndarray
    epoch: int


class Stream:
    """The endless sequence of steps.

    Args:
        rows_of: Epoch -> the rows of each bucket, ascending. Has to give the same on each call.
        batch_sizes: Of each bucket, rows.
        seed: Of all shuffling.
        rows_in: (Epoch, bucket) -> the same for one bucket, where that takes less.
        counts: Epoch -> how many rows each bucket has, as far as known; what is not is added. With
            them, a step needs the rows of its own epoch and of those that it takes rows from.
    """

    def __init__(
        self,
        rows_of: Callable[[int], list[np.ndarray]],
        batch_sizes: Sequence[int],
        seed: int,
        *,
        rows_in: Callable[[int, int], np.ndarray] | None = None,
        counts: MutableMapping[int, np.ndarray] | None = None,
    ):
        self._rows_of = rows_of
        self._rows_in = rows_in or (lambda epoch, bucket: rows_of(epoch)[bucket])
        self._counts = {} if counts is None else counts
        self._batch_sizes = np.array(batch_sizes, np.int64)
        self._seed = seed
        self._lock = threading.RLock()
        self._epochs: list[_Epoch] = []
        self._first_steps: list[int] = []
        self._shuffled: collections.OrderedDict[tuple[int, int], np.ndarray]
        self._shuffled, self._num_shuffled = collections.OrderedDict(), 0
        self._order = functools.lru_cache(maxsize=4)(self._make_order)

    def at(self, step: int) -> Step:
        """Returns what a step takes; steps count from 0."""
        with self._lock:
            number, epoch = self._find(step)
            order, place = self._order(number)
            bucket, turn = (int(x[step - epoch.first_step]) for x in (order, place))
            size = int(self._batch_sizes[bucket])
            start = int(epoch.first_row[bucket] - epoch.carried[bucket]) + turn * size
            return Step(bucket, self._take(number, bucket, start, start + size), number)

    def steps_in_epoch(self, epoch: int) -> int:
        with self._lock:
            return int(self._epoch(epoch).batches.sum())

    def counts(self, epoch: int) -> np.ndarray:
        """Returns how many rows each bucket has in an epoch."""
        with self._lock:
            if (known := self._counts.get(epoch)) is None:
                known = np.array([len(rows) for rows in self._rows_of(epoch)], np.int64)
                self._counts[epoch] = known
            return known

    def rows(self, epoch: int, bucket: int) -> np.ndarray:
        """Returns the rows of a bucket in an epoch, ascending."""
        with self._lock:
            return self._rows_of(epoch)[bucket]

    def _find(self, step: int) -> tuple[int, _Epoch]:
        while True:
            last = len(self._epochs) - 1
            if last >= 0 and step < self._first_steps[last] + self._epochs[last].batches.sum():
                number = bisect.bisect_right(self._first_steps, step) - 1
                return number, self._epochs[number]
            if (
                last >= _MAX_EMPTY_EPOCHS
                and self._first_steps[-_MAX_EMPTY_EPOCHS] == (self._first_steps[-1])
            ):
                raise ValueError(
                    f"no batch could be filled in {_MAX_EMPTY_EPOCHS} epochs: make the batches "
                    "smaller, or the chances to keep a clip larger."
                )
            self._epoch(last + 1)

    def _epoch(self, number: int) -> _Epoch:
        while len(self._epochs) <= number:
            new = len(self._epochs)
            counts = self.counts(new)
            if new == 0:
                first_step, first_row = 0, np.zeros_like(counts)
                carried = first_row
            else:
                old = self._epochs[-1]
                first_step = old.first_step + int(old.batches.sum())
                first_row = old.first_row + old.counts
                carried = old.carried + old.counts - old.batches * self._batch_sizes
            batches = (carried + counts) // self._batch_sizes
            self._epochs.append(_Epoch(first_step, counts, first_row, carried, batches))
            self._first_steps.append(first_step)
        return self._epochs[number]

    def _make_order(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the bucket of each step of an epoch, and how often it came before in it."""
        batches, known = self._epochs[number].batches, len(self._batch_sizes)
        kind = np.int16 if known < 2**15 else np.int64  # 16 bits are sorted in linear time
        order = np.repeat(np.arange(known, dtype=kind), batches)
        np.random.default_rng((self._seed, number, _ORDER)).shuffle(order)
        place, first = np.empty(len(order), np.int64), np.cumsum(batches) - batches
        place[np.argsort(order, kind="stable")] = np.arange(len(order)) - np.repeat(first, batches)
        return order, place

    def _take(self, number: int, bucket: int, start: int, end: int) -> np.ndarray:
        """Returns a piece of a bucket's stream, which may reach over several epochs."""
        self._rows_of(number)  # of all buckets: the steps of this epoch ask for one after the other
        while self._epochs[number].first_row[bucket] > start:
            number -= 1
        pieces = []
        while start < end:
            offset = start - int(self._epochs[number].first_row[bucket])
            if offset < self._epochs[number].counts[bucket]:
                pieces.append(self._shuffle(number, bucket)[offset : offset + end - start])
                start += len(pieces[-1])
            number += 1
        return np.concatenate(pieces)

    def _shuffle(self, number: int, bucket: int) -> np.ndarray:
        """Returns the rows of a bucket in the order of an epoch; the newest two epochs are kept."""
        key = (number, bucket)
        if key not in self._shuffled:
            rng = np.random.default_rng((self._seed, number, _SHUFFLE, bucket))
            self._shuffled[key] = rng.permutation(self._rows_in(number, bucket))
            self._num_shuffled += len(self._shuffled[key])
            limit = max(2 * int(self._epochs[number].counts.sum()), len(self._shuffled[key]))
            while self._num_shuffled > limit:
                self._num_shuffled -= len(self._shuffled.popitem(last=False)[1])
        self._shuffled.move_to_end(key)
        return self._shuffled[key]
