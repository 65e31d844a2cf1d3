"""Small copies of the frames of a file while it is decoded once, in bounded memory.

A `Visitor` goes to `video_io.check`: it shrinks each frame, asks for scene cuts, and hands the copy
to the scene that it belongs to. What a scene keeps does not grow with its length.
"""

import collections
import dataclasses

import av
import numpy as np
from PIL import Image

from data_pipelines.media import display, video_io
from data_pipelines.stages import cuts

SIDE = 144  # short side of the copies: 256 pixels wide at 16:9, what PySceneDetect works on
_SHORTEST = 8  # of a copy, in pixels
_LONGEST = 4  # of a copy, in short sides: 16000x16 pixels are no reason for a large one
_MAX_SCENES = 1000  # of one file: a strobe light has no use, and each scene takes memory


class Shrink:
    """Returns a frame or image as uint8 RGB [h, w, 3] with this short side, or its own if less.

    A long picture gets a shorter one, so that its long side is bounded too.
    """

    def __init__(self, side: int):
        self.side = side
        self.reduce = av.video.reformatter.VideoReformatter()
        self.to_rgb = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: av.VideoFrame | Image.Image) -> np.ndarray:
        short, long = sorted((frame.height, frame.width))
        scale = min(1, self.side / short, _LONGEST * self.side / long)
        height, width = (max(_SHORTEST, round(n * scale)) for n in (frame.height, frame.width))
        if isinstance(frame, Image.Image):
            small = frame.convert("RGB").resize((width, height), Image.Resampling.BOX)
            return np.asarray(small)
        alpha = any(component.is_alpha for component in frame.format.components)
        size = {"width": width, "height": height, "format": "rgba" if alpha else "rgb24"}
        small = self.reduce.reformat(frame, **size, interpolation="AREA", threads=1)
        return display.to_rgb(small, self.to_rgb)  # turned as it is shown


class Kept:
    """At most `most` items of a stream of any length, evenly spaced from its beginning.

    Items are taken at multiples of a stride; when there are too many, the stride doubles and every
    second one goes. What stays follows from the numbers alone.
    """

    def __init__(self, most: int):
        self.most, self.stride, self.items = most, 1, {}

    def wants(self, index: int) -> bool:
        return index % self.stride == 0

    def add(self, index: int, item):
        if self.wants(index):
            self.items[index] = item
        while len(self.items) > self.most:
            self.stride *= 2
            self.items = {i: item for i, item in self.items.items() if self.wants(i)}

    def at(self, index: float):
        """Returns the item nearest to an index, of two the earlier."""
        return self.items[min(self.items, key=lambda i: (abs(i - index), i))]


@dataclasses.dataclass(frozen=True)
class Scene:
    """Frames [first, stop) of a file, shown from `start` to `end` (seconds), and what was seen."""

    first: int
    stop: int
    start: float
    end: float
    values: dict


class Visitor:
    """Cuts the frames that come by into scenes, and lets `make_scene(first)` see their copies.

    Args:
        make_scene: Called with a scene's first frame number; the result has `add(number, look,
            still)`, `wants_still(number)` and `result()`.
        cutter: Finds cuts; None: all frames are one scene.
        max_seconds: A scene ends after so many; None: never.
        split_long: What is left of a long scene becomes another scene, instead of nothing.
        looks: Whether scenes want to see each frame; else they get None, and only count.
        still_side: Short side of the larger copies.
    """

    def __init__(
        self,
        make_scene,
        *,
        cutter: cuts.Cutter | None = None,
        max_seconds: float | None = None,
        split_long: bool = False,
        looks: bool = True,
        still_side: int = SIDE,
    ):
        self.make_scene, self.cutter = make_scene, cutter
        self.max_seconds, self.split_long = max_seconds, split_long
        self.looks, self.delay = looks or cutter is not None, cutter.delay if cutter else 0
        self.shrink, self.shrink_still = Shrink(SIDE), Shrink(still_side)
        self.scenes: list[Scene] = []
        self.waiting, self.cuts = collections.deque(), set()
        self.first = self.scene = None
        self.begin = self.next = 0  # frames
        self.start = self.last = self.step = 0.0  # seconds

    def __call__(self, number: int, frame: av.VideoFrame | Image.Image, seconds: float):
        if self.first is None:
            self.first = self.begin = self.next = number
            self.start = self.last = seconds
            self.scene = self.make_scene(number)
        look = self.shrink(frame) if self.looks else None
        found = self.cutter.feed(number, look) if self.cutter else ()
        self.cuts.update(found)
        # a new scene is not there yet to be asked, and may end soon
        wants = found or (self.scene and self.scene.wants_still(number))
        still = self.shrink_still(frame) if wants else None
        self.waiting.append((number, seconds, look, still))
        while self.waiting and self.waiting[0][0] <= number - self.delay:
            self._pass(*self.waiting.popleft())

    def finish(self) -> list["Scene"]:
        """Returns the scenes."""
        while self.waiting:
            self._pass(*self.waiting.popleft())
        self._close(self.last + self.step)
        return self.scenes

    def _pass(self, number: int, seconds: float, look: np.ndarray | None, still: np.ndarray | None):
        self.step, self.last = seconds - self.last, seconds
        full = self.scene and number > self.begin and self._is_full(seconds)
        if number in self.cuts or full:
            self._close(seconds)
            if not full or self.split_long or number in self.cuts:
                self.begin, self.start = number, seconds
                self.scene = self.make_scene(number)
        if self.scene:
            self.scene.add(number, look, still)
        self.next = number + 1

    def _is_full(self, seconds: float) -> bool:
        """Whether the scene is nearer to its longest without this frame than with it."""
        longest = self.max_seconds
        return longest is not None and seconds - self.start > longest - self.step / 2

    def _close(self, end: float):
        if self.scene and self.next > self.begin:
            if len(self.scenes) == _MAX_SCENES:
                raise video_io.MediaError("too many scenes", f"more than {_MAX_SCENES} scenes.")
            frames = self.begin, self.next
            self.scenes.append(Scene(*frames, self.start, end, self.scene.result()))
        self.scene = None
