"""A corpus of hostile and damaged media files, the same for the same seed, and its check.

    python -m tests.hostile --check=3000 --json=FILE
    python -m tests.hostile --write=DIR --count=500

Each file is decoded by `video_io.check` in a guarded child, as an ingest does it. The check fails
if the parent sees an exception of another kind than a verdict, if a child dies or is killed by its
deadline, takes over 512 MiB, shows pixels of the canary that lies beside every file, if a file that
has to be refused is taken, or one that is valid is refused or gets wrong facts. It prints the share
of damaged files that are flagged, by kind.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator

import av
import numpy as np
import tqdm
from PIL import Image

from data_pipelines import display, encoding, guard, media, opening, probes, video_io, workers
from tests import valid_media

MEMORY_BYTES = 512 << 20
DEADLINE_SECONDS = 60.0
CANARY_RGB = (250, 0, 250)  # of every pixel of the canary video; no other file has it

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


@functools.cache
def bases() -> dict[str, tuple[str, bytes]]:
    """Returns name -> (suffix, content) of the files to damage: a second of what the web serves."""
    made = functools.partial(valid_media.video, size=(360, 640), frames=24, number=1)
    vp9 = {"deadline": "good", "cpu-used": "5", "crf": "34", "b": "0"}
    x265 = {"x265-params": "log-level=none", "preset": "veryfast"}
    return {
        "mp4 h264": (".mp4", made(options={"preset": "fast"}, sound="aac")),
        "mp4 h264 large": (".mp4", made(size=(720, 1280), frames=8, options={"preset": "fast"})),
        "mp4 hevc": (".mp4", made("libx265", options=x265)),
        "mkv h264": (".mkv", made(container="matroska", sound="aac")),
        "mkv without checksums": (".mkv", made(container="matroska", muxer={"write_crc32": "0"})),
        "webm vp9": (".webm", made("libvpx-vp9", "webm", options=vp9, sound="libopus")),
        "webm av1": (".webm", made("libsvtav1", "webm", options={"preset": "10", "crf": "35"})),
        "avi mpeg4": (".avi", made("mpeg4", "avi", options={"b": "1M"}, sound="libmp3lame")),
        "avi mjpeg": (".avi", made("mjpeg", "avi", frames=8, pix_fmt="yuvj420p")),
        "png": (".png", valid_media.image("png", size=(240, 320))),
        "jpeg": (".jpg", valid_media.image("jpeg", size=(360, 640), quality=85)),
        "jpeg progressive": (
            ".jpg",
            valid_media.image("jpeg", size=(360, 640), quality=85, progressive=True),
        ),
        "webp": (".webp", valid_media.image("webp", size=(360, 640), quality=80)),
        "webp lossless": (".webp", valid_media.image("webp", size=(240, 320), lossless=True)),
    }


def flipped(content: bytes, count: int, rng: np.random.Generator) -> bytes:
    """Changes `count` bytes anywhere."""
    spoiled = np.frombuffer(content, np.uint8).copy()
    at = rng.choice(len(spoiled), min(count, len(spoiled)), replace=False)
    spoiled[at] ^= rng.integers(1, 256, len(at), dtype=np.uint8)
    return spoiled.tobytes()


def _span(content: bytes, rng, longest: int) -> tuple[int, int]:
    size = int(rng.integers(1, min(longest, len(content) // 3) + 1))
    start = int(rng.integers(0, len(content) - size))
    return start, start + size


def _zeroed(content, rng):
    start = int(rng.integers(0, max(1, len(content) - 4096)))
    return content[:start] + bytes(min(4096, len(content) - start)) + content[start + 4096 :]


def _deleted(content, rng):
    start, end = _span(content, rng, 4096)
    return content[:start] + content[end:]


def _swapped(content, rng):
    size = int(rng.integers(16, min(2048, len(content) // 4)))
    a = int(rng.integers(0, len(content) // 2 - size))
    b = int(rng.integers(len(content) // 2, len(content) - size))
    return (
        content[:a] + content[b : b + size] + content[a + size : b]
        + content[a : a + size] + content[b + size :]
    )  # fmt: skip


def _appended(content, rng):
    return content + rng.bytes(int(rng.integers(1, 5000)))


def _doubled(content, rng):
    start, end = _span(content, rng, 2048)
    return content[:end] + content[start:end] + content[end:]


DAMAGE: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "1 byte flipped": lambda content, rng: flipped(content, 1, rng),
    "8 bytes flipped": lambda content, rng: flipped(content, 8, rng),
    "64 bytes flipped": lambda content, rng: flipped(content, 64, rng),
    "4 KiB zeroed": _zeroed,
    "range deleted": _deleted,
    "ranges swapped": _swapped,
    "range doubled": _doubled,
    "garbage appended": _appended,
    "cut off": lambda content, rng: content[: int(rng.integers(1, len(content)))],
}


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
def _small(**options) -> bytes:
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


def _hostile(rng: np.random.Generator, folder: str) -> Iterator[Case]:
    """Yields the cases that are made by hand, of every kind that is no random damage."""
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
    whole = _small(container="mov")
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
    for tail in (b"PK\5\6" + bytes(18), b"<script>alert(1)</script>", _small(), b"%PDF-1.4\n"):
        yield Case("polyglot", _small() + tail, ".mp4", ANY)
        yield Case("polyglot", image + tail, ".png", ANY)
        yield Case("polyglot", box(b"free", tail) + _small(), ".mp4", ANY)


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
    small, claim = _small(), struct.pack(">HH", 16384, 16384)
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
        _patched(_small(container="avi", codec="mpeg4"), b"strh", 24, bytes(8)),
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
    small = _small()
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
        file = _small(container=container, codec=codec)
        for name in (
            b"\x1f\x43\xb6\x75",
            b"\x16\x54\xae\x6b",
            b"\x18\x53\x80\x67",
            b"\x15\x49\xa9\x66",
        ):
            for size in (b"\x00" * 8, b"\xff" * 8, b"\x80" + bytes(7), b"\x01" + b"\xff" * 7):
                yield Case("element lengths", _patched(file, name, 0, size), suffix, ANY)
    avi = _small(container="avi", codec="mpeg4")
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


def cases(count: int, seed: int = 0, folder: str = "/nowhere") -> Iterator[Case]:
    """Yields `count` cases: those made by hand, then damage of every kind to every base in turn.

    Args:
        count: With less than there are by hand, an even choice of them is half of the corpus.
        seed: The same seed gives the same files.
        folder: Where the canary lies, for playlists with absolute paths.
    """
    rng = np.random.default_rng(seed)
    by_hand = list(_hostile(rng, folder))
    wanted = min(len(by_hand), max(count // 2, count - 6000))
    picked = np.unique(np.linspace(0, len(by_hand) - 1, wanted).round().astype(int))
    yield from (by_hand[i] for i in picked)
    flips = [name for name in DAMAGE if "flipped" in name]
    # flips three times as often as the others: it is their rate that is asked
    turns = itertools.cycle([*flips, *flips, *flips, *(n for n in DAMAGE if n not in flips)])
    left = count - len(picked)
    while left > 0:
        damage = next(turns)
        for base, (suffix, content) in bases().items():
            if left <= 0:
                return
            spoiled = DAMAGE[damage](content, rng)
            yield Case(damage, spoiled, suffix, DAMAGED, base=base)
            left -= 1


def make_checker(plain: bool = False):
    """Returns what a guarded child does with a file: check it, and say what it saw.

    Args:
        plain: Decode with PyAV and PIL as they are, for comparison.
    """
    valid_media.scene.cache_clear()
    holds = guard.enter(MEMORY_BYTES)
    decode = _plain_check if plain else video_io.check

    def check(_, file) -> dict:
        pixels = hashlib.blake2b(digest_size=16)
        canary = 0

        def visit(number, frame):
            nonlocal canary
            if isinstance(frame, av.VideoFrame):
                for plane in frame.planes:
                    pixels.update(plane)
                if number == 0 and frame.width == frame.height == 64:
                    seen = display.to_rgb(frame).reshape(-1, 3).mean(0)
                    canary = int(np.abs(seen - CANARY_RGB).max() < 30)
            else:
                pixels.update(frame.tobytes())

        seen = {"holds": sorted(holds)}
        start = time.thread_time()
        try:
            facts = dataclasses.asdict(decode(file, visit=visit))
            seen |= {"status": "kept", "facts": facts, "pixels": pixels.hexdigest()}
        except media.MediaError as error:
            seen |= {"status": "refused", "reason": error.reason, "message": str(error)}
        except MemoryError:
            seen |= {"status": "refused", "reason": "too large", "message": "out of memory"}
        peak = _peak_bytes()
        return seen | {"canary": canary, "peak": peak, "cpu": time.thread_time() - start}

    return check


def _plain_check(file, visit) -> probes.Probe:
    """Decodes as most code does: whatever raises no error is taken."""
    try:
        if media.sniff(file.read(16)) in ("png", "jpeg", "webp"):
            with Image.open(file) as image:
                visit(0, image.convert("RGB"))
                return probes.Probe("image", "", 1, image.height, image.width, 0.0)
        file.seek(0)
        with av.open(file) as container:
            for number, frame in enumerate(container.decode(video=0)):
                visit(number, frame)
            return probes.Probe("video", "", number + 1, frame.height, frame.width, 0.0)
    except Exception as error:
        raise media.MediaError("damaged", str(error)) from error


def _peak_bytes() -> int:
    """Returns the most memory that was resident in this process.

    Its ru_maxrss would count that of the parent, which started it by a fork.
    """
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


def run(
    count: int,
    seed: int = 0,
    num_workers: int = 2,
    deadline_seconds: float = DEADLINE_SECONDS,
    plain: bool = False,
) -> dict:
    """Checks a corpus and returns the report; `report["failures"]` has to be empty.

    Unless `plain`: then most of it is wrong, and the shares of flagged files are for comparison.
    """
    failures, tally = [], collections.defaultdict(collections.Counter)
    flips, reasons = collections.defaultdict(collections.Counter), collections.Counter()
    peak, slowest, holds = 0, (0.0, ""), []
    start = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        workers.Pool(
            num_workers,
            "tests.hostile:make_checker",
            (plain,),
            deadline_seconds=deadline_seconds,
            memory_bytes=MEMORY_BYTES,
            max_calls=500,
        ) as pool,
        concurrent.futures.ThreadPoolExecutor(num_workers) as threads,
        tqdm.tqdm(total=count, unit="file", mininterval=2.0) as progress,
    ):
        folder = pathlib.Path(folder)
        _write_canary(folder / "canary.mp4")
        original = {name: pool(0, [io_file(content)]) for name, (_, content) in bases().items()}
        failures += [f"{k}: {v['message']}" for k, v in original.items() if v["status"] != "kept"]

        def one(number: int, case: Case):
            path = _place(case, folder, number)
            try:
                with opening.open_regular(path) as file:
                    return case, pool(0, [file])
            except media.MediaError as error:
                return case, {"status": "refused", "reason": error.reason, "message": str(error)}
            except Exception as error:
                return case, {"status": type(error).__name__, "message": str(error)}
            finally:
                path.unlink()

        for case, seen in _ordered(threads, one, cases(count, seed, str(folder)), 4 * num_workers):
            progress.update()
            tally[case.kind][seen["status"]] += 1
            reasons[seen.get("reason", "")] += 1
            peak = max(peak, seen.get("peak", 0))
            slowest = max(slowest, (seen.get("cpu", 0.0), case.kind))
            holds = seen.get("holds", holds)
            if message := _failure(case, seen):
                failures.append(f"{case.kind} {case.base} {len(case.content)} bytes: {message}")
            if case.expect == DAMAGED:
                _count_flag(flips, case, seen, original[case.base])
    return {
        "files": count,
        "seed": seed,
        "kinds": len(tally),
        "seconds": round(time.monotonic() - start, 1),
        "failures": failures,
        "peak_mib": round(peak / 2**20),
        "slowest_cpu_seconds": [round(slowest[0], 2), slowest[1]],
        "guard": holds,
        "status": {kind: dict(counts) for kind, counts in sorted(tally.items())},
        "reasons": dict(reasons.most_common()),
        "flagged_columns": FLAGGED_COLUMNS,
        "flagged": _rates(flips),
    }


def io_file(content: bytes):
    """Returns an open file of the system that holds these bytes and has no name."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file


