"""Clip tables as files: CSV, parquet and JSON lines with a path and a caption a row.

Columns `path` (relative to the table) and `text`, or as named by the caller. `id`, `start` and
`end` (seconds, or H:MM:SS) are taken where they exist, and every other number or short string goes
into `Clip.given`. A row that cannot be read is refused, alone; bytes that are not UTF-8 do no harm,
and UTF-16 is read where a byte order mark tells of it.
"""

import contextlib
import csv
import io
import itertools
import json
import os
from collections.abc import Iterator

from data_pipelines.media import limits
from data_pipelines.process import text_files
from data_pipelines.sources import clips, csv_records, rows

SUFFIXES = (".csv", ".parquet", ".jsonl")
_MAX_CELL = 64 << 20  # characters of a cell, or of a line of JSON
_MEDIA = limits.VIDEO_SUFFIXES + limits.IMAGE_SUFFIXES


def read(
    source: str, *, path: str = "path", text: str = "text", root: str | None = None
) -> list[clips.Clip]:
    """Reads a table.

    Args:
        source: File or URL that ends in one of SUFFIXES.
        path: Column of the file names.
        text: Column of the captions.
        root: Folder that paths may not leave; None: the table's own.

    Raises:
        ValueError: If it cannot be read, has no rows or not the columns, or there is no `root`.
    """
    if root and "://" not in source and not os.path.isdir(root):
        raise ValueError(f"--source={source}?root={root}: there is no such folder.")
    kind = source.rpartition(".")[2].lower()
    table = rows.Rows(kind, os.path.dirname(source), root)
    for number, row in read_rows(source, (path, text)):
        if isinstance(row, rows.Refused):
            table.add(number, refused=row)
            continue
        known = {key: row.pop(key, None) for key in (path, text, "id", "start", "end")}
        table.add(
            number,
            path=known[path],
            text=known[text],
            id=known["id"],
            start=known["start"],
            end=known["end"],
            given=row.items(),
        )
    if not table.clips:
        raise ValueError(
            f"{source} has no rows: give one line a clip under the header {path},{text}."
        )
    return table.clips


