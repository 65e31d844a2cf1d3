"""Fetches a data set: parallel, resumable, checked, within limits, with a list of what failed.

    python -m data_pipelines.download --source=openvid --parts=0-3 --out=DIR
    python -m data_pipelines.download --source=miradata --csv=miradata_v1_330k.csv --out=DIR
    python -m data_pipelines.download --urls=FILE --out=DIR    # lines of: URL [PATH [SHA256]]

DIR/manifest.jsonl has a line for each file that is done, with its SHA-256; DIR/failed.csv names
what could not be had, and why. The same command goes on where it was stopped and asks again for
what failed. `--dry_run` says how much would be fetched. Exit codes: 0 all is there, 3 some files
failed, 75 stopped by SIGTERM or Ctrl-C, 2 wrong usage.

The Hugging Face hub is asked for the list of OpenVid's files with their sizes and SHA-256 sums; a
token in HF_TOKEN is sent to it alone. Videos of MiraData that lie behind a web page (YouTube) are
fetched by an external command (`--fetcher`), by default yt-dlp.
"""

import argparse
import concurrent.futures
import csv
import dataclasses
import fcntl
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse

import tqdm

import data_pipelines.sources.miradata as miradata
import data_pipelines.sources.rows as rows
import data_pipelines.sources.tables as tables
from data_pipelines import fetch, video_io

OPENVID = "datasets/nkp37/OpenVid-1M"
FETCHER = "yt-dlp --no-playlist --no-progress -S res:1080,vcodec:h264,ext:mp4 -o {out} -- {url}"
SOME_FAILED, STOPPED = 3, 75
_PAGES = ("youtube.com", "www.youtube.com", "m.youtube.com", "youtu.be")
_FAILED_COLUMNS = ("path", "url", "reason", "message")


@dataclasses.dataclass(frozen=True)
class Item:
    """One file to fetch; `path` is below the folder of the download."""

    path: str
    remote: fetch.Remote
    is_page: bool = False  # a web page around a video: for the external command


def plan_openvid(
    parts: str, hub: str, limits: fetch.Limits, *, hd: bool = False, token: str | None = None
) -> list[Item]:
    """Lists the table and the chosen parts of OpenVid-1M (or OpenVidHD), pieces of parts included.

    Args:
        parts: Numbers, "0-3,7"; "all", or "" for the table alone.
        hub: "https://huggingface.co", or a mirror of it.
        limits: For the requests.
        hd: OpenVidHD instead.
        token: Access token of the hub.

    Raises:
        ValueError: If `parts` cannot be read or names a part that is not there.
        FetchError: If the hub does not answer.
    """
    numbers = None if parts == "all" else parse_ranges(parts, "--parts")
    prefix = "OpenVidHD/OpenVidHD_part_" if hd else "OpenVid_part"
    named = re.compile(re.escape(prefix) + r"(\d+)(?:\.zip|_part_?[a-z]{2})")
    table = "data/train/OpenVidHD.csv" if hd else "data/train/OpenVid-1M.csv"
    items, found = [], set()
    for folder in ("data/train",) if numbers == set() else ("data/train", "OpenVidHD" * hd):
        url = f"{hub}/api/{OPENVID}/tree/main/{folder}".rstrip("/")
        while url:
            entries, url = fetch.read_json(url, limits, token)
            for entry in entries:
                path = str(entry.get("path"))
                part = named.fullmatch(path)
                if path != table and not (part and (numbers is None or int(part[1]) in numbers)):
                    continue
                found |= {int(part[1])} if part else set()
                stored = entry.get("lfs") or {}
                remote = fetch.Remote(
                    f"{hub}/{OPENVID}/resolve/main/{path}",
                    size=stored.get("size", entry.get("size")),
                    sha256=stored.get("oid"),
                    token=token,
                )
                items.append(Item(path, remote))
    if lost := sorted((numbers or set()) - found):
        raise ValueError(
            f"--parts: {hub} has no part {', '.join(map(str, lost[:10]))}; there are "
            f"{'parts 1 and up of OpenVidHD' if hd else 'the parts 0 to 185'}."
        )
    return sorted(items, key=lambda item: (item.path.endswith(".zip"), item.path))


def plan_miradata(table: str, ids: str) -> tuple[list[Item], dict[str, str]]:
    """Lists the whole videos behind the clips of MiraData's table, each once.

    Args:
        table: The table, CSV or parquet.
        ids: Download ids (the number before the dot of clip_id), "0-999"; "all".

    Returns:
        (items, {row: why it has no video}).

    Raises:
        ValueError: If the table cannot be read.
    """
    numbers = None if ids == "all" else parse_ranges(ids, "--ids")
    items, refused = {}, {}
    for number, row in tables.read_rows(miradata.find_table(table), ()):
        try:
            if isinstance(row, rows.Refused):
                raise row
            folder, name = miradata.clip_name(row)
        except rows.Refused as error:
            refused[f"row {number}"] = str(error)
            continue
        if numbers is not None and int(name[:12]) not in numbers:
            continue
        url = row.get("video_url") or f"https://www.youtube.com/watch?v={row.get('video_id')}"
        path = f"raw_video/{folder}/{name}.mp4"
        items.setdefault(path, Item(path, fetch.Remote(str(url)), is_page=_is_page(str(url))))
    return list(items.values()), refused


