"""Serves a page's folder: GET and HEAD, byte ranges, and nothing outside the folder."""

import http.server
import os
import pathlib
import re
import urllib.parse

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_BLOCK = 1 << 16


def make_server(
    folder: str | os.PathLike, host: str = "127.0.0.1", port: int = 8000
) -> http.server.ThreadingHTTPServer:
    """Returns a server of the folder, bound to a port (0: any that is free).

    Bound to this machine only, it refuses requests by any other name, so that no web page can
    read it through a name of its own that points here.
    """
    root = pathlib.Path(folder).resolve()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "vidgen", ""

        def do_GET(self):
            self._answer(with_body=True)

        def do_HEAD(self):
            self._answer(with_body=False)

        def _answer(self, with_body: bool):
            if host in _LOCAL and not self._is_local():
                return self._refuse(403)
            path = resolve(root, self.path)
            if path is None:
                return self._refuse(404)
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                part = parse_range(self.headers.get("Range"), size)
                if part is None:
                    return self._refuse(416, {"Content-Range": f"bytes */{size}"})
                start, stop, is_part = part
                self.send_response(206 if is_part else 200)
                if is_part:
                    self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
                self.send_header("Content-Type", _KINDS[path.suffix])
                self.send_header("Content-Length", str(stop - start))
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("X-Content-Type-Options", "nosniff")
                self.send_header("Cross-Origin-Resource-Policy", "same-origin")
                # names of tables and previews tell what is in them: they never change
                fixed = path.parent != root
                self.send_header("Cache-Control", "max-age=31536000" if fixed else "no-cache")
                self.end_headers()
                file.seek(start)
                while with_body and start < stop:
                    block = file.read(min(_BLOCK, stop - start))
                    if not block:
                        break
                    self.wfile.write(block)
                    start += len(block)

        def _is_local(self) -> bool:
            name = self.headers.get("Host", "").rsplit(":", 1)[0]
            return name in _LOCAL

        def _refuse(self, code: int, headers: dict | None = None):
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass  # a line for each of a thousand thumbnails helps nobody

    server = http.server.ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    return server


def resolve(root: pathlib.Path, target: str) -> pathlib.Path | None:
    """Returns the file of a request, or None if it is no file of the page."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(target).path).lstrip("/") or "index.html"
    if "\0" in name or "\\" in name:
        return None
    path = (root / name).resolve()  # follows links too
    if not path.is_relative_to(root) or path.suffix not in _KINDS or not path.is_file():
        return None
    return path


def parse_range(header: str | None, size: int) -> tuple[int, int, bool] | None:
    """Returns (start, stop, whether it is a part) of a Range header; None if it cannot be met.

    Several ranges at once, and what is no range, give the whole file, as RFC 9110 allows.
    """
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header or "")
    if not found or not any(found.groups()):
        return 0, size, False
    first, last = found.groups()
    if not first:  # the last bytes
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
    return (start, stop, True) if start < stop else None
