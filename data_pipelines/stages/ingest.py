"""From a source of captioned clips to a data set, as a call; `pipeline` is its command.

Every step leaves files that appear by a rename in a work folder beside the data set, and takes up
what is there: a run that was killed goes on, and ends with the same bytes.
"""

import contextlib
import fcntl
import os
import pathlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import tqdm
from ml_collections import ConfigDict

from data_pipelines.shards import builder
from data_pipelines.sources import clips, specs
from data_pipelines.stages import (
    growth,
    ledger,
    measured,
    measuring,
    parts,
    plan,
    runner,
    select,
    shards,
    summary,
)


def run(
    source: str | os.PathLike | Sequence[str],
    out: str | os.PathLike,
    config: ConfigDict | None = None,
    *,
    num_workers: int = 0,
    engine: runner.Engine | None = None,
    keep_parts: str | os.PathLike | None = None,
    shrink: bool = False,
    tell: list[summary.Stage] | None = None,
) -> dict:
    """Makes the data set `out` from `source`, or lets it grow, and returns its meta.json.

    Args:
        source: What `specs.read` takes, or several of these.
        out: Folder to make. Where a data set is there, of other clips or another config, only what
            differs is measured and written (`growth`).
        config: Fields of `configs.data.base`; None: these.
        num_workers: Child processes of this machine; 0: one a processor.
        engine: Who does the work; None: this machine.
        keep_parts: Folder for what was measured, which the runs of other data sets can go on from;
            None: it is kept in `out` alone.
        shrink: A data set may lose more than half of its clips.
        tell: Gets what each stage took.

    Raises:
        ValueError: If the source or the config cannot be read, no clip is usable, or `out` holds
            something else.
        ImportError: If a package is missing for what the config asks.
    """
    engine, tell = engine or runner.Engine(num_workers=num_workers), [] if tell is None else tell
    if engine.runner != "local":
        runner.beam_options(engine.runner, engine.beam_args)  # refuses what is wrong before work
    table = specs.read_all([source] if isinstance(source, (str, os.PathLike)) else source)
    plain = check(config, table)
    places = parts.places(table)
    key = plan.digest(plan.VERSION, parts.table_digest(table, places), plain)
    if meta := builder.finished(out, key, growth.FAMILY):
        return meta
    growth.Before(pathlib.Path(out), shrink).check_source(table, places)
    work = builder.work_folder(out)
    folder = pathlib.Path(os.path.abspath(keep_parts or work / "parts"))
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work):
        if meta := builder.finished(out, key, growth.FAMILY):  # by a run that ended meanwhile
            return meta
        before = growth.Before(pathlib.Path(out), shrink)
        _prepare(work, plan.digest(key, before.state))
        if not (work / "selected.parquet").exists():
            rows, learnt = measuring.measure(
                work, folder, table, places, plain, before, engine, tell
            )
            measured.write(work / "measured.parquet", learnt)
            del learnt  # as large as the rows
            _select(work, rows, plain, before, tell)
        rows = ledger.read(work / "selected.parquet")
        if not len(shards.kept_rows(rows)):
            raise ValueError(_why_none(work, rows, f"{len(table):,} rows of {source}"))
        return _write_shards(out, work, rows, plain, key, before, len(table), engine, tell)


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
    return (
        f"{summary.why_none(rows, source)} All of them: {work / ledger.NAME}, which "
        "data_pipelines.browse shows."
    )


def check(config: ConfigDict | None, table: list[clips.Clip]) -> dict:
    """Returns a config as plain values, checked against a clip table."""
    said = {name for clip in table for name in clip.given} - {"refused"}
    return plan.check(plan.load(None) if config is None else config, said)


def _prepare(work: pathlib.Path, key: str):
    """Makes the work folder of this key; what another one left is deleted, but for its parts.

    The key names the source, the config and the data set that grows.
    """
    mark = work / "key"
    if not mark.exists() or mark.read_text() != key:
        mark.unlink(missing_ok=True)
        for path in (work / "selected.parquet", *(work / "cuts").glob("*.json")):
            path.unlink(missing_ok=True)
        builder.write_whole(mark, key.encode())


def _select(work, rows: pa.Table, plain: dict, before: growth.Before, tell: list):
    started = time.monotonic()
    rows, stays = before.compare(select.select(rows, plain), plain["shards"])
    builder.write_whole(work / "stays", stays.tobytes())
    ledger.write(work / "selected.parquet", rows)
    tell.append(summary.Stage("select", len(rows), time.monotonic() - started))


def _write_shards(
    out, work, rows, plain, key, before: growth.Before, num_rows: int, engine, tell
) -> dict:
    started, new = time.monotonic(), shards.new_rows(rows)
    num_shards = shards.count(new, plain)
    shards.write_table(work, new, num_shards)
    builder.start(out, "video", num_shards, key=key)
    todo = builder.missing(work, num_shards)
    with tqdm.tqdm(
        total=num_shards, initial=num_shards - len(todo), desc="shards", unit="shard"
    ) as bar:
        if engine.runner == "local":
            for _ in shards.write_shards(work, todo, engine.workers):
                bar.update()
        else:
            folders = {name: work / name for name in ("cuts", "shards")}
            todo_now = lambda: builder.missing(work, num_shards)
            runner.run_job(shards.write_shard, work, engine, todo_now, folders)
            bar.update(len(todo))
    run = before.run + 1
    rows = growth.added(shards.amend(rows, work / "cuts"), run)
    gone = set(rows["rule"].unique().to_pylist()) & {growth.CHANGED, shards.GONE}
    ledger.write(work / ledger.NAME, before.with_removed(rows))
    files = {ledger.NAME: (work / ledger.NAME).read_bytes()}
    files[measured.file_name(run)] = (work / "measured.parquet").read_bytes()
    extra = {"family": growth.FAMILY, "num_rows": num_rows, "num_clips": len(rows)}
    if gone:  # the same command tries those clips again
        extra["key"] = plan.digest(key, sorted(gone))
    meta = builder.finish(
        out,
        "video",
        num_shards,
        key=key,
        extra=extra | {"left_out": ledger.counts(rows)},
        files=files,
        stays=np.frombuffer((work / "stays").read_bytes(), bool) if before.is_there else None,
    )
    if todo:
        num_bytes = sum(shard["bytes"] for shard in meta["shards"] if shard["run"] == run)
        seconds = time.monotonic() - started
        tell.append(summary.Stage("shards", len(new), seconds, num_bytes))
    return meta
