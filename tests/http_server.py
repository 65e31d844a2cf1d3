"""A local HTTP server that is as bad as the web: slow, lying, dropping, redirecting, changing.

    with http_server.Server() as server:
        server.add("/a", http_server.File(content, drop_at=[100, 200]))
        fetch.fetch(fetch.Remote(server.url("/a")), ...)
        server.requests  # what was asked

It knows range requests (Range, If-Range, ETag), and plays the Hugging Face hub (`add_hub`).
"""

import dataclasses
import hashlib
import http.server
import json
import re
import threading
import time

OPENVID = "datasets/nkp37/OpenVid-1M"


@dataclasses.dataclass
class File:
    """A file and how badly it is served.

    Attributes:
        content: The bytes.
        etag: Its validator; None: none is sent.
        drop_at: The connection of the n-th request closes after so many bytes of the body.
        length: Added to the true Content-Length; None: no Content-Length at all.
        drip: (bytes, seconds) between pieces of the body.
        ranges: Whether range requests are honoured.
        if_range: Whether If-Range is; without it other bytes are sent as if they belonged.
        statuses: Answers of the first requests, before the file is sent.
        headers: More headers.
        versions: Contents of later requests (with other ETags), the last one for good.
        redirect: Where all requests are sent on to.
        endless: The body never ends.
    """

    content: bytes = b""
    etag: str | None = '"v0"'
    drop_at: list[int] = dataclasses.field(default_factory=list)
    length: int | None = 0
    drip: tuple[int, float] | None = None
    ranges: bool = True
    if_range: bool = True
    statuses: list[int] = dataclasses.field(default_factory=list)
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    versions: list[bytes] = dataclasses.field(default_factory=list)
    redirect: str | None = None
    endless: bool = False


@dataclasses.dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]


class Server:
    """Context manager of a server on 127.0.0.1."""

    def __init__(self):
        self.files: dict[str, File] = {}
        self.requests: list[Request] = []
        self.sent = 0  # bytes of bodies
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer._answer(self, body=True)

            def do_HEAD(self):
                outer._answer(self, body=False)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients hang up
        self.port = self._server.server_address[1]

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def add(self, path: str, file: File) -> str:
        self.files[path] = file
        return self.url(path)

    def add_hub(self, contents: dict[str, bytes], page: int = 2):
        """Serves OpenVid-1M's files as the hub does: listing in pages, then redirects to a CDN."""
        folders: dict[str, list[dict]] = {}
        for path, content in contents.items():
            digest = hashlib.sha256(content).hexdigest()
            entry = {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
            entry["lfs"] = {"oid": digest, "size": len(content)}
            folders.setdefault(path.rpartition("/")[0], []).append(entry)
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            cdn = self.url(f"/cdn/{path}", host="localhost")
            self.add(f"/{OPENVID}/resolve/main/{path}", File(redirect=cdn, headers=linked))
            self.add(f"/cdn/{path}", File(content, etag=f'"cdn-{digest[:8]}"'))
        for folder, entries in folders.items():
            base = f"/api/{OPENVID}/tree/main" + (f"/{folder}" if folder else "")
            for start in range(0, len(entries), page):
                headers = {}
                if start + page < len(entries):
                    following = self.url(f"{base}?cursor={start + page}")
                    headers["Link"] = f'<{following}>; rel="next"'
                answer = json.dumps(entries[start : start + page]).encode()
                name = f"{base}?cursor={start}" if start else base
                self.add(name, File(answer, headers=headers))

    def _answer(self, handler, body: bool):
        headers = {key.lower(): value for key, value in handler.headers.items()}
        self.requests.append(Request(handler.command, handler.path, headers))
        number = sum(r.path == handler.path for r in self.requests) - 1
        file = self.files.get(handler.path)
        handler.close_connection = True
        if file is None or number < len(file.statuses):
            handler.send_response(404 if file is None else file.statuses[number])
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if file.redirect:
            handler.send_response(302)
            for key, value in file.headers.items():
                handler.send_header(key, value)
            handler.send_header("Location", file.redirect)
            handler.end_headers()
            return
        content, etag = file.content, file.etag
        if number and file.versions:
            content = file.versions[min(number, len(file.versions)) - 1]
            etag = f'"v{number}"'
        start, size = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        same = not file.if_range or headers.get("if-range") in (None, etag)
        if asked and file.ranges and same:
            start = int(asked[1])
            if start >= size:
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{size}")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            handler.send_response(200)
        if file.length is not None:
            handler.send_header("Content-Length", str(size - start + file.length))
        if etag:
            handler.send_header("ETag", etag)
        for key, value in file.headers.items():
            handler.send_header(key, value)
        handler.end_headers()
        if not body:
            return
        end = size
        if number < len(file.drop_at):
            end = min(size, start + file.drop_at[number])
        step, pause = file.drip or (1 << 16, 0.0)
        while start < end or file.endless:
            piece = content[start : min(end, start + step)] or bytes(step)
            handler.wfile.write(piece)
            self.sent += len(piece)
            start += len(piece)
            time.sleep(pause)
