"""Ingest: a table or folder of captioned clips -> checked, sharded data set.

    python -m data_pipelines.pipeline --source=clips.csv --out=DIR

The source is a CSV file with the columns `path` (relative to the file) and `text`, or a folder of
videos and images, each with its caption in a .txt file of the same name. Every file is decoded to
the end in a child process; what is broken, missing or without a caption is left out, counted by
reason and named with it in DIR/ledger.csv. The command may be stopped at any moment, kill -9
included: run again, it goes on and gives the same bytes; a finished folder is recognised.
"""

import argparse
import collections
import concurrent.futures
import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import resource
from collections.abc import Iterable

import tqdm

from data_pipelines import builder, records, video_io, workers

LEDGER = (
    *("path", "status", "reason", "message", "num_frames", "height", "width", "fps"),
    *("bytes", "sha256"),
)
SHARD_BYTES = 128 << 20
CHECK_SECONDS = 300.0  # for one file
_MEMORY_BYTES = 16 << 30  # address space of a child


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the source: the path as written there, the file, its caption or None."""

    path: str
    file: str
    text: str | None


def read_source(source: str | os.PathLike) -> list[Row]:
    """Reads the rows of a CSV file or a folder with captions beside the files.

    Raises:
        ValueError: If there is nothing to read, a column is missing, or a path comes twice.
    """
    source = pathlib.Path(source)
    if not source.exists():
        raise ValueError(f"--source={source} does not exist: give a CSV file or a folder.")
    rows = _read_folder(source) if source.is_dir() else _read_csv(source)
    counts = collections.Counter(os.path.normpath(row.file) for row in rows)
    twice = [path for path, n in counts.items() if n > 1]
    if twice:
        raise ValueError(
            f"{source} names {len(twice)} files more than once, the first of them "
            f"{', '.join(twice[:3])}: a clip may have one row."
        )
    return rows


def _read_folder(source: pathlib.Path) -> list[Row]:
    suffixes = video_io.VIDEO_SUFFIXES + video_io.IMAGE_SUFFIXES
    files = sorted(p for p in source.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    if not files:
        raise ValueError(
            f"{source} has no files named {', '.join('*' + s for s in suffixes)}: give the folder "
            "of the clips, or a CSV file with the columns path and text."
        )
    rows = []
    for file in files:
        sidecar = file.with_suffix(".txt")
        text = sidecar.read_text("utf-8", "replace").strip() if sidecar.exists() else None
        rows.append(Row(file.relative_to(source).as_posix(), str(file), text))
    return rows


def _read_csv(source: pathlib.Path) -> list[Row]:
    try:
        with open(source, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, lines = reader.fieldnames or [], list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source} is not a CSV file in UTF-8: {error}.") from error
    missing = [name for name in ("path", "text") if name not in columns]
    if columns and missing:
        raise ValueError(
            f"{source} has no column {' and no column '.join(missing)}; its columns are "
            f"{', '.join(columns)}. Name them in the first line."
        )
    lines = [line for line in lines if (line["path"] or "").strip()]
    if not lines:
        raise ValueError(f"{source} has no rows: give one line a clip under the header path,text.")
    return [
        Row(line["path"], str(source.parent / line["path"]), (line["text"] or "").strip())
        for line in lines
    ]


def make_checker(limits: video_io.Limits):
    """Returns the function that a child process calls for each file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return lambda file: check_file(file, limits)


def check_file(file: str, limits: video_io.Limits) -> dict:
    """Returns the ledger's facts of one file, after decoding all of it."""
    if not os.path.isfile(file):
        return _refusal("missing file", "there is no such file.")
    try:
        with open(file, "rb") as handle:
            size, digest = os.fstat(handle.fileno()).st_size, None
            if size <= limits.max_bytes:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
        probe = video_io.check(file, limits)
    except OSError as error:
        return _refusal("unreadable", f"{error.strerror}.")
    except video_io.MediaError as error:
        return _refusal(error.reason, str(error))
    except MemoryError:
        return _refusal("too large", "the memory limit of a decoder was reached.")
    except Exception as error:  # a decoder's own bug must not end the ingest of all other files
        return _refusal("decoder error", f"{type(error).__name__}: {error}")
    facts = {k: getattr(probe, k) for k in ("num_frames", "height", "width", "fps")}
    return {"status": "kept", **facts, "bytes": size, "sha256": digest}


def _refusal(reason: str, message: str) -> dict:
    return {"status": "left out", "reason": reason, "message": message}


