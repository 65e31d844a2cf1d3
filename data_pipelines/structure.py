"""Walks the boxes, elements and chunks of a media file, before a decoder sees any of it.

A container says most things twice: lengths nest, tables have as many entries as samples, samples
lie side by side in the data, checksums stand beside what they sum. A decoder reads around most
damage; here each byte has to belong to one piece, so that damage is an error, and a hostile header
is refused while only its lengths have been read. Sources: ISO/IEC 14496-12 (mp4, mov), RFC 9559
(Matroska) and RFC 8794 (EBML), the AVI RIFF reference, the PNG specification, ITU T.81 (JPEG), RFC
9649 (WebP). What is inside a coded frame is the decoder's to judge.
"""

import dataclasses
import functools
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from data_pipelines.media import DEFAULT_LIMITS, Limits, MediaError

_MAX_DEPTH = 12
_MAX_PIECES = 200_000  # boxes, elements or chunks of a file

_Piece = tuple[bytes, int, int]  # name, start and end of the content


def check(file: BinaryIO, format: str, limits: Limits = DEFAULT_LIMITS) -> int | None:
    """Checks the container of a file, and counts the coded pictures of its first video track.

    Args:
        file: Seekable; its position changes.
        format: As `media.sniff` names it.

    Returns:
        The number, hidden pictures too; None for images and where the container does not tell.

    Raises:
        MediaError: If the pieces do not fit together ("damaged", "broken header"), or a header is
            over a limit ("too large").
    """
    size = file.seek(0, 2)
    walk = {"mov": _mov, "matroska": _matroska, "avi": _avi, "png": _png, "jpeg": _jpeg}
    try:
        return walk.get(format, _webp)(_Source(file, size, limits))
    except (struct.error, IndexError, KeyError, OverflowError) as error:
        raise MediaError("damaged", f"the {format} header ends within a field.") from error


class _Source:
    """A file by positions; reads no more than the limit for headers at once."""

    def __init__(self, file: BinaryIO, size: int, limits: Limits):
        self.file, self.size, self.limits, self.pieces = file, size, limits, 0

    def read(self, start: int, size: int) -> bytes:
        if size < 0:
            raise _damaged(f"a piece that ends before it begins, at byte {start}")
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
        if self.pieces > _MAX_PIECES:
            raise MediaError("too large", f"the file has more than {_MAX_PIECES} pieces.")


def _check_streams(count: int, source: _Source):
    if count > source.limits.max_streams:
        raise MediaError("too large", f"{count} streams, the limit is {source.limits.max_streams}.")


def _damaged(message: str) -> MediaError:
    return MediaError("damaged", f"the container is damaged: {message}.")


# --- mp4, mov ---------------------------------------------------------------------------------

_TOP = frozenset(
    b"ftyp moov mdat free skip wide uuid meta moof mfra sidx ssix styp emsg prft pdin pnot PICT "
    b"udta junk".split()
)
_PARENTS = frozenset(b"moov trak mdia minf stbl edts dinf moof traf mvex".split())
_NEEDED = {b"moov": b"mvhd", b"trak": b"tkhd mdia", b"mdia": b"mdhd minf", b"minf": b"stbl"}
_KNOWN = frozenset(
    b"mvhd trak iods mvex udta meta tkhd edts mdia tref elst mdhd hdlr minf vmhd smhd nmhd gmhd "
    b"dinf stbl stsd stts stsc stsz stz2 stco co64 ctts stss cslg sdtp sbgp sgpd dref trex mehd "
    b"mfhd traf tfhd tfdt trun hmhd sthd hinf hnti name chap tmcd cdsc hint clef prof enof load "
    b"imap kind elng senc saiz saio pssh subs leva trep strk keys ilst cprt clip matt kmat uuid "
    b"free skip wide gmin text covr chpl".split()
)


