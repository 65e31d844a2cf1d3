"""Media files in odd but legal ways, made with PyAV. Each frame shows its number, as eight bars."""

import fractions
import io
from collections.abc import Sequence

import av
import numpy as np

BARS = 8
_TICK = fractions.Fraction(1, 90_000)  # seconds


def frame(number: int, height: int, width: int, format: str = "yuv420p") -> av.VideoFrame:
    """A frame whose bars, from left to right, are the bits of a number, the lowest first."""
    bits = [number >> bit & 1 for bit in range(BARS)]
    row_W = np.asarray([bits[x * BARS // width] for x in range(width)], np.uint8)
    image_HWC = np.repeat((40 + 175 * row_W)[None, :, None], height, 0).repeat(3, 2)
    return av.VideoFrame.from_ndarray(image_HWC, format="rgb24").reformat(format=format)


def number_of(image_HWC: np.ndarray) -> int:
    """Reads the number back."""
    width = image_HWC.shape[1]
    centers = [image_HWC[:, (2 * bar + 1) * width // (2 * BARS)].mean() for bar in range(BARS)]
    return sum(int(center > 127) << bit for bit, center in enumerate(centers))


def video(
    codec: str = "libx264",
    num_frames: int = 60,
    *,
    container: str = "mp4",
    size: tuple[int, int] = (64, 96),
    rate: int = 30,
    format: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Sequence[float] | None = None,
    cover: str = "",
    cover_first: bool = False,
    last_seconds: float = 0.0,
    **settings,
) -> bytes:
    """A video file.

    Args:
        codec, num_frames, container, size, rate, format, options: Of the video stream.
        times: Seconds at which each frame is shown; None: evenly, at `rate`.
        cover: Codec of a cover picture, "mjpeg" or "png".
        cover_first: Whether that is the first stream.
        last_seconds: How long the last frame is shown; 0: as long as the others.
        settings: Further attributes of the stream's encoder.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as target:
        picture = _add_cover(target, cover) if cover and cover_first else None
        stream = target.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, format
        stream.codec_context.thread_count = 1
        stream.codec_context.options = options or {}
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = _TICK
        if cover and not cover_first:
            picture = _add_cover(target, cover)
        if picture:
            target.mux(picture.encode(frame(255, 32, 32, picture.pix_fmt)))
            target.mux(picture.encode(None))
        for number in range(num_frames):
            shown = frame(number, *size, format)
            if times is not None:
                shown.pts, shown.time_base = round(times[number] / _TICK), _TICK
            target.mux(stream.encode(shown))
        ends = stream.encode(None)
        if last_seconds:
            ends[-1].duration = round(last_seconds / ends[-1].time_base)
        target.mux(ends)
    return buffer.getvalue()


def song(cover: str) -> bytes:
    """A sound file with a cover picture."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as target:
        sound = target.add_stream("aac", rate=44_100)
        picture = _add_cover(target, cover)
        target.mux(picture.encode(frame(255, 32, 32, picture.pix_fmt)))
        target.mux(picture.encode(None))
        samples = np.zeros((1, 44_100), np.float32)
        silence = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        silence.sample_rate = 44_100
        target.mux(sound.encode(silence))
        target.mux(sound.encode(None))
    return buffer.getvalue()


def _add_cover(target, codec: str) -> av.VideoStream:
    picture = target.add_stream(codec, rate=1)
    picture.height, picture.width = 32, 32
    picture.pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb24"
    picture.disposition = av.stream.Disposition.attached_pic
    return picture


def from_keyframe(content: bytes, keyframe: int, container: str = "mp4") -> bytes:
    """Copies a video from one of its keyframes on, with the packets that come after it in the file:
    as `ffmpeg -ss -c copy` does."""
    buffer, key = io.BytesIO(), -1
    with av.open(io.BytesIO(content)) as source, av.open(buffer, "w", format=container) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream, opaque=True)
        for packet in source.demux(stream):
            key += packet.is_keyframe
            if key >= keyframe and packet.size:
                packet.stream = copy
                target.mux(packet)
    return buffer.getvalue()
