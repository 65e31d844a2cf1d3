"""From a source of captioned clips to a data set, as a call; `pipeline` is its command.

Every step leaves files that appear by a rename in a work folder beside the data set, and takes up
what is there: a run that was killed goes on, and ends with the same bytes.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import time
from collections.abc import Iterator

import pyarrow as pa
import tqdm
from ml_collections import ConfigDict

from data_pipelines.shards import builder
from data_pipelines.sources import clips, specs
from data_pipelines.stages import exchange, ledger, parts, plan, runner, select, shards, summary


@dataclasses.dataclass(frozen=True)
class Engine:
    """Who does the work.

    Attributes:
        runner: "local" or a key of `runner.RUNNERS`.
        num_workers: Child processes of this machine, or of each Beam worker; 0: as many as it has
            processors, or one.
        beam_args: Flags for Beam.
        exchange: URL through which parts go where the machines share no disk; empty: they do.
    """

    runner: str = "local"
    num_workers: int = 0
    beam_args: tuple[str, ...] = ()
    exchange: str = ""

    @property
    def workers(self) -> int:
        return self.num_workers or (os.cpu_count() or 1 if self.runner == "local" else 1)


def run(
    source: str | os.PathLike,
    out: str | os.PathLike,
    config: ConfigDict | None = None,
    *,
    num_workers: int = 0,
    engine: Engine | None = None,
    keep_parts: str | os.PathLike | None = None,
    tell: list[summary.Stage] | None = None,
) -> dict:
    """Makes the data set `out` from `source`, and returns its meta.json.

    Args:
        source: What `sources.read` takes.
        out: Folder to make.
        config: Fields of `configs.data.base`; None: these.
        num_workers: Child processes of this machine; 0: one a processor.
        engine: Who does the work; None: this machine.
        keep_parts: Folder for what was measured, which another run with other rules can go on
            from; None: it goes when the data set is done.
        tell: Gets what each stage took.

    Raises:
        ValueError: If the source or the config cannot be read, no clip is usable, or `out` holds
            something else.
        ImportError: If a package is missing for what the config asks.
    """
    engine, tell = engine or Engine(num_workers=num_workers), [] if tell is None else tell
    if engine.runner != "local":
        runner.beam_options(engine.runner, engine.beam_args)  # refuses what is wrong before work
    table = specs.read(source)
    plain = check(config, table)
    examined, key = plan.keys(plain, parts.table_digest(table))
    if meta := builder.finished(out, key):
        return meta
    work = builder.work_folder(out)
    folder = pathlib.Path(os.path.abspath(keep_parts or work / "parts")) / examined[:16]
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work):
        _prepare(work, folder, table, plain, key, engine)
        _examine(work, folder, plain, len(table), engine, tell)
        rows = _select(work, folder, plain, len(table), tell)
        kept = shards.kept_rows(rows)
        if not len(kept):
            raise ValueError(_why_none(work, rows, f"{len(table):,} rows of {source}"))
        return _write_shards(out, work, rows, kept, plain, key, len(table), engine, tell)


@contextlib.contextmanager
def _alone(work: pathlib.Path) -> Iterator[None]:
    """Locks the work folder: another run, of another config perhaps, would mix its files in.

    The lock ends with the process, however that ends. Where a file system has no locks, there is
    none.

    Raises:
        ValueError: If another run has the lock.
    """
    folder = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise ValueError(f"another run works on {work}: wait for its end, or end it.") from error
    except OSError:  # NFS locks no folders, Lustre nothing unless it is mounted so
        pass
    try:
        yield
    finally:
        os.close(folder)


def _why_none(work: pathlib.Path, rows: pa.Table, source: str) -> str:
    """Writes a ledger of clips that are all left out, and returns what to say of them."""
    ledger.write(work / ledger.NAME, rows)
    counts = sorted(ledger.counts(rows).items(), key=lambda item: -item[1])
    first = rows.slice(0, 1).to_pylist()[0]
    return (
        f"no usable clip among the {source} ({', '.join(f'{rule}: {n:,}' for rule, n in counts)}). "
        f"The first, {first['id']}: {first['message']} All of them: {work / ledger.NAME}, which "
        "data_pipelines.browse shows."
    )


def check(config: ConfigDict | None, table: list[clips.Clip]) -> dict:
    """Returns a config as plain values, checked against a clip table."""
    said = {name for clip in table for name in clip.given} - {"refused"}
    return plan.check(plan.load(None) if config is None else config, said)


def _prepare(work, folder, table, plain: dict, key: str, engine: Engine):
    """Makes the work folder of this key; what another one left is deleted, but for its parts."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = work / "key"
    if not mark.exists() or mark.read_text() != key:
        mark.unlink(missing_ok=True)
        for path in (work / "selected.parquet", *(work / "cuts").glob("*.json")):
            path.unlink(missing_ok=True)
        parts.write_table(work / "clips.parquet", table)
        builder.write_whole(mark, key.encode())
    state = {"config": plain, "parts": str(folder), "num_workers": engine.workers}
    builder.write_whole(work / "plan.json", json.dumps(state).encode())


