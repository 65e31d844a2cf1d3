"""Puts the page together: tables of the clips, previews, buckets, and the files of the page itself.

The folder holds `index.html`, which names a folder of tables and one of previews by what they were
made from. `index.html` comes last: a page is whole or the one before it.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import string
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import tqdm

from data_pipelines.browse import columns, previews, thumbnail
from data_pipelines.loading import buckets
from data_pipelines.shards import builder, records
from data_pipelines.stages import ledger

COLUMN_ROWS = 16_384  # clips in one file of numbers and labels
TEXT_ROWS = 256  # clips in one file of texts
FORMAT = 1
ASSETS = pathlib.Path(__file__).parent.parent / "assets" / "browse"
SAMPLE = 5000
NO_SHARD = "left out before"


@dataclasses.dataclass(frozen=True)
class Buckets:
    """A bucket table as a run has it, and the run's seed."""

    name: str
    table: Mapping[str, Mapping]
    frame_interval: int = 1
    seed: int = 0


def write(
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    bucket_config: Buckets | None = None,
    clips: int | None = SAMPLE,
    num_workers: int = 0,
) -> dict:
    """Writes the page; killed at any moment and called again, it goes on.

    Args:
        data: The folder of a data set with its ledger, or a ledger alone.
        out: Folder of the page.
        bucket_config: To show which clips land in which bucket.
        clips: How many clips get a preview, chosen by their ids; None: all. Rows that the source's
            reader refused, whose paths may lead anywhere, never do.
        num_workers: Children that make previews; 0: one a processor.

    Returns:
        Counts for a summary: clips, kept, previews, preview_bytes, bytes, bucketed.

    Raises:
        ValueError: If there is no ledger, a shard is damaged, `out` holds other files, or the
            buckets are wrong.
    """
    data, out = pathlib.Path(data), pathlib.Path(out)
    rows = ledger.read(data)
    if not len(rows):
        raise ValueError(f"{data} has a ledger without rows: there is nothing to show.")
    reader = records.Reader(data) if (data / "meta.json").exists() else None
    _check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    ids = rows["id"].to_pylist()
    shard_row = _shard_rows(ids, rows, reader)

    with open(data / ledger.NAME if data.is_dir() else data, "rb") as file:
        content = hashlib.file_digest(file, "sha256")
    content.update((reader.meta["fingerprint"] if reader else "").encode())
    settings = [previews.FORMAT, previews.PACK, thumbnail.SIDE, thumbnail.SECONDS, clips]
    pictures = out / f"previews-{_key(content, settings)}"
    refused = np.array(["refused" in ledger.given(text) for text in rows["given"].to_pylist()])
    usable = np.flatnonzero(~refused)  # of OpenVid's table most rows may be of parts not fetched
    chosen = usable[previews.sample([ids[row] for row in usable], clips)]
    task_of = _task_maker(rows, shard_row, reader)
    num_workers = num_workers or os.cpu_count() or 1
    notes = previews.write(pictures, chosen.tolist(), task_of, num_workers)

    setting = dataclasses.asdict(bucket_config) if bucket_config else None
    tables = out / f"table-{_key(content, [FORMAT, columns.MAX_TEXT, clips, notes, setting])}"
    if not (tables / "manifest.js").exists():
        placed = _place(rows, shard_row, bucket_config)
        note = np.where(refused, "refused", "not in the sample").astype(object)
        note[chosen] = notes
        _write_tables(tables, rows, data, chosen, note, placed)
    _write_assets(out, tables.name, pictures.name, data)
    for path in out.iterdir():
        if path.name.startswith(("table-", "previews-")) and path not in (tables, pictures):
            shutil.rmtree(path)
    return json.loads((tables / "summary.json").read_text()) | {
        "preview_bytes": _num_bytes(pictures),
        "bytes": sum(_num_bytes(path) for path in (out, tables, pictures)),
    }


def _shard_rows(ids: list[str], rows: pa.Table, reader: records.Reader | None) -> np.ndarray:
    """Returns each clip's row in the shards, or as they would be in shards of the kept ones; -1."""
    kept = np.array([status == ledger.KEPT for status in rows["status"].to_pylist()], bool)
    if reader is None:
        return np.where(kept, np.cumsum(kept) - 1, -1)
    if reader.kind != "video":
        raise ValueError(
            f"{reader.folder} holds {reader.kind} records, which have no pictures: give the folder "
            "of data_pipelines.pipeline."
        )
    row_of = {name: row for row, name in enumerate(reader.index["id"].tolist())}
    found = (row_of.get(name, -1) if good else -1 for name, good in zip(ids, kept, strict=True))
    return np.fromiter(found, np.int64, len(ids))


def _task_maker(rows: pa.Table, shard_row: np.ndarray, reader: records.Reader | None):
    """Returns row -> what a child makes a preview of, or why there can be none."""

    def task_of(row: int) -> thumbnail.Task | str:
        if reader is not None and shard_row[row] >= 0:
            return thumbnail.Task(reader[int(shard_row[row])]["video"])
        facts = {k: rows[k][row].as_py() for k in ("file", "start", "end")}
        if reason := _absent(facts["file"] or ""):
            return reason
        return thumbnail.Task(facts["file"], facts["start"] or 0.0, facts["end"])

    return task_of


