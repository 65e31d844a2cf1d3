"""Hostile and unusual media files, each made by hand for one thing that may go wrong."""

import dataclasses
import functools
import io
import struct
import zlib
from collections.abc import Iterator

import av
import numpy as np

from tests import valid_media

REFUSED, VALID, ANY, DAMAGED = "refused", "valid", "any", "damaged"


@dataclasses.dataclass(frozen=True)
class Case:
    """One file. `expect` is REFUSED, VALID (with `facts`), ANY, or DAMAGED (a change of `base`)."""

    kind: str
    content: bytes
    suffix: str = ".mp4"
    expect: str = REFUSED
    base: str = ""
    facts: tuple[tuple[str, object], ...] = ()
    link: str | None = None  # make a symbolic link to this instead
    reasons: tuple[str, ...] = ()  # of the refusal; empty: any


def box(name: bytes, *content: bytes) -> bytes:
    """Returns an mp4 box."""
    body = b"".join(content)
    return struct.pack(">I4s", len(body) + 8, name) + body


def _patched(content: bytes, name: bytes, offset: int, new: bytes) -> bytes:
    """Writes `new` at an offset behind the first box of a name."""
    first = content.index(b"stsd") if name[:3] == b"avc" else 0  # a brand is called avc1 too
    at = content.index(name, first) + len(name) + offset
    return content[:at] + new + content[at + len(new) :]


@functools.cache
def small_video(**options) -> bytes:
    return valid_media.video(size=(64, 96), frames=9, **options)


def _playlists(folder: str) -> Iterator[tuple[str, str]]:
    for name in (
        "canary.mp4",
        f"{folder}/canary.mp4",
        "../canary.mp4",
        f"file:{folder}/canary.mp4",
    ):
        yield "playlist concat", f"ffconcat version 1.0\nfile '{name}'\n"
        yield "playlist concat", f"file '{name}'\nduration 2\n"
        yield (
            "playlist hls",
            f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{name}\n#EXT-X-ENDLIST\n",
        )
        yield "playlist hls", f'#EXTM3U\n#EXT-X-MAP:URI="{name}"\n#EXTINF:1,\n{name}\n'
        yield (
            "playlist dash",
            "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'><Period>"
            f"<AdaptationSet><Representation id='0'><BaseURL>{name}</BaseURL></Representation>"
            "</AdaptationSet></Period></MPD>",
        )
        yield "playlist smil", f"<smil><body><video src='{name}'/></body></smil>"
        yield "playlist asx", f"<asx version='3.0'><entry><ref href='{name}'/></entry></asx>"
    yield (
        "playlist sdp",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    )
    yield "playlist network", "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"
    yield "playlist network", "ffconcat version 1.0\nfile tcp://127.0.0.1:9\n"


def cases(rng: np.random.Generator, folder: str) -> Iterator[Case]:
    """Yields every case.

    Args:
        rng: Of random bytes.
        folder: Where the canary lies, for playlists with absolute paths.
    """
    for suffix in (".mp4", ".mkv", ".avi", ".webm", ".png", ".jpg", ".webp", ".mov"):
        yield Case("empty", b"", suffix)
        yield Case("text", b"hello world, this is no video\n" * 40, suffix)
        yield Case("random bytes", rng.bytes(5000), suffix)
        yield Case("zeros", bytes(5000), suffix)
    heads = (
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"\x1a\x45\xdf\xa3",
        b"RIFF\0\1\0\0AVI ",
        b"\x89PNG\r\n\x1a\n",
    )
    for head in (*heads, b"RIFF\0\1\0\0WEBP", b"\xff\xd8\xff", b"\0\0\0\x08wide"):
        for tail in (b"", bytes(4000), rng.bytes(4000), b"ffconcat version 1.0\nfile canary.mp4\n"):
            yield Case("magic and garbage", head + tail)
    for kind, text in _playlists(folder):
        for suffix in (".mp4", ".mkv", ".m3u8"):
            yield Case(kind, text.encode(), suffix)
        yield Case("playlist after magic", b"\0\0\0\x18ftypmp42" + text.encode())
    reference = box(b"url ", bytes(4), b"file://" + folder.encode() + b"/canary.mp4\0")
    alias = box(b"dref", bytes(4), struct.pack(">I", 1), reference)
    whole = small_video(container="mov")
    at = whole.index(b"dref") - 4
    size = struct.unpack(">I", whole[at : at + 4])[0]
    grown = whole[:at] + alias + whole[at + size :]
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        where = grown.index(name) - 4
        old = struct.unpack(">I", grown[where : where + 4])[0]
        grown = _patched(grown, name, -8, struct.pack(">I", old + len(alias) - size))
    yield Case("external reference", grown, ".mov", ANY)
    for target in (
        "canary.mp4",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/environ",
        "loop",
        "missing",
    ):
        expect = ANY if target == "canary.mp4" else REFUSED  # a link is its target
        yield Case("symbolic link", b"", ".mp4", expect, link=target)
    yield from _bombs(rng)
    yield from _structures(rng)
    yield from _unusual()
    image = valid_media.image("png", size=(64, 96))
    for tail in (b"PK\5\6" + bytes(18), b"<script>alert(1)</script>", small_video(), b"%PDF-1.4\n"):
        yield Case("polyglot", small_video() + tail, ".mp4", ANY)
        yield Case("polyglot", image + tail, ".png", ANY)
        yield Case("polyglot", box(b"free", tail) + small_video(), ".mp4", ANY)


