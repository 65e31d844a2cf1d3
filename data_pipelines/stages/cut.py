"""Parts of a video as files of their own: frames [first, stop), encoded again, maybe smaller.

Runs in a child process like `examine`. All parts of a file come of one decode, frame by frame, so
that the length of a video costs no memory.
"""

import dataclasses
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import av
import numpy as np
from PIL import Image

from data_pipelines.media import display, encoding, video_io
from data_pipelines.workers import guard

MEMORY_BYTES = 2 << 30  # of a child: an encoder looks some 50 frames ahead
_WAITING = 4  # frames


@dataclasses.dataclass(frozen=True)
class Part:
    """One encoded part: the bytes of an mp4 file and what is in it."""

    video: bytes
    num_frames: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Task:
    """What to cut: ascending frame ranges that do not overlap, and how to encode them."""

    ranges: tuple[tuple[int, int], ...]
    fps: float
    short_side: int = 0
    crf: int = 10


def make_cutter(limits: video_io.Limits):
    """Returns what a child process calls for each task and its open file."""
    guard.enter(MEMORY_BYTES)
    return lambda task, file: cut(file, task, limits)


def cut(file: BinaryIO, task: Task, limits: video_io.Limits) -> list[Part]:
    """Returns the parts of a video; the same frames give the same bytes.

    Raises:
        MediaError: If the file is damaged before the end of the last range, or too short.
    """
    stream = _Stream(file, task.ranges, limits, task.short_side)
    try:
        parts = []
        for first, stop in task.ranges:
            frames = stream.frames(first, stop)
            video = encoding.encode_mp4(frames, task.fps, crf=task.crf)
            parts.append(Part(video, len(frames), *frames.shape[1:3]))
        return parts
    finally:
        stream.close()


def size_after(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Returns the size of a picture whose short side may be so long at most; even where changed."""
    if not 0 < short_side < min(height, width):
        return height, width
    scale = short_side / min(height, width)
    return tuple(max(2, 2 * round(side * scale / 2)) for side in (height, width))


class _Stream:
    """Turns a decoder that calls for each frame into frames to be asked for, by a thread."""

    def __init__(self, file, ranges: Sequence[tuple[int, int]], limits, short_side: int):
        self.queue: queue.Queue = queue.Queue(_WAITING)
        self.wanted, self.short_side, self.closed = ranges, short_side, False
        self.reformatter = av.video.reformatter.VideoReformatter()
        self.thread = threading.Thread(target=self._decode, args=(file, limits), daemon=True)
        self.thread.start()

    def _decode(self, file, limits):
        try:
            video_io.check(file, limits, self._visit)
            self.queue.put(video_io.MediaError("too short", "the video ends before the clip does."))
        except BaseException as error:
            self.queue.put(error)

    def _visit(self, number: int, frame: av.VideoFrame, _seconds: float):
        if self.closed or number >= self.wanted[-1][1]:
            raise video_io.Enough
        if any(first <= number < stop for first, stop in self.wanted):
            image_HWC = display.to_rgb(frame, self.reformatter)
            height, width = size_after(*image_HWC.shape[:2], self.short_side)
            if (height, width) != image_HWC.shape[:2]:
                small = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BOX)
                image_HWC = np.asarray(small)
            self.queue.put(image_HWC)

    def frames(self, first: int, stop: int) -> "_Frames":
        return _Frames(self, stop - first)

    def next(self) -> np.ndarray:
        item = self.queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self):
        self.closed = True
        while self.thread.is_alive():
            try:
                self.queue.get(timeout=0.05)
            except queue.Empty:
                continue


class _Frames:
    """As much of an array uint8 [T, H, W, 3] as an encoder needs, one frame at a time."""

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, stream: _Stream, length: int):
        self.stream, self.length = stream, length
        self.head = stream.next()
        self.shape = (length, *self.head.shape)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[np.ndarray]:
        yield self.head
        for _ in range(self.length - 1):
            yield self.stream.next()
