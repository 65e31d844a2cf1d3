"""Several data sets as one: `openvid=0.7,miradata=0.3`, shares of the clips that are taken.

    A,B           both in turn, as if they were one
    A=0.7,B=0.3   shares of the clips
    A*1,B*2.5     epochs: each clip of B comes two or three times while one of A comes once

Each data set has its own endless row of epochs, in each of which every clip of it comes once. An
epoch of the mixture takes a stretch of each row; where a stretch ends within an epoch, which clips
come before its end is drawn from (seed, that epoch, clip). So what a step takes follows from
(seed, step) alone, as with one data set, and every clip comes equally often.

A clip that an earlier data set has too, the same frames of the same file, is left out.
"""

import collections
import fractions
import hashlib
import math
import os
import re
import threading
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.loading import assignment, buckets, draws
from data_pipelines.shards import records

_EPOCHS = 4  # kept in memory
_MIXED = 0x9E3779B97F4A7C15  # spreads (seed, epoch, row) over 64 bits


def read(path: str | os.PathLike) -> "records.Reader | Mixture":
    """Opens a data set, or several.

    Raises:
        ValueError: If one cannot be read, they are of two kinds, or a share is no number.
    """
    text = os.fspath(path)
    found = _split(text)
    if len(found) == 1:
        return records.Reader(text)
    signs = {sign for _, sign, _ in found}
    if len(signs) > 1:
        raise ValueError(
            f"data.path={text}: give each data set a share (A=0.7,B=0.3), or each a number of "
            "epochs (A*1,B*2), or none any."
        )
    values = [_number(text, name, value) for name, _, value in found]
    return Mixture([name for name, _, _ in found], values, is_share="=" in signs)


def is_here(path: str | os.PathLike) -> bool:
    """Tells whether the folders of `read` are on this machine."""
    names = [name for name, _, _ in _split(os.fspath(path))]
    return all(os.path.exists(records.split_run(name)[0]) for name in names)


def _split(text: str) -> list[tuple[str, str | None, str | None]]:
    """(folder, "=" or "*" or None, number or None) of each data set."""
    parts = [part.strip() for part in text.split(",")]
    parts = [part for part in parts if part]
    if len(parts) < 2 or os.path.exists(text):
        return [(text, None, None)]
    return [re.fullmatch(r"(.+?)\s*(?:([=*])([^=*/]*))?", part).groups() for part in parts]


def _number(text: str, name: str, value: str | None) -> fractions.Fraction:
    try:
        number = fractions.Fraction(1 if value is None else value)
    except (ValueError, ZeroDivisionError):
        number = fractions.Fraction(0)
    if not 0 < number < 10**6:
        raise ValueError(f"data.path={text}: {name} needs a number above 0, as in A=0.7,B=0.3.")
    return number


class Mixture(Sequence):
    """The records of several data sets one after the other, as a `records.Reader` has them.

    Args:
        folders: Of the data sets.
        values: Share or epochs of each.
        is_share: Which of them.

    Raises:
        ValueError: If one cannot be read, or they are of two kinds.
    """

    def __init__(
        self, folders: Sequence[str], values: Sequence[fractions.Fraction], *, is_share: bool
    ):
        self.readers = [records.Reader(folder) for folder in folders]
        self.folder, self.values, self.is_share = ",".join(folders), list(values), is_share
        kinds = {reader.kind: reader.folder for reader in self.readers}
        if len(kinds) > 1:
            raise ValueError(
                "a mixture is of one kind of shards: "
                + " and ".join(f"{folder} holds {kind}s" for kind, folder in kinds.items())
                + ": encode the videos first, with vidgen.encode."
            )
        self.kind = self.readers[0].kind
        self.firsts = np.cumsum([0, *map(len, self.readers)])
        names = self.readers[0].index
        columns = [[reader.index[name] for reader in self.readers] for name in names]
        self.index = {name: np.concatenate(of) for name, of in zip(names, columns, strict=True)}
        said = [(r.meta["fingerprint"], str(v)) for r, v in zip(self.readers, values, strict=True)]
        print_ = hashlib.sha256(f"{is_share} {said}".encode()).hexdigest()
        self.meta = {"kind": self.kind, "num_records": len(self), "fingerprint": print_}

    @property
    def is_remote(self) -> bool:
        return any(reader.is_remote for reader in self.readers)

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __getitem__(self, row: int) -> dict:
        """Returns the fields of a record."""
        reader, own = self._find(row)
        return reader[own]

    def content(self, row: int, buffer: np.ndarray | None = None) -> bytes | memoryview:
        """See `records.Reader.content`."""
        reader, own = self._find(row)
        return reader.content(own, buffer)

    def fetch(self, row: int, report: Callable[[str], None] = lambda what: None) -> str:
        """See `records.Reader.fetch`."""
        reader, own = self._find(row)
        return reader.fetch(own, report)

    def copies(self) -> np.ndarray:
        """Tells of each record whether an earlier data set has its clip, in the same bucket."""
        keys = np.stack([self.index["clip"], self._bucket_codes()], axis=1)
        _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        set_of = np.searchsorted(self.firsts, np.arange(len(self)), side="right") - 1
        return set_of > set_of[first[inverse.reshape(-1)]]

    def _bucket_codes(self) -> np.ndarray:
        codes = np.zeros(len(self), np.uint64)
        for name in ("resolution", "num_frames", "aspect") if self.kind == "latent" else ():
            _, code = np.unique(self.index[name], return_inverse=True)
            codes = codes * np.uint64(code.max(initial=0) + 1) + code.astype(np.uint64)
        return codes

    def _find(self, row: int) -> tuple[records.Reader, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} records in {self.folder}")
        number = int(np.searchsorted(self.firsts, row, side="right")) - 1
        return self.readers[number], int(row - self.firsts[number])


