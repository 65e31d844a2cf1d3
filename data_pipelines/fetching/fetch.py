"""One URL to one file, from a web that may be slow, broken or hostile.

The content grows in NAME.part and gets its name at the end, whole and hashed. A fetch that was
stopped goes on where it was (Range with If-Range) as long as the server vouches for the same
content.
"""

import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from data_pipelines.fetching import web

SPARE_BYTES = 1 << 30  # of the disk, left free
_CHUNK = 1 << 20


def fetch(
    remote: web.Remote,
    target: pathlib.Path,
    limits: web.Limits,
    *,
    count: Callable[[int], None] = lambda num_bytes: None,
    stop: threading.Event | None = None,
) -> dict:
    """Fetches a file, and returns {bytes, sha256, etag, checked, seconds}.

    Args:
        remote: What to fetch.
        target: The file to make; its folder has to exist.
        limits: See web.Limits.
        count: Is called with the number of new bytes; negative when bytes are thrown away. What it
            raises ends the fetch.
        stop: Ends the fetch early when set.

    Raises:
        web.FetchError: If it cannot be had. NAME.part stays where a later try can go on with it.
    """
    begin, failures, restarts = time.monotonic(), 0, 0
    part = _Part(target)

    def counted(num_bytes: int):
        nonlocal restarts
        restarts += num_bytes < 0
        count(num_bytes)

    while True:
        size = part.size()
        try:
            left = limits.file_seconds - (time.monotonic() - begin)
            if left <= 0:
                raise web.FetchError("too slow", f"not finished in {limits.file_seconds:.0f} s.")
            facts = _attempt(remote, part, limits, left, counted, stop or threading.Event())
            return facts | {"seconds": round(time.monotonic() - begin, 3)}
        except web.FetchError as error:
            failures = 0 if part.size() > size else failures + 1
            if error.final or max(failures, restarts) > limits.retries:
                raise
            pause = min(60.0, limits.backoff_seconds * 2 ** max(0, failures - 1))
            pause = max(pause, min(error.wait, 300.0))
            if stop and stop.wait(pause):
                raise web.FetchError("stopped", "the download was stopped.") from error
            if not stop:
                time.sleep(pause)


def hash_file(file: BinaryIO) -> str:
    """Returns the SHA-256 of the rest of a file."""
    return hashlib.file_digest(file, "sha256").hexdigest()


class _Part:
    """The unfinished file beside the target, and whose content it is."""

    def __init__(self, target: pathlib.Path):
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def origin(self) -> dict:
        try:
            return json.loads(self.note.read_bytes())
        except (OSError, ValueError):
            return {}

    def remember(self, origin: dict):
        new = self.note.with_name(self.note.name + ".new")
        new.write_text(json.dumps(origin))
        os.replace(new, self.note)

    def discard(self, count: Callable[[int], None]):
        count(-self.size())
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _attempt(remote, part, limits, seconds, count, stop) -> dict:
    origin, headers = part.origin(), {}
    validator = origin.get("validator")
    have = part.size()
    if have and origin.get("url") == remote.url and (validator or remote.sha256):
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    response, hops, close = web.request(remote, limits, seconds, headers, "GET")
    try:
        answer = _read_head(response, hops)
        if have and (
            answer.status == 200
            or answer.start != have
            or (validator and answer.validator not in (None, validator))
            or answer.linked != origin.get("linked")
        ):
            part.discard(count)
            have = 0
            if answer.status != 200:
                raise web.FetchError("changed", "the content changed since it was begun.", False)
        _check_size(remote, answer, part, limits, count)
        wanted = {"sha256": remote.sha256 or answer.linked, "md5": remote.md5}
        hashes = [hashlib.sha256()] + [hashlib.md5(usedforsecurity=False)] * bool(remote.md5)
        note = {"url": remote.url, "validator": answer.validator, "linked": answer.linked}
        part.remember(note)
        if have:
            with open(part.path, "rb") as file:
                while content := file.read(_CHUNK):
                    for digest in hashes:
                        digest.update(content)
        with open(part.path, "ab", buffering=0) as file:
            while answer.status != 416 and (content := response.read1(_CHUNK)):
                if stop.is_set():
                    raise web.FetchError("stopped", "the download was stopped.")
                if have + len(content) > limits.max_bytes:
                    part.discard(count)
                    raise web.FetchError("too large", f"over {limits.max_bytes} bytes.")
                count(len(content))
                file.write(content)
                for digest in hashes:
                    digest.update(content)
                have += len(content)
            os.fsync(file.fileno())
    except TimeoutError as error:
        message = f"no byte in {limits.stall_seconds:.0f} s."
        raise web.FetchError("stalled", message, False) from error
    except (OSError, http.client.HTTPException) as error:
        final = isinstance(error, OSError) and error.errno in (28, 122)  # disk full, quota
        raise web.FetchError("disk full" if final else "dropped", f"{error!r}.", final) from error
    finally:
        if close():
            raise web.FetchError("too slow", f"not finished in {limits.file_seconds:.0f} s.")
    total = remote.size if answer.total is None else answer.total
    if total is not None and have < total:
        raise web.FetchError("dropped", f"{have} of {total} bytes came.", False)
    checked = []
    for digest in hashes:
        if expected := wanted[digest.name]:
            if digest.hexdigest() != expected.lower():
                part.discard(count)
                raise web.FetchError(
                    "wrong checksum",
                    f"the {digest.name} is {digest.hexdigest()}, not {expected}.",
                    False,
                )
            checked.append(digest.name)
    os.replace(part.path, part.target)
    part.note.unlink(missing_ok=True)
    facts = {"bytes": have, "sha256": hashes[0].hexdigest(), "etag": answer.linked or validator}
    return facts | {"checked": checked}


@dataclasses.dataclass(frozen=True)
class _Answer:
    status: int
    start: int  # of the body in the file
    total: int | None  # bytes of the file
    validator: str | None
    linked: str | None  # sha256 that the Hugging Face hub states


def _read_head(response, hops: dict) -> _Answer:
    status, headers = response.status, response.headers
    length = headers.get("Content-Length") or ""
    start, total = 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range") or "")
    if status == 206 and found and found[1]:
        start = int(found[1])
        total = int(found[2]) if found[2] != "*" else None
    elif status == 416 and found and found[2] != "*":
        start = total = int(found[2])  # nothing is left to send
    elif status in (206, 416):
        raise web.FetchError(
            "bad answer", f"status {status} without a usable Content-Range.", False
        )
    else:
        web.check_status(response)
    if headers.get("Content-Encoding") not in (None, "identity"):
        raise web.FetchError("bad answer", f"the body is {headers['Content-Encoding']!r}, unasked.")
    etag = headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    linked = (hops.get("X-Linked-ETag") or headers.get("X-Linked-ETag") or "").strip('"').lower()
    return _Answer(
        status, start, total, validator, linked if re.fullmatch("[0-9a-f]{64}", linked) else None
    )


def _check_size(remote: web.Remote, answer: _Answer, part: _Part, limits: web.Limits, count):
    total = answer.total
    if total is None:
        return
    if total > limits.max_bytes:
        part.discard(count)
        raise web.FetchError("too large", f"{total} bytes, the limit is {limits.max_bytes}.")
    if remote.size is not None and total != remote.size:
        part.discard(count)
        raise web.FetchError("wrong size", f"{total} bytes are offered, not {remote.size}.")
    free = shutil.disk_usage(part.target.parent).free + part.size()
    if total > free - SPARE_BYTES:
        raise web.FetchError(
            "disk full", f"{total} bytes do not fit on the disk ({free} are free)."
        )
