"""Writes and serves a page that shows a data set clip by clip.

    python -m data_pipelines.browse --data=shards --out=page
    python -m data_pipelines.browse --data=shards --out=page --config=configs/quickstart.py --serve

The page shows each clip with a moving preview, its caption, scores and verdict; search, filters and
histograms; and, given a config, which clips land in which bucket and why others do not. It opens as
a file, page/index.html, or through --serve. Stopped at any moment, kill -9 included, the command
goes on when it is run again.
"""

import json
import math
import os
import pathlib
import signal

from data_pipelines.browse import page, serve
from data_pipelines.loading import buckets
from data_pipelines.process import arguments, outputs
from data_pipelines.stages import plan

HOST, PORT = "127.0.0.1", 8000
STOPPED = 75  # run it again, as of the other commands


def read_buckets(config: str | None, table: str | None) -> page.Buckets | None:
    """Reads the buckets of a config file ("FILE.py" or "FILE.py:ARGUMENT") or of JSON.

    Args:
        config: A Python file with `get_config`.
        table: {resolution: {frames: [keep, batch_size]}} as JSON, or the file that holds it.

    Raises:
        ValueError: If it cannot be read or is no bucket table.
    """
    if config:
        found, name = plan.read_file(config), config.partition(":")[0]
        try:
            entries, interval = found.data.buckets.to_dict(), found.data.frame_interval
            seed = found.seed
        except AttributeError as error:
            raise ValueError(
                f"--config={config} has no data.buckets: give a config of a run, as "
                "configs/quickstart.py."
            ) from error
    elif table:
        is_inline = table.lstrip().startswith("{")
        try:
            entries = json.loads(table if is_inline else pathlib.Path(table).read_text("utf-8"))
            entries = {name: dict(frames) for name, frames in entries.items()}
            if not entries:
                raise ValueError("it is empty")
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"--buckets={table} is no bucket table ({error}): give JSON such as "
                '{"240p": {"51": [1.0, 8]}}, or a file that holds it.'
            ) from error
        name, interval, seed = "the table given" if is_inline else pathlib.Path(table).name, 1, 0
    else:
        return None
    if not any(entries.values()):
        raise ValueError(f"{name} has no data.buckets: choose a config of a run on data.")
    entries = {
        resolution: {buckets.parse_num_frames(n): _tuples(x) for n, x in frames.items()}
        for resolution, frames in entries.items()
    }
    buckets.Table(entries, frame_interval=interval)  # refuses what is wrong before work starts
    return page.Buckets(name, entries, interval, seed)


def _tuples(entry):
    return tuple(map(_tuples, entry)) if isinstance(entry, list | tuple) else entry


def size(num_bytes: float) -> str:
    """12 kB, 3.4 MB."""
    power = min(4, max(0, int(math.log(max(num_bytes, 1), 1000))))
    return f"{num_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def main(argv: list[str] | None = None):
    parser = arguments.Parser("data_pipelines.browse", __doc__)
    add, at_least = parser.add_argument, arguments.at_least
    add("--data", required=True, help="folder of the data set, or a ledger.parquet")
    add("--out", required=True, help="folder of the page")
    add("--config", help="config file whose buckets are shown")
    add("--buckets", help="a bucket table instead: JSON, or a file of it")
    add(
        "--clips",
        default=str(page.SAMPLE),
        help=f"how many clips get a preview, or all; {page.SAMPLE:,} by default",
    )
    add("--num_workers", type=at_least(0), default=0, help="children; 0: one a processor")
    add("--serve", action="store_true", help="serve the page when it is written")
    add("--host", default=HOST, help="address to serve at")
    add("--port", type=at_least(0), default=PORT, help="0: any that is free; below 65536")
    args = parser.parse_args(argv)
    if args.config and args.buckets:
        parser.error("--config and --buckets exclude each other: give one of them")
    if args.clips != "all" and not args.clips.isdigit():
        parser.error(f"--clips={args.clips} is neither a number nor all")
    if not args.serve and (args.host, args.port) != (HOST, PORT):
        parser.error("--host and --port belong to --serve: give it too, or leave them out")
    if args.port > 65535:
        parser.error(f"--port={args.port} is no port: give one below 65536, or 0")
    try:
        with parser.refusing():
            outputs.check_folder(args.out)
            done = page.write(
                args.data,
                args.out,
                bucket_config=read_buckets(args.config, args.buckets),
                clips=None if args.clips == "all" else int(args.clips),
                num_workers=args.num_workers,
            )
    except KeyboardInterrupt:
        parser.exit(STOPPED, "\nstopped: the same command goes on.\n")
    index = os.path.join(args.out, "index.html")
    in_buckets = "" if done["bucketed"] is None else f", {done['bucketed']:,} in a bucket"
    print(
        f"{index}: {done['clips']:,} clips ({done['kept']:,} kept{in_buckets}), "
        f"{done['previews']:,} previews, {size(done['bytes'])}"
    )
    if args.serve:
        try:
            server = serve.make_server(args.out, args.host, args.port)
        except OSError as error:
            parser.exit(
                2,
                f"error: {args.host}:{args.port} cannot be served at ({error.strerror}): --port=0 "
                "takes a port that is free.\n",
            )
        name = "localhost" if args.host == HOST else args.host
        print(f"serving at http://{name}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.server_close()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs have SIGINT off
        signal.signal(number, signal.default_int_handler)
    main()
