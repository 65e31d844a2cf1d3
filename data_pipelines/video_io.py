"""Reads and writes videos and images: probe, decode, full check, encode; frames are uint8 THWC RGB.

Files come from anywhere, so nothing in them is trusted: the format is forced from the first bytes
(left to itself FFmpeg takes a text file named .mp4 for a playlist and opens the files it names),
sizes are checked before a frame is decoded, and a damaged stream is an error rather than gray
blocks (`err_detect=explode`, and every frame that the header announces has to come). Turned
(display matrix) and non-square pixels are not undone. Decoding uses one thread: the loader and the
ingest run many decoders side by side.
"""

import dataclasses
import fractions
import io
import itertools
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from typing import BinaryIO

import av
import numpy as np
from PIL import Image, ImageOps

IMAGE_FPS = 120.0  # the frame rate that stands for "a still image" (Open-Sora 1.2)
UNKNOWN_FPS = 24.0
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

av.logging.set_level(av.logging.PANIC)  # errors arrive as exceptions; FFmpeg's own lines go


class MediaError(ValueError):
    """A file that cannot be used. `reason` is one short word or two for counting."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


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


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a file is; `num_frames` is the header's claim (None if it makes none) until decoded."""

    kind: str  # "video" or "image"
    format: str
    num_frames: int | None
    height: int
    width: int
    fps: float
    codec: str = ""  # FFmpeg's name, "h264"; of an image its format


Source = bytes | str | os.PathLike | BinaryIO  # a file has to be seekable; it is not closed


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


def probe(source: Source, limits: Limits = Limits()) -> Probe:
    """Reads the header only.

    Raises:
        MediaError: If the file is not a known format, has no picture, or is over a limit.
    """
    with _open(source, limits) as (file, format):
        if format in ("png", "jpeg", "webp"):
            with _open_image(file, format, limits) as image:
                width, height = _displayed_size(image)
            return Probe("image", format, 1, height, width, IMAGE_FPS, format)
        with _open_video(file, format, limits) as (_, stream):
            return _probe_stream(stream, format, limits)


def decode(
    source: Source,
    frames: Sequence[int] | None = None,
    limits: Limits = Limits(),
) -> np.ndarray:
    """Decodes the frames with these numbers (ascending; None: all), uint8 [T, H, W, 3].

    Decoding starts at the first frame of the file and ends with the last one wanted: meant for
    clips of seconds.

    Raises:
        MediaError: If the file is damaged or shorter than asked, or over a limit.
    """
    if frames is not None and any(b < a for a, b in itertools.pairwise(frames)):
        raise ValueError(f"the frame numbers have to ascend, but are {list(frames)}.")
    with _open(source, limits) as (file, format):
        if format in ("png", "jpeg", "webp"):
            with _open_image(file, format, limits) as image:
                video = np.asarray(_upright(image))[None]
            if frames is None:
                return video
            if frames and frames[-1] > 0:
                raise MediaError("too short", f"an image has 1 frame, not frame {frames[-1]}.")
            return np.repeat(video, len(frames), axis=0)
        with _open_video(file, format, limits) as (container, stream):
            head = _probe_stream(stream, format, limits)
            wanted = None if frames is None else list(frames)
            video, count = [], 0
            to_rgb = av.video.reformatter.VideoReformatter()  # a new one a frame costs 0.5 ms
            budget = limits.max_decoded_bytes // (3 * head.height * head.width)
            for frame in _frames(container, stream, head, limits):
                times = 1 if wanted is None else wanted.count(count)
                if times:
                    if len(video) + times > budget:
                        raise MediaError(
                            "too large",
                            f"the frames asked for are over {limits.max_decoded_bytes} bytes.",
                        )
                    video += [
                        to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
                    ] * times
                count += 1
                if wanted is not None and (not wanted or count > wanted[-1]):
                    break
            if wanted is not None and len(video) < len(wanted):
                raise MediaError("too short", f"the video has {count} frames, not {wanted[-1]}.")
            return np.stack(video) if video else np.zeros((0, head.height, head.width, 3), np.uint8)


