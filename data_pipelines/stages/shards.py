"""From kept ledger rows to records, shard by shard.

A row that is a whole file becomes a record with the file's bytes. A scene, or a video larger than
`shards.short_side`, is decoded and encoded again in a child process; one that fails there is left
out, and named in `cuts/NNNNN.json` beside the shards for the ledger.
"""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from data_pipelines.media import video_io
from data_pipelines.shards import builder, records
from data_pipelines.stages import cut, examine, ledger, parts, plan
from data_pipelines.workers import children

_BYTES_A_PIXEL = 0.1  # of an encoded scene: a guess, for the number of shards
_ROWS_A_CALL = 32  # scenes of one file that are cut in one decode
GONE = "unreadable when shards were written"
TABLE = "new.parquet"  # in a work folder: the rows of the shards that are to be written
_SHARDS_A_PROCESS = 2  # at least, where several write at once: each takes seconds to start
_DEADLINES = 10  # encoding takes so much longer than decoding


def count(kept: pa.Table, plain: dict) -> int:
    """Returns into how many shards kept rows go."""
    blocks = ledger.blocks(kept.select([*_FACTS]))
    total = sum(_expected_bytes(row, plain["shards"]) for b in blocks for row in b.to_pylist())
    return min(len(kept), max(1, round(total / plain["shards"]["bytes"])))


