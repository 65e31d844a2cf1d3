"""What is kept of a scene while its frames pass, and the ledger values that come of it."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from data_pipelines.stages import camera, look, phash, scores

NAMES = ("motion", "sharpness", "brightness", "static_share", "black_share", "letterbox")
NAMES += ("phash", "camera")
NEED_OPENCV = ("motion", "camera")
STILL_SHARES = {1: (0.5,), 2: (0.25, 0.75), 3: (0.1, 0.5, 0.9)}  # as in Open-Sora 1.2's captioning

_FLOW_PAIRS = 32  # 0.2 s a scene at most
_STILLS = 32  # so a still is off its place by a 64th of the scene at most
_SHARP_STILLS = 8
_THUMBNAILS = 256


class Scene:
    """Takes the small copies of a scene's frames in order, and measures what is asked for.

    Args:
        first: Number of the first frame.
        names: Some of NAMES.
        num_stills: How many larger copies to give back, evenly spread, as JPEG files.
    """

    def __init__(self, first: int, names: Sequence[str], num_stills: int = 0):
        self.first, self.names, self.num_stills = first, names, num_stills
        self.length = 0
        self.mean_luma, self.change, self.dark = [], [], []
        self.low = self.high = self.luma = self.first_luma = self.tenth = None
        self.pairs = look.Kept(_FLOW_PAIRS)
        self.thumbnails = look.Kept(_THUMBNAILS)
        self.stills = look.Kept(_STILLS if num_stills else _SHARP_STILLS)

    def wants_still(self, number: int) -> bool:
        """Tells whether the larger copy of this frame would be kept."""
        wanted = self.num_stills or "sharpness" in self.names
        return bool(wanted) and self.stills.wants(number - self.first)

    def add(self, number: int, look_HWC: np.ndarray | None, still_HWC: np.ndarray | None):
        """Takes the next frame: its small copy, and the larger one if it was wanted."""
        index = number - self.first
        self.length = index + 1
        if still_HWC is not None:
            self.stills.add(index, still_HWC)
        if not self.names:
            return
        luma = scores.luma(look_HWC)
        if "brightness" in self.names:
            self.mean_luma.append(luma.mean())
        if "black_share" in self.names:
            self.dark.append(scores.dark_share(luma))
        if "static_share" in self.names and self.luma is not None:
            self.change.append(scores.change(luma, self.luma))
        if "letterbox" in self.names:
            self.low = luma if self.low is None else np.minimum(self.low, luma)
            self.high = luma if self.high is None else np.maximum(self.high, luma)
        if "phash" in self.names and self.thumbnails.wants(index):
            self.thumbnails.add(index, phash.thumbnail(luma))
        if index % scores.FLOW_FRAMES == 0:
            if index:
                self.pairs.add(index // scores.FLOW_FRAMES - 1, (self.tenth, luma))
            else:
                self.first_luma = luma
            self.tenth = luma
        self.luma = luma

    def result(self) -> dict:
        """Returns the ledger's values of the scene, and `stills` if any were asked for."""
        row = {}
        if {"motion", "camera"} & {*self.names}:
            row = self._flow_values()
        if "sharpness" in self.names:
            stills = [scores.luma(still) for still in self.stills.items.values()]
            row["sharpness"] = float(np.mean([scores.sharpness(still) for still in stills]))
        if "brightness" in self.names:
            row["brightness"] = scores.brightness(self.mean_luma)
        if "static_share" in self.names and self.length > 1:
            row["static_share"] = scores.static_share(self.change)
        if "black_share" in self.names:
            row["black_share"] = scores.black_share(self.dark)
        if "letterbox" in self.names:
            row["letterbox"] = scores.letterbox(self.low, self.high)
        if "phash" in self.names:
            shares = phash.SHARES if self.length > 1 else (0,)
            row["phash"] = phash.phash([self.thumbnails.at(s * self.length) for s in shares])
        if self.num_stills:
            row["stills"] = [_jpeg(self.stills.at(s * (self.length - 1))) for s in self._shares()]
        return row

    def _shares(self) -> Sequence[float]:
        if self.length == 1:
            return (0.5,)
        spread = [(i + 0.5) / self.num_stills for i in range(self.num_stills)]
        return STILL_SHARES.get(self.num_stills, spread)

    def _flow_values(self) -> dict:
        if self.length < 2:
            return {}
        frames, pairs = scores.FLOW_FRAMES, list(self.pairs.items.values())
        if not pairs:  # a short scene: from its first to its last frame
            frames, pairs = self.length - 1, [(self.first_luma, self.luma)]
        flows = [scores.flow(*pair) for pair in pairs]
        row = {"motion": scores.motion(flows, frames), "camera": camera.camera(flows)}
        return {name: value for name, value in row.items() if name in self.names}


def _jpeg(still_HWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(still_HWC).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()