def check_all(
    rows: list[Row], journal: pathlib.Path, num_workers: int, limits: video_io.Limits
) -> list[dict]:
    """Checks all files in child processes and returns a ledger line a row, in order.

    Finished checks stand in the journal, one JSON line each, and are not made again.
    """
    done = _read_journal(journal)
    checker = "data_pipelines.pipeline:make_checker"
    with (
        open(journal, "ab") as log,
        workers.Pool(num_workers, checker, (limits,), CHECK_SECONDS) as pool,
        concurrent.futures.ThreadPoolExecutor(num_workers) as threads,
        tqdm.tqdm(total=len(rows), desc="check", unit="clip", mininterval=0.5) as progress,
    ):

        def check(number: int) -> tuple[int, dict]:
            if not rows[number].text:
                return number, _refusal("no caption", "the text is empty or its file missing.")
            try:
                return number, pool(rows[number].file)
            except workers.WorkerDied as error:
                return number, _refusal(f"decoder {error.reason}", str(error))

        todo = [number for number in range(len(rows)) if number not in done]
        progress.update(len(rows) - len(todo))
        refused = sum(facts["status"] != "kept" for facts in done.values())
        for future in concurrent.futures.as_completed(threads.submit(check, n) for n in todo):
            number, done[number] = future.result()
            log.write(json.dumps([number, done[number]]).encode() + b"\n")
            log.flush()
            refused += done[number]["status"] != "kept"
            progress.set_postfix(left_out=refused, refresh=False)
            progress.update()
    return [{"path": row.path, **done[number]} for number, row in enumerate(rows)]


def _read_journal(journal: pathlib.Path) -> dict[int, dict]:
    """Reads finished checks, and cuts off a line that a kill left half written."""
    content = journal.read_bytes() if journal.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with open(journal, "r+b") as file:
            file.truncate(len(whole))
    return {number: facts for number, facts in map(json.loads, whole.splitlines())}


def make_records(rows: list[Row], ledger: list[dict], numbers: Iterable[int]):
    """Yields the records of these rows.

    Raises:
        ValueError: If a file has changed since it was checked.
    """
    for number in numbers:
        row, facts = rows[number], ledger[number]
        content = pathlib.Path(row.file).read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise ValueError(
                f"{row.file} changed while the data set was written: leave the files alone, delete "
                "the folder that ends in .work, and run again."
            )
        record = {"id": row.path, "text": row.text, "video": content}
        yield record | {k: facts[k] for k in ("fps", "num_frames", "height", "width")}


def ingest(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    num_workers: int = 0,
    limits: video_io.Limits | None = None,
) -> dict:
    """Makes the data set `out` from `source`, and returns its meta.json.

    Args:
        source: CSV file or folder.
        out: Folder to make.
        num_workers: Child processes that decode; 0: one a processor.
        limits: What one file may cost; None: the usual.

    Raises:
        ValueError: If the source cannot be read, no clip is usable, or `out` holds something else.
    """
    limits = limits or video_io.Limits()
    rows = read_source(source)
    size = lambda file: os.path.getsize(file) if os.path.isfile(file) else None
    inputs = [[row.path, row.text, size(row.file)] for row in rows]
    inputs = json.dumps([records.FORMAT, dataclasses.asdict(limits), inputs])
    key = hashlib.sha256(inputs.encode()).hexdigest()
    if meta := builder.finished(out, key):
        return meta
    work = builder.work_folder(out)
    if not (work / "key").exists() or (work / "key").read_text() != key:
        for name in ("checks.jsonl", "state.json"):
            (work / name).unlink(missing_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        builder.write_whole(work / "key", key.encode())
    ledger = check_all(rows, work / "checks.jsonl", num_workers or os.cpu_count() or 1, limits)
    kept = [number for number, facts in enumerate(ledger) if facts["status"] == "kept"]
    counts = collections.Counter(f["reason"] for f in ledger if f["status"] != "kept")
    if not kept:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in counts.most_common())
        first = next(f for f in ledger if f["status"] != "kept")
        raise ValueError(
            f"no usable clip among the {len(rows)} rows of {source} ({reasons}). The first, "
            f"{first['path']}: {first['message']}"
        )
    total = sum(ledger[number]["bytes"] for number in kept)
    num_shards = max(1, min(len(kept), round(total / SHARD_BYTES)))
    bounds = [len(kept) * i // num_shards for i in range(num_shards + 1)]
    return builder.write_shards(
        out,
        "video",
        num_shards,
        lambda i: make_records(rows, ledger, kept[bounds[i] : bounds[i + 1]]),
        key=key,
        extra={"num_rows": len(rows), "left_out": dict(sorted(counts.items()))},
        files={"ledger.csv": _ledger_bytes(ledger)},
    )


def _ledger_bytes(ledger: list[dict]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, LEDGER, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ledger)
    return buffer.getvalue().encode()


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="data_pipelines.pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", required=True, help="CSV file (path, text) or folder")
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument("--num_workers", type=int, default=0, help="decoders; 0: one a processor")
    limits = video_io.Limits()
    for name in ("max_bytes", "max_frames", "max_pixels"):
        parser.add_argument(f"--{name}", type=int, default=getattr(limits, name), help="of a file")
    args = parser.parse_args(argv)
    limits = dataclasses.replace(
        limits,
        max_bytes=args.max_bytes,
        max_frames=args.max_frames,
        max_pixels=args.max_pixels,
    )
    try:
        meta = ingest(args.source, args.out, num_workers=args.num_workers, limits=limits)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    left_out = ", ".join(f"{reason}: {n}" for reason, n in meta["left_out"].items())
    print(
        f"{args.out}: {meta['num_records']} of {meta['num_rows']} clips in {len(meta['shards'])} "
        f"shards; left out: {left_out or 'none'}"
        + (f" (see {os.path.join(args.out, 'ledger.csv')})" if left_out else "")
    )


if __name__ == "__main__":
    main()
