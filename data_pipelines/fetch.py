"""One URL to one file, from a web that may be slow, broken or hostile.

The content grows in NAME.part and gets its name at the end, whole and hashed. A fetch that was
stopped goes on where it was (Range with If-Range) as long as the server vouches for the same
content. Hosts are resolved and checked in the step that connects, for every redirect too, so a
name cannot point to a private address between the check and the connection.
"""

import contextlib
import dataclasses
import functools
import hashlib
import http.client
import ipaddress
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import BinaryIO

_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524, 529)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_CHUNK = 1 << 20
_SPARE_BYTES = 1 << 30  # of the disk, left free


class FetchError(Exception):
    """A fetch that failed. `reason` is for counting; `final`: asking again would not help."""

    def __init__(self, reason: str, message: str, final: bool = True, wait: float = 0.0):
        super().__init__(message)
        self.reason, self.final, self.wait = reason, final, wait


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one file may cost, and whom we talk to."""

    max_bytes: int = 100 << 30
    file_seconds: float = 24 * 3600.0
    stall_seconds: float = 60.0  # without a byte
    retries: int = 5  # in a row without progress
    backoff_seconds: float = 1.0  # before the first retry, doubled each time, 60 at most
    max_redirects: int = 5
    allow_private: bool = False


@dataclasses.dataclass(frozen=True)
class Remote:
    """What to fetch, and what is known of it."""

    url: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    token: str | None = dataclasses.field(default=None, repr=False)  # for the host of `url` alone


def fetch(
    remote: Remote,
    target: pathlib.Path,
    limits: Limits = Limits(),
    *,
    count: Callable[[int], None] = lambda num_bytes: None,
    stop: threading.Event | None = None,
) -> dict:
    """Fetches a file, and returns {bytes, sha256, etag, checked, seconds}.

    Args:
        remote: What to fetch.
        target: The file to make; its folder has to exist.
        limits: See Limits.
        count: Is called with the number of new bytes; negative when bytes are thrown away. What it
            raises ends the fetch.
        stop: Ends the fetch early when set.

    Raises:
        FetchError: If it cannot be had. NAME.part stays where a later try can go on with it.
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
                raise FetchError("too slow", f"not finished in {limits.file_seconds:.0f} s.")
            facts = _attempt(remote, part, limits, left, counted, stop or threading.Event())
            return facts | {"seconds": round(time.monotonic() - begin, 3)}
        except FetchError as error:
            failures = 0 if part.size() > size else failures + 1
            if error.final or max(failures, restarts) > limits.retries:
                raise
            pause = min(60.0, limits.backoff_seconds * 2 ** max(0, failures - 1))
            pause = max(pause, min(error.wait, 300.0))
            if stop and stop.wait(pause):
                raise FetchError("stopped", "the download was stopped.") from error
            if not stop:
                time.sleep(pause)


def head(remote: Remote, limits: Limits = Limits()) -> int | None:
    """Returns the size of a file in bytes, None if the server does not tell.

    Raises:
        FetchError: If it cannot be had.
    """
    response, hops, close = _request(remote, limits, limits.stall_seconds * 2, {}, "HEAD")
    try:
        _check_status(response)
        sizes = (hops.get("X-Linked-Size"), response.headers.get("Content-Length"))
        return next((int(size) for size in sizes if (size or "").isdecimal()), None)
    finally:
        close()


def read_json(url: str, limits: Limits, token: str | None = None, max_bytes: int = 64 << 20):
    """Returns (content, URL of the next page or None) of a JSON answer.

    Raises:
        FetchError: If there is none.
    """
    remote = Remote(url, token=token)
    response, _, close = _request(remote, limits, limits.file_seconds, {}, "GET")
    try:
        _check_status(response)
        content = response.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise FetchError("too large", f"{_host(url)} answers over {max_bytes} bytes of JSON.")
        following = re.search(r'<([^>]+)>;\s*rel="next"', response.headers.get("Link") or "")
        return json.loads(content), following and following[1]
    except (ValueError, RecursionError, OSError, http.client.HTTPException) as error:
        raise FetchError("bad answer", f"{_host(url)} sends no JSON: {error}.", False) from error
    finally:
        close()


