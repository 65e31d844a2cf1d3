"""PNG and JPEG: chunks and markers (the PNG specification, ITU T.81)."""

import struct
import zlib

import data_pipelines.media.structure.pieces as pieces
from data_pipelines.media.limits import MediaError


def check_png(source: pieces.Source):
    at, names = 8, []
    while at < source.size:
        source.count()
        size, name = struct.unpack(">I4s", source.read(at, 8))
        if at + 12 + size > source.size:
            raise MediaError(
                "damaged", f"chunk {name!r} at byte {at} goes on after the file's end."
            )
        crc = zlib.crc32(source.read(at + 4, 4 + size))
        if crc != struct.unpack(">I", source.read(at + 8 + size, 4))[0]:
            raise pieces.damaged(f"the checksum of chunk {name!r} at byte {at} is wrong")
        names.append(name)
        at += 12 + size
        if name == b"IEND":
            break
    if not names or names[0] != b"IHDR" or names[-1] != b"IEND" or b"IDAT" not in names:
        raise MediaError("damaged", "the chunks are not a whole picture.")
    if at < source.size:
        raise pieces.damaged(f"{source.size - at} bytes after the end")


def check_jpeg(source: pieces.Source):
    """Markers from start to end: lengths fit, and coded data hold only restarts, in order."""
    content = source.header(0, source.size)
    at, interval, scans = 2, 0, 0
    while True:
        if content[at] != 0xFF:
            raise pieces.damaged(f"no marker at byte {at}")
        while content[at] == 0xFF:
            at += 1
        marker = content[at]
        at += 1
        if marker == 0xD9:
            break
        size = struct.unpack(">H", content[at : at + 2])[0]
        if size < 2 or at + size > len(content):
            raise MediaError("damaged", f"a segment at byte {at} goes on after the file's end.")
        if marker == 0xDD:
            interval = struct.unpack(">H", content[at + 2 : at + 4])[0]
        at += size
        if marker == 0xDA:
            scans += 1
            at = _scan_end(content, at, interval)
    if not scans:
        raise pieces.damaged("no picture")


def _scan_end(content: bytes, at: int, interval: int) -> int:
    """Returns where the coded data end, at the next marker; checks the restart markers."""
    expected = 0
    while True:
        at = content.find(b"\xff", at)
        if at < 0 or at + 1 >= len(content):
            raise MediaError("damaged", "the picture has no end marker.")
        marker = content[at + 1]
        if 0xD0 <= marker <= 0xD7:
            if not interval or marker != 0xD0 + expected % 8:
                raise pieces.damaged(f"a restart marker out of order at byte {at}")
            expected += 1
        elif marker not in (0x00, 0xFF):
            return at
        at += 1 if marker == 0xFF else 2