def _mov(source: _Source) -> int | None:
    top = []
    at = 0
    while at < source.size:
        try:
            name, start, end = _box(source.read(at, min(16, source.size - at)), at, source.size)
        except MediaError as error:
            if any(name == b"moov" for name, _, _ in top):
                raise
            raise MediaError("broken header", f"{error} No header comes before.") from error
        source.count()
        if _is_nearly(name, _TOP) or name in (_KNOWN | _PARENTS) - _TOP:
            raise _damaged(f"a box {name!r} at byte {at}")
        top.append((name, start, end))
        at = end
    moovs = [(start, end) for name, start, end in top if name == b"moov"]
    data = [(start, end) for name, start, end in top if name == b"mdat"]
    if len(moovs) != 1:
        raise MediaError("broken header", f"{len(moovs)} moov boxes, not one.")
    moov = source.header(*moovs[0])
    boxes = _tree(source, moov, 0, len(moov), b"moov", 1)
    _check_streams(len({b[3] for b in boxes if b[3] is not None}), source)
    tracks = [
        _track(moov, [b for b in boxes if b[3] == trak], source)
        for trak in sorted({b[3] for b in boxes if b[3] is not None})
    ]
    pieces = _fragments(source, [(start, end) for name, start, end in top if name == b"moof"])
    if not pieces:
        _check_cover(source, [span for track in tracks for span in track.chunks], data)
    videos = [track for track in tracks if track.is_video]
    return videos[0].samples + pieces.get(videos[0].id, 0) if videos else None


def _fragments(source: _Source, boxes: list[tuple[int, int]]) -> dict[int, int]:
    """Returns track id -> samples in movie fragments."""
    samples: dict[int, int] = {}
    for start, end in boxes:
        content = source.header(start, end)
        track = None
        for name, at, _, _ in _tree(source, content, 0, len(content), b"moof", 1):
            if name == b"tfhd":
                track = struct.unpack(">I", content[at + 4 : at + 8])[0]
            elif name == b"trun":
                count = struct.unpack(">I", content[at + 4 : at + 8])[0]
                samples[track] = samples.get(track, 0) + count
    return samples


def _box(head: bytes, at: int, end: int) -> _Piece:
    """Returns the box that starts at `at` with these bytes, within what ends at `end`."""
    if len(head) < 8:
        raise MediaError("damaged", f"{len(head)} stray bytes at byte {at}.")
    size, name = struct.unpack(">I4s", head[:8])
    start = at + 8
    if size == 1:
        size, start = struct.unpack(">Q", head[8:16])[0], at + 16
    elif size == 0:
        size = end - at
    if size < start - at:
        raise _damaged(f"a box {name!r} of {size} bytes at byte {at}")
    if at + size > end:
        raise MediaError("damaged", f"a box {name!r} at byte {at} goes on after its parent's end.")
    return name, start, at + size


def _is_nearly(name: bytes, known: frozenset) -> bool:
    """Says whether an unknown name differs from a known one by a single byte."""
    return name not in known and not _gapped(known).isdisjoint(_with_gaps(name))


@functools.cache
def _gapped(known: frozenset) -> frozenset:
    return frozenset(gap for name in known for gap in _with_gaps(name))


def _with_gaps(name: bytes) -> list[tuple[int, bytes]]:
    return [(i, name[:i] + name[i + 1 :]) for i in range(len(name))]


def _tree(source, content, at, end, parent, depth, trak=None) -> list[tuple[bytes, int, int, int]]:
    """Returns the leaves (name, start, end, start of their trak or None) under a box."""
    if depth > _MAX_DEPTH:
        raise MediaError("too large", f"boxes nest deeper than {_MAX_DEPTH}.")
    found, names = [], set()
    while at < end:
        if parent == b"udta" and end - at == 4:
            break  # QuickTime ends user data with a zero
        name, start, stop = _box(content[at : at + 16], at, end)
        source.count()
        names.add(name)
        if _is_nearly(name, _KNOWN) and parent != b"udta":
            raise _damaged(f"an unknown box {name!r} in {parent.decode()!r}")
        if name in _PARENTS:
            inner = start if name == b"trak" else trak
            found += _tree(source, content, start, stop, name, depth + 1, inner)
        else:
            found.append((name, start, stop, trak))
        at = stop
    for needed in _NEEDED.get(parent, b"").split():
        if needed not in names:
            raise _damaged(f"no {needed.decode()!r} in {parent.decode()!r}")
    return found


