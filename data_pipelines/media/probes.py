"""What a media file is: first as its header claims, then as its decoded frames tell."""

import dataclasses
import math

import av
import numpy as np
from PIL import Image

from data_pipelines.media import display
from data_pipelines.media.limits import Limits, MediaError

IMAGE_FPS = 120.0  # the frame rate that stands for "a still image" (Open-Sora 1.2)
_UNKNOWN_FPS = 24.0
_UNEVEN = 2.2  # times the usual step: twice, and times that are rounded to milliseconds
_SHORTEST_STEP = 1 / 48  # seconds between frames, where nothing else is known
_LAST = 4  # steps at the end, where parts that were copied out of videos lack B-frames
_HDR_CURVES = (16, 18)  # SMPTE ST 2084 (PQ) and ARIB STD-B67 (HLG)


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a file is; `num_frames` is the header's claim (None if it makes none) until decoded.

    Height and width are those of the frames as `video_io.decode` and `display.to_rgb` give them.
    """

    kind: str  # "video" or "image"
    format: str
    num_frames: int | None
    height: int
    width: int
    fps: float
    codec: str = ""  # FFmpeg's name, "h264"; of an image its format
    orientation: int = 1  # EXIF's number (1 to 8) of the turn that height and width are after
    pixel_aspect: float = 1.0  # width of a pixel as it is meant to be shown, in heights of it

    def turned(self, orientation: int) -> "Probe":
        """Returns the probe of the frames after this turn."""
        height, width, aspect = self.height, self.width, self.pixel_aspect
        if orientation >= 5:
            height, width, aspect = width, height, 1 / aspect
        turned = {"height": height, "width": width, "pixel_aspect": aspect}
        return dataclasses.replace(self, **turned, orientation=orientation)


def of_image(image: Image.Image, format: str, orientation: int) -> Probe:
    """Returns the probe of an image that is turned so to be shown."""
    head = Probe("image", format, 1, image.height, image.width, IMAGE_FPS, format)
    return head.turned(orientation)


def of_stream(stream, format: str, limits: Limits) -> Probe:
    """Returns what a header claims of a video, before any turn.

    Raises:
        MediaError: If it claims nothing that could be decoded, or more than the limits.
    """
    height, width = stream.codec_context.height, stream.codec_context.width
    fps = float(stream.average_rate or _UNKNOWN_FPS)
    if fps > limits.max_fps and format != "avi":  # a guess, from the first times of Matroska
        fps = float(stream.base_rate or fps)
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
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0  # 0 where nothing is said
    codec = stream.codec.canonical_name
    return Probe("video", format, claimed, height, width, fps, codec, pixel_aspect=aspect)


class Part:
    """Which frames of a file belong to a part of it: those that are shown at its times.

    Args:
        head: What the header says.
        start: Seconds after the first frame; None: from there.
        end: The same; None: to the last frame.
    """

    def __init__(self, head: Probe, start: float | None = None, end: float | None = None):
        self._start, self._end = start or 0.0, math.inf if end is None else end
        self._fps, self._has_times = head.fps, head.format != "avi"  # AVI has rates alone
        self._zero = self._last = None

    def place(self, number: int, frame: av.VideoFrame) -> tuple[float, int]:
        """Returns (seconds after the first frame, -1 before the part, 0 in it or 1 after it).

        A frame that is half a frame too early belongs to it: times are rounded.
        """
        seconds = number / self._fps
        if self._has_times and frame.time is not None:
            self._zero = frame.time if self._zero is None else self._zero
            seconds = frame.time - self._zero
        # headers lie about the rate, and the first frame has none before it
        step = _SHORTEST_STEP if self._last is None else max(0.0, seconds - self._last)
        self._last, near = seconds, seconds + min(step, 1 / self._fps) / 2
        return seconds, 1 if near >= self._end else -1 if near < self._start else 0


class Decoded:
    """What only the decoded frames tell: how many there are, when they are shown, and how."""

    def __init__(self, stream):
        self.time_base = float(stream.time_base)
        self.dropped = self.leading = 0
        self.times: list[int] = []
        self._first = 0  # of the times of frames that are wanted
        self._keys: list[int | None] = []
        self.total = self.count = self.interlaced = 0
        self.orientation, self.is_hdr = 1, False
        self._told_curve = stream.codec_context.color_trc  # by the container, where frames do not

    def add_packet(self, packet: av.Packet):
        """Counts pictures that need not come: those that the file's edit list hides, and those of
        an open group at the beginning, which need what comes before it."""
        if packet.is_keyframe:
            self._keys.append(packet.pts)
        if packet.is_discard:
            self.dropped += 1
        elif len(self._keys) == 1 and None not in (packet.pts, self._keys[0]):
            self.leading += packet.pts < self._keys[0]

    def add(self, frame: av.VideoFrame, is_wanted: bool = True):
        """Takes the next frame; one that is not wanted only counts as decoded."""
        if self.total == 0:
            self.orientation = display.orientation_of_frame(frame)
            self.is_hdr = bool({frame.color_trc, self._told_curve} & {*_HDR_CURVES})
        self.total += 1
        if frame.pts is not None:
            self.times.append(frame.pts)
        if is_wanted:
            self.interlaced += frame.interlaced_frame
            self.count += 1
        elif self.count == 0:
            self._first = len(self.times)

    def finish(self, head: Probe, pictures: int | None, limits: Limits) -> Probe:
        """Returns the probe with the true facts.

        Args:
            head: What the header says.
            pictures: How many the container holds, if it tells.
            limits: Of the file.

        Raises:
            MediaError: If frames are missing, or would not show what the camera saw.
        """
        expected = self.total if pictures is None else pictures - self.dropped
        if self.total == 0 or not 0 <= expected - self.total <= self.leading:
            raise MediaError(
                "missing frames", f"{self.total} frames decoded, the file announces {expected}."
            )
        if self.count == 0:
            raise MediaError("too short", "no frame is shown at the times of the clip.")
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
        if self.total > 2 and len(self.times) == self.total and head.format != "avi":
            steps = np.diff(self.times)
            if steps.min() <= 0:
                raise MediaError("damaged", "times of the frames do not ascend.")
            usual = np.median(steps)
            _check_even(steps[self._first :], usual, limits)
            measured = 1 / (steps[steps <= _UNEVEN * usual].mean() * self.time_base)
            if abs(measured - fps) > 0.02 * fps:
                fps = measured
            if not 0 < fps <= limits.max_fps:
                raise MediaError(
                    "broken header", f"{fps:g} frames a second, the limit is {limits.max_fps}."
                )
        head = dataclasses.replace(head, num_frames=self.count, fps=fps)
        return head.turned(self.orientation)


def _check_even(steps: np.ndarray, usual: float, limits: Limits):
    """Refuses frames that come at no rate, by the ticks from each to the next."""
    is_hole = steps > _UNEVEN * usual
    uneven = np.mean((steps < usual / _UNEVEN) | is_hole) if len(steps) else 0.0
    inner = is_hole[:-_LAST]
    holes = steps[: len(inner)][inner].sum() / max(1, steps.sum())
    if max(uneven, holes) > limits.max_uneven:
        raise MediaError(
            "variable rate",
            f"{uneven:.0%} of the frames are shown half or twice as long as the others, and "
            f"nothing moves for {holes:.0%} of the time; the limit is {limits.max_uneven:.0%}: "
            "give the file a constant rate first.",
        )
