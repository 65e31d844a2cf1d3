"""Copies a data set without the records that left it: where it grew, they only stand marked.

    python -m data_pipelines.compact --data=DIR --out=NEW

The copy is a data set like any other, that grows as before when it is the --out of
data_pipelines.pipeline or vidgen.encode. Nothing is decoded. Stopped at any moment and started
again, it goes on; DIR stays as it is, and may be deleted afterwards.
"""

import pathlib
import tempfile
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from data_pipelines.process import arguments, outputs
from data_pipelines.shards import builder, records
from data_pipelines.stages import growth, ledger, measured

_OF_FOLDER = ("format", "kind", "num_records", "run", "fingerprint", "key", "num_bytes", "shards")


def compact(data: str, out: str) -> dict:
    """Makes the copy, and returns its meta.json.

    Args:
        data: Folder of a data set on this machine.
        out: Folder to make.

    Raises:
        ValueError: If `data` is no data set, or `out` holds something else.
    """
    if "://" in data or "@" in pathlib.Path(data).name:
        raise ValueError(f"--data={data}: give a folder on this machine, as its last run left it.")
    reader = records.Reader(data)
    shards = [reader.shard(row) for row in range(len(reader))]
    rows_of: dict[int, list[int]] = {number: [] for number in sorted(set(shards))}
    for row, number in enumerate(shards):
        rows_of[number].append(row)
    used = list(rows_of.values())

    def make_shard(number: int) -> Iterator[dict]:
        for row in used[number]:
            yield reader[row] | {name: int(reader.index[name][row]) for name in records.MARKS}

    extra = {name: value for name, value in reader.meta.items() if name not in _OF_FOLDER}
    how = {"key": reader.meta["key"], "extra": extra, "files": _files(pathlib.Path(data), extra)}
    return builder.write_shards(out, reader.kind, len(used), make_shard, **how)


def _files(data: pathlib.Path, extra: dict) -> dict[str, bytes]:
    """The other files of the folder: a ledger, what was measured, the clips of latents."""
    files = {}
    if (data / ledger.NAME).exists():
        rows = ledger.read(data)
        is_gone = pc.fill_null(pc.equal(rows["rule"], growth.REMOVED), False)
        files[ledger.NAME] = _content(growth.in_run(rows.filter(pc.invert(is_gone)), 1))
        parts = growth.Before(data).paths
        known = pa.concat_tables([pyarrow.parquet.read_table(path) for path in parts])
        files[measured.file_name(1)] = _content(known)
    if "clips" in extra:
        files[extra["clips"]] = (data / extra["clips"]).read_bytes()
    return files


def _content(rows: pa.Table) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / ledger.NAME
        ledger.write(path, rows)
        return path.read_bytes()


def main(argv: list[str] | None = None):
    parser = arguments.Parser("data_pipelines.compact", __doc__)
    parser.add_argument("--data", required=True, help="folder of a data set")
    parser.add_argument("--out", required=True, help="folder to make")
    args = parser.parse_args(argv)
    with parser.refusing():
        outputs.check_folder(args.out)
        meta = compact(args.data, args.out)
    gone = len(records.Reader(args.data).marks) - meta["num_records"]
    print(f"{args.out}: {meta['num_records']:,} records; {gone:,} that had left are not in it")


if __name__ == "__main__":
    main()
