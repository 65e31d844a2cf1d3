"""Opens a media file that comes from anywhere, so that reading it is safe, and within limits.

Pipes and devices are no files; the format is forced from the first bytes (left to itself FFmpeg
takes a text file named .mp4 for a playlist and opens the files it names), and no protocol is
allowed; sizes are checked before a frame is decoded. Errors of FFmpeg and PIL become MediaError.
"""

import io
import os
import stat
import struct
import warnings
from typing import BinaryIO

import av
from PIL import Image

from data_pipelines.media import damage
from data_pipelines.media.limits import Limits, MediaError, sniff

_READ_BYTES = 1 << 16
_STILL = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")  # codecs of pictures, and covers

Source = bytes | str | os.PathLike | BinaryIO  # a file has to be seekable; it is not closed


class open_source:
    """Context of (file, format) for a source; refuses unknown and oversized files."""

    def __init__(self, source: Source, limits: Limits):
        self.source, self.limits = source, limits

    def __enter__(self) -> tuple[BinaryIO, str]:
        self.ours = isinstance(self.source, (bytes, bytearray, memoryview, str, os.PathLike))
        if not self.ours:
            self.file = self.source
        elif isinstance(self.source, (str, os.PathLike)):
            self.file = open_regular(self.source)
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


def open_regular(path: str | os.PathLike) -> BinaryIO:
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


class open_video:
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
            stream = main_video(self.container)
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


def videos(container: av.container.InputContainer) -> list[av.VideoStream]:
    """Returns the video streams that are no cover pictures."""
    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


def main_video(container: av.container.InputContainer) -> av.VideoStream:
    """Returns the first video stream, one whose codec is not for pictures if there is such a one.

    Raises:
        MediaError: If there is none.
    """
    found = videos(container)
    if not found:
        what = "has a cover picture and" if container.streams.video else "has"
        raise MediaError("no video", f"the file {what} no video stream.")
    is_moving = lambda stream: stream.codec_context and stream.codec.canonical_name not in _STILL
    return next(filter(is_moving, found), found[0])


class open_image:
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
        if self.format in ("png", "webp") and getattr(image, "n_frames", 1) > 1:
            raise MediaError(
                "animated image",
                f"a {self.format} file of {image.n_frames} pictures: make a video of it first.",
            )
        return image

    def __exit__(self, kind, error, _):
        if isinstance(error, (OSError, SyntaxError, ValueError, struct.error)) and not isinstance(
            error, MediaError
        ):
            raise MediaError("damaged", f"decoding fails ({error}).") from error
