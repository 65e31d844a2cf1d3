"""The ledger: one row a clip with its source, times, hashes and scores, and why it was left out.

A data set folder holds `ledger.parquet`, which any tool that reads Parquet can query:
docs/ledger.md. A clip that was cut into scenes has one row a scene, which names it as its `parent`.
Columns without a value are null: a score that was not measured, a verdict that was not reached.
"""

import json
import math
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

NAME = "ledger.parquet"
KEPT, LEFT_OUT = "kept", "left out"
SCORES = (
    *("motion", "sharpness", "brightness", "static_share", "black_share", "letterbox"),
    *("text_share", "aesthetic", "match"),
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),  # name of the data set it came from
        ("file", pa.string()),
        ("parent", pa.string()),  # id of the clip that this scene was cut from
        ("start", pa.float64()),  # seconds in the file; null: all of it
        ("end", pa.float64()),
        ("text", pa.string()),  # as given
        ("caption", pa.string()),  # as trained on
        ("run", pa.int32()),  # that added it to the shards, from 1
        ("kind", pa.string()),  # "video" or "image"
        ("format", pa.string()),
        ("codec", pa.string()),
        ("first_frame", pa.int32()),  # of the clip, in its file
        ("num_frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("pixel_aspect", pa.float32()),  # width of a pixel in heights of it
        ("fps", pa.float64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("phash", pa.binary()),  # 8 bytes for each of a few frames
        ("duplicate_of", pa.string()),  # id of the clip that was kept instead
        ("status", pa.string()),  # "kept" or "left out"
        ("rule", pa.string()),  # what left it out: "damaged", "duplicate", "motion >= 0.1"
        ("message", pa.string()),
        *((name, pa.float32()) for name in SCORES),
        ("camera", pa.string()),  # camera motion, in words
        ("given", pa.string()),  # JSON: what the source says of the clip
    ]
)
_LATER = ("first_frame", "pixel_aspect", "run")  # ledgers of earlier versions have no such columns
_ROWS_A_GROUP = 1 << 16
# Rows that are taken, or are Python objects, at a time: their longest texts stay under 2 GiB, which
# is what a column of Arrow holds in one piece.
ROWS_AT_ONCE = 1 << 14


def table(rows: Sequence[Mapping], schema: pa.Schema = SCHEMA) -> pa.Table:
    """Returns rows as a table; keys that a row lacks are null.

    What a file's author can put into a row never fails: lone surrogates become U+FFFD, numbers that
    are not finite or do not fit their column become null.

    Raises:
        ValueError: If a row has a key that is no column.
    """
    unknown = set().union(*rows) - set(schema.names) if rows else set()
    if unknown:
        raise ValueError(
            f"a ledger has no column {', '.join(sorted(unknown))}; it has "
            f"{', '.join(schema.names)}."
        )
    columns = [_column([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def column(name: str, values: Iterable) -> pa.Array:
    """Returns a column of SCHEMA; values as in `table`."""
    return _column(values, SCHEMA.field(name).type)


def _column(values: Iterable, kind: pa.DataType) -> pa.Array:
    return pa.array([_value(value, kind) for value in values], kind)


def _value(value, kind: pa.DataType):
    if value is None:
        return None
    if pa.types.is_string(kind):
        try:
            value.encode()
        except UnicodeEncodeError:
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    elif pa.types.is_floating(kind):
        value = float(value)
        return value if math.isfinite(value) else None
    elif pa.types.is_integer(kind):
        return value if abs(value) < 1 << (kind.bit_width - 1) else None
    return value


def write(path: str | os.PathLike, rows: Sequence[Mapping] | pa.Table):
    """Writes a ledger; the file is absent or complete, and equal rows give equal bytes."""
    path = pathlib.Path(path)
    content = rows if isinstance(rows, pa.Table) else table(rows)
    # a name of its own: two machines may write the same part of a job
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    with open(part, "wb") as file:
        pyarrow.parquet.write_table(content, file, compression="zstd", row_group_size=_ROWS_A_GROUP)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read(path: str | os.PathLike) -> pa.Table:
    """Reads a ledger: the file, or the folder of a data set.

    Raises:
        ValueError: If it is missing, cut, or no ledger.
    """
    path = pathlib.Path(path)
    file = path / NAME if path.is_dir() else path
    try:
        content = pyarrow.parquet.ParquetFile(file).read()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{file} is no ledger ({error}): give the --out folder of data_pipelines.pipeline, or "
            f"its {NAME}."
        ) from error
    for name in _LATER:
        if name not in content.column_names:
            content = content.append_column(name, pa.nulls(len(content), SCHEMA.field(name).type))
    missing = [name for name in SCHEMA.names if name not in content.column_names]
    if missing:
        raise ValueError(
            f"{file} has no column {', '.join(missing)}: a ledger is what data_pipelines.pipeline "
            "writes."
        )
    return content.select(SCHEMA.names).cast(SCHEMA)


def merge(paths: Iterable[str | os.PathLike], out: str | os.PathLike) -> int:
    """Writes the rows of several ledgers to one, in order, and returns their number.

    A clip (a row of a source with all its scenes) that several ledgers hold is taken from the last
    of them, at the place of the first.
    """
    rows: dict[tuple, list] = {}
    tables = [read(path) for path in paths]
    whole = pa.concat_tables(tables) if tables else table([])
    sources, ids, parents = (whole[name].to_pylist() for name in ("source", "id", "parent"))
    number = 0
    for one in tables:
        of_this: dict[tuple, list] = {}
        for _ in range(len(one)):
            of_this.setdefault((sources[number], parents[number] or ids[number]), []).append(number)
            number += 1
        rows |= of_this
    numbers = [number for clip in rows.values() for number in clip]
    write(out, take(whole, numbers))
    return len(numbers)


def blocks(rows: pa.Table) -> Iterator[pa.Table]:
    """Yields the rows, at most ROWS_AT_ONCE at a time."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows.slice(start, ROWS_AT_ONCE)


def take(rows: pa.Table, numbers: Sequence[int] | np.ndarray) -> pa.Table:
    """Returns the rows of these numbers, in their order.

    `pa.Table.take` does the same, but for tables of which a column has more than 2 GiB of text.
    """
    batches, numbers = rows.to_batches(), np.asarray(numbers, np.int64)
    ends = np.cumsum([len(batch) for batch in batches])
    found = [rows.schema.empty_table()]
    for start in range(0, len(numbers), ROWS_AT_ONCE):
        wanted = numbers[start : start + ROWS_AT_ONCE]
        order = np.argsort(wanted, kind="stable")
        batch_of = np.searchsorted(ends, wanted[order], "right")
        pieces = []
        for number in np.unique(batch_of).tolist():
            batch = batches[number]
            places = wanted[order][batch_of == number] - (ends[number] - len(batch))
            pieces.append(batch.take(pa.array(places)))
        block = pa.Table.from_batches(pieces)
        if (np.diff(order) != 1).any():
            block = block.combine_chunks().take(pa.array(np.argsort(order)))
        found.append(block)
    return pa.concat_tables(found)


def counts(rows: pa.Table) -> dict[str, int]:
    """Returns how many clips each rule left out, by the rule's name."""
    rules = rows.filter(pa.compute.equal(rows["status"], LEFT_OUT))["rule"]
    found = {entry["values"]: entry["counts"] for entry in rules.value_counts().to_pylist()}
    return dict(sorted(found.items()))


def given(text: str | None) -> dict:
    """Returns the scores and labels of a row's `given`."""
    return json.loads(text) if text else {}