def check(
    source: Source,
    limits: Limits = Limits(),
    visit: Callable[[int, av.VideoFrame | Image.Image], None] | None = None,
) -> Probe:
    """Decodes the whole file and returns the probe with the true number of frames.

    Args:
        source: Path, bytes or a seekable binary file.
        limits: What the file may cost.
        visit: Called with the number and the frame for each frame as it is decoded; an image is
            one RGB frame. What it raises ends the check.

    Raises:
        MediaError: If any frame is damaged or missing, or a limit is passed.
    """
    with _open(source, limits) as (file, format):
        if format in ("png", "jpeg", "webp"):
            with _open_image(file, format, limits) as image:
                image = _upright(image)
            if visit:
                visit(0, image)
            return Probe("image", format, 1, image.height, image.width, IMAGE_FPS, format)
        with _open_video(file, format, limits) as (container, stream):
            head = _probe_stream(stream, format, limits)
            dropped: list[int] = []
            count = 0
            for frame in _frames(container, stream, head, limits, dropped):
                if visit:
                    visit(count, frame)
                count += 1
            expected = None if head.num_frames is None else head.num_frames - len(dropped)
            if count == 0 or (expected is not None and count != expected):
                raise MediaError(
                    "missing frames", f"{count} frames decoded, the header announces {expected}."
                )
            return dataclasses.replace(head, num_frames=count)


