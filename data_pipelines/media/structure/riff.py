"""AVI and WebP: chunks of RIFF (the AVI RIFF reference, RFC 9649)."""

import struct
from collections.abc import Iterator

import data_pipelines.media.structure.pieces as pieces
from data_pipelines.media.limits import MediaError


def _chunks(source: pieces.Source, at: int, end: int) -> Iterator[pieces.Piece]:
    """Yields the RIFF chunks of a span; each starts at an even position."""
    while at < end:
        source.count()
        if end - at < 8:
            raise pieces.damaged(f"{end - at} stray bytes at byte {at}")
        name, size = struct.unpack("<4sI", source.read(at, 8))
        stop = at + 8 + size
        if stop > end:
            raise MediaError(
                "damaged", f"chunk {name!r} at byte {at} goes on after its parent's end."
            )
        yield name, at + 8, stop
        at = min(end, stop + size % 2)


def check_avi(source: pieces.Source) -> list[int]:
    stored: list[pieces.Piece] = []
    index, movi, announced = None, None, None
    parts = list(_chunks(source, 0, source.size))
    for number, (name, start, end) in enumerate(parts):
        if name != b"RIFF" or source.read(start, 4) != (b"AVIX" if number else b"AVI "):
            raise pieces.damaged(f"a chunk {name!r} after the end at byte {start - 8}")
        for part, at, stop in _chunks(source, start + 4, end):
            kind = source.read(at, 4) if part == b"LIST" else b""
            if kind == b"movi":
                movi = at if movi is None else movi
                stored += _stored(source, at + 4, stop)
            elif kind == b"hdrl":
                announced = _announced(source, at + 4, stop)
            elif part == b"idx1":
                index = source.header(at, stop)
            elif pieces.is_nearly(part, frozenset({b"LIST", b"idx1", b"JUNK"})):
                raise pieces.damaged(f"an unknown chunk {part!r} at byte {at - 8}")
    if movi is None or announced is None:
        raise MediaError("broken header", "the file has no header or no media data.")
    if index is not None and len(parts) == 1:
        _check_index(index, stored, movi)
    pictures = []
    for number, frames in announced.items():
        names = {b"%02ddc" % number, b"%02ddb" % number}
        sizes = [stop - at for name, at, stop in stored if name in names]
        if len(sizes) != frames and sizes:
            raise MediaError("missing frames", f"{len(sizes)} frames stored, {frames} announced.")
        # an empty chunk shows the frame before once more
        pictures.append(sum(size > 0 for size in sizes))
    return pictures


def _stored(source: pieces.Source, start: int, end: int) -> list[pieces.Piece]:
    """Returns the chunks of the media data, those in `rec ` lists too."""
    found = []
    for name, at, stop in _chunks(source, start, end):
        if name == b"LIST":
            found += _stored(source, at + 4, stop)
        elif name[:2].isdigit() or name[:2] == b"ix" or name == b"JUNK":
            found.append((name, at, stop))
        else:
            raise pieces.damaged(f"an unknown chunk {name!r} at byte {at - 8}")
    return found


def _announced(source: pieces.Source, start: int, end: int) -> dict[int, int]:
    """Returns stream number -> frames of the video streams, as the stream headers say."""
    source.header(start, end)
    frames, number = {}, 0
    for name, at, stop in _chunks(source, start, end):
        if name == b"LIST" and source.read(at, 4) == b"strl":
            for part, inner, _ in _chunks(source, at + 4, stop):
                if part == b"strh":
                    head = source.read(inner, 36)
                    if head[:4] == b"vids":
                        frames[number] = struct.unpack("<I", head[32:36])[0]
            number += 1
    pieces.check_streams(number, source)
    return frames


def _check_index(index: bytes, stored: list[pieces.Piece], movi: int):
    """Each entry names a chunk; positions count from `movi` or from the start of the file."""
    if len(index) % 16:
        raise pieces.damaged(f"an index of {len(index)} bytes")
    chunks = {(name, start, end - start) for name, start, end in stored}
    entries = list(struct.iter_unpack("<4sIII", index))
    for base in (movi, 0):
        if all((name, base + at + 8, size) in chunks for name, _, at, size in entries):
            break
    else:
        raise pieces.damaged("an index that points to no chunk")
    if len(entries) != sum(name[:2].isdigit() for name, _, _ in stored):
        raise pieces.damaged(f"an index of {len(entries)} chunks for {len(stored)}")


def check_webp(source: pieces.Source):
    chunks = list(_chunks(source, 0, source.size))
    if len(chunks) != 1:
        raise pieces.damaged("data after the end")
    _, start, end = chunks[0]
    known = frozenset(
        {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP "}
    )
    names = []
    for name, at, stop in _chunks(source, start + 4, end):
        names.append(name)
        if pieces.is_nearly(name, known):
            raise pieces.damaged(f"an unknown chunk {name!r} at byte {at - 8}")
        if name == b"VP8 ":
            _check_vp8(source.read(at, min(10, stop - at)), stop - at)
    if not {b"VP8 ", b"VP8L", b"ANMF"} & set(names):
        raise pieces.damaged("no picture")


def _check_vp8(head: bytes, size: int):
    """A key frame whose first partition fits (RFC 6386, 9.1)."""
    tag = int.from_bytes(head[:3], "little")
    if tag & 1 or head[3:6] != b"\x9d\x01\x2a" or not tag >> 4 & 1 or 10 + (tag >> 5) > size:
        raise pieces.damaged("the frame header is wrong")
