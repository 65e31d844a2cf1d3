"""mp4 and mov: boxes, and tables of the samples in them (ISO/IEC 14496-12)."""

import dataclasses
import struct

import numpy as np

import data_pipelines.media.structure.pieces as pieces
from data_pipelines.media.limits import MediaError

_TOP = frozenset(
    b"ftyp moov mdat free skip wide uuid meta moof mfra sidx ssix styp emsg prft pdin pnot PICT "
    b"udta junk".split()
)
_PARENTS = frozenset(b"moov trak mdia minf stbl edts dinf moof traf mvex".split())
_NEEDED = {b"moov": b"mvhd", b"trak": b"tkhd mdia", b"mdia": b"mdhd minf", b"minf": b"stbl"}
_KNOWN = frozenset(
    b"mvhd trak iods mvex udta meta tkhd edts mdia tref elst mdhd hdlr minf vmhd smhd nmhd gmhd "
    b"dinf stbl stsd stts stsc stsz stz2 stco co64 ctts stss cslg sdtp sbgp sgpd dref trex mehd "
    b"stps stsh ainf "
    b"mfhd traf tfhd tfdt trun hmhd sthd hinf hnti name chap tmcd cdsc hint clef prof enof load "
    b"imap kind elng senc saiz saio pssh subs leva trep strk keys ilst cprt clip matt kmat uuid "
    b"free skip wide gmin text covr chpl".split()
)


def check(source: pieces.Source) -> int | None:
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
        if pieces.is_nearly(name, _TOP) or name in (_KNOWN | _PARENTS) - _TOP:
            raise pieces.damaged(f"a box {name!r} at byte {at}")
        top.append((name, start, end))
        at = end
    moovs = [(start, end) for name, start, end in top if name == b"moov"]
    data = [(start, end) for name, start, end in top if name == b"mdat"]
    if len(moovs) != 1:
        raise MediaError("broken header", f"{len(moovs)} moov boxes, not one.")
    moov = source.header(*moovs[0])
    boxes = _tree(source, moov, 0, len(moov), b"moov", 1)
    pieces.check_streams(len({b[3] for b in boxes if b[3] is not None}), source)
    goes_on = any(name == b"moof" for name, _, _ in top)
    tracks = [
        _track(moov, [b for b in boxes if b[3] == trak], source, goes_on)
        for trak in sorted({b[3] for b in boxes if b[3] is not None})
    ]
    fragments = _fragments(source, [(start, end) for name, start, end in top if name == b"moof"])
    if not fragments:
        _check_cover(source, [span for track in tracks for span in track.chunks], data)
    return [track.samples + fragments.get(track.id, 0) for track in tracks if track.is_video]


def _fragments(source: pieces.Source, boxes: list[tuple[int, int]]) -> dict[int, int]:
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


def _box(head: bytes, at: int, end: int) -> pieces.Piece:
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
        raise pieces.damaged(f"a box {name!r} of {size} bytes at byte {at}")
    if at + size > end:
        raise MediaError("damaged", f"a box {name!r} at byte {at} goes on after its parent's end.")
    return name, start, at + size


def _tree(source, content, at, end, parent, depth, trak=None) -> list[tuple[bytes, int, int, int]]:
    """Returns the leaves (name, start, end, start of their trak or None) under a box."""
    if depth > pieces.MAX_DEPTH:
        raise MediaError("too large", f"boxes nest deeper than {pieces.MAX_DEPTH}.")
    found, names = [], set()
    while at < end:
        if parent == b"udta" and end - at == 4:
            break  # QuickTime ends user data with a zero
        name, start, stop = _box(content[at : at + 16], at, end)
        source.count()
        names.add(name)
        if pieces.is_nearly(name, _KNOWN) and parent != b"udta":
            raise pieces.damaged(f"an unknown box {name!r} in {parent.decode()!r}")
        if name in _PARENTS:
            inner = start if name == b"trak" else trak
            found += _tree(source, content, start, stop, name, depth + 1, inner)
        else:
            found.append((name, start, stop, trak))
        at = stop
    for needed in _NEEDED.get(parent, b"").split():
        if needed not in names:
            raise pieces.damaged(f"no {needed.decode()!r} in {parent.decode()!r}")
    return found


@dataclasses.dataclass
class _Track:
    """A track of an mp4 file; `chunks` are the spans [n, 2] of its samples in the file."""

    id: int
    is_video: bool
    samples: int
    chunks: np.ndarray