def encode_mp4(video_THWC: np.ndarray, fps: float, *, crf: int = 10) -> bytes:
    """Encodes H.264; the same frames give the same bytes for one version of the encoder.

    Pixels are 4:2:0, which every player shows, or 4:4:4 where a side is odd.

    Args:
        video_THWC: uint8 RGB.
        fps: Frames per second; 29.97 and the like become the exact 30000/1001.
        crf: Quality, 0 (best) to 51. Small clips are cheap, so the default is high.
    """
    if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[-1] != 3:
        raise ValueError(
            f"the video is {video_THWC.dtype} {video_THWC.shape}, but has to be uint8 [T, H, W, 3]."
        )
    if not 0 < fps <= 1000 or len(video_THWC) == 0:
        raise ValueError(
            f"{len(video_THWC)} frames at fps={fps}: give one frame or more, and 0 < fps <= 1000."
        )
    _, height, width, _ = video_THWC.shape
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.flags |= av.container.Flags.bitexact.value
        stream = container.add_stream("libx264", rate=_rate(fps))
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        # macroblock trees read memory that was never set where sides are under 64 pixels, so the
        # bytes changed from call to call
        context.options = {"crf": str(crf), "preset": "medium", "x264-params": "mbtree=0"}
        context.options |= {"flags": "+bitexact"}
        context.colorspace = av.video.reformatter.Colorspace.ITU601.value
        context.color_range = 1  # limited, as players expect
        to_yuv = av.video.reformatter.VideoReformatter()
        for image_HWC in video_THWC:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
            frame = to_yuv.reformat(
                frame,
                format=stream.pix_fmt,
                dst_colorspace="ITU601",
                dst_color_range="MPEG",
                threads=1,
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def encode_png(image_HWC: np.ndarray) -> bytes:
    """Encodes one uint8 RGB image."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC, "RGB").save(buffer, format="PNG")
    return buffer.getvalue()


class _open:
    """Context of (file, format) for a source; refuses unknown and oversized files."""

    def __init__(self, source: Source, limits: Limits):
        self.source, self.limits = source, limits

    def __enter__(self) -> tuple[BinaryIO, str]:
        self.ours = isinstance(self.source, (bytes, bytearray, memoryview, str, os.PathLike))
        if not self.ours:
            self.file = self.source
        elif isinstance(self.source, (str, os.PathLike)):
            self.file = _open_regular(self.source)
        else:
            self.file = io.BytesIO(self.source)
        try:
            size = self.file.seek(0, os.SEEK_END)
            self.file.seek(0)
            if size == 0:
                raise MediaError("empty", "the file has 0 bytes.")
            if size > self.limits.max_bytes:
                raise MediaError(
                    "too large", f"{size} bytes, the limit is {self.limits.max_bytes}."
                )
            format = sniff(self.file.read(16))
            self.file.seek(0)
            if format is None:
                raise MediaError(
                    "unknown format", "not an mp4, mov, mkv, webm, avi, png, jpeg or webp file."
                )
        except OSError as error:
            self.__exit__()
            raise MediaError("unreadable", f"cannot be read: {error}.") from error
        except MediaError:
            self.__exit__()
            raise
        return self.file, format

    def __exit__(self, *_):
        if self.ours:
            self.file.close()


def _open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a file for reading, and neither waits for a pipe nor reads a device."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError("unreadable", f"cannot be opened: {reason}.") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise MediaError("unreadable", "is a folder, a pipe or a device, and no file.")
    return os.fdopen(handle, "rb")


class _open_video:
    """Context of (container, stream), with FFmpeg's errors turned into MediaError."""

    def __init__(self, file, format: str, limits: Limits):
        self.file, self.format, self.limits = file, format, limits

    def __enter__(self):
        try:
            self.container = av.open(self.file, format=self.format, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            raise MediaError("broken header", f"the header cannot be read ({error}).") from error
        try:
            if len(self.container.streams) > self.limits.max_streams:
                raise MediaError(
                    "too large",
                    f"{len(self.container.streams)} streams, the limit is "
                    f"{self.limits.max_streams}.",
                )
            if not self.container.streams.video:
                raise MediaError("no video", "the file has no video stream.")
            stream = self.container.streams.video[0]
            if stream.codec_context is None:
                raise MediaError("unknown codec", "no decoder for the video stream.")
            stream.codec_context.options = {
                "err_detect": "explode",
                "max_pixels": str(self.limits.max_pixels),
            }
            stream.codec_context.thread_count = 1
            return self.container, stream
        except MediaError:
            self.container.close()
            raise

    def __exit__(self, kind, error, _):
        self.container.close()
        if isinstance(error, av.FFmpegError):
            raise MediaError("damaged", f"decoding fails ({error}).") from error


class _open_image:
    """Context of a PIL image, with its errors turned into MediaError."""

    def __init__(self, file, format: str, limits: Limits):
        self.file, self.format, self.limits = file, format, limits

    def __enter__(self):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = Image.open(self.file, formats=[self.format.upper()])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise MediaError("broken header", f"the header cannot be read ({error}).") from error
        if image.width * image.height > self.limits.max_pixels:
            raise MediaError(
                "too large",
                f"{image.height}x{image.width} pixels, the limit is {self.limits.max_pixels}.",
            )
        return image

    def __exit__(self, kind, error, _):
        if isinstance(error, (OSError, SyntaxError)):
            raise MediaError("damaged", f"decoding fails ({error}).") from error


def _displayed_size(image: Image.Image) -> tuple[int, int]:
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return image.size[::-1] if turned else image.size


def _upright(image: Image.Image) -> Image.Image:
    """Returns the image as it is shown: decoded, turned as its EXIF data say, RGB."""
    image.load()
    return ImageOps.exif_transpose(image).convert("RGB")


def _probe_stream(stream, format: str, limits: Limits) -> Probe:
    height, width = stream.codec_context.height, stream.codec_context.width
    fps = float(stream.average_rate or UNKNOWN_FPS)
    claimed = stream.frames or None
    if not height or not width:
        raise MediaError("broken header", "the header gives no picture size.")
    pixels = height * width
    if pixels > limits.max_pixels or (claimed or 0) * pixels > limits.max_video_pixels:
        raise MediaError(
            "too large",
            f"{claimed or '?'} frames of {height}x{width}, the limits are {limits.max_pixels} "
            f"pixels a frame and {limits.max_video_pixels} in all.",
        )
    if (claimed or 0) > limits.max_frames:
        raise MediaError("too long", f"{claimed} frames, the limit is {limits.max_frames}.")
    if not 0 < fps <= limits.max_fps:
        raise MediaError("broken header", f"{fps} frames a second, the limit is {limits.max_fps}.")
    return Probe("video", format, claimed, height, width, fps, stream.codec.canonical_name)


def _frames(container, stream, head: Probe, limits: Limits, dropped: list[int] | None = None):
    """Yields decoded frames; appends to `dropped` for packets that the file's edit list hides."""
    count = 0
    for packet in container.demux(stream):
        if packet.is_discard and dropped is not None and packet.size:
            dropped.append(count)
        if packet.is_corrupt:
            raise MediaError("damaged", f"a packet after frame {count} is damaged.")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise MediaError("damaged", f"frame {count} is damaged.")
            if (frame.height, frame.width) != (head.height, head.width):
                raise MediaError(
                    "size changes",
                    f"frame {count} is {frame.height}x{frame.width}, the header says "
                    f"{head.height}x{head.width}.",
                )
            count += 1
            pixels = count * frame.height * frame.width
            if count > limits.max_frames or pixels > limits.max_video_pixels:
                raise MediaError("too long", f"more than {count - 1} frames: over the limit.")
            yield frame


def _rate(fps: float) -> fractions.Fraction:
    whole = round(fps)
    if abs(whole * 1000 / 1001 - fps) < 0.004:
        return fractions.Fraction(whole * 1000, 1001)
    return fractions.Fraction(fps).limit_denominator(1000)
