"""Reads and writes videos and images: probe, decode, full check, encode; frames are uint8 THWC RGB.

Files come from anywhere, so nothing in them is trusted: the format is forced from the first bytes
(left to itself FFmpeg takes a text file named .mp4 for a playlist and opens the files it names),
sizes are checked before a frame is decoded, and a damaged stream is an error rather than gray
blocks: the container is walked (`structure`), decoders run with `err_detect=explode` and are
checked themselves (`damage`), and every frame that the container holds has to come. Frames come as
they are shown: turned by the display matrix, transparency over white. Non-square pixels are not
undone. Decoding uses one thread: the loader and the ingest run many decoders side by side.
"""

import dataclasses
import fractions
import io
import itertools
import os
import stat
import struct
import warnings
from collections.abc import Callable, Sequence
from typing import BinaryIO

import av
import numpy as np
from PIL import Image, ImageOps

from data_pipelines import damage, structure
from data_pipelines.media import DEFAULT_LIMITS, Limits, MediaError, sniff

__all__ = ["Limits", "MediaError", "Probe", "check", "decode", "probe", "sniff", "to_rgb"]

IMAGE_FPS = 120.0  # the frame rate that stands for "a still image" (Open-Sora 1.2)
UNKNOWN_FPS = 24.0
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_HDR_CURVES = (16, 18)  # SMPTE ST 2084 (PQ) and ARIB STD-B67 (HLG)
_READ_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a file is; `num_frames` is the header's claim (None if it makes none) until decoded.

    Height and width are those of the frames as `decode` and `to_rgb` give them.
    """

    kind: str  # "video" or "image"
    format: str
    num_frames: int | None
    height: int
    width: int
    fps: float
    codec: str = ""  # FFmpeg's name, "h264"; of an image its format
    orientation: int = 1  # EXIF's number (1 to 8) of the turn that height and width are after


Source = bytes | str | os.PathLike | BinaryIO  # a file has to be seekable; it is not closed


def probe(source: Source, limits: Limits = DEFAULT_LIMITS) -> Probe:
    """Reads the header and the first picture.

    Raises:
        MediaError: If the file is not a known format, has no picture, or is over a limit.
    """
    with _open(source, limits) as (file, format):
        if format in ("png", "jpeg", "webp"):
            with _open_image(file, format, limits) as image:
                return _probe_image(image, format, _orientation_of_image(image))
        with _open_video(file, format, limits) as (container, stream):
            head = _probe_stream(stream, format, limits)
            first = next(_frames(container, stream, head, limits), None)
            return head if first is None else _shown(head, _orientation(first))


def decode(
    source: Source,
    frames: Sequence[int] | None = None,
    limits: Limits = DEFAULT_LIMITS,
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
            to_frame = av.video.reformatter.VideoReformatter()  # a new one a frame costs 0.5 ms
            budget = limits.max_decoded_bytes // (3 * head.height * head.width)
            for frame in _frames(container, stream, head, limits):
                times = 1 if wanted is None else wanted.count(count)
                if times:
                    if len(video) + times > budget:
                        raise MediaError(
                            "too large",
                            f"the frames asked for are over {limits.max_decoded_bytes} bytes.",
                        )
                    video += [to_rgb(frame, to_frame)] * times
                count += 1
                if wanted is not None and (not wanted or count > wanted[-1]):
                    break
            if wanted is not None and len(video) < len(wanted):
                raise MediaError("too short", f"the video has {count} frames, not {wanted[-1]}.")
            return np.stack(video) if video else np.zeros((0, head.height, head.width, 3), np.uint8)


def check(
    source: Source,
    limits: Limits = DEFAULT_LIMITS,
    visit: Callable[[int, av.VideoFrame | Image.Image], None] | None = None,
) -> Probe:
    """Walks the container, decodes the whole file, and returns the probe with the true facts.

    Args:
        source: Path, bytes or a seekable binary file.
        limits: What the file may cost.
        visit: Called with the number and the frame for each frame as it is decoded, for `to_rgb` or
            other use; an image is one RGB frame. What it raises ends the check.

    Raises:
        MediaError: If any frame is damaged or missing, a limit is passed, or frames would not show
            what the camera saw: "interlaced", "variable rate", "high dynamic range".
    """
    with _open(source, limits) as (file, format):
        pictures = structure.check(file, format, limits)
        file.seek(0)
        if format in ("png", "jpeg", "webp"):
            with _open_image(file, format, limits) as image:
                orientation = _orientation_of_image(image)
                shown = _upright(image)
                damage.check_image(file, format, limits)
            if visit:
                visit(0, shown)
            return _probe_image(image, format, orientation)
        with _open_video(file, format, limits, strict=True) as (container, stream):
            head = _probe_stream(stream, format, limits)
            facts = _Facts(stream)
            for frame in _frames(container, stream, head, limits, facts.dropped):
                if visit:
                    visit(facts.count, frame)
                facts.add(frame)
        return facts.finish(head, pictures, limits)


def to_rgb(
    frame: av.VideoFrame, reformatter: av.video.reformatter.VideoReformatter | None = None
) -> np.ndarray:
    """Returns a decoded frame as it is shown, uint8 [H, W, 3]: turned, transparency over white.

    Args:
        frame: As `check` hands it to `visit`.
        reformatter: One for all frames of a clip saves half a millisecond a frame.
    """
    reformatter = reformatter or av.video.reformatter.VideoReformatter()
    to = lambda format: reformatter.reformat(frame, format=format, threads=1).to_ndarray()
    if any(component.is_alpha for component in frame.format.components):
        image_HWC = _over_white(to("rgba"))
    else:
        image_HWC = to("rgb24")
    return _turn(image_HWC, _orientation(frame))


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

    def __init__(self, file, format: str, limits: Limits, strict: bool = False):
        self.file, self.format, self.limits = file, format, limits
        self.flags = damage.STRICT if strict else "explode"

    def __enter__(self):
        # These go to the decoders too that FFmpeg opens to learn of the streams.
        options = {
            "max_pixels": str(self.limits.max_pixels),
            "err_detect": self.flags,
            "protocol_whitelist": "",
            "threads": "1",
        }
        try:
            self.container = av.open(
                self.file,
                format=self.format,
                options=options,
                metadata_errors="replace",
                buffer_size=_READ_BYTES,
            )
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
            damage.prepare(stream.codec_context, self.limits, self.flags)
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
        if isinstance(error, (OSError, SyntaxError, ValueError, struct.error)) and not isinstance(
            error, MediaError
        ):
            raise MediaError("damaged", f"decoding fails ({error}).") from error


def _upright(image: Image.Image) -> Image.Image:
    """Returns the image as it is shown: decoded, turned as its EXIF data say, RGB over white."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        return Image.fromarray(_over_white(np.asarray(image.convert("RGBA"))))
    return image.convert("RGB")