@dataclasses.dataclass
class _Track:
    """A track of an mp4 file; `chunks` are the spans [n, 2] of its samples in the file."""

    id: int
    is_video: bool
    samples: int
    chunks: np.ndarray


def _track(moov: bytes, boxes: list, source: _Source) -> _Track:
    """Checks the sample tables of a track."""
    tables: dict[bytes, bytes] = {}
    for name, start, end, _ in boxes:
        tables.setdefault(name, moov[start:end])
    handler = tables.get(b"hdlr", b"")[8:12]
    head = tables[b"tkhd"]
    number = struct.unpack(">I", head[20:24] if head[0] else head[12:16])[0]
    track = _Track(number, handler == b"vide", 0, np.zeros((0, 2), np.int64))
    sizes_box = tables.get(b"stsz")
    if sizes_box is None or b"stsc" not in tables or b"stsd" not in tables:
        if b"stz2" in tables and b"stts" in tables:  # sizes of 4, 8 or 16 bits: seen in no video
            track.samples = int(_counted(tables[b"stts"], 2, "stts")[:, 0].sum())
            return track
        raise _damaged("a track without a table of sample sizes")
    if track.is_video:
        _check_description(tables[b"stsd"])
    size, count = struct.unpack(">II", sizes_box[4:12])
    if count > source.limits.max_samples:
        raise MediaError(
            "too large", f"a track of {count} samples, the limit is {source.limits.max_samples}."
        )
    track.samples = count
    sizes = _table(sizes_box[12:], count, ">u4", "stsz") if size == 0 else None
    runs = _counted(tables[b"stts"], 2, "stts") if b"stts" in tables else np.zeros((0, 2))
    if runs[:, 0].sum() != count:
        raise _damaged(f"times for {int(runs[:, 0].sum())} of {count} samples")
    _check_duration(tables, runs)
    if b"ctts" in tables:
        shown = int(_counted(tables[b"ctts"], 2, "ctts")[:, 0].sum())
        if shown != count:
            raise _damaged(f"display times for {shown} of {count} samples")
    if b"stss" in tables:
        keys = _counted(tables[b"stss"], 1, "stss")[:, 0]
        if len(keys) and (np.any(np.diff(keys) <= 0) or keys[0] < 1 or keys[-1] > count):
            raise _damaged("key frames that are no samples")
    wide = b"co64" in tables
    offsets = tables.get(b"co64" if wide else b"stco")
    if offsets is None:
        raise _damaged("a track without chunk positions")
    offsets = _counted(offsets, 1, "stco", ">u8" if wide else ">u4")[:, 0]
    chunks = _counted(tables[b"stsc"], 3, "stsc")
    if not count:
        return track
    first = chunks[:, 0]
    if not len(first) or first[0] != 1 or np.any(np.diff(first) <= 0) or first[-1] > len(offsets):
        raise _damaged("a table of chunks out of order")
    entries = struct.unpack(">I", tables[b"stsd"][4:8])[0]
    if np.any(chunks[:, 2] < 1) or np.any(chunks[:, 2] > entries):
        raise _damaged("chunks of an unknown description")
    held = np.repeat(chunks[:, 1], np.diff(np.append(first, len(offsets) + 1)))
    if held.sum() != count:
        raise _damaged(f"chunks of {int(held.sum())} samples, the table has {count}")
    if sizes is None:
        if handler == b"soun" and size == 1:
            return track  # QuickTime counts bytes of raw sound its own way
        lengths = held * size
    else:
        ends = np.cumsum(sizes)
        last = np.cumsum(held)
        lengths = ends[last - 1] - np.append(0, ends[last[:-1] - 1])
    track.chunks = np.stack([offsets, offsets + lengths], axis=1)
    return track


def _check_description(content: bytes):
    """The entries tile the sample description, and boxes tile each after its 78 fixed bytes."""
    at = 8
    for _ in range(min(struct.unpack(">I", content[4:8])[0], 1000)):
        _, start, end = _box(content[at : at + 16], at, len(content))
        inner = start + 78
        while end - inner >= 8:  # QuickTime may end it with four zeros
            _, _, inner = _box(content[inner : inner + 16], inner, end)
        at = end
    if at != len(content):
        raise _damaged("a sample description of the wrong length")