def assign(
    reader: "records.Reader | Mixture", table: buckets.Table, seed: int
) -> "assignment.Assignment | MixedAssignment":
    """Returns which records each bucket has in an epoch."""
    if isinstance(reader, Mixture):
        return MixedAssignment(reader, table, seed)
    return assignment.Assignment(reader, table, seed)


class MixedAssignment:
    """Epoch -> the rows of each bucket, ascending; a row may come several times.

    `is_fixed` tells whether they are the same in each epoch, and `epochs` how many epochs of each
    data set one of the mixture has.

    Args:
        mixture: The records.
        table: The buckets.
        seed: Of the draws.

    Raises:
        ValueError: If no clip of one of the data sets fits a bucket.
    """

    def __init__(self, mixture: Mixture, table: buckets.Table, seed: int):
        self._parts = [assignment.Assignment(r, table, seed) for r in mixture.readers]
        self._firsts, self._seed = mixture.firsts, seed
        self._is_copy = mixture.copies()
        self._lock = threading.RLock()
        self._kept: collections.OrderedDict[int, list[np.ndarray]] = collections.OrderedDict()
        self._num_buckets = len(table.all_buckets())
        self.epochs = [fractions.Fraction(value) for value in mixture.values]
        if mixture.is_share:
            counts = [self._count(number) for number in range(len(self._parts))]
            for count, reader in zip(counts, mixture.readers, strict=True):
                if not count:
                    raise ValueError(
                        f"no clip of {reader.folder} is left for the mixture: none fits a bucket "
                        "of the config, or all are copies of clips of the data sets before it."
                    )
            whole = sum(mixture.values)
            self.epochs = [
                (value / whole * sum(counts) / count).limit_denominator(10**6)
                for value, count in zip(mixture.values, counts, strict=True)
            ]
        if not all(self.epochs):
            raise ValueError(f"a share of {mixture.folder} is too small: give 1e-6 or more.")
        is_whole = all(epochs.denominator == 1 for epochs in self.epochs)
        self.is_fixed = is_whole and all(part.is_fixed for part in self._parts)

    def __call__(self, epoch: int) -> list[np.ndarray]:
        epoch = 0 if self.is_fixed else epoch
        with self._lock:
            if epoch not in self._kept:
                self._kept[epoch] = [self._mix(epoch, b) for b in range(self._num_buckets)]
            self._kept.move_to_end(epoch)
            if len(self._kept) > _EPOCHS:
                self._kept.popitem(last=False)
            return self._kept[epoch]

    def rows(self, epoch: int, bucket: int) -> np.ndarray:
        """Returns the rows of one bucket."""
        with self._lock:
            if self.is_fixed or epoch in self._kept:
                return self(epoch)[bucket]
            return self._mix(epoch, bucket)

    def _mix(self, epoch: int, bucket: int) -> np.ndarray:
        found = []
        for number, epochs in enumerate(self.epochs):
            start, end = epoch * epochs, (epoch + 1) * epochs
            for own in range(math.floor(start), math.ceil(end)):
                span = max(start - own, 0), min(end - own, 1)
                found.append(self._stretch(number, own, bucket, *map(float, span)))
        return np.sort(np.concatenate(found), kind="stable")

    def _stretch(self, number: int, epoch: int, bucket: int, low: float, high: float):
        """The rows of a data set's epoch that come in [low, high) of it."""
        rows_N = self._parts[number].rows(epoch, bucket) + self._firsts[number]
        rows_N = rows_N[~self._is_copy[rows_N]]
        if (low, high) == (0, 1):
            return rows_N
        first = (self._seed + 1) * _MIXED + (epoch + 1) * 0xBF58476D1CE4E5B9
        seeds_N = np.uint64(first % 2**64) + rows_N.astype(np.uint64) * np.uint64(_MIXED)
        place_N = draws.random(seeds_N, 0)
        return rows_N[(place_N >= low) & (place_N < high)]

    def _count(self, number: int) -> int:
        return sum(len(self._stretch(number, 0, b, 0, 1)) for b in range(self._num_buckets))