def _track(moov: bytes, boxes: list, source: pieces.Source, goes_on: bool) -> _Track:
    """Checks the sample tables of a track, which goes on in fragments or not."""
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
        raise pieces.damaged("a track without a table of sample sizes")
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
        raise pieces.damaged(f"times for {int(runs[:, 0].sum())} of {count} samples")
    _check_duration(tables, runs, goes_on)
    if b"ctts" in tables:
        shown = int(_counted(tables[b"ctts"], 2, "ctts")[:, 0].sum())
        if shown != count:
            raise pieces.damaged(f"display times for {shown} of {count} samples")
    if b"stss" in tables:
        keys = _counted(tables[b"stss"], 1, "stss")[:, 0]
        if len(keys) and (np.any(np.diff(keys) <= 0) or keys[0] < 1 or keys[-1] > count):
            raise pieces.damaged("key frames that are no samples")
    wide = b"co64" in tables
    offsets = tables.get(b"co64" if wide else b"stco")
    if offsets is None:
        raise pieces.damaged("a track without chunk positions")
    offsets = _counted(offsets, 1, "stco", ">u8" if wide else ">u4")[:, 0]
    chunks = _counted(tables[b"stsc"], 3, "stsc")
    if not count:
        return track
    first = chunks[:, 0]
    if not len(first) or first[0] != 1 or np.any(np.diff(first) <= 0) or first[-1] > len(offsets):
        raise pieces.damaged("a table of chunks out of order")
    entries = struct.unpack(">I", tables[b"stsd"][4:8])[0]
    if np.any(chunks[:, 2] < 1) or np.any(chunks[:, 2] > entries):
        raise pieces.damaged("chunks of an unknown description")
    held = np.repeat(chunks[:, 1], np.diff(np.append(first, len(offsets) + 1)))
    if held.sum() != count:
        raise pieces.damaged(f"chunks of {int(held.sum())} samples, the table has {count}")
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
        raise pieces.damaged("a sample description of the wrong length")


def _counted(box: bytes, columns: int, name: str, kind: str = ">u4") -> np.ndarray:
    """Returns the entries [n, columns] of a table with its length in front, which fill its box."""
    return _table(box[8:], struct.unpack(">I", box[4:8])[0] * columns, kind, name).reshape(
        -1, columns
    )


def _table(content: bytes, count: int, kind: str, name: str) -> np.ndarray:
    if len(content) != count * np.dtype(kind).itemsize:
        raise pieces.damaged(f"a table {name!r} for {count} numbers in {len(content)} bytes")
    return np.frombuffer(content, kind).astype(np.int64)


def _check_duration(tables: dict[bytes, bytes], runs: np.ndarray, goes_on: bool):
    """The samples' times add up to the track's duration, up to the duration of one sample.

    Of a track that goes on in fragments, the duration may be that of the whole.
    """
    head = tables[b"mdhd"]
    scale, duration = struct.unpack(
        ">IQ" if head[0] else ">II", head[20:32] if head[0] else head[12:20]
    )
    total, longest = int((runs[:, 0] * runs[:, 1]).sum()), int(runs[:, 1].max(initial=0))
    if scale == 0:
        raise pieces.damaged("a track with 0 ticks a second")
    shift = 0  # frames are shown later than they are decoded, by as much as they are reordered
    if b"ctts" in tables:
        shift = int(np.abs(_counted(tables[b"ctts"], 2, "ctts", ">i4")[:, 1]).max(initial=0))
    differ = max(0, total - duration) if goes_on else abs(total - duration)
    if total and duration and differ > longest + shift:
        raise pieces.damaged(f"samples of {total} ticks in a track of {duration}")


def _check_cover(source: pieces.Source, spans: list, data: list[tuple[int, int]]):
    """Samples lie within the media data, do not overlap, and leave out nothing but zeros."""
    if not spans:
        return
    spans = np.asarray(spans, np.int64)
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    spans = spans[spans[:, 1] > spans[:, 0]]
    if np.any(spans[1:, 0] < spans[:-1, 1]):
        raise pieces.damaged("samples overlap")
    if len(spans) and spans[-1, 1] > source.size:
        raise MediaError("damaged", f"samples up to byte {spans[-1, 1]} of {source.size}.")
    for start, end in data:
        inside = spans[(spans[:, 0] >= start) & (spans[:, 0] < end)]
        if len(inside) and inside[-1, 1] > end:
            raise pieces.damaged("samples that go on after the media data")
        edges = np.concatenate([[start], inside.ravel(), [end]]).reshape(-1, 2)
        for a, b in edges[edges[:, 1] > edges[:, 0]]:
            source.count()
            gap = source.read(int(a), int(min(b - a, 4096)))
            if gap.strip(b"\0"):
                raise pieces.damaged(f"{b - a} bytes at byte {a} belong to no sample")
    held = sum(np.count_nonzero((spans[:, 0] >= a) & (spans[:, 0] < b)) for a, b in data)
    if held < len(spans):
        raise pieces.damaged("samples outside the media data")
