"""Scene cuts, frame by frame, by PySceneDetect's adaptive detector."""

import logging

import numpy as np

from data_pipelines.stages import scores


class Cutter:
    """Finds hard cuts in frames that come one after the other.

    PySceneDetect's AdaptiveDetector with its defaults: a frame begins a scene if it differs from
    the one before (mean change of hue, saturation and brightness, at least 15 of 255) by
    `threshold` times the mean of the two frame pairs before and after. Scenes have 15 frames or
    more. Cuts in the first two and the last two frames are not seen, and neither are fades.
    """

    def __init__(self, threshold: float = 3.0):
        self.cv2 = scores.opencv()
        detectors, self.timecode = _scenedetect()
        self.detector = detectors.AdaptiveDetector(adaptive_threshold=threshold)
        self.delay = self.detector.event_buffer_length  # frames from a cut to its report

    def feed(self, number: int, look_HWC: np.ndarray) -> list[int]:
        """Takes the next frame, uint8 RGB, and returns frames found to begin a scene.

        They are `delay` frames back.
        """
        bgr_HWC = self.cv2.cvtColor(look_HWC, self.cv2.COLOR_RGB2BGR)
        # the rate has no part in the decision: lengths are in frames
        found = self.detector.process_frame(self.timecode(number, 25.0), bgr_HWC)
        return [timecode.frame_num for timecode in found]


def _scenedetect():
    try:
        from scenedetect import FrameTimecode, detectors
    except ImportError as error:
        raise ImportError(
            f"scene cuts need PySceneDetect, which cannot be imported ({error}): pip "
            'install "vidgen[data]"'
        ) from error
    logging.getLogger("pyscenedetect").setLevel(logging.ERROR)
    return detectors, FrameTimecode
