"""A media file by positions, and what its pieces must not do."""

import functools
from typing import BinaryIO

from data_pipelines.media.limits import Limits, MediaError

MAX_DEPTH = 12
MAX_PIECES = 200_000  # boxes, elements or chunks of a file

Piece = tuple[bytes, int, int]  # name, start and end of the content


class Source:
    """A file by positions; reads no more than the limit for headers at once."""

    def __init__(self, file: BinaryIO, size: int, limits: Limits):
        self.file, self.size, self.limits, self.pieces = file, size, limits, 0

    def read(self, start: int, size: int) -> bytes:
        if size < 0:
            raise damaged(f"a piece that ends before it begins, at byte {start}")
        self.file.seek(start)
        content = self.file.read(size)
        if len(content) < size:
            raise MediaError("damaged", f"the file ends at byte {self.size}, within a piece.")
        return content

    def header(self, start: int, end: int) -> bytes:
        if end - start > self.limits.max_header_bytes:
            raise MediaError(
                "too large",
                f"a header of {end - start} bytes, the limit is {self.limits.max_header_bytes}.",
            )
        return self.read(start, end - start)

    def count(self):
        self.pieces += 1
        if self.pieces > MAX_PIECES:
            raise MediaError("too large", f"the file has more than {MAX_PIECES} pieces.")


def check_streams(count: int, source: Source):
    if count > source.limits.max_streams:
        raise MediaError("too large", f"{count} streams, the limit is {source.limits.max_streams}.")


def damaged(message: str) -> MediaError:
    return MediaError("damaged", f"the container is damaged: {message}.")


def is_nearly(name: bytes, known: frozenset) -> bool:
    """Says whether an unknown name differs from a known one by a single byte."""
    return name not in known and not _gapped(known).isdisjoint(_with_gaps(name))


@functools.cache
def _gapped(known: frozenset) -> frozenset:
    return frozenset(gap for name in known for gap in _with_gaps(name))


def _with_gaps(name: bytes) -> list[tuple[int, bytes]]:
    return [(i, name[:i] + name[i + 1 :]) for i in range(len(name))]