def _counted(box: bytes, columns: int, name: str, kind: str = ">u4") -> np.ndarray:
    """Returns the entries [n, columns] of a table with its length in front, which fill its box."""
    return _table(box[8:], struct.unpack(">I", box[4:8])[0] * columns, kind, name).reshape(
        -1, columns
    )


def _table(content: bytes, count: int, kind: str, name: str) -> np.ndarray:
    if len(content) != count * np.dtype(kind).itemsize:
        raise _damaged(f"a table {name!r} for {count} numbers in {len(content)} bytes")
    return np.frombuffer(content, kind).astype(np.int64)


def _check_duration(tables: dict[bytes, bytes], runs: np.ndarray):
    """The samples' times add up to the track's duration, up to the duration of one sample."""
    head = tables[b"mdhd"]
    scale, duration = struct.unpack(
        ">IQ" if head[0] else ">II", head[20:32] if head[0] else head[12:20]
    )
    total, longest = int((runs[:, 0] * runs[:, 1]).sum()), int(runs[:, 1].max(initial=0))
    if scale == 0:
        raise _damaged("a track with 0 ticks a second")
    shift = 0  # frames are shown later than they are decoded, by as much as they are reordered
    if b"ctts" in tables:
        shift = int(np.abs(_counted(tables[b"ctts"], 2, "ctts", ">i4")[:, 1]).max(initial=0))
    if total and duration and abs(total - duration) > longest + shift:
        raise _damaged(f"samples of {total} ticks in a track of {duration}")


def _check_cover(source: _Source, spans: list, data: list[tuple[int, int]]):
    """Samples lie within the media data, do not overlap, and leave out nothing but zeros."""
    if not spans:
        return
    spans = np.asarray(spans, np.int64)
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    spans = spans[spans[:, 1] > spans[:, 0]]
    if np.any(spans[1:, 0] < spans[:-1, 1]):
        raise _damaged("samples overlap")
    if len(spans) and spans[-1, 1] > source.size:
        raise MediaError("damaged", f"samples up to byte {spans[-1, 1]} of {source.size}.")
    for start, end in data:
        inside = spans[(spans[:, 0] >= start) & (spans[:, 0] < end)]
        if len(inside) and inside[-1, 1] > end:
            raise _damaged("samples that go on after the media data")
        edges = np.concatenate([[start], inside.ravel(), [end]]).reshape(-1, 2)
        for a, b in edges[edges[:, 1] > edges[:, 0]]:
            source.count()
            gap = source.read(int(a), int(min(b - a, 4096)))
            if gap.strip(b"\0"):
                raise _damaged(f"{b - a} bytes at byte {a} belong to no sample")
    held = sum(np.count_nonzero((spans[:, 0] >= a) & (spans[:, 0] < b)) for a, b in data)
    if held < len(spans):
        raise _damaged("samples outside the media data")


# --- Matroska, WebM ---------------------------------------------------------------------------

_SEGMENT, _CLUSTER, _CUES, _CRC, _VOID = 0x18538067, 0x1F43B675, 0x1C53BB6B, 0xBF, 0xEC
_LEVEL_1 = {0x114D9B74, 0x1549A966, 0x1654AE6B, _CLUSTER, _CUES, 0x1941A469, 0x1043A770, 0x1254C367}
_IN_CLUSTER = {0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0x5854, 0xAF, _VOID, _CRC}


def _matroska(source: _Source) -> int | None:
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
            raise _damaged(f"an unknown element {name:#x} at byte {at}")
        at = end
    if segments != 1:
        raise MediaError("broken header", f"{segments} segments, not one.")
    return pictures


def _element(source: _Source, at: int, end: int) -> tuple[int, int, int]:
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
        raise _damaged(f"no element starts at byte {at}")
    name = int.from_bytes(head[:length], "big")
    width = 9 - head[length].bit_length()
    if width > 8:
        raise _damaged(f"an element of no length at byte {at}")
    field = head[length : length + width]
    if len(field) < width:
        raise MediaError("damaged", f"the file ends within an element at byte {at}.")
    size = int.from_bytes(field, "big") & ((1 << 7 * width) - 1)
    start = at + length + width
    return name, start, None if size == (1 << 7 * width) - 1 else size