def _png(width: int, height: int, rows: bytes | None = None) -> bytes:
    chunk = lambda name, body: (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    )
    data = rows if rows is not None else _deflated_zeros(height * (1 + 3 * width))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@functools.cache
def _deflated_zeros(size: int) -> bytes:
    packer, out = zlib.compressobj(9), []
    while size:
        out.append(packer.compress(bytes(min(size, 1 << 20))))
        size -= min(size, 1 << 20)
    return b"".join(out) + packer.flush()


@functools.cache
def _flat(codec: str, container: str, side: int, frames: int, fps: int = 24) -> bytes:
    """Encodes frames of one colour: huge pictures in few bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        output.flags |= av.container.Flags.bitexact.value
        stream = output.add_stream(codec, rate=fps)
        stream.height = stream.width = side
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        if codec == "libx264":
            stream.options = {"preset": "ultrafast"}
        frame = av.VideoFrame(side, side, stream.pix_fmt)
        for plane in frame.planes:
            plane.update(bytes([128]) * plane.buffer_size)
        for number in range(frames):
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def _bombs(rng) -> Iterator[Case]:
    """Yields files that cost far more than their size: pixels, frames, streams, tables, pages."""
    for side in (16384, 30000, 65535):
        yield Case("png bomb", _png(side, side, b"x\x9c"), ".png")
    yield Case("png bomb", _png(16384, 16384), ".png", reasons=("too large", "broken header"))
    yield Case("png bomb", _png(4096, 4096, _deflated_zeros(400 << 20)), ".png", ANY)
    yield Case("png bomb", _png(100, 100, _deflated_zeros(400 << 20)), ".png", ANY)
    for side in (0, 1 << 30, 0xFFFFFFFF):
        yield Case("png bomb", _png(side, 10, b"x\x9c"), ".png")
    large = _flat("mjpeg", "avi", 8192, 1)
    yield Case("16k pictures", large, ".avi", reasons=("too large", "broken header"))
    yield Case("16k pictures", _flat("libx264", "mp4", 8192, 1), reasons=("too large", "damaged"))
    small, claim = small_video(), struct.pack(">HH", 16384, 16384)
    lying = _patched(_patched(small, b"avc1", 24, claim), b"tkhd", 76, b"\x40\0\0\0\x40\0\0\0")
    yield Case("16k claimed", lying, expect=ANY)
    hidden = _patched(_flat("libx264", "mp4", 8192, 1), b"avc1", 24, struct.pack(">HH", 64, 64))
    yield Case("16k hidden", hidden)
    yield Case("16k hidden", _patched(hidden, b"mdhd", 12, struct.pack(">II", 24, 1)))
    many = _flat("libx264", "mp4", 16, 30_000, 1000)
    yield Case("a million frames", many, reasons=("too long",))
    yield Case("a million frames", _flat("mpeg4", "matroska", 16, 30_000, 1000), ".mkv")
    yield Case("a million frames", _flat("mpeg4", "avi", 16, 30_000, 1000), ".avi")
    for count in (10**6, 2**31, 2**32 - 1):
        for table, offset in ((b"stsz", 8), (b"stts", 4), (b"stco", 4), (b"stsc", 4), (b"ctts", 4)):
            claimed = _patched(small, table, offset, struct.pack(">I", count))
            yield Case("a million frames claimed", claimed)
        same = _patched(small, b"stsz", 4, struct.pack(">II", 1, count))
        yield Case("a million frames claimed", same)
    for scale in (0, 1, 10**6, 2**31, 2**32 - 1):
        yield Case(
            "absurd rate", _patched(small, b"mdhd", 12, struct.pack(">I", scale)), expect=ANY
        )
    for delta in (0, 1, 2**31, 2**32 - 1):
        rate = _patched(small, b"stts", 12, struct.pack(">I", delta))
        yield Case("absurd rate", rate, expect=ANY)
    yield Case(
        "absurd rate",
        _patched(small_video(container="avi", codec="mpeg4"), b"strh", 24, bytes(8)),
        ".avi",
        ANY,
    )
    for codec, container, suffix in (
        ("mpeg4", "mp4", ".mp4"),
        ("mpeg4", "matroska", ".mkv"),
        ("mpeg4", "avi", ".avi"),
    ):
        streams = 200 if container != "avi" else 90
        yield Case(
            "200 streams", _many_streams(codec, container, streams), suffix, reasons=("too large",)
        )
    for size in (70 << 20, 1 << 31, 2**32 - 1):
        yield Case("huge moov", struct.pack(">I4s", size, b"moov") + bytes(5000))
    zeros = bytes(66 << 20)
    yield Case("huge moov", box(b"ftyp", b"mp42\0\0\0\0") + box(b"moov", box(b"udta", zeros)))
    yield Case(
        "huge element",
        b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01"
        + b"\xff" * 7
        + b"\x16\x54\xae\x6b\x08"
        + struct.pack(">I", 70 << 20)
        + zeros[:5000],
        ".mkv",
    )


@functools.cache
def _many_streams(codec: str, container: str, count: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        output.flags |= av.container.Flags.bitexact.value
        streams = [output.add_stream(codec, rate=24) for _ in range(count)]
        for stream in streams:
            stream.height = stream.width = 16
            stream.pix_fmt = "yuv420p"
        for stream in streams:
            output.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
            output.mux(stream.encode(None))
    return buffer.getvalue()


def _structures(rng) -> Iterator[Case]:
    """Yields containers that are wrong on purpose."""
    small = small_video()
    for depth in (10, 1000, 20_000):
        nested = b""
        for _ in range(depth):
            nested = box(b"trak", nested) if len(nested) < 1 << 20 else nested
        yield Case("nested boxes", box(b"ftyp", b"mp42\0\0\0\0") + box(b"moov", nested))
        yield Case("nested boxes", small[:-8] + box(b"udta", nested))
    for count in (1000, 500_000):
        yield Case(
            "many boxes", small + box(b"free") * count, expect=ANY if count < 5000 else REFUSED
        )
    for name in (b"mdat", b"moov", b"trak", b"stbl", b"stsd", b"avc1", b"avcC"):
        for size in (0, 1, 7, 2**31, 2**32 - 1):
            yield Case(
                "box lengths",
                _patched(small, name, -8, struct.pack(">I", size)),
                expect=ANY if size == 0 or size == 1 else REFUSED,
            )
    for size in (0, 15, 2**40, 2**63, 2**64 - 1):
        wide = struct.pack(">I4sQ", 1, b"mdat", size)
        yield Case("64-bit lengths", small + wide, expect=REFUSED)
        yield Case("64-bit lengths", wide + small)
    for time_ in (-1, -(2**31), 2**31 - 1, 10**9):
        for offset in (8, 12):
            edited = _patched(small, b"elst", offset, struct.pack(">i", time_))
            yield Case("edit lists", edited, expect=ANY)
    for name, offset in ((b"stco", 8), (b"stsc", 8), (b"stsz", 12), (b"stss", 8), (b"ctts", 8)):
        for value in (0, 2**31, 2**32 - 1):
            yield Case(
                "wrong tables", _patched(small, name, offset, struct.pack(">I", value)), expect=ANY
            )
    for container, suffix in (("matroska", ".mkv"), ("webm", ".webm")):
        codec = "libvpx-vp9" if container == "webm" else "libx264"
        file = small_video(container=container, codec=codec)
        for name in (
            b"\x1f\x43\xb6\x75",
            b"\x16\x54\xae\x6b",
            b"\x18\x53\x80\x67",
            b"\x15\x49\xa9\x66",
        ):
            for size in (b"\x00" * 8, b"\xff" * 8, b"\x80" + bytes(7), b"\x01" + b"\xff" * 7):
                yield Case("element lengths", _patched(file, name, 0, size), suffix, ANY)
    avi = small_video(container="avi", codec="mpeg4")
    for name in (b"RIFF", b"hdrl", b"movi", b"strf", b"00dc", b"idx1"):
        for size in (0, 1, 2**31, 2**32 - 1):
            offset = -8 if name in (b"hdrl", b"movi") else 0
            yield Case(
                "chunk lengths", _patched(avi, name, offset, struct.pack("<I", size)), ".avi", ANY
            )
    for kind, bytes_ in (
        ("jpeg", bytes.fromhex("ffd8ffe0ffff")),
        ("jpeg", bytes.fromhex("ffd8ffd9")),
    ):
        yield Case("empty pictures", bytes_, f".{kind}")
    yield Case("empty pictures", b"RIFF\x04\0\0\0WEBP", ".webp")


def _unusual() -> Iterator[Case]:
    """Yields files that are valid, and unusual: they get right facts or a verdict of their own."""
    facts = lambda **values: tuple(sorted(values.items()))
    valid = lambda kind, content, suffix=".mp4", **values: Case(
        kind, content, suffix, VALID, facts=facts(**values)
    )
    for size in ((63, 95), (33, 64), (47, 96)):
        odd = valid_media.video(size=size, frames=9, pix_fmt="yuv444p")
        yield valid("odd sizes", odd, height=size[0], width=size[1], num_frames=9)
    for angle in (90, -90, 180):
        turned = valid_media.video(frames=9, rotation=angle)
        height, width = (96, 64) if abs(angle) == 90 else (64, 96)
        yield valid("rotation", turned, height=height, width=width, num_frames=9)
    for codec, pix_fmt in (
        ("libx264", "yuv420p10le"),
        ("libx265", "yuv420p10le"),
        ("libx264", "yuv422p10le"),
    ):
        deep = valid_media.video(
            codec,
            frames=9,
            pix_fmt=pix_fmt,
            options={"x265-params": "log-level=none"} if codec == "libx265" else {},
        )
        yield valid("10 bit", deep, height=64, width=96, num_frames=9)
    uneven = [0, 1, 2, 7, 8, 14, 15, 16, 30]
    drifting = [0, 10, 21, 30, 41, 49, 60, 71, 80]
    for container, suffix in (("mp4", ".mp4"), ("matroska", ".mkv")):
        wild = valid_media.video(container=container, frames=9, times=uneven)
        yield Case("variable frame rate", wild, suffix, reasons=("variable rate",))
        steady = valid_media.video(container=container, frames=9, fps=240, times=drifting)
        yield valid("variable frame rate", steady, suffix, num_frames=9, fps=24.0)
        lines = valid_media.video(container=container, frames=9, interlaced=True)
        yield Case("interlaced", lines, suffix, reasons=("interlaced",))
        silent = valid_media.video(container=container, frames=9, sound="aac")
        yield valid("sound", silent, suffix, num_frames=9, height=64, width=96)
        yield Case("no video stream", _sound_only(container), suffix, reasons=("no video",))
    see_through = valid_media.video("qtrle", "mov", frames=9, pix_fmt="argb")
    yield valid("alpha", see_through, ".mov", num_frames=9, height=64, width=96)
    for mode, kind in (
        ("RGBA", "png"),
        ("LA", "png"),
        ("RGBA", "webp"),
        ("P", "png"),
        ("1", "png"),
    ):
        yield valid(
            "alpha", valid_media.image(kind, mode), f".{kind}", num_frames=1, height=64, width=96
        )
    for fps in (1, 12, 60, 120):
        yield valid("rates", valid_media.video(frames=9, fps=fps), num_frames=9, fps=float(fps))
    whole = valid_media.video(frames=9)
    yield valid("wrong suffix", whole, ".avi", num_frames=9)
    yield valid("wrong suffix", valid_media.image("png"), ".mp4", num_frames=1)
    hlg = valid_media.video(
        frames=9,
        pix_fmt="yuv420p10le",
        options={"x264-params": "transfer=arib-std-b67:colorprim=bt2020:colormatrix=bt2020nc"},
    )
    yield Case("high dynamic range", hlg, reasons=("high dynamic range",))


def _sound_only(container: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        output.flags |= av.container.Flags.bitexact.value
        valid_media._add_sound(output, output.add_stream("aac", rate=48000), 0.5)
    return buffer.getvalue()
