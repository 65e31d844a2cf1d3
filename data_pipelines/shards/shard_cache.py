"""Copies of remote shards on a local disk, within a budget of bytes.

A shard is fetched whole when a record of it is first read, and its SHA-256 is compared with that of
`meta.json` before anything reads it. Copies are named by that digest: data sets and processes of a
machine share them. Where the budget is full, the shards that were not used for longest make room.

    VIDGEN_SHARD_CACHE        folder of the copies (~/.cache/vidgen/shards)
    VIDGEN_SHARD_CACHE_BYTES  the budget (100e9); batches take records from everywhere, so a data
                              set that does not fit is fetched again and again
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping

import absl.logging

FOLDER, BUDGET = "VIDGEN_SHARD_CACHE", "VIDGEN_SHARD_CACHE_BYTES"
DEFAULT_FOLDER, DEFAULT_BUDGET = "~/.cache/vidgen/shards", 100e9
_BLOCK_BYTES = 4 << 20


class Remote:
    """A data set behind a URL of fsspec: s3://bucket/data, gs://..., memory://data, file:///data.

    Raises:
        ValueError: If the budget is no number, or no file system knows the URL.
    """

    def __init__(self, url: str):
        import fsspec  # only remote data need it

        self.url = url.rstrip("/")
        self.folder = pathlib.Path(os.environ.get(FOLDER, DEFAULT_FOLDER)).expanduser()
        try:
            self.budget = int(float(os.environ.get(BUDGET, DEFAULT_BUDGET)))
        except ValueError as error:
            raise ValueError(f"{BUDGET}={os.environ[BUDGET]!r}: give a number of bytes.") from error
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{url} cannot be opened: {error}.") from error

    def read(self, name: str) -> bytes:
        """Returns the content of a small file."""
        return self._files.cat_file(f"{self._root}/{name}")

    def fetch(
        self, shard: Mapping, report: Callable[[str], None] = lambda what: None
    ) -> tuple[str, bool]:
        """Returns the path of a shard's copy, and whether it was made by this call.

        Args:
            shard: Its entry in `meta.json`.
            report: Is called with some words before each block of a few megabytes.

        Raises:
            OSError: If the shard could not be copied in three attempts, or its copy has another
                digest than the shard had when it was written.
            RuntimeError: If the budget is smaller than the shard.
        """
        path = self.folder / shard["sha256"]
        with contextlib.suppress(FileNotFoundError):
            _touch(path)
            return os.fspath(path), False
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self.folder / f"{path.name}.lock"):
            if path.exists():  # another process was quicker
                return os.fspath(path), False
            part = path.with_name(f"{path.name}.part")
            with _locked(self.folder / "room.lock"):
                self._make_room(shard)
                with open(part, "wb") as file:
                    file.truncate(shard["bytes"])  # others see how much room it takes
            try:
                self._try_to_copy(shard, part, report)
            except BaseException:
                part.unlink()
                raise
            _touch(part)
            os.replace(part, path)
        return os.fspath(path), True

    def _try_to_copy(self, shard, part, report):
        for attempt in (1, 2, 3):
            try:
                return self._copy(shard, part, report)
            except OSError as error:
                absl.logging.warning("%s Attempt %d of 3.", error, attempt)
                if attempt == 3:
                    raise

    def _copy(self, shard, part, report):
        url, state, done = f"{self.url}/{shard['name']}", hashlib.sha256(), 0
        opened = self._files.open(f"{self._root}/{shard['name']}", "rb")
        with opened as source, open(part, "r+b") as target:
            while True:
                report(f"copying {url}, {done:,} of {shard['bytes']:,} bytes")
                block = source.read(_BLOCK_BYTES)
                if not block or done > shard["bytes"]:
                    break
                state.update(block)
                target.write(block)
                done += len(block)
        if done != shard["bytes"] or state.hexdigest() != shard["sha256"]:
            raise OSError(
                f"{url} is damaged: {done} bytes with SHA-256 {state.hexdigest()}, not the "
                f"{shard['bytes']} bytes with {shard['sha256']} of its meta.json. Upload it again."
            )

    def _make_room(self, shard):
        """Deletes what was not used for longest until a shard fits."""
        if shard["bytes"] > self.budget:
            raise RuntimeError(
                f"{self.url}/{shard['name']} has {shard['bytes']:,} bytes, more than "
                f"{BUDGET}={self.budget:,} in all: raise it."
            )
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.suffix != ".lock":
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used + shard["bytes"] <= self.budget:
                break
            if path.suffix == ".part" and _is_locked(path.with_suffix(".lock")):
                continue  # another process is writing it
            path.unlink(missing_ok=True)
            used -= size


def _touch(path: pathlib.Path):
    """Marks as used now; the clock that the system would take ticks every few milliseconds."""
    os.utime(path, ns=(time.time_ns(),) * 2)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds a file's lock; the system releases it when the process ends, however that happens."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_locked(path: pathlib.Path) -> bool:
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