def read_rows(source: str, needed: tuple[str, ...]) -> Iterator[tuple[int, dict | rows.Refused]]:
    """Yields (number from 1, {column: value}) for each row, or the reason why it has none.

    Values are str, int, float, bool or None.

    Raises:
        ValueError: If the table cannot be read, or one of the `needed` columns is missing.
    """
    if not ("://" in source or os.path.exists(source)):
        raise ValueError(f"--source={source} does not exist: give a clip table or a folder.")
    if os.path.isdir(source):
        raise ValueError(f"{source} is a folder, not a clip table.")
    readers = {"csv": _read_csv, "parquet": _read_parquet, "jsonl": _read_jsonl}
    kind = source.rpartition(".")[2].lower()
    if kind not in readers:
        raise ValueError(f"{source} is no clip table: its name has to end in {', '.join(SUFFIXES)}")
    try:
        clips.open_binary(source).close()
    except (OSError, ImportError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{source} cannot be opened: {reason}.") from error
    return enumerate(readers[kind](source, needed), start=1)


def _check_columns(source: str, columns, needed: tuple[str, ...]):
    missing = [name for name in needed if name not in columns]
    if columns and missing:
        raise ValueError(
            f"{source} has no column {' and no column '.join(missing)}; its columns are "
            f"{', '.join(columns)[:500]}. Name them in the first line, or say which to take: "
            f"--source='{source}?path=COLUMN&text=COLUMN'."
        )


@contextlib.contextmanager
def _open_text(source: str) -> Iterator[io.TextIOWrapper]:
    """Opens a table in its encoding; bytes that are not in it stay, or become U+FFFD."""
    with clips.open_binary(source) as binary:
        encoding = text_files.encoding(binary.read(text_files.MARK_BYTES))
        binary.seek(0)
        errors = "surrogateescape" if encoding == "utf-8-sig" else "replace"
        with io.TextIOWrapper(binary, encoding, errors, newline="") as file:
            yield file


def _read_csv(source: str, needed: tuple[str, ...]) -> Iterator[dict | rows.Refused]:
    limit, number, columns = csv.field_size_limit(), 0, []

    def is_row(cells: list[str]) -> bool:
        path = _cell(columns, cells, needed[0]) if needed else None
        return len(cells) == len(columns) and os.path.splitext(path or "")[1].lower() in _MEDIA

    try:
        csv.field_size_limit(_MAX_CELL)
        with _open_text(source) as file:
            for cells in csv_records.read(file, is_row):
                number += 1
                if columns:
                    yield _row(columns, cells, needed)
                    continue
                if isinstance(cells, str) or not all(name.isprintable() for name in cells):
                    raise ValueError(f"{source} is not a CSV file in UTF-8: save it as one.")
                _check_columns(source, cells, needed)
                columns = cells
    except csv.Error as error:
        raise ValueError(
            f"{source} is not a CSV file in UTF-8: after line {number}: {error}."
        ) from error
    finally:
        csv.field_size_limit(limit)


def _cell(columns: list[str], cells: list[str], name: str) -> str | None:
    return dict(zip(columns, cells, strict=False)).get(name)


def _row(columns: list[str], cells: list[str] | str, needed) -> dict | rows.Refused:
    """The row of a record of a CSV, by its columns."""
    if isinstance(cells, str):
        reason, message = "open quote", "a quote is opened and not closed"
        cells = next(csv.reader([cells]))
    elif any(cell.strip() for cell in cells[len(columns) :]):
        reason, message = "more cells", f"{len(cells)} cells under {len(columns)} columns"
    else:
        return dict.fromkeys(columns) | dict(zip(columns, cells, strict=False))
    line = ",".join(cells)[:200].strip()
    message += f" in {line!a}: put a text with commas in quotes, and double the quotes in it."
    return rows.Refused(reason, message, path=_cell(columns, cells, needed[0]) if needed else None)


def _read_parquet(source: str, needed: tuple[str, ...]) -> Iterator[dict]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with clips.open_binary(source) as binary, parquet.ParquetFile(binary) as file:
            types = {field.name: field.type for field in file.schema_arrow}
            _check_columns(source, list(types), needed)
            is_text = lambda t: pa.types.is_string(t) or pa.types.is_large_string(t)
            is_plain = lambda t: pa.types.is_integer(t) or pa.types.is_floating(t)
            kept = [n for n, t in types.items() if is_text(t) or is_plain(t) or n in needed]
            for batch in file.iter_batches(1024, columns=kept):
                values = {
                    name: [v if v is None else v.decode("utf-8", "surrogateescape") for v in cells]
                    if is_text(types[name])  # Arrow does not check that strings are UTF-8
                    else cells
                    for name, cells in (
                        (n, (c.cast(pa.large_binary()) if is_text(types[n]) else c).to_pylist())
                        for n, c in zip(batch.schema.names, batch.columns, strict=True)
                    )
                }
                for cells in zip(*values.values(), strict=True):
                    yield dict(zip(values, cells, strict=True))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{source} cannot be read as parquet: {error}.") from error


def _read_jsonl(source: str, needed: tuple[str, ...]) -> Iterator[dict | rows.Refused]:
    found = False
    with _open_text(source) as file:
        file.reconfigure(newline="\n", errors="replace")
        for number in itertools.count(1):
            line = file.readline(_MAX_CELL)
            if not line:
                return
            if line.isspace():
                continue
            row = parse_json(line)
            if isinstance(row, dict) and not found:
                _check_columns(source, list(row), needed[:1])
                found = True
            elif isinstance(row, rows.Refused):
                row = rows.Refused(row.reason, f"line {number}: {row}")
            yield row


def parse_json(content: str) -> dict | rows.Refused:
    """Returns the object that this JSON holds, or why there is none."""
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:
        return rows.Refused("bad json", f"{str(error)[:200]}.")
    if not isinstance(row, dict):
        return rows.Refused("bad json", f"the line holds {type(row).__name__}, not an object.")
    return row
