"""Matroska and WebM: elements (RFC 8794, RFC 9559)."""

import zlib
from collections.abc import Iterator

import data_pipelines.media.structure.pieces as pieces
from data_pipelines.media.limits import MediaError

_SEGMENT, _CLUSTER, _CUES, _CRC, _VOID = 0x18538067, 0x1F43B675, 0x1C53BB6B, 0xBF, 0xEC
_LEVEL_1 = {0x114D9B74, 0x1549A966, 0x1654AE6B, _CLUSTER, _CUES, 0x1941A469, 0x1043A770, 0x1254C367}
_IN_CLUSTER = {0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0x5854, 0xAF, _VOID, _CRC}


def check(source: pieces.Source) -> list[int]:
    _, at, end = _element(source, 0, source.size)
    source.header(at, end)
    at = end
    segments = 0
    while at < source.size:
        name, start, end = _element(source, at, source.size)
        if name == _SEGMENT:
            segments += 1
            pictures = _segment(source, start, end)
        elif name not in (_VOID, _CRC):
            raise pieces.damaged(f"an unknown element {name:#x} at byte {at}")
        at = end
    if segments != 1:
        raise MediaError("broken header", f"{segments} segments, not one.")
    return pictures


def _element(source: pieces.Source, at: int, end: int) -> tuple[int, int, int]:
    """Returns (id, start, end) of the element at `at`; without a length it goes on to `end`."""
    source.count()
    name, start, size = _element_head(source.read(at, min(12, end - at)), at)
    if size is None:
        return name, start, end
    if start + size > end:
        raise MediaError(
            "damaged", f"element {name:#x} at byte {at} goes on after its parent's end."
        )
    return name, start, start + size


def _element_head(head: bytes, at: int) -> tuple[int, int, int | None]:
    length = 9 - head[0].bit_length() if head else 9
    if length > 4:
        raise pieces.damaged(f"no element starts at byte {at}")
    name = int.from_bytes(head[:length], "big")
    width = 9 - head[length].bit_length()
    if width > 8:
        raise pieces.damaged(f"an element of no length at byte {at}")
    field = head[length : length + width]
    if len(field) < width:
        raise MediaError("damaged", f"the file ends within an element at byte {at}.")
    size = int.from_bytes(field, "big") & ((1 << 7 * width) - 1)
    start = at + length + width
    return name, start, None if size == (1 << 7 * width) - 1 else size


def _segment(source: pieces.Source, at: int, end: int) -> list[int]:
    first = at
    clusters, cues, blocks, tracks = set(), [], {}, None
    while at < end:
        name, start, stop = _element(source, at, end)
        if name == _CLUSTER:
            clusters.add(at - first)
            stop = _cluster(source, start, stop, at, blocks)
        elif name in _LEVEL_1:
            content = source.header(start, stop)
            content = _without_crc(content, at)
            _nested(source, content, start, 1)
            if name == _CUES:
                cues = list(_cue_positions(content))
            elif name == 0x1654AE6B and tracks is None:
                tracks = _tracks(content)
                pieces.check_streams(len(tracks), source)
        elif name not in (_VOID, _CRC):
            raise pieces.damaged(f"an unknown element {name:#x} at byte {at}")
        at = stop
    if any(position not in clusters for position in cues):
        raise pieces.damaged("an index that points to no cluster")
    if tracks is None:
        return []
    if set(blocks) - set(tracks):
        raise pieces.damaged(
            f"blocks of a track {min(set(blocks) - set(tracks))} that there is not"
        )
    return [blocks.get(number, 0) for number, kind in tracks.items() if kind == 1]


def _tracks(content: bytes) -> dict[int, int]:
    """Returns track number -> type, 1 for video."""
    tracks = {}
    for name, entry in _children(content):
        fields = dict(_children(entry)) if name == 0xAE else {}
        if 0xD7 in fields and 0x83 in fields:
            number, kind = (int.from_bytes(fields[field], "big") for field in (0xD7, 0x83))
            tracks[number] = kind
    return tracks


def _without_crc(content: bytes, at: int) -> bytes:
    """Checks the CRC-32 element that may stand first (RFC 8794, 11.3.1)."""
    if content[:2] != b"\xbf\x84":
        return content
    if zlib.crc32(content[6:]) != int.from_bytes(content[2:6], "little"):
        raise pieces.damaged(f"the checksum of the element at byte {at} is wrong")
    return content[6:]


_MASTERS = {0x4DBB, 0xAE, 0xE0, 0xE1, 0xBB, 0xB7, 0x7373, 0x63C0, 0x67C8, 0x6D80, 0x45B9, 0xB6}


def _nested(source: pieces.Source, content: bytes, at: int, depth: int):
    """Elements tile the content of a master element."""
    if depth > pieces.MAX_DEPTH:
        raise MediaError("too large", f"elements nest deeper than {pieces.MAX_DEPTH}.")
    position = 0
    while position < len(content):
        source.count()
        head = content[position : position + 12]
        name, start, size = _element_head(head, position)
        if size is None or start + size > len(content):
            raise pieces.damaged(f"element {name:#x} in the one at byte {at} is too long")
        if name in _MASTERS:
            _nested(source, content[start : start + size], at, depth + 1)
        position = start + size


def _cue_positions(cues: bytes) -> Iterator[int]:
    for name, point in _children(cues):
        for inner, positions in _children(point) if name == 0xBB else ():
            for field, value in _children(positions) if inner == 0xB7 else ():
                if field == 0xF1:
                    yield int.from_bytes(value, "big")


def _children(content: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(content):
        name, start, size = _element_head(content[position : position + 12], position)
        yield name, content[start : start + (size or 0)]
        position = start + (size or 0)


def _cluster(source: pieces.Source, start: int, end: int, at: int, blocks: dict[int, int]) -> int:
    """Checks a cluster and returns where it ends; one without a length ends before the next.

    Counts the blocks by track; a block group holds one block.
    """
    position, has_time = start, False
    while position < end:
        head = source.read(position, min(12, end - position))
        name, inner, size = _element_head(head, position)
        if name in _LEVEL_1:
            break
        source.count()
        if name not in _IN_CLUSTER:
            raise pieces.damaged(f"an unknown element {name:#x} in the cluster at byte {at}")
        if size is None or inner + size > end:
            raise MediaError("damaged", f"a block at byte {position} goes on after its cluster.")
        if name == _CRC and position == start:
            if size != 4:
                raise pieces.damaged(f"the checksum of the cluster at byte {at} has {size} bytes")
            _check_cluster_crc(source, inner, end, at)
        has_time |= name == 0xE7
        block = b""
        if name == 0xA3:
            block = source.read(inner, min(2, size))
        elif name == 0xA0:
            block = dict(_children(source.header(inner, inner + size))).get(0xA1, b"")[:2]
        if block:
            track = block[0] & 0x7F if block[0] & 0x80 else int.from_bytes(block, "big") & 0x3FFF
            blocks[track] = blocks.get(track, 0) + 1
        position = inner + size
    if not has_time:
        raise pieces.damaged(f"the cluster at byte {at} has no time")
    return position


def _check_cluster_crc(source: pieces.Source, inner: int, end: int, at: int):
    expected = int.from_bytes(source.read(inner, 4), "little")
    crc, position = 0, inner + 4
    while position < end:
        chunk = source.read(position, min(1 << 20, end - position))
        crc, position = zlib.crc32(chunk, crc), position + len(chunk)
    if crc != expected:
        raise pieces.damaged(f"the checksum of the cluster at byte {at} is wrong")
