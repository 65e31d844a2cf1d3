"""Measures the clips of a table: what is known is looked up, and engines examine the others."""

import functools
import json
import pathlib
import re
import time
from collections.abc import Sequence

import pyarrow as pa
import tqdm

from data_pipelines.shards import builder
from data_pipelines.sources import clips
from data_pipelines.stages import growth, ledger, measured, parts, plan, runner, summary

_PART = re.compile(r"/[0-9a-f]{16}/\d+\.parquet$")


def measure(
    work: pathlib.Path,
    folder: pathlib.Path,
    table: Sequence[clips.Clip],
    places: Sequence[str | None],
    plain: dict,
    before: growth.Before,
    engine: runner.Engine,
    tell: list[summary.Stage],
) -> tuple[pa.Table, pa.Table]:
    """Returns the ledger of a clip table before selection, and what the data set did not know.

    Args:
        work: Folder of the run.
        folder: Of parts, of this run and others.
        table: The clips.
        places: Of their files, see `parts.places`.
        plain: The config as plain values.
        before: The data set that grows.
        engine: Who examines.
        tell: Gets what was examined.

    Returns:
        Rows of `ledger.SCHEMA`, and rows of `measured.SCHEMA`.
    """
    wanted, early = plan.measurement(plain), plan.early_rules(plain)
    kept = [path for path in sorted(folder.glob("*/*.parquet")) if _PART.search(str(path))]
    paths = [*kept, *before.paths]
    store = measured.Store(paths, wanted, early)
    numbers = _known(store, table, places, before.changed, wanted)
    todo = [row for row, number in enumerate(numbers) if number is None]
    todo.sort(key=lambda row: clips.reading_order(table[row].file))
    part = _prepare(work, folder, [table[row] for row in todo], plain, before, engine, store)
    _examine(work, part, plain, len(todo), len(table), engine, tell)
    new = [path for path in parts.part_paths(part, len(todo)) if path not in paths]
    for place, row in enumerate(todo):
        numbers[row] = len(store) + place
    store = measured.Store([*paths, *new], wanted, early)
    rows, _ = store.take(numbers, table)
    own = range(len(kept), len(paths))
    learnt = store.raw([number for number in numbers if store.file_of[number] not in own])
    return rows.select(ledger.SCHEMA.names), learnt


def _known(store, table, places, changed: set[str], wanted) -> list[int | None]:
    """The number in a store of each clip, None where it has to be examined."""
    is_open = lambda clip: not clip.given.get("refused") and clip.file not in changed
    has_text = lambda clip: wanted["writes"] or (clip.text or "").strip()
    numbers = [
        store.at(place, clip) if place and is_open(clip) and has_text(clip) else None
        for clip, place in zip(table, places, strict=True)
    ]
    rows = [row for row, number in enumerate(numbers) if number is not None]
    _, lacking = store.take([numbers[row] for row in rows], [table[row] for row in rows])
    for place in lacking:
        numbers[rows[place]] = None
    return numbers


def _prepare(work, folder, table, plain, before, engine, store) -> pathlib.Path:
    """Writes what examiners need, and returns the folder of their parts."""
    places = parts.places(table)
    name = plan.digest(parts.table_digest(table, places), plan.measurement(plain), len(store))
    part = folder / name[:16]
    part.mkdir(parents=True, exist_ok=True)
    parts.write_table(work / "clips.parquet", table)
    (work / parts.KNOWN).unlink(missing_ok=True)
    if table and len(store):
        measured.write(work / parts.KNOWN, store.rows)
    state = {"config": plain, "parts": str(part), "num_workers": engine.workers}
    state["grows"] = before.folder
    builder.write_whole(work / "plan.json", json.dumps(state).encode())
    return part


def _examine(work, part, plain: dict, num_todo: int, num_clips: int, engine, tell: list):
    if not num_todo:
        return
    started, here = time.monotonic(), None
    known, todo = num_clips - num_todo, functools.partial(parts.missing, part, num_todo)
    if engine.runner == "local":  # says what is missing before the bar
        here = parts.Examiner(work / "clips.parquet", part, plain, engine.workers)
    with tqdm.tqdm(
        total=num_clips, initial=known, desc="examine", unit="clip", mininterval=0.5
    ) as bar:
        if here:
            _examine_here(here, todo(), engine.workers, bar)
        else:
            with runner.watch(part, num_todo, bar):
                runner.run_job(runner.examine_part, work, engine, todo, {"parts": part})
    tell.append(summary.Stage("examine", num_todo, time.monotonic() - started))


def _examine_here(examiner: parts.Examiner, todo: Sequence[int], num_workers: int, bar):
    left_out = 0

    def progress(clips_done: int, refused: int):
        nonlocal left_out
        left_out += refused
        bar.set_postfix(left_out=left_out, refresh=False)
        bar.update(clips_done)

    try:
        runner.run_local(examiner, todo, num_workers, progress)
    finally:
        examiner.close()