def rows_of(kept: pa.Table, number: int, num_shards: int) -> pa.Table:
    """Returns the rows of one shard."""
    bounds = [len(kept) * i // num_shards for i in (number, number + 1)]
    return kept.slice(bounds[0], bounds[1] - bounds[0])


_FACTS = ("kind", "start", "end", "num_frames", "height", "width", "bytes")
_CLIP = (*_FACTS, "sha256", "first_frame", "fps")
MARKED = ["id", "caption", *_CLIP]  # columns that a record is known by


def marks(rows: pa.Table, how: dict) -> list[dict[str, int]]:
    """Returns the MARKS of rows as records, by which a data set knows what it has.

    Args:
        rows: Kept rows.
        how: The config's `shards`.
    """
    found = []
    for row in _rows(rows, MARKED):
        again = [how["short_side"], how["crf"]] if is_encoded_again(row, how["short_side"]) else []
        names = ("sha256", "first_frame", "num_frames", "fps", "height", "width")
        clip = records.mark(*(row[name] for name in names), *again)
        found.append({"record": records.mark(row["id"], row["caption"], clip), "clip": clip})
    return found


def _rows(table: pa.Table, names: Iterable[str]) -> list[dict]:
    return table.select(list(names)).to_pylist()


def is_encoded_again(row: dict, short_side: int) -> bool:
    """Tells whether a row's bytes differ from those of its file."""
    if row["kind"] != "video":
        return False
    part = row["start"] is not None or row["end"] is not None
    return part or 0 < short_side < min(row["height"], row["width"])


def _expected_bytes(row: dict, how: dict) -> float:
    if not is_encoded_again(row, how["short_side"]):
        return row["bytes"]
    height, width = cut.size_after(row["height"], row["width"], how["short_side"])
    return row["num_frames"] * height * width * _BYTES_A_PIXEL


class Writer:
    """Makes the records of shards; the child processes that encode are started when needed.

    `num_bytes` counts those of the videos.

    Args:
        plain: The config as plain values.
        num_workers: Child processes.
        out: A data set that grows; empty: there is none.
    """

    def __init__(self, plain: dict, num_workers: int, out: str = ""):
        self.plain, self.how, self.limits = plain, plain["shards"], plan.limits(plain)
        self.old, self.there = None, {}  # the record of each clip that is there already
        if out and os.path.exists(out):  # not on a machine that sees another disk
            self.old = records.Reader(out)
            self.there = {clip: row for row, clip in enumerate(self.old.index["clip"].tolist())}
        self.num_workers, self.num_bytes = num_workers, 0
        self.pool = children.Pool(
            num_workers,
            "data_pipelines.stages.cut:make_cutter",
            (self.limits,),
            _DEADLINES * plain["limits"]["deadline_seconds"],
            memory_bytes=cut.MEMORY_BYTES,
        )

    def write_shard(self, work: pathlib.Path, number: int, num_shards: int, rows: pa.Table) -> dict:
        """Writes one shard, unless it is there; returns what `builder.write_shard` does."""
        found = rows.to_pylist()
        for row, mark in zip(found, marks(rows, self.how), strict=True):
            row["marks"] = mark
        examples = self._records(found, work / "cuts" / f"{number:05d}.json")
        return builder.write_shard(work, "video", number, num_shards, examples)

    def _records(self, rows: list[dict], failures: pathlib.Path) -> Iterator[dict]:
        refused: dict[str, tuple[str, str]] = {}
        for row, video, size in self._ahead(_groups(rows, self.how["short_side"])):
            if isinstance(video, Exception):
                reason = getattr(video, "reason", "error")
                rule = f"encoder {reason}" if isinstance(video, children.WorkerDied) else reason
                refused[row["id"]] = (rule, str(video))
                continue
            self.num_bytes += len(video)
            yield {"id": row["id"], "text": row["caption"], "video": video} | size | row["marks"]
        failures.parent.mkdir(exist_ok=True)
        builder.write_whole(failures, json.dumps(refused).encode())

    def _ahead(self, groups: Iterable[list[dict]]) -> Iterator[tuple]:
        """Yields (row, bytes or error, facts) in order, a few groups ahead in threads."""
        waiting: collections.deque = collections.deque()
        threads = concurrent.futures.ThreadPoolExecutor(self.num_workers)
        try:
            for group in groups:
                waiting.append(threads.submit(self._videos, group))
                if len(waiting) > self.num_workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _videos(self, group: list[dict]) -> list[tuple]:
        """Returns (row, bytes or error, facts) for rows of one file."""
        there = [self.there.get(row["marks"]["clip"]) for row in group]
        if self.old and None not in there:
            with contextlib.suppress(records.CorruptRecord):  # the file may be there still
                copies = [self.old[number] for number in there]
                return [
                    (row, copy["video"], {name: copy[name] for name in _facts(row)})
                    for row, copy in zip(group, copies, strict=True)
                ]
        with contextlib.ExitStack() as stack:
            try:
                file = parts.open_file(group[0]["file"], self.limits.max_bytes)
                file = stack.enter_context(file)
                if hashlib.file_digest(file, "sha256").hexdigest() != group[0]["sha256"]:
                    raise video_io.MediaError(
                        "file changed", "its content is no longer what was examined."
                    )
            except (OSError, video_io.MediaError) as error:
                gone = video_io.MediaError(GONE, f"{error}.")
                found = gone if isinstance(error, OSError) else error
                return [(row, found, None) for row in group]
            if not is_encoded_again(group[0], self.how["short_side"]):
                file.seek(0)
                content = file.read()
                return [(row, content, _facts(row)) for row in group]
            return self._cut(group, file)

    def _cut(self, group: list[dict], file) -> list[tuple]:
        fps = group[0]["fps"]
        task = cut.Task(
            tuple(map(frame_range, group)), fps, self.how["short_side"], self.how["crf"]
        )
        file.seek(0)
        try:
            found = self.pool(task, [file])
        except (children.WorkerDied, video_io.MediaError) as error:
            if self.pool.closed:
                raise parts.Stopped from error
            if len(group) == 1:
                return [(group[0], error, None)]
            return [one for row in group for one in self._cut([row], file)]  # which one is it?
        except RuntimeError as error:
            if self.pool.closed:
                raise parts.Stopped from error
            raise
        return [
            (row, part.video, _facts(row) | {k: getattr(part, k) for k in ("height", "width")})
            for row, part in zip(group, found, strict=True)
        ]

    def close(self):
        self.pool.close()


def write_table(work: pathlib.Path, new: pa.Table, num_shards: int):
    """Writes the rows of all shards, a row group each: who writes one reads no others."""
    path = work / TABLE
    part = path.with_name(path.name + ".part")
    with pyarrow.parquet.ParquetWriter(part, ledger.SCHEMA) as file:
        for number in range(num_shards):
            rows = rows_of(new, number, num_shards)
            file.write_table(rows, row_group_size=len(rows))
    os.replace(part, path)


def write_shards(work: pathlib.Path, todo: Sequence[int], num_workers: int) -> Iterator[int]:
    """Writes shards on this machine, several at once, and yields the number of each that is done.

    Few are written one after the other, with as many decoders as there may be workers.
    """
    if num_workers == 1 or len(todo) < _SHARDS_A_PROCESS * num_workers:
        writer, num_shards = _open(work, num_workers)
        with contextlib.closing(writer):
            for number in todo:
                writer.write_shard(work, number, num_shards, _read(work, number))
                yield number
        return
    how = {"mp_context": multiprocessing.get_context("spawn"), "initializer": _begin}
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, **how)
    try:
        running = {pool.submit(write_shard, str(work), number, 1): number for number in todo}
        for done in concurrent.futures.as_completed(running):
            done.result()
            yield running[done]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin():
    """Leaves Ctrl-C to the command, and ends with it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    end = lambda: (parent.join(), os._exit(1))
    threading.Thread(target=end, daemon=True).start()


def write_shard(work: str, number: int, num_workers: int | None = None) -> dict:
    """Writes one shard of a work folder; child processes serve all shards of a process.

    Args:
        work: The folder.
        number: Of the shard.
        num_workers: Child processes; None: as many as a Beam worker has.
    """
    folder = pathlib.Path(work)
    writer, num_shards = _opened(folder, num_workers, (folder / "key").read_text())
    return writer.write_shard(folder, number, num_shards, _read(folder, number))


@functools.lru_cache(maxsize=1)
def _opened(work: pathlib.Path, num_workers: int | None, key: str) -> tuple[Writer, int]:
    """Kept for the next shard of this work folder, as long as its key is the same."""
    return _open(work, num_workers)


def _open(work: pathlib.Path, num_workers: int | None) -> tuple[Writer, int]:
    state = json.loads((work / "plan.json").read_text())
    with pyarrow.parquet.ParquetFile(work / TABLE) as file:
        num_shards = file.num_row_groups
    return Writer(state["config"], num_workers or state["num_workers"], state["grows"]), num_shards


def _read(work: pathlib.Path, number: int) -> pa.Table:
    with pyarrow.parquet.ParquetFile(work / TABLE) as file:
        return file.read_row_group(number)


def new_rows(rows: pa.Table) -> pa.Table:
    """Returns the kept rows that no run before has written."""
    return rows.filter(pc.and_(pc.equal(rows["status"], ledger.KEPT), pc.is_null(rows["run"])))


def kept_rows(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.equal(rows["status"], ledger.KEPT))


def amend(rows: pa.Table, failures: pathlib.Path) -> pa.Table:
    """Returns the ledger with the verdicts of clips that could not be encoded."""
    refused: dict[str, list[str]] = {}
    for path in sorted(failures.glob("*.json")):
        refused |= json.loads(path.read_text())
    if not refused:
        return rows
    blocks = [rows.slice(0, 0)]
    for block in ledger.blocks(rows):
        if refused.keys() & {*block["id"].to_pylist()}:
            changed = block.to_pylist()
            for row in changed:
                if row["id"] in refused and row["status"] == ledger.KEPT:
                    rule, message = refused[row["id"]]
                    row |= examine.refusal(rule, message) | {"caption": None}
            block = ledger.table(changed)
        blocks.append(block)
    return pa.concat_tables(blocks)


def frame_range(row: dict) -> tuple[int, int]:
    """Returns the frames [first, stop) of its file that a row stands for."""
    return row["first_frame"], row["first_frame"] + row["num_frames"]


def _facts(row: dict) -> dict:
    return {name: row[name] for name in ("fps", "num_frames", "height", "width")}


def _groups(rows: list[dict], short_side: int) -> Iterator[list[dict]]:
    """Yields rows that follow each other in one file together, others alone."""
    for _, found in itertools.groupby(rows, lambda row: (row["file"], row["sha256"])):
        group: list[dict] = []
        for row in found:
            follows = group and is_encoded_again(row, short_side)
            follows = follows and len(group) < _ROWS_A_CALL and row["fps"] == group[0]["fps"]
            if follows and frame_range(row)[0] >= frame_range(group[-1])[1]:
                group.append(row)
                continue
            if group:
                yield group
            group = [row]
        if group:
            yield group
