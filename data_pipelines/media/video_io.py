"""Reads videos and images: probe, decode, full check; frames are uint8 THWC RGB.

Files come from anywhere, so nothing in them is trusted: they are opened within limits (`opening`),
and a damaged stream is an error rather than gray blocks: the container is walked (`structure`),
decoders run with `err_detect=explode` and are checked themselves (`damage`), and every frame that
the container holds has to come (`probes`). Frames come as they are shown (`display`). Decoding uses
one thread: the loader and the ingest run many decoders side by side.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence

import av
import numpy as np
from PIL import Image

from data_pipelines.media import damage, display, opening, probes, structure
from data_pipelines.media.limits import DEFAULT_LIMITS, Limits, MediaError

__all__ = ["Enough", "Limits", "MediaError", "check", "decode", "probe"]


class Enough(Exception):
    """Raised by what `check` calls for each frame: no more are wanted."""


def probe(source: opening.Source, limits: Limits = DEFAULT_LIMITS) -> probes.Probe:
    """Reads the header and the first picture.

    Raises:
        MediaError: If the file is not a known format, has no picture, or is over a limit.
    """
    with opening.open_source(source, limits) as (file, format):
        if format in ("png", "jpeg", "webp"):
            with opening.open_image(file, format, limits) as image:
                return probes.of_image(image, format, display.orientation_of_image(image))
        with opening.open_video(file, format, limits) as (container, stream):
            head = probes.of_stream(stream, format, limits)
            first = next(_frames(container, stream, head, limits), None)
            return head if first is None else head.turned(display.orientation_of_frame(first))


def decode(
    source: opening.Source,
    frames: Sequence[int] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    each: Callable[[np.ndarray], np.ndarray] = lambda image_HWC: image_HWC,
) -> np.ndarray:
    """Decodes the frames with these numbers (ascending; None: all), uint8 [T, H, W, 3].

    Decoding starts at the first frame of the file and ends with the last one wanted: meant for
    clips of seconds.

    Args:
        source: Path, bytes or a seekable binary file.
        frames: Their numbers.
        limits: What the file may cost.
        each: Is applied to each frame at once, to make it smaller before the next one comes.

    Raises:
        MediaError: If the file is damaged or shorter than asked, or over a limit.
    """
    if frames is not None and any(b < a for a, b in itertools.pairwise(frames)):
        raise ValueError(f"the frame numbers have to ascend, but are {list(frames)}.")
    with opening.open_source(source, limits) as (file, format):
        if format in ("png", "jpeg", "webp"):
            with opening.open_image(file, format, limits) as image:
                video = each(np.asarray(display.upright(image)))[None]
            if frames is None:
                return video
            if frames and frames[-1] > 0:
                raise MediaError("too short", f"an image has 1 frame, not frame {frames[-1]}.")
            return np.repeat(video, len(frames), axis=0)
        with opening.open_video(file, format, limits) as (container, stream):
            head = probes.of_stream(stream, format, limits)
            wanted = None if frames is None else list(frames)
            video, count = [], 0
            to_frame = av.video.reformatter.VideoReformatter()  # a new one a frame costs 0.5 ms
            for frame in _frames(container, stream, head, limits):
                times = 1 if wanted is None else wanted.count(count)
                if times:
                    video += [each(display.to_rgb(frame, to_frame))] * times
                    if len(video) * video[0].nbytes > limits.max_decoded_bytes:
                        raise MediaError(
                            "too large",
                            f"the frames asked for are over {limits.max_decoded_bytes} bytes.",
                        )
                count += 1
                if wanted is not None and (not wanted or count > wanted[-1]):
                    break
            if wanted is not None and len(video) < len(wanted):
                raise MediaError("too short", f"the video has {count} frames, not {wanted[-1]}.")
            return np.stack(video) if video else np.zeros((0, head.height, head.width, 3), np.uint8)


def check(
    source: opening.Source,
    limits: Limits = DEFAULT_LIMITS,
    visit: Callable[[int, av.VideoFrame | Image.Image, float], None] | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
) -> probes.Probe:
    """Walks the container, decodes the file, and returns the probe with the true facts.

    Args:
        source: Path, bytes or a seekable binary file.
        limits: What the file may cost.
        visit: Called with the number, the frame and its seconds after the first one, for each
            frame as it is decoded; an image is one RGB frame. `Enough` ends the check, and the
            facts are those of the frames before.
        start: Where the part of a video begins that is visited and measured, in seconds after the
            first frame; what comes before is decoded alone.
        end: Where it ends; what comes later is not decoded.

    Raises:
        MediaError: If any frame is damaged or missing, a limit is passed, or frames would not show
            what the camera saw: "interlaced", "variable rate", "high dynamic range".
    """
    with opening.open_source(source, limits) as (file, format):
        pictures = structure.check(file, format, limits)
        file.seek(0)
        if format in ("png", "jpeg", "webp"):
            with opening.open_image(file, format, limits) as image:
                orientation = display.orientation_of_image(image)
                shown = display.upright(image)
                damage.check_image(file, format, limits)
            if visit:
                with contextlib.suppress(Enough):
                    visit(0, shown, 0.0)
            return probes.of_image(image, format, orientation)
        with opening.open_video(file, format, limits, strict=True) as (container, stream):
            streams = opening.videos(container)
            is_told = len(pictures) == len(streams)
            count = pictures[streams.index(stream)] if is_told else None
            head = probes.of_stream(stream, format, limits)
            decoded, part = probes.Decoded(stream), probes.Part(head, start, end)
            try:
                for frame in _frames(container, stream, head, limits, decoded):
                    seconds, side = part.place(decoded.total, frame)
                    try:
                        if side > 0:
                            raise Enough
                        if visit and side == 0:
                            visit(decoded.total, frame, seconds)
                    except Enough:
                        if decoded.count == 0:
                            raise MediaError("too short", f"no frame is before {end} s.") from None
                        count = None
                        break
                    decoded.add(frame, side == 0)
                return decoded.finish(head, count, limits)
            except MediaError as error:
                error.head = head.turned(decoded.orientation)
                raise


def _frames(
    container, stream, head: probes.Probe, limits: Limits, told: probes.Decoded | None = None
):
    """Yields decoded frames.

    Args:
        container: To read.
        stream: Of it.
        head: What it announces.
        limits: On what comes.
        told: Makes it strict, and learns of the packets.
    """
    count, decoder, is_strict = 0, stream.codec_context, told is not None
    if is_strict:
        decoder = damage.strict_decoder(decoder, limits)
        second = damage.SecondReading(stream.codec_context, limits)
    for packet in container.demux(stream):
        if is_strict and packet.size:
            told.add_packet(packet)
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
