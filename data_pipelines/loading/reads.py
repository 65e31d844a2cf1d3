"""Reads that hang, kill their process or find damaged records, and what becomes of each.

A read that hangs or kills its worker is made again, three times in all; then its record is bad, as
is one whose digest is wrong or that cannot be decoded. Bad records are kept with the reason, and
too many of them are an error.
"""

import collections
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping

import absl.logging

from data_pipelines.shards import records
from data_pipelines.workers import children, deadlines

Task = tuple  # begins with the row
_ATTEMPTS = 3
_FIRST_ROWS = 1000  # the share of bad records counts at least so many


class BadDataError(RuntimeError):
    """Too many records cannot be used."""

    exit_code = 77  # vidgen.process.exit_codes.DATA


class BadRecords(Mapping[int, str]):
    """The records that could not be used: {row: why}.

    Args:
        num_rows: Records of the data set.
        limit: The largest share of bad records.
        name: Of the data set, for messages.
        path: A file that gets a line {"row", "why"} for each.
    """

    def __init__(
        self, num_rows: int, limit: float, name: str, path: str | os.PathLike | None = None
    ):
        self.num_rows, self.limit, self.name = num_rows, limit, name
        self.path = None if path is None else pathlib.Path(path)
        self.num_read = 0
        self._why: dict[int, str] = {}
        self._lock = threading.Lock()

    def __getitem__(self, row: int) -> str:
        return self._why[row]

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._why))

    def __len__(self) -> int:
        return len(self._why)

    def count_read(self, count: int):
        """Says that so many samples were made."""
        with self._lock:
            self.num_read += count

    def add(self, row: int, why: str):
        """Takes down a bad record.

        Raises:
            BadDataError: If there are more of them than `limit` of the records read so far (or of
                the first thousand, or of all where there are fewer), naming them.
        """
        with self._lock:
            is_new = row not in self._why
            self._why.setdefault(row, why)
            bad, counted = (
                list(self._why.values()),
                min(self.num_rows, max(_FIRST_ROWS, self.num_read)),
            )
            if is_new and self.path:
                with open(self.path, "a") as file:
                    file.write(json.dumps({"row": row, "why": why}) + "\n")
        if is_new:
            absl.logging.warning("%s: record %d cannot be used: %s", self.name, row, why)
        if len(bad) > self.limit * counted:
            more = f" And {len(bad) - 20} more." if len(bad) > 20 else ""
            raise BadDataError(
                f"{len(bad)} of {counted} records of {self.name} are bad, more than "
                f"bad_limit={self.limit:g} allows: {' '.join(bad[:20])}{more} Make or copy the "
                "data set again, or allow more."
            )


class Reads:
    """Makes samples with deadlines.

    Args:
        reader: The records.
        deadline_seconds: For one record.
        bad: Takes down what failed for good.
    """

    def __init__(self, reader: records.Reader, deadline_seconds: float, bad: BadRecords):
        self._reader, self._seconds, self._bad = reader, deadline_seconds, bad
        self._strikes: collections.Counter = collections.Counter()  # by row

    def in_child(self, pool: children.Pool, row: int, how: tuple) -> dict:
        """Makes a sample of a video in a child, and in another one if that dies over it.

        Args:
            pool: `batches.decoders`: they get the record from here, and need not open a file.
            row: The record.
            how: The rest of the arguments of `batches.video_sample`.

        Raises:
            ValueError: If the record is bad, naming it.
        """

        def read(report):
            self._reader.fetch(row, report)
            report("reading")
            return bytes(self._reader.content(row))

        while True:
            try:
                return pool((deadlines.run(read, self._seconds), *how))
            except (deadlines.Stalled, children.WorkerDied) as error:
                if pool.closed:
                    raise
                self._strike(row, str(error))

    def in_thread(self, make_batch: Callable[[Callable[[Task], dict]], dict], sample) -> dict:
        """Returns make_batch(read) of a thread of this process, and leaves it behind if it hangs.

        Args:
            make_batch: Asks `read` for its samples; is called again when a read has hung.
            sample: Task -> sample, a `batches.Samples`.
        """

        def run(report):
            def read(task):
                report(task[0])
                self._reader.fetch(task[0], report=lambda what: report(task[0]))
                return sample(task)

            return make_batch(read)

        while True:
            try:
                return deadlines.run(run, self._seconds)
            except deadlines.Stalled as error:
                try:
                    self._strike(error.what, f"no answer within {self._seconds:g} s.")
                except ValueError as bad:
                    self._bad.add(error.what, str(bad))

    def _strike(self, row: int, why: str):
        """Counts a read that hung or crashed; the third one raises ValueError."""
        self._strikes[row] += 1
        why = f"reading clip {str(self._reader.index['id'][row])!r} (row {row}): {why}"
        if self._strikes[row] >= _ATTEMPTS:
            raise ValueError(f"{why} So it was {_ATTEMPTS} times.")
        absl.logging.warning("%s Attempt %d of %d.", why, self._strikes[row], _ATTEMPTS)
