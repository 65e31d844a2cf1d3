"""What becomes of a data set when its source, its captions or its config have changed.

Records that are what a new one would be stay where they are, byte for byte. Those that are not
wanted any more are marked and passed over; `data_pipelines.compact` makes a data set without them.
What is new goes to new shards.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.shards import builder, records
from data_pipelines.sources import clips
from data_pipelines.stages import examine, ledger, measured, shards

FAMILY = "clips"  # of data sets that can grow, in their meta.json
REMOVED = "removed"
CHANGED = "file changed"


class Before:
    """A data set as it is before a run; without a folder, it has no records.

    Args:
        out: Its folder.
        shrink: It may lose more than half of its clips.
    """

    def __init__(self, out: pathlib.Path, shrink: bool = False):
        self.out, self.shrink = out, shrink
        self.is_there = (out / "meta.json").exists()
        self.run, self._fingerprint, self.ledger = 0, "", ledger.table([])
        self._index = {"id": np.zeros(0, "U1"), "clip": np.zeros(0, np.uint64)}
        self._marks, self._runs = np.zeros(0, np.uint64), np.zeros(0, int)
        if self.is_there:
            reader = records.Reader(out)
            self.run, self._marks = reader.meta["run"], reader.marks
            self._fingerprint, self._index = reader.meta["fingerprint"], reader.index
            shards_ = reader.meta["shards"]
            self._runs = np.repeat(*([s[name] for s in shards_] for name in ("run", "num_records")))
            self.ledger = ledger.read(out)
        # a run that was killed may have left one more, which the next one replaces
        self.paths = [out / measured.file_name(number + 1) for number in range(self.run)]

    @property
    def state(self) -> list:
        """Names the records that are there."""
        return [self.run, self._fingerprint]

    @property
    def folder(self) -> str:
        """Of the data set; empty where there is none."""
        return os.path.abspath(self.out) if self.is_there else ""

    @property
    def changed(self) -> set[str]:
        """The files whose content was another one when shards were written."""
        return set(self.ledger.filter(pc.equal(self.ledger["rule"], CHANGED))["file"].to_pylist())

    def check_source(self, table: Sequence[clips.Clip], places: Sequence[str | None]):
        """Refuses a source that has little of what the data set is made of, before any work.

        Raises:
            ValueError: If most of the clips are not in it, or have no file.
        """
        here = [clip for clip, place in zip(table, places, strict=True) if place is not None]
        ids, files = {clip.id for clip in here}, {clip.file for clip in here}
        kept = self.ledger.filter(pc.equal(self.ledger["status"], ledger.KEPT))
        pairs = zip(_clip_names(kept), kept["file"].to_pylist(), strict=True)
        gone = sum(name not in ids and file not in files for name, file in pairs)
        builder.check_loss(self.out, gone, len(kept), self.shrink)

    def compare(self, rows: pa.Table, how: dict) -> tuple[pa.Table, np.ndarray]:
        """Tells which records stay.

        Args:
            rows: The ledger after selection.
            how: The config's `shards`.

        Returns:
            The ledger, with the run of the rows whose records stay, and for each record of the
            shards whether it does.

        Raises:
            ValueError: If most go.
        """
        is_kept = pc.equal(rows["status"], ledger.KEPT).combine_chunks()
        names = {"record": [np.zeros(0, np.uint64)], "clip": [np.zeros(0, np.uint64)]}
        for block in ledger.blocks(rows.select(shards.MARKED).filter(is_kept)):
            marks = shards.marks(block, how)
            for name, found in names.items():
                found.append(np.array([mark[name] for mark in marks], np.uint64))
        wanted, clips_ = (np.concatenate(found) for found in names.values())
        stays = records.known(self._marks, wanted)
        gone = 0
        if len(self._index["id"]):
            ids = rows["id"].filter(is_kept).to_pylist()
            gone = records.lost(self._index, ids, clips_)
        builder.check_loss(self.out, gone, len(self._index["id"]), self.shrink)
        nulls = pa.nulls(len(rows), pa.int32())
        return _set_runs(rows, pc.replace_with_mask(nulls, is_kept, self._run_of(wanted))), stays

    def _run_of(self, wanted: np.ndarray) -> pa.Array:
        """The run that has written each of these records; null where none has."""
        marks, first = np.unique(self._marks, return_index=True)
        if not len(marks):
            return pa.nulls(len(wanted), pa.int32())
        at = np.minimum(np.searchsorted(marks, wanted), len(marks) - 1)
        return pa.array(self._runs[first[at]].astype(np.int32), mask=marks[at] != wanted)

    def with_removed(self, rows: pa.Table) -> pa.Table:
        """Returns a ledger with the rows of clips behind it that the source has no more."""
        if not len(self.ledger):
            return rows
        there = set(_clip_names(rows))
        names = _clip_names(self.ledger)
        gone = [row for row, name in enumerate(names) if name not in there]
        found = ledger.take(self.ledger, gone).to_pylist()
        message = f"not in the source of run {self.run + 1}."
        for row in found:
            if row["rule"] != REMOVED:
                row |= examine.refusal(REMOVED, message) | {"caption": None, "duplicate_of": None}
        return pa.concat_tables([rows, ledger.table(found)]) if found else rows


def added(rows: pa.Table, run: int) -> pa.Table:
    """Returns a ledger in which kept rows without a run have this one."""
    return _set_runs(rows, pc.coalesce(rows["run"], in_run(rows, run)["run"]))


def in_run(rows: pa.Table, run: int) -> pa.Table:
    """Returns a ledger in which all kept rows have this run."""
    is_kept = pc.fill_null(pc.equal(rows["status"], ledger.KEPT), False)
    runs = pc.if_else(is_kept, pa.scalar(run, pa.int32()), pa.scalar(None, pa.int32()))
    return _set_runs(rows, runs)


def _set_runs(rows: pa.Table, runs: pa.Array | pa.ChunkedArray) -> pa.Table:
    place = ledger.SCHEMA.get_field_index("run")
    return rows.set_column(place, ledger.SCHEMA.field("run"), runs)


def _clip_names(rows: pa.Table) -> list[str]:
    """The rows of the clip table that a ledger's rows came from."""
    return pc.coalesce(rows["parent"], rows["id"]).to_pylist()