def _ordered(threads, function, items, ahead: int):
    """Maps in order, with a few items in flight: the corpus does not fit into memory at once."""
    waiting = collections.deque()
    for number, item in enumerate(items):
        waiting.append(threads.submit(function, number, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _place(case: Case, folder: pathlib.Path, number: int) -> pathlib.Path:
    path = folder / f"{number:06d}{case.suffix}"
    if case.link:
        path.symlink_to(path.name if case.link == "loop" else case.link)
    else:
        path.write_bytes(case.content)
    return path


def _write_canary(path: pathlib.Path):
    buffer = io.BytesIO()
    frames = np.broadcast_to(np.array(CANARY_RGB, np.uint8), (3, 64, 64, 3))
    buffer.write(encoding.encode_mp4(frames, 24))
    path.write_bytes(buffer.getvalue())


def _failure(case: Case, seen: dict) -> str | None:
    """Says what is wrong with a result, None if nothing."""
    if seen["status"] not in ("kept", "refused"):
        return f"{seen['status']}: {seen['message']}"
    if seen.get("canary") and not case.link:
        return "pixels of the canary were seen"
    if seen.get("peak", 0) > MEMORY_BYTES:
        return f"{seen['peak'] >> 20} MiB"
    if case.expect == VALID:
        if seen["status"] != "kept":
            return f"a valid file was refused: {seen['message']}"
        wrong = {
            k: seen["facts"][k]
            for k, v in case.facts
            if not np.isclose(seen["facts"][k], v, rtol=0.02)
        }
        return f"wrong facts {wrong}" if wrong else None
    if case.expect == REFUSED and seen["status"] != "refused":
        return "was taken"
    if case.reasons and seen["reason"] not in case.reasons:
        return f"refused for {seen['reason']!r}, not {case.reasons}: {seen['message']}"
    return None


def _count_flag(flips, case: Case, seen: dict, original: dict):
    same = seen["status"] == "kept" and all(seen[k] == original[k] for k in ("facts", "pixels"))
    outcome = "flagged" if seen["status"] == "refused" else "harmless" if same else "missed"
    group = "images" if case.suffix in media.IMAGE_SUFFIXES else "videos"
    kinds = [case.kind, "all damage"] + ["all flips"] * ("flipped" in case.kind)
    for kind, base in itertools.product(kinds, (case.base, group, "all")):
        flips[kind, base][outcome] += 1


FLAGGED_COLUMNS = ("files", "flagged", "harmless", "flagged_share", "flagged_of_harmful")


def _rates(flips) -> dict:
    """Returns damage -> base -> FLAGGED_COLUMNS; harmless: facts and all pixels are the same."""
    report: dict = {}
    for (kind, base), counts in sorted(flips.items()):
        total, flagged, harmless = counts.total(), counts["flagged"], counts["harmless"]
        shares = round(flagged / total, 4), round(flagged / max(1, total - harmless), 4)
        report.setdefault(kind, {})[base] = [total, flagged, harmless, *shares]
    return report


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", type=int, metavar="N", help="check a corpus of N files")
    parser.add_argument("--write", metavar="DIR", help="write the corpus to a folder")
    parser.add_argument("--count", type=int, default=3000, help="files to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=os.cpu_count())
    parser.add_argument("--plain", action="store_true", help="decode without our checks")
    parser.add_argument("--json", metavar="FILE", help="write the report there")
    args = parser.parse_args()
    if args.write:
        folder = pathlib.Path(args.write)
        folder.mkdir(parents=True, exist_ok=True)
        _write_canary(folder / "canary.mp4")
        for number, case in enumerate(cases(args.count, args.seed, str(folder.resolve()))):
            _place(case, folder, number)
    if args.check:
        report = run(args.check, args.seed, args.num_workers, plain=args.plain)
        text = json.dumps(report, indent=1)
        if args.json:
            pathlib.Path(args.json).write_text(text + "\n")
        print(text)
        if report["failures"]:
            parser.exit(1, f"{len(report['failures'])} failures\n")


if __name__ == "__main__":
    main()
