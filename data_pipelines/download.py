"""Fetches a data set: parallel, resumable, checked, within limits, with a list of what failed.

    python -m data_pipelines.download --source=openvid --parts=0-3 --out=DIR
    python -m data_pipelines.download --source=miradata --csv=miradata_v1_330k.csv --out=DIR
    python -m data_pipelines.download --urls=FILE --out=DIR    # lines of: URL [PATH [SHA256]]

DIR/manifest.jsonl has a line for each file that is done, with its SHA-256; DIR/failed.csv names
what could not be had, and why. The same command goes on where it was stopped and asks again for
what failed. `--dry-run` says how much would be fetched. Exit codes: 0 all is there, 3 some files
failed, 75 stopped by SIGTERM or Ctrl-C, 2 wrong usage.

The Hugging Face hub is asked for the list of OpenVid's files with their sizes and SHA-256 sums; a
token in HF_TOKEN is sent to it alone. Videos of MiraData that lie behind a web page (YouTube) are
fetched by an external command (`--fetcher`), by default yt-dlp.
"""

import collections
import concurrent.futures
import os
import pathlib
import shutil
import signal
import time

import tqdm

from data_pipelines.fetching import fetch, fetch_folder, fetch_lists, web
from data_pipelines.process import arguments, outputs
from data_pipelines.sources import rows
from data_pipelines.stages.summary import human_bytes

SOME_FAILED, STOPPED = 3, 75


def dry_run(
    items: list[fetch_lists.Item], limits: web.Limits, out: str | os.PathLike, jobs: int
) -> str:
    """Asks for sizes that are not known, and says how much a download would fetch."""

    def size(item: fetch_lists.Item) -> int | None:
        if item.is_page or item.remote.size is not None:
            return item.remote.size
        try:
            return web.head(item.remote, limits)
        except web.FetchError:
            return None

    todo = fetch_folder.Download(out, limits).missing(items)
    with concurrent.futures.ThreadPoolExecutor(jobs) as threads:
        sizes = threads.map(size, todo)
        sizes = list(tqdm.tqdm(sizes, desc="sizes", total=len(todo), unit="file", leave=False))
    known = [n for n in sizes if n is not None]
    place = pathlib.Path(out).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return (
        f"{len(items):,} files, of which {len(items) - len(todo):,} are there; to fetch: "
        f"{human_bytes(sum(known))} in {len(known):,}, {len(sizes) - len(known):,} of unknown "
        f"size; {human_bytes(free)} are free at {place}"
        + (", which is not enough." if sum(known) > free - fetch.SPARE_BYTES else ".")
    )


def main(argv: list[str] | None = None):
    args, parser = _parse(argv)
    limits = web.Limits(
        max_bytes=int(args.max_file_gb * 1e9),
        file_seconds=args.file_minutes * 60,
        stall_seconds=args.stall_seconds,
        retries=args.retries,
        backoff_seconds=args.backoff_seconds,
        allow_private=args.allow_private,
    )
    refused: dict[str, rows.Refused] = {}
    with parser.refusing(web.FetchError):
        outputs.check_folder(args.out)
        if args.urls:
            items = fetch_lists.urls(args.urls)
        elif args.source == "miradata":
            items, refused = fetch_lists.miradata(args.csv, args.ids)
        else:
            token = os.environ.get("HF_TOKEN")
            items = fetch_lists.openvid(
                args.parts, args.hub.rstrip("/"), limits, hd=args.hd, token=token
            )
        if args.sums:
            items = fetch_lists.with_sums(items, args.sums)
    if args.dry_run:
        _print_refused(refused)
        print(dry_run(items, limits, args.out, args.jobs))
        return
    total = None if args.max_total_gb is None else int(args.max_total_gb * 1e9)
    download = fetch_folder.Download(args.out, limits, max_total_bytes=total, fetcher=args.fetcher)
    with parser.refusing():
        download.check_fetcher(items)
    _print_refused(refused)
    for row, error in refused.items():
        nothing = fetch_lists.Item(row, web.Remote(""))
        download.failed.append((nothing, web.FetchError(error.reason, str(error))))
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs have SIGINT off
        signal.signal(number, signal.default_int_handler)
    begin = time.monotonic()
    try:
        minutes = args.total_minutes
        with parser.refusing():
            done = download.run(items, args.jobs, minutes and minutes * 60)
    except KeyboardInterrupt:
        parser.exit(STOPPED, "stopped: the same command goes on.\n")
    seconds = time.monotonic() - begin
    there = [done[item.path] for item in items if item.path in done]
    there = [line for line in there if line["path"] not in {i.path for i, _ in download.failed}]
    size = sum(line["bytes"] for line in there)
    print(
        f"{args.out}: {len(there):,} of {len(items):,} files, {human_bytes(size)}; "
        f"fetched {human_bytes(download.fetched)} in {tqdm.tqdm.format_interval(seconds)} "
        f"({human_bytes(download.fetched / max(seconds, 1e-3))}/s)"
    )
    if download.failed:
        counts = collections.Counter(error.reason for _, error in download.failed)
        told = ", ".join(f"{reason}: {number:,}" for reason, number in sorted(counts.items()))
        parser.exit(SOME_FAILED, f"failed: {told} (see {args.out}/failed.csv)\n")


def _print_refused(refused: dict[str, rows.Refused]):
    for row, error in list(refused.items())[:10]:
        print(f"{row}: {error}")


def _parse(argv: list[str] | None):
    parser = arguments.Parser("data_pipelines.download", __doc__)
    add, at_least, positive = parser.add_argument, arguments.at_least, arguments.positive
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--source", choices=("openvid", "miradata"))
    what.add_argument("--urls", help="file with lines of: URL [PATH [SHA256]]")
    add("--out", required=True, help="folder to fetch into")
    add("--parts", default="", help='openvid: "0-3,7" or "all"; empty: the table alone')
    add("--hd", action="store_true", help="openvid: OpenVidHD, the 1080p part of it")
    add("--csv", help="miradata: its table")
    add("--ids", default="all", help='miradata: download ids, "0-999"')
    add("--sums", help="checksums, as sha256sum or md5sum write them")
    add("--hub", default=os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    add("--fetcher", default=fetch_folder.FETCHER, help="command for videos behind a web page")
    add("--jobs", type=at_least(1), default=8, help="files at a time")
    add("--max_file_gb", type=positive, default=100.0, help="limit of one file, 1e9 bytes")
    add("--max_total_gb", type=positive, help="limit of this run")
    add("--file_minutes", type=positive, default=24 * 60.0, help="limit of one file")
    add("--total_minutes", type=positive, help="limit of this run")
    add("--stall_seconds", type=positive, default=60.0, help="without a byte")
    add("--retries", type=at_least(0), default=5, help="of a file, in a row without progress")
    seconds = at_least(0, float)
    add("--backoff_seconds", type=seconds, default=1.0, help="before the first retry")
    add("--allow_private", action="store_true", help="fetch from private addresses too")
    add("--dry-run", "--dry_run", action="store_true", help="say how much would be fetched")
    args = parser.parse_args(argv)
    if args.source == "miradata" and not args.csv:
        parser.error("--source=miradata needs --csv=FILE, its table (data set card of MiraData)")
    for owner, names in (("openvid", ("parts", "hd")), ("miradata", ("csv", "ids"))):
        for name in names:
            if args.source != owner and getattr(args, name) != parser.get_default(name):
                parser.error(f"--{name} belongs to --source={owner}: leave one of them out")
    return args, parser


if __name__ == "__main__":
    main()
