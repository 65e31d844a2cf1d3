"""A folder that is filled from the web: what is there, what failed, how much may still come."""

import concurrent.futures
import csv
import fcntl
import io
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import threading
import time

import tqdm

from data_pipelines.fetching import fetch, fetch_lists, web
from data_pipelines.media import limits

FETCHER = (
    "yt-dlp --no-playlist --no-progress -S res:1080,vcodec:h264,ext:mp4 --merge-output-format mp4 "
    "-o {out} -- {url}"
)
_FAILED_COLUMNS = ("path", "url", "reason", "message")


class Download:
    """One run: what is done, what failed, and how much may still come."""

    def __init__(
        self,
        out: str | os.PathLike,
        limits: web.Limits,
        *,
        max_total_bytes: int | None = None,
        fetcher: str = FETCHER,
    ):
        self.out = pathlib.Path(out)
        self.stop = threading.Event()
        self.failed: list[tuple[fetch_lists.Item, web.FetchError]] = []
        self.fetched = 0
        self._limits, self._fetcher = limits, fetcher
        self._max_total_bytes, self._lock = max_total_bytes, threading.Lock()
        self._manifest = self.out / "manifest.jsonl"

    def run(
        self, items: list[fetch_lists.Item], jobs: int, total_seconds: float | None = None
    ) -> dict:
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
            self._mend_manifest()
            done = self.done()
            todo = self.missing(items)
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

    def check_fetcher(self, items: list[fetch_lists.Item]):
        """Refuses videos behind web pages, before any work, where nothing can fetch them.

        Raises:
            ValueError: If some are not there yet, and the external command is not installed.
        """
        pages = sum(item.is_page for item in self.missing(items))
        if pages and (problem := self._lacks_fetcher()):
            raise ValueError(
                f"{pages:,} of {len(items):,} videos lie behind web pages, and {problem}"
            )

    def _lacks_fetcher(self) -> str:
        name = shlex.split(self._fetcher)[0]
        if shutil.which(name) is not None:
            return ""
        return (
            f"{name} is not installed: `pip install yt-dlp`, or name another command with "
            "--fetcher='COMMAND {url} {out}'."
        )

    def done(self) -> dict[str, dict]:
        """Reads the manifest, but for a line that is half written."""
        content = self._manifest.read_bytes() if self._manifest.exists() else b""
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        return {line["path"]: line for line in map(json.loads, lines)}

    def missing(self, items: list[fetch_lists.Item]) -> list[fetch_lists.Item]:
        """Returns the items that are not there yet."""
        done = self.done()
        return [item for item in items if not self._is_done(item, done)]

    def _mend_manifest(self):
        """Cuts off a line that a kill left half written."""
        content = self._manifest.read_bytes() if self._manifest.exists() else b""
        if content and not content.endswith(b"\n"):
            with open(self._manifest, "r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)

    def _is_done(self, item: fetch_lists.Item, done: dict[str, dict]) -> bool:
        line, path = done.get(item.path), self.out / item.path
        if line is None or not path.is_file() or path.stat().st_size != line["bytes"]:
            return False
        return item.remote.sha256 in (None, line["sha256"])

    def _fetch(self, item: fetch_lists.Item) -> dict | None:
        target = self.out / item.path
        try:
            if self.stop.is_set():
                raise web.FetchError("stopped", "the download was stopped before it began.")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.parent.resolve().is_relative_to(self.out.resolve()):
                raise web.FetchError("outside root", f"{item.path} leads out of {self.out}.")
            if facts := _recognise(item.remote, target):
                pass  # another tool fetched it
            elif item.is_page:
                facts = self._fetch_page(item, target)
            else:
                facts = fetch.fetch(
                    item.remote, target, self._limits, count=self._count, stop=self.stop
                )
            return {"path": item.path, "url": item.remote.url, **facts}
        except web.FetchError as error:
            problem = error
        except OSError as error:
            problem = web.FetchError("cannot write", f"{error}.")
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
                raise web.FetchError("total limit", message)

    def _fetch_page(self, item: fetch_lists.Item, target: pathlib.Path) -> dict:
        """Lets an external command fetch the video of a web page."""
        part = target.with_name(f"{target.stem}.fetched{target.suffix}")
        words = {"{url}": item.remote.url, "{out}": str(part)}
        command = [words.get(word, word) for word in shlex.split(self._fetcher)]
        if problem := self._lacks_fetcher():  # it was there when the run began
            raise web.FetchError("no fetcher", problem)
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
                    raise web.FetchError(reason, f"{command[0]} was ended.")
            reader.join(5)
        if process.returncode or not part.is_file():
            said = b"".join(tail).decode("utf-8", "replace").strip()[-300:]
            message = f"{command[0]} ends with code {process.returncode}: {said!a}"
            raise web.FetchError("fetcher failed", message)
        with open(part, "rb") as file:
            if limits.sniff(file.read(16)) is None:
                raise web.FetchError("no video", f"{command[0]} fetched no video file.")
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


def _recognise(remote: web.Remote, target: pathlib.Path) -> dict | None:
    """Returns the facts of a file that is there already, if it has the known SHA-256."""
    if remote.sha256 is None or not target.is_file():
        return None
    size = target.stat().st_size
    if remote.size not in (None, size):
        return None
    with open(target, "rb") as file:
        digest = fetch.hash_file(file)
    facts = {"bytes": size, "sha256": digest, "etag": None, "checked": ["sha256"], "seconds": 0.0}
    return facts if digest == remote.sha256 else None


def _keep_tail(stream, tail: list[bytes]):
    for line in iter(lambda: stream.readline(10_000), b""):
        tail[:] = [*tail[-5:], line]
