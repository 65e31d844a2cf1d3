"""HTTP requests to the open web: who may be asked, and what an answer may cost.

Hosts are resolved and checked in the step that connects, for every redirect too, so a name cannot
point to a private address between the check and the connection.
"""

import contextlib
import dataclasses
import functools
import http.client
import ipaddress
import json
import re
import socket
import ssl
import threading
import time
import urllib.parse

_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524, 529)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


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


def head(remote: Remote, limits: Limits) -> int | None:
    """Returns the size of a file in bytes, None if the server does not tell.

    Raises:
        FetchError: If it cannot be had.
    """
    response, hops, close = request(remote, limits, limits.stall_seconds * 2, {}, "HEAD")
    try:
        check_status(response)
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
    response, _, close = request(remote, limits, limits.file_seconds, {}, "GET")
    try:
        check_status(response)
        content = response.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise FetchError("too large", f"{_host(url)} answers over {max_bytes} bytes of JSON.")
        following = re.search(r'<([^>]+)>;\s*rel="next"', response.headers.get("Link") or "")
        return json.loads(content), following and following[1]
    except (ValueError, RecursionError, OSError, http.client.HTTPException) as error:
        raise FetchError("bad answer", f"{_host(url)} sends no JSON: {error}.", False) from error
    finally:
        close()


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


def request(remote: Remote, limits: Limits, seconds: float, headers: dict, method: str):
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


def check_status(response):
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