def _segment(source: _Source, at: int, end: int) -> int | None:
    first = at
    clusters, cues, blocks, video = set(), [], {}, None
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
            elif name == 0x1654AE6B and video is None:
                tracks = _tracks(content)
                _check_streams(len(tracks), source)
                video = next((number for number, kind in tracks.items() if kind == 1), None)
        elif name not in (_VOID, _CRC):
            raise _damaged(f"an unknown element {name:#x} at byte {at}")
        at = stop
    if any(position not in clusters for position in cues):
        raise _damaged("an index that points to no cluster")
    if video is None:
        return None
    if set(blocks) - set(tracks):
        raise _damaged(f"blocks of a track {min(set(blocks) - set(tracks))} that there is not")
    return blocks.get(video, 0)


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
        raise _damaged(f"the checksum of the element at byte {at} is wrong")
    return content[6:]


_MASTERS = {0x4DBB, 0xAE, 0xE0, 0xE1, 0xBB, 0xB7, 0x7373, 0x63C0, 0x67C8, 0x6D80, 0x45B9, 0xB6}


def _nested(source: _Source, content: bytes, at: int, depth: int):
    """Elements tile the content of a master element."""
    if depth > _MAX_DEPTH:
        raise MediaError("too large", f"elements nest deeper than {_MAX_DEPTH}.")
    position = 0
    while position < len(content):
        source.count()
        head = content[position : position + 12]
        name, start, size = _element_head(head, position)
        if size is None or start + size > len(content):
            raise _damaged(f"element {name:#x} in the one at byte {at} is too long")
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


def _cluster(source: _Source, start: int, end: int, at: int, blocks: dict[int, int]) -> int:
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
            raise _damaged(f"an unknown element {name:#x} in the cluster at byte {at}")
        if size is None or inner + size > end:
            raise MediaError("damaged", f"a block at byte {position} goes on after its cluster.")
        if name == _CRC and position == start:
            if size != 4:
                raise _damaged(f"the checksum of the cluster at byte {at} has {size} bytes")
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
        raise _damaged(f"the cluster at byte {at} has no time")
    return position


def _check_cluster_crc(source: _Source, inner: int, end: int, at: int):
    expected = int.from_bytes(source.read(inner, 4), "little")
    crc, position = 0, inner + 4
    while position < end:
        chunk = source.read(position, min(1 << 20, end - position))
        crc, position = zlib.crc32(chunk, crc), position + len(chunk)
    if crc != expected:
        raise _damaged(f"the checksum of the cluster at byte {at} is wrong")


# --- AVI, WebP --------------------------------------------------------------------------------


def _chunks(source: _Source, at: int, end: int) -> Iterator[_Piece]:
    """Yields the RIFF chunks of a span; each starts at an even position."""
    while at < end:
        source.count()
        if end - at < 8:
            raise _damaged(f"{end - at} stray bytes at byte {at}")
        name, size = struct.unpack("<4sI", source.read(at, 8))
        stop = at + 8 + size
        if stop > end:
            raise MediaError(
                "damaged", f"chunk {name!r} at byte {at} goes on after its parent's end."
            )
        yield name, at + 8, stop
        at = min(end, stop + size % 2)


def _avi(source: _Source) -> int | None:
    stored: list[_Piece] = []
    index, movi, announced = None, None, None
    parts = list(_chunks(source, 0, source.size))
    for number, (name, start, end) in enumerate(parts):
        if name != b"RIFF" or source.read(start, 4) != (b"AVIX" if number else b"AVI "):
            raise _damaged(f"a chunk {name!r} after the end at byte {start - 8}")
        for part, at, stop in _chunks(source, start + 4, end):
            kind = source.read(at, 4) if part == b"LIST" else b""
            if kind == b"movi":
                movi = at if movi is None else movi
                stored += _stored(source, at + 4, stop)
            elif kind == b"hdrl":
                announced = _announced(source, at + 4, stop)
            elif part == b"idx1":
                index = source.header(at, stop)
            elif _is_nearly(part, frozenset({b"LIST", b"idx1", b"JUNK"})):
                raise _damaged(f"an unknown chunk {part!r} at byte {at - 8}")
    if movi is None or announced is None:
        raise MediaError("broken header", "the file has no header or no media data.")
    if index is not None and len(parts) == 1:
        _check_index(index, stored, movi)
    for number, frames in announced.items():
        names = {b"%02ddc" % number, b"%02ddb" % number}
        sizes = [stop - at for name, at, stop in stored if name in names]
        if len(sizes) != frames and sizes:
            raise MediaError("missing frames", f"{len(sizes)} frames stored, {frames} announced.")
        return sum(size > 0 for size in sizes)  # an empty chunk shows the frame before once more
    return None


