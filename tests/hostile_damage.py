"""Random damage to valid media files."""

import functools
from collections.abc import Callable

import numpy as np

from tests import valid_media


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