def hash_file(file: BinaryIO) -> str:
    """Returns the SHA-256 of the rest of a file."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def is_public(address: str) -> bool:
    """Tells whether an IP address belongs to the open internet, in all its spellings."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


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
    response, hops, close = _request(remote, limits, seconds, headers, "GET")
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
                raise FetchError("changed", "the content changed since it was begun.", False)
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
                    raise FetchError("stopped", "the download was stopped.")
                if have + len(content) > limits.max_bytes:
                    part.discard(count)
                    raise FetchError("too large", f"over {limits.max_bytes} bytes.")
                count(len(content))
                file.write(content)
                for digest in hashes:
                    digest.update(content)
                have += len(content)
            os.fsync(file.fileno())
    except TimeoutError as error:
        message = f"no byte in {limits.stall_seconds:.0f} s."
        raise FetchError("stalled", message, False) from error
    except (OSError, http.client.HTTPException) as error:
        final = isinstance(error, OSError) and error.errno in (28, 122)  # disk full, quota
        raise FetchError("disk full" if final else "dropped", f"{error!r}.", final) from error
    finally:
        if close():
            raise FetchError("too slow", f"not finished in {limits.file_seconds:.0f} s.")
    total = remote.size if answer.total is None else answer.total
    if total is not None and have < total:
        raise FetchError("dropped", f"{have} of {total} bytes came.", False)
    checked = []
    for digest in hashes:
        if expected := wanted[digest.name]:
            if digest.hexdigest() != expected.lower():
                part.discard(count)
                raise FetchError(
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
        raise FetchError("bad answer", f"status {status} without a usable Content-Range.", False)
    else:
        _check_status(response)
    if headers.get("Content-Encoding") not in (None, "identity"):
        raise FetchError("bad answer", f"the body is {headers['Content-Encoding']!r}, unasked.")
    etag = headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    linked = (hops.get("X-Linked-ETag") or headers.get("X-Linked-ETag") or "").strip('"').lower()
    return _Answer(
        status, start, total, validator, linked if re.fullmatch("[0-9a-f]{64}", linked) else None
    )


def _check_status(response):
    if response.status == 200:
        return
    names = {401: "no permission", 403: "no permission", 404: "not found", 410: "not found"}
    wait = response.headers.get("Retry-After") or ""
    raise FetchError(
        names.get(response.status, f"status {response.status}"),
        f"the server answers {response.status} {response.reason[:100]!a}.",
        response.status not in _PASSING,
        float(wait) if re.fullmatch(r"\d{1,9}", wait) else 0.0,
    )


def _check_size(remote: Remote, answer: _Answer, part: _Part, limits: Limits, count):
    total = answer.total
    if total is None:
        return
    if total > limits.max_bytes:
        part.discard(count)
        raise FetchError("too large", f"{total} bytes, the limit is {limits.max_bytes}.")
    if remote.size is not None and total != remote.size:
        part.discard(count)
        raise FetchError("wrong size", f"{total} bytes are offered, not {remote.size}.")
    free = shutil.disk_usage(part.target.parent).free + part.size()
    if total > free - _SPARE_BYTES:
        raise FetchError("disk full", f"{total} bytes do not fit on the disk ({free} are free).")


def _request(remote: Remote, limits: Limits, seconds: float, headers: dict, method: str):
    """Sends a request and follows redirects.

    Returns:
        (response, headers of the first answer, close). `close` ends the connection and returns
        whether `seconds` had passed.
    """
    url, first, deadline = remote.url, None, time.monotonic() + seconds
    for _ in range(limits.max_redirects + 1):
        connection = _open(url, limits)
        late = threading.Event()
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), _abort, (connection, late))
        timer.daemon = True
        timer.start()

        def close(connection=connection, timer=timer, late=late) -> bool:
            timer.cancel()
            connection.close()
            return late.is_set()

        sent = {"User-Agent": "vidgen", "Accept-Encoding": "identity", **headers}
        if remote.token and _origin(url) == _origin(remote.url):
            sent["Authorization"] = f"Bearer {remote.token}"
        try:
            parts = urllib.parse.urlsplit(url)
            path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection.request(method, path, headers=sent)
            response = connection.getresponse()
        except FetchError:
            close()
            raise
        except ssl.SSLCertVerificationError as error:
            close()
            raise FetchError("bad certificate", f"{_host(url)}: {error.verify_message}.") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if close():
                raise FetchError("too slow", f"no answer in {seconds:.0f} s.") from error
            reason = "stalled" if isinstance(error, TimeoutError) else "no connection"
            raise FetchError(reason, f"{_host(url)}: {error!r}.", False) from error
        first = response.headers if first is None else first
        if response.status not in _REDIRECTS:
            return response, first, close
        place = response.headers.get("Location") or ""
        close()
        try:
            following = urllib.parse.urljoin(url, place)
        except ValueError as error:
            raise FetchError("bad url", f"{_host(url)} leads to {place[:80]!a}.") from error
        if url.startswith("https:") and not following.startswith("https:"):
            raise FetchError(
                "bad redirect", f"{_host(url)} leads from https to {following[:20]!a}."
            )
        url = following
    raise FetchError("bad redirect", f"over {limits.max_redirects} redirects.")