def _stored(source: _Source, start: int, end: int) -> list[_Piece]:
    """Returns the chunks of the media data, those in `rec ` lists too."""
    found = []
    for name, at, stop in _chunks(source, start, end):
        if name == b"LIST":
            found += _stored(source, at + 4, stop)
        elif name[:2].isdigit() or name[:2] == b"ix" or name == b"JUNK":
            found.append((name, at, stop))
        else:
            raise _damaged(f"an unknown chunk {name!r} at byte {at - 8}")
    return found


def _announced(source: _Source, start: int, end: int) -> dict[int, int]:
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
    _check_streams(number, source)
    return frames


def _check_index(index: bytes, stored: list[_Piece], movi: int):
    """Each entry names a chunk; positions count from `movi` or from the start of the file."""
    if len(index) % 16:
        raise _damaged(f"an index of {len(index)} bytes")
    chunks = {(name, start, end - start) for name, start, end in stored}
    entries = list(struct.iter_unpack("<4sIII", index))
    for base in (movi, 0):
        if all((name, base + at + 8, size) in chunks for name, _, at, size in entries):
            break
    else:
        raise _damaged("an index that points to no chunk")
    if len(entries) != sum(name[:2].isdigit() for name, _, _ in stored):
        raise _damaged(f"an index of {len(entries)} chunks for {len(stored)}")


def _webp(source: _Source):
    pieces = list(_chunks(source, 0, source.size))
    if len(pieces) != 1:
        raise _damaged("data after the end")
    _, start, end = pieces[0]
    known = frozenset(
        {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP "}
    )
    names = []
    for name, at, stop in _chunks(source, start + 4, end):
        names.append(name)
        if _is_nearly(name, known):
            raise _damaged(f"an unknown chunk {name!r} at byte {at - 8}")
        if name == b"VP8 ":
            _check_vp8(source.read(at, min(10, stop - at)), stop - at)
    if not {b"VP8 ", b"VP8L", b"ANMF"} & set(names):
        raise _damaged("no picture")


def _check_vp8(head: bytes, size: int):
    """A key frame whose first partition fits (RFC 6386, 9.1)."""
    tag = int.from_bytes(head[:3], "little")
    if tag & 1 or head[3:6] != b"\x9d\x01\x2a" or not tag >> 4 & 1 or 10 + (tag >> 5) > size:
        raise _damaged("the frame header is wrong")


# --- PNG, JPEG --------------------------------------------------------------------------------


def _png(source: _Source):
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
            raise _damaged(f"the checksum of chunk {name!r} at byte {at} is wrong")
        names.append(name)
        at += 12 + size
        if name == b"IEND":
            break
    if not names or names[0] != b"IHDR" or names[-1] != b"IEND" or b"IDAT" not in names:
        raise MediaError("damaged", "the chunks are not a whole picture.")
    if at < source.size:
        raise _damaged(f"{source.size - at} bytes after the end")


def _jpeg(source: _Source):
    """Markers from start to end: lengths fit, and coded data hold only restarts, in order."""
    content = source.header(0, source.size)
    at, interval, scans = 2, 0, 0
    while True:
        if content[at] != 0xFF:
            raise _damaged(f"no marker at byte {at}")
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
        raise _damaged("no picture")


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
                raise _damaged(f"a restart marker out of order at byte {at}")
            expected += 1
        elif marker not in (0x00, 0xFF):
            return at
        at += 1 if marker == 0xFF else 2