def plan_urls(file: str) -> list[Item]:
    """Reads lines of URL, path below the folder (else the URL's last part) and SHA-256.

    Raises:
        ValueError: If a line cannot be used, or two lines mean one path.
    """
    items: dict[str, Item] = {}
    for number, line in enumerate(pathlib.Path(file).read_text("utf-8").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        url, path, digest = (*words, "", "")[:3]
        path = path or urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
        try:
            path = rows.clean_id(path)
        except rows.Refused as error:
            raise ValueError(f"--urls={file}, line {number}: {error}") from error
        if path in items:
            raise ValueError(f"--urls={file}, line {number}: {path} stands in an earlier line.")
        if digest and not re.fullmatch("[0-9a-fA-F]{64}", digest):
            raise ValueError(f"--urls={file}, line {number}: {digest[:80]} is no SHA-256 sum.")
        remote = fetch.Remote(url, sha256=digest.lower() or None)
        items[path] = Item(path, remote, is_page=_is_page(url))
    if not items:
        raise ValueError(f"--urls={file} has no lines: give one URL a line.")
    return list(items.values())


def with_sums(items: list[Item], file: str) -> list[Item]:
    """Adds the checksums of a file as sha256sum or md5sum write it.

    Raises:
        ValueError: If a line of it is no checksum.
    """
    sums = {}
    for number, line in enumerate(pathlib.Path(file).read_text("utf-8").splitlines(), start=1):
        found = re.fullmatch(r"([0-9a-fA-F]{64}|[0-9a-fA-F]{32}) [ *](.+)", line)
        if not found:
            raise ValueError(f"--sums={file}, line {number}: not of the form 'SUM  PATH'.")
        sums[found[2].removeprefix("./")] = found[1].lower()
    return [
        dataclasses.replace(
            item,
            remote=dataclasses.replace(
                item.remote, **{"sha256" if len(sums[item.path]) == 64 else "md5": sums[item.path]}
            ),
        )
        if item.path in sums
        else item
        for item in items
    ]


def parse_ranges(text: str, name: str) -> set[int]:
    """Reads "0-3,7" as {0, 1, 2, 3, 7}."""
    numbers: set[int] = set()
    for word in filter(None, text.replace(" ", "").split(",")):
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
        if not found or int(found[2] or found[1]) - int(found[1]) not in range(10_000_000):
            raise ValueError(f'{name}={text} is no list of numbers: write "0-3,7", or "all".')
        numbers |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    return numbers


def _is_page(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.hostname in _PAGES
    except ValueError:
        return False  # `fetch` says what is wrong with it


class Download:
    """One run: what is done, what failed, and how much may still come."""

    def __init__(
        self,
        out: str | os.PathLike,
        limits: fetch.Limits,
        *,
        max_total_bytes: int | None = None,
        fetcher: str = FETCHER,
    ):
        self.out = pathlib.Path(out)
        self.stop = threading.Event()
        self.failed: list[tuple[Item, fetch.FetchError]] = []
        self.fetched = 0
        self._limits, self._fetcher = limits, fetcher
        self._max_total_bytes, self._lock = max_total_bytes, threading.Lock()
        self._manifest = self.out / "manifest.jsonl"

    def run(self, items: list[Item], jobs: int, total_seconds: float | None = None) -> dict:
        """Fetches what is not there yet, and returns the manifest {path: line}.

        Raises:
            ValueError: If another download works on the folder.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with open(self.out / ".lock", "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(f"another download works on {self.out}: wait for it.") from error
            done = self.done()
            todo = [item for item in items if not self._is_done(item, done)]
            size = sum(item.remote.size or 0 for item in todo)
            begun = sum(
                path.stat().st_size
                for item in todo
                if (path := self.out / f"{item.path}.part").exists()
            )
            timer = threading.Timer(total_seconds or threading.TIMEOUT_MAX, self.stop.set)
            timer.daemon = True
            timer.start()
            with (
                open(self._manifest, "ab") as manifest,
                tqdm.tqdm(
                    desc=f"{len(todo)} files",
                    total=size or None,
                    initial=begun,
                    unit="B",
                    unit_scale=True,
                    unit_divisor=1024,
                    mininterval=0.5,
                ) as self._progress,
                concurrent.futures.ThreadPoolExecutor(jobs) as threads,
            ):
                futures = {threads.submit(self._fetch, item): item for item in todo}
                try:
                    for future in concurrent.futures.as_completed(futures):
                        line = future.result()
                        if line:
                            done[line["path"]] = line
                            manifest.write(json.dumps(line).encode() + b"\n")
                            manifest.flush()
                        self._progress.set_postfix(failed=len(self.failed), refresh=False)
                except BaseException:
                    self.stop.set()
                    threads.shutdown(cancel_futures=True)
                    raise
                finally:
                    timer.cancel()
                    self._write_failed()
        return done

    def done(self) -> dict[str, dict]:
        """Reads the manifest, and cuts off a line that a kill left half written."""
        content = self._manifest.read_bytes() if self._manifest.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with open(self._manifest, "r+b") as file:
                file.truncate(len(whole))
        return {line["path"]: line for line in map(json.loads, whole.splitlines())}

    def _is_done(self, item: Item, done: dict[str, dict]) -> bool:
        line, path = done.get(item.path), self.out / item.path
        if line is None or not path.is_file() or path.stat().st_size != line["bytes"]:
            return False
        return item.remote.sha256 in (None, line["sha256"])

    def _fetch(self, item: Item) -> dict | None:
        target = self.out / item.path
        try:
            if self.stop.is_set():
                raise fetch.FetchError("stopped", "the download was stopped before it began.")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.parent.resolve().is_relative_to(self.out.resolve()):
                raise fetch.FetchError("outside root", f"{item.path} leads out of {self.out}.")
            if item.is_page:
                facts = self._fetch_page(item, target)
            else:
                facts = fetch.fetch(
                    item.remote, target, self._limits, count=self._count, stop=self.stop
                )
            return {"path": item.path, "url": item.remote.url, **facts}
        except fetch.FetchError as error:
            problem = error
        except OSError as error:
            problem = fetch.FetchError("cannot write", f"{error}.")
        with self._lock:
            self.failed.append((item, problem))
        return None

    def _count(self, num_bytes: int):
        with self._lock:
            self.fetched += max(0, num_bytes)
            self._progress.update(num_bytes)
            if self._max_total_bytes is not None and self.fetched > self._max_total_bytes:
                self.stop.set()
                message = f"over {self._max_total_bytes} bytes in all (--max_total_gb)."
                raise fetch.FetchError("total limit", message)

    def _fetch_page(self, item: Item, target: pathlib.Path) -> dict:
        """Lets an external command fetch the video of a web page."""
        part = target.with_name(f"{target.stem}.fetched{target.suffix}")
        words = {"{url}": item.remote.url, "{out}": str(part)}
        command = [words.get(word, word) for word in shlex.split(self._fetcher)]
        if shutil.which(command[0]) is None:
            raise fetch.FetchError(
                "no fetcher",
                f"{command[0]} is not installed, and the URL is a web page: `pip install yt-dlp`, "
                "or name another command with --fetcher='COMMAND {url} {out}'.",
            )
        begin = time.monotonic()
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            tail: list[bytes] = []
            reader = threading.Thread(target=_keep_tail, args=(process.stderr, tail), daemon=True)
            reader.start()
            while process.poll() is None:
                late = time.monotonic() - begin > self._limits.file_seconds
                large = part.exists() and part.stat().st_size > self._limits.max_bytes
                if late or large or self.stop.wait(0.1):
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    reason = "too slow" if late else "too large" if large else "stopped"
                    raise fetch.FetchError(reason, f"{command[0]} was ended.")
            reader.join(5)
        if process.returncode or not part.is_file():
            said = b"".join(tail).decode("utf-8", "replace").strip()[-300:]
            message = f"{command[0]} ends with code {process.returncode}: {said!a}"
            raise fetch.FetchError("fetcher failed", message)
        with open(part, "rb") as file:
            if video_io.sniff(file.read(16)) is None:
                raise fetch.FetchError("no video", f"{command[0]} fetched no video file.")
            file.seek(0)
            digest = fetch.hash_file(file)
        size = part.stat().st_size
        self._count(size)
        os.replace(part, target)
        seconds = round(time.monotonic() - begin, 3)
        return {"bytes": size, "sha256": digest, "etag": None, "checked": [], "seconds": seconds}

    def _write_failed(self):
        path = self.out / "failed.csv"
        if not self.failed:
            path.unlink(missing_ok=True)
            return
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(_FAILED_COLUMNS)
        for item, error in sorted(self.failed, key=lambda pair: pair[0].path):
            writer.writerow([item.path, item.remote.url, error.reason, str(error)])
        new = path.with_name(path.name + ".new")
        new.write_text(buffer.getvalue(), encoding="utf-8")
        os.replace(new, path)


def _keep_tail(stream, tail: list[bytes]):
    for line in iter(lambda: stream.readline(10_000), b""):
        tail[:] = [*tail[-5:], line]


def dry_run(items: list[Item], limits: fetch.Limits, out: str, jobs: int) -> str:
    """Asks for sizes that are not known, and says how much a download would fetch."""

    def size(item: Item) -> int | None:
        if item.is_page or item.remote.size is not None:
            return item.remote.size
        try:
            return fetch.head(item.remote, limits)
        except fetch.FetchError:
            return None

    with concurrent.futures.ThreadPoolExecutor(jobs) as threads:
        sizes = list(tqdm.tqdm(threads.map(size, items), desc="sizes", total=len(items)))
    known = [n for n in sizes if n is not None]
    place = pathlib.Path(out).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    unknown = len(sizes) - len(known)
    return (
        f"{len(items)} files: {_human(sum(known))} in {len(known)}, {unknown} of unknown size; "
        f"{_human(free)} are free at {place}."
    )


def _human(num_bytes: float) -> str:
    return tqdm.tqdm.format_sizeof(num_bytes, "B", 1024)


def main(argv: list[str] | None = None):
    args, parser = _parse(argv)
    limits = fetch.Limits(
        max_bytes=int(args.max_file_gb * 1e9),
        file_seconds=args.file_minutes * 60,
        stall_seconds=args.stall_seconds,
        retries=args.retries,
        backoff_seconds=args.backoff_seconds,
        allow_private=args.allow_private,
    )
    refused: dict[str, str] = {}
    try:
        if args.urls:
            items = plan_urls(args.urls)
        elif args.source == "miradata":
            items, refused = plan_miradata(args.csv, args.ids)
        else:
            token = os.environ.get("HF_TOKEN")
            items = plan_openvid(args.parts, args.hub.rstrip("/"), limits, hd=args.hd, token=token)
        if args.sums:
            items = with_sums(items, args.sums)
    except (ValueError, OSError, fetch.FetchError) as error:
        parser.exit(2, f"error: {error}\n")
    for row, message in list(refused.items())[:10]:
        print(f"{row}: {message}")
    if args.dry_run:
        print(dry_run(items, limits, args.out, args.jobs))
        return
    total = None if args.max_total_gb is None else int(args.max_total_gb * 1e9)
    download = Download(args.out, limits, max_total_bytes=total, fetcher=args.fetcher)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begin = time.monotonic()
    try:
        minutes = args.total_minutes
        done = download.run(items, args.jobs, minutes and minutes * 60)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(STOPPED, "stopped: the same command goes on.\n")
    seconds = time.monotonic() - begin
    there = [done[item.path] for item in items if item.path in done]
    there = [line for line in there if line["path"] not in {i.path for i, _ in download.failed}]
    size = sum(line["bytes"] for line in there)
    print(
        f"{args.out}: {len(there)} of {len(items)} files, {_human(size)}; "
        f"fetched {_human(download.fetched)} in {tqdm.tqdm.format_interval(seconds)} "
        f"({_human(download.fetched / max(seconds, 1e-3))}/s)"
    )
    if download.failed or refused:
        reasons = sorted({error.reason for _, error in download.failed})
        counts = [f"{r}: {sum(e.reason == r for _, e in download.failed)}" for r in reasons]
        counts += [f"rows without a video: {len(refused)}"] * bool(refused)
        parser.exit(SOME_FAILED, f"failed: {', '.join(counts)} (see {args.out}/failed.csv)\n")


def _parse(argv: list[str] | None):
    parser = argparse.ArgumentParser(
        prog="data_pipelines.download",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
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
    add("--fetcher", default=FETCHER, help="command for videos behind a web page")
    add("--jobs", type=int, default=8, help="files at a time")
    add("--max_file_gb", type=float, default=100.0, help="limit of one file, 1e9 bytes")
    add("--max_total_gb", type=float, help="limit of this run")
    add("--file_minutes", type=float, default=24 * 60.0, help="limit of one file")
    add("--total_minutes", type=float, help="limit of this run")
    add("--stall_seconds", type=float, default=60.0, help="without a byte")
    add("--retries", type=int, default=5, help="of a file, in a row without progress")
    add("--backoff_seconds", type=float, default=1.0, help="before the first retry")
    add("--allow_private", action="store_true", help="fetch from private addresses too")
    add("--dry_run", action="store_true", help="say how much would be fetched")
    args = parser.parse_args(argv)
    if args.source == "miradata" and not args.csv:
        parser.error("--source=miradata needs --csv=FILE, its table (data set card of MiraData)")
    if args.jobs < 1:
        parser.error("--jobs has to be 1 or more")
    return args, parser


if __name__ == "__main__":
    main()