def _absent(file: str) -> str:
    """Says why no preview can be made of a clip's file, if it is known before it is opened."""
    if "://" in file.removeprefix("zip://"):
        return "file is remote"
    if file.startswith(previews.ARCHIVES):
        return ""  # a child finds out
    if not os.path.isfile(file):
        return "file not here"
    return "too large" if os.path.getsize(file) > previews.MAX_SOURCE_BYTES else ""


def _place(rows: pa.Table, shard_row: np.ndarray, config: Buckets | None) -> dict | None:
    """Returns the word of each clip (its bucket's name or a reason), and the table's buckets."""
    if config is None:
        return None
    table = buckets.Table(config.table, frame_interval=config.frame_interval)
    facts = [rows[name].fill_null(-1).to_numpy() for name in ("num_frames", "height", "width")]
    known = (shard_row >= 0) & (np.min(facts, axis=0) >= 0)
    facts_N = (*(fact[known] for fact in facts), shard_row[known])
    numbers_N, reasons_N = table.place_all(*facts_N, epoch=0, seed=config.seed)
    reasons_N = reasons_N - len(buckets.REASONS)  # from the end
    names = np.array([*(b.name for b in table.all_buckets()), *buckets.REASONS], object)
    words = np.full(len(rows), NO_SHARD, object)
    words[known] = names[np.where(numbers_N >= 0, numbers_N, reasons_N)]
    facts = [dataclasses.asdict(b) | {"name": b.name} for b in table.all_buckets()]
    about = {"name": config.name, "seed": config.seed, "frame_interval": config.frame_interval}
    return {"words": words.tolist(), "about": about | {"buckets": facts, "random": table.is_random}}


def _write_tables(folder: pathlib.Path, rows: pa.Table, data, chosen, note, placed):
    """Writes the columns and texts in chunks, and then the manifest, which marks them complete."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    count = len(rows)
    numbers, labels = columns.numbers(rows), columns.labels(rows)
    if placed:
        labels.append(columns.label("bucket", "bucket", placed["words"]))
    labels.append(columns.label("preview", "preview", note.tolist()))
    preview = np.full(count, -1, np.int32)
    preview[chosen] = np.arange(len(chosen))
    for start in range(0, count, COLUMN_ROWS):
        part = slice(start, start + COLUMN_ROWS)
        chunk = {
            "numbers": [columns.packed(number.values[part]) for number in numbers],
            "labels": [columns.packed(label.codes[part]) for label in labels],
            "preview": columns.packed(preview[part]),
        }
        path = folder / f"columns-{start // COLUMN_ROWS:05d}.js"
        path.write_bytes(columns.script("columns", start // COLUMN_ROWS, chunk))
    for start in tqdm.trange(0, count, TEXT_ROWS, desc="texts", unit="file", mininterval=0.5):
        texts = columns.texts(rows, start, min(start + TEXT_ROWS, count))
        path = folder / f"text-{start // TEXT_ROWS:05d}.js"
        path.write_bytes(columns.script("text", start // TEXT_ROWS, texts))
    manifest = {
        **{"title": data.resolve().name, "count": count},
        **{"column_rows": COLUMN_ROWS, "text_rows": TEXT_ROWS, "pack": previews.PACK},
        **{"bins": columns.BINS, "numbers": [number.describe() for number in numbers]},
        "labels": [label.describe() for label in labels],
        "buckets": placed["about"] if placed else None,
    }
    kept = sum(status == ledger.KEPT for status in rows["status"].to_pylist())
    summary = {"clips": count, "kept": kept, "previews": int((note == "").sum())}
    names = {bucket["name"] for bucket in placed["about"]["buckets"]} if placed else ()
    summary["bucketed"] = sum(word in names for word in placed["words"]) if placed else None
    (folder / "summary.json").write_text(json.dumps(summary))
    builder.write_whole(folder / "manifest.js", columns.script("manifest", manifest))


def _write_assets(out: pathlib.Path, tables: str, pictures: str, data: pathlib.Path):
    files = sorted(path for path in ASSETS.iterdir() if path.suffix in (".js", ".css"))
    for path in files:
        builder.write_whole(out / path.name, path.read_bytes())
    # only names of ours and the title go into the page itself
    title = "".join(c if c.isalnum() or c in " -_." else "_" for c in data.resolve().name)
    page = string.Template((ASSETS / "index.html").read_text("utf-8"))
    page = page.substitute(title=title, tables=tables, previews=pictures)
    builder.write_whole(out / "index.html", page.encode())


def _check_out(out: pathlib.Path):
    ours = {path.name for path in ASSETS.iterdir()}
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    other = [
        name
        for name in names
        if name.removesuffix(".part") not in ours and not name.startswith(("table-", "previews-"))
    ]
    if other or (out.exists() and not out.is_dir()):
        raise ValueError(
            f"{out} holds other files ({', '.join(sorted(other)[:3])}): choose a new folder for "
            "the page."
        )


def _key(content, settings) -> str:
    digest = content.copy()
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()[:16]


def _num_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