def _open(url: str, limits: Limits) -> "_Guarded":
    """Returns a connection that checks the address it connects to."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise FetchError("bad url", f"{url[:200]!a} is no URL: {error}.") from error
    if parts.scheme not in ("http", "https") or not host or not re.fullmatch("[!-~]+", url):
        raise FetchError("bad url", f"{url[:200]!a}: only plain http and https URLs are fetched.")
    if parts.username is not None:
        raise FetchError("bad url", f"a URL of {host} holds a password: leave it out.")
    kind = _Guarded if parts.scheme == "http" else _GuardedTls
    return kind(host, port, limits)


class _Guarded(http.client.HTTPConnection):
    """Connects by `_dial`. `dialed` stays when http.client hands its socket to the response."""

    def __init__(self, host: str, port: int | None, limits: Limits):
        super().__init__(host, port, timeout=limits.stall_seconds)
        self._limits, self.dialed = limits, None

    def connect(self):
        self.sock = self.dialed = _dial(self.host, self.port, self._limits)


class _GuardedTls(_Guarded):
    default_port = http.client.HTTPS_PORT

    def connect(self):
        super().connect()
        self.sock = self.dialed = _tls().wrap_socket(self.dialed, server_hostname=self.host)


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _dial(host: str, port: int, limits: Limits) -> socket.socket:
    """Connects to the first address of the host that answers, private ones left out."""
    refused, last = [], None
    for family, kind, protocol, _, place in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
        if not limits.allow_private and not is_public(place[0]):
            refused.append(place[0])
            continue
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(min(30.0, limits.stall_seconds))
        try:
            sock.connect(place)
        except OSError as error:
            sock.close()
            last = error
            continue
        sock.settimeout(limits.stall_seconds)
        return sock
    if refused:
        raise FetchError(
            "private address",
            f"{host} is {', '.join(refused[:3])}, which is no public address; --allow_private "
            "fetches from inside networks.",
        )
    raise last or OSError(f"{host} has no address")


def _abort(connection: _Guarded, late: threading.Event):
    late.set()
    if connection.dialed is not None:
        with contextlib.suppress(OSError):  # it was closed just now
            connection.dialed.shutdown(socket.SHUT_RDWR)


def _origin(url: str) -> tuple:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc.rpartition("@")[2][:100]