def _over_white(image_HWC: np.ndarray) -> np.ndarray:
    """Composes RGBA over white, as a page shows it."""
    alpha = image_HWC[..., 3:].astype(np.uint16)
    return ((image_HWC[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _orientation_of_image(image: Image.Image) -> int:
    orientation = image.getexif().get(0x0112, 1)
    return orientation if orientation in range(1, 9) else 1


def _probe_image(image: Image.Image, format: str, orientation: int) -> Probe:
    head = Probe("image", format, 1, image.height, image.width, IMAGE_FPS, format)
    return _shown(head, orientation)


# Signs (a, b, c, d) of the display matrix -> EXIF's number; a point (x, y) is shown at
# (a x + c y, b x + d y).
_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}


def _orientation(frame: av.VideoFrame) -> int:
    """Returns the turn that the display matrix of a frame asks for; odd angles are left alone."""
    for data in frame.side_data:
        if data.type == av.sidedata.sidedata.Type.DISPLAYMATRIX:
            a, b, _, c, d, *_ = struct.unpack("<9i", bytes(data))
            sign = lambda value: (value > 1 << 12) - (value < -(1 << 12))  # 16.16; cos 86 degrees
            return _ORIENTATIONS.get((sign(a), sign(b), sign(c), sign(d)), 1)
    return 1


def _turn(image_HWC: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:
        image_HWC = image_HWC.swapaxes(0, 1)
    rows, columns = {
        **{1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1)},
        **{5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)},
    }[orientation]
    return np.ascontiguousarray(image_HWC[::rows, ::columns])


def _shown(head: Probe, orientation: int) -> Probe:
    """Returns the probe of frames after their turn."""
    height, width = head.height, head.width
    if orientation >= 5:
        height, width = width, height
    return dataclasses.replace(head, height=height, width=width, orientation=orientation)


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
    """Yields decoded frames.

    Args:
        container: To read.
        stream: Of it.
        head: What it announces.
        limits: On what comes.
        dropped: Makes it strict; gets an entry for each packet that the file's edit list hides.
    """
    count, decoder, is_strict = 0, stream.codec_context, dropped is not None
    if is_strict:
        decoder = damage.strict_decoder(decoder, limits)
        second = damage.SecondReading(stream.codec_context, limits)
    for packet in container.demux(stream):
        if packet.is_discard and is_strict and packet.size:
            dropped.append(count)
        if packet.is_corrupt:
            raise MediaError("damaged", f"a packet after frame {count} is damaged.")
        if is_strict and damage.is_whole_too_soon(packet, stream.codec_context):
            raise MediaError("damaged", f"the picture {count} is whole before its data end.")
        frames = decoder.decode(packet)
        if is_strict and not second.agrees(packet, frames):
            raise MediaError("damaged", f"frame {count} differs when it is read another way.")
        for frame in frames:
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


class _Facts:
    """What only the decoded frames tell: how many there are, when they are shown, and how."""

    def __init__(self, stream):
        self.time_base = float(stream.time_base)
        self.dropped: list[int] = []
        self.times: list[int] = []
        self.count = self.interlaced = 0
        self.orientation, self.is_hdr = 1, False

    def add(self, frame: av.VideoFrame):
        if self.count == 0:
            self.orientation = _orientation(frame)
            self.is_hdr = frame.color_trc in _HDR_CURVES
        if frame.pts is not None:
            self.times.append(frame.pts)
        self.interlaced += frame.interlaced_frame
        self.count += 1

    def finish(self, head: Probe, pictures: int | None, limits: Limits) -> Probe:
        """Returns the probe with the true facts, or raises MediaError.

        Args:
            head: What the header says.
            pictures: How many the container holds, if it tells.
            limits: Of the file.
        """
        expected = None if pictures is None else pictures - len(self.dropped)
        if self.count == 0 or (expected is not None and self.count != expected):
            raise MediaError(
                "missing frames", f"{self.count} frames decoded, the file announces {expected}."
            )
        if 2 * self.interlaced > self.count:
            raise MediaError(
                "interlaced",
                "each frame holds two moments, line by line: deinterlace the file first.",
            )
        if self.is_hdr:
            raise MediaError(
                "high dynamic range", "PQ or HLG colours: map the file to BT.709 first."
            )
        fps = head.fps
        if self.count > 2 and len(self.times) == self.count and head.format != "avi":
            steps = np.diff(self.times)
            if steps.min() <= 0:
                raise MediaError("damaged", "times of the frames do not ascend.")
            usual = np.median(steps)
            uneven = np.mean((steps < usual / 2) | (steps > 2 * usual))
            if uneven > limits.max_uneven:
                raise MediaError(
                    "variable rate",
                    f"{uneven:.0%} of the frames are shown half or twice as long as the others, "
                    f"the limit is {limits.max_uneven:.0%}: give the file a constant rate first.",
                )
            measured = 1 / (steps.mean() * self.time_base)
            if abs(measured - fps) > 0.02 * fps:
                fps = measured
            if not 0 < fps <= limits.max_fps:
                raise MediaError(
                    "broken header", f"{fps:g} frames a second, the limit is {limits.max_fps}."
                )
        head = dataclasses.replace(head, num_frames=self.count, fps=fps)
        return _shown(head, self.orientation)


def _rate(fps: float) -> fractions.Fraction:
    whole = round(fps)
    if abs(whole * 1000 / 1001 - fps) < 0.004:
        return fractions.Fraction(whole * 1000, 1001)
    return fractions.Fraction(fps).limit_denominator(1000)