def _examine(work, folder, plain: dict, num_clips: int, engine: Engine, tell: list):
    todo = parts.missing(folder, num_clips)
    if not todo:
        return
    started = time.monotonic()
    clips_todo = sum(parts.size(number, num_clips) for number in todo)
    done = num_clips - clips_todo
    examiner = None
    if engine.runner == "local":
        examiner = parts.Examiner(work / "clips.parquet", folder, plain, engine.workers)
    with tqdm.tqdm(
        total=num_clips, initial=done, desc="examine", unit="clip", mininterval=0.5
    ) as bar:
        if examiner:
            left_out = 0

            def progress(clips_done: int, refused: int):
                nonlocal left_out
                left_out += refused
                bar.set_postfix(left_out=left_out, refresh=False)
                bar.update(clips_done)

            try:
                runner.run_local(examiner, todo, engine.workers, progress)
            finally:
                examiner.close()
        else:
            with runner.watch(folder, num_clips, bar):
                _run_beam(
                    runner.examine_part,
                    work,
                    engine,
                    lambda: parts.missing(folder, num_clips),
                    {"parts": folder},
                )
    tell.append(summary.Stage("examine", clips_todo, time.monotonic() - started))


def _run_beam(function, work, engine: Engine, todo, folders: dict[str, pathlib.Path]):
    """Gives the numbers that `todo` returns to Beam; results come to `folders`, if not by disk."""
    if not engine.exchange:
        runner.run_beam(function, str(work), todo(), engine.runner, engine.beam_args)
        return
    url = exchange.place(engine.exchange, (work / "key").read_text())
    exchange.take(url, folders)  # of a run that was stopped
    exchange.give(url, work)
    there = functools.partial(exchange.work_on, function)
    runner.run_beam(there, url, todo(), engine.runner, engine.beam_args)
    exchange.take(url, folders)


def _select(work, folder, plain: dict, num_clips: int, tell: list) -> pa.Table:
    path = work / "selected.parquet"
    if not path.exists():
        started = time.monotonic()
        rows = select.select(parts.read_rows(folder, num_clips), plain)
        ledger.write(path, rows)
        tell.append(summary.Stage("select", len(rows), time.monotonic() - started))
    return ledger.read(path)


def _write_shards(out, work, rows, kept, plain, key, num_rows: int, engine: Engine, tell) -> dict:
    started, num_shards = time.monotonic(), shards.count(kept, plain)
    builder.start(out, "video", num_shards, key=key)
    todo = builder.missing(work, num_shards)
    with tqdm.tqdm(
        total=num_shards, initial=num_shards - len(todo), desc="shards", unit="shard"
    ) as bar:
        if engine.runner == "local":
            writer = shards.Writer(plain, engine.workers)
            try:
                for number in todo:
                    part = shards.rows_of(kept, number, num_shards)
                    writer.write_shard(work, number, num_shards, part)
                    bar.update()
            finally:
                writer.close()
        else:
            folders = {name: work / name for name in ("cuts", "shards")}
            todo_now = lambda: builder.missing(work, num_shards)
            _run_beam(shards.write_shard, work, engine, todo_now, folders)
            bar.update(len(todo))
    rows = shards.amend(rows, work / "cuts")
    ledger.write(work / ledger.NAME, rows)
    meta = builder.finish(
        out,
        "video",
        num_shards,
        key=key,
        extra={"num_rows": num_rows, "num_clips": len(rows), "left_out": ledger.counts(rows)},
        files={ledger.NAME: (work / ledger.NAME).read_bytes()},
    )
    if todo:
        num_bytes = sum(shard["bytes"] for shard in meta["shards"])
        seconds = time.monotonic() - started
        tell.append(summary.Stage("shards", meta["num_records"], seconds, num_bytes))
    return meta
