"""What every reader of media files shares: limits, the reasons for a refusal, and formats."""

import dataclasses

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Media that are not read; a folder that has some says so.
OTHER_SUFFIXES = (".ts", ".mts", ".m2ts", ".flv", ".wmv", ".mpg", ".mpeg", ".3gp", ".ogv")
OTHER_SUFFIXES += (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl")


class MediaError(ValueError):
    """A file that cannot be used. `reason` is one short word or two for counting.

    `head` is what its header says, a `probes.Probe`, where that could be read.
    """

    head = None

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason, str(self))


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a single file may cost. A clip over a limit is refused, before decoding if possible."""

    max_bytes: int = 2 << 30
    max_frames: int = 20_000
    max_pixels: int = 4096 * 4096  # of one frame
    max_video_pixels: int = 40 << 30  # of all frames together
    max_decoded_bytes: int = 8 << 30  # of the frames returned at once
    max_streams: int = 16
    max_fps: float = 1000.0
    max_header_bytes: int = 64 << 20  # of one table of contents, or a whole JPEG
    max_samples: int = 4_000_000  # of one track: three hours of sound have 500,000
    max_uneven: float = 0.1  # share of frames shown half or twice as long as is usual in the file


DEFAULT_LIMITS = Limits()


def sniff(head: bytes) -> str | None:
    """Names the format (FFmpeg's or PIL's name) from a file's first bytes; None if unknown."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WEBP"):
        return {b"AVI ": "avi", b"WEBP": "webp"}[head[8:12]]
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    return "jpeg" if head[:3] == b"\xff\xd8\xff" else None
