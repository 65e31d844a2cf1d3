"""One small moving picture of a clip, made in a child process that may open nothing else.

A preview is a poster (webp) and, of a video, its first seconds as a muted mp4 in real time.
"""

import dataclasses
import io
import math
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from data_pipelines.media import display, encoding, video_io
from data_pipelines.workers import guard

SIDE = 240  # pixels of the longer side: a card on a dense screen
SECONDS = 3.0
MAX_FPS = 12.5
MEMORY_BYTES = 1 << 30  # of a child
_CRF = 30


@dataclasses.dataclass(frozen=True)
class Task:
    """What to make a preview of: the bytes of a file or where it lies, and the part in seconds."""

    source: bytes | str
    start: float = 0.0
    end: float | None = None


@dataclasses.dataclass(frozen=True)
class Preview:
    """Encoded pictures; where there is none, the reason in a few words."""

    poster: bytes = b""
    motion: bytes = b""
    note: str = ""


def make_maker() -> Callable[[Task], Preview]:
    """Locks a child process up, and returns the function that it calls for each clip."""
    Image.init()
    guard.enter(memory_bytes=MEMORY_BYTES)
    return make


def make(task: Task, file: BinaryIO | None = None) -> Preview:
    """Makes one preview; a damaged file gives the frames before the damage.

    Args:
        task: What to show.
        file: The open file, where the task holds no bytes.
    """
    try:
        return _make(file or task.source, task)
    except video_io.MediaError as error:
        return Preview(note=error.reason)
    except MemoryError:
        return Preview(note="too large")
    except Exception as error:  # a decoder's own bug must not end the page
        return Preview(note=f"decoder error: {type(error).__name__}")


def _make(source: bytes | BinaryIO, task: Task) -> Preview:
    head = video_io.probe(source)
    step = math.ceil(head.fps / MAX_FPS)  # every so many frames: even motion
    end = min(task.start + SECONDS, task.end or math.inf)
    reduce, to_rgb, images = VideoReformatter(), VideoReformatter(), []
    seen: list[int] = []

    def visit(number: int, frame, _seconds: float):
        width, height = _fit(frame.width, frame.height)
        seen.append(number)
        if isinstance(frame, Image.Image):
            images.append(np.asarray(frame.resize((width, height), Image.Resampling.BOX)))
        elif (number - seen[0]) % step == 0:
            alpha = any(component.is_alpha for component in frame.format.components)
            small = reduce.reformat(frame, width, height, "rgba" if alpha else "rgb24", threads=1)
            images.append(display.to_rgb(small, to_rgb))  # turned as it is shown

    note = "too short"
    try:
        video_io.check(source, visit=visit, start=task.start, end=end)
    except video_io.MediaError as error:
        note = error.reason
    if not images:
        return Preview(note=note)
    poster = io.BytesIO()
    Image.fromarray(images[len(images) // 3]).save(poster, "WEBP", quality=70, method=4)
    motion = b""
    if len(images) > 1:
        motion = encoding.encode_mp4(np.stack(images), head.fps / step, crf=_CRF)
    return Preview(poster.getvalue(), motion)


def _fit(width: int, height: int) -> tuple[int, int]:
    """Size within SIDE, never enlarged; even, as 4:2:0 needs."""
    scale = min(1.0, SIDE / max(width, height))
    even = lambda x: max(2, 2 * round(x * scale / 2))
    return even(width), even(height)
