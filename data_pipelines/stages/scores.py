"""What can be measured in a clip without any model: motion, sharpness, light, borders.

Each score is a plain function of small copies of the frames (`stages.look`), so that it does not
depend on the size of the file's pictures. Lengths of motion are in pixels of a 320x576 picture, as
in Open-Sora 1.2.
"""

import functools

import numpy as np
from PIL import Image

FLOW_FRAMES = 10  # from the first to the second frame of a pair
_FLOW_SIZE = (160, 288)  # short and long side at which flow is computed: half of 320x576
_FLOW_SCALE = 2.0
SHARP_SIDE = 256
_BLOCK = 8
_BLACK = 25  # of 255: a tenth
_BORDER_LEVELS = 12  # of 255: what coding does to a plain border


def luma(look_HWC: np.ndarray) -> np.ndarray:
    """Returns the brightness of RGB pixels (ITU-R BT.601), uint8 [H, W]."""
    return np.asarray(Image.fromarray(look_HWC).convert("L"))


def flow(luma_HW: np.ndarray, later_HW: np.ndarray) -> np.ndarray:
    """Returns the dense optical flow from one picture to a later one.

    OpenCV's DIS (Kroeger et al. 2016, arXiv:1603.03590), preset "medium", at half of 320x576
    pixels whatever the aspect; upright pictures at half of 576x320.

    Returns:
        float32 [h, w, 2]: to the right and down, in pixels of the 320x576 picture.
    """
    cv2 = opencv()
    short, long = _FLOW_SIZE
    size = (short, long) if luma_HW.shape[0] > luma_HW.shape[1] else (long, short)  # width first
    pair = [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in (luma_HW, later_HW)]
    return _dis().calc(*pair, None) * _FLOW_SCALE


def motion(flows: list[np.ndarray], frames: int = FLOW_FRAMES) -> float:
    """Returns the mean absolute flow component in pixels of 320x576 over ten frames; 0 is still.

    Open-Sora 1.2's `flow` (spec 9) asks the same of UniMatch, for the first three pairs of frames
    10 apart. This takes pairs from all of the clip, and another estimator: figures are near, but
    not equal, and fast motion reads too low.

    Args:
        flows: Results of `flow`, for pairs of frames.
        frames: How far the frames of a pair are apart. Flow is scaled to 10.
    """
    return float(np.mean([np.abs(flow_hw2).mean() for flow_hw2 in flows]) * FLOW_FRAMES / frames)


def sharpness(luma_HW: np.ndarray) -> float:
    """Returns the variance of the Laplacian, in squared levels of 0..255; blur makes it small.

    The measure is that of Pech-Pacheco et al. (2000), on the picture resized to a short side of
    256, so that large and small files compare and an enlarged picture counts as blurred.
    """
    scale = SHARP_SIDE / min(luma_HW.shape)
    size = [max(3, round(n * scale)) for n in luma_HW.shape[::-1]]
    picture = np.asarray(
        Image.fromarray(luma_HW).resize(size, Image.Resampling.BICUBIC), np.float32
    )
    middle = picture[1:-1, 1:-1]
    around = picture[:-2, 1:-1] + picture[2:, 1:-1] + picture[1:-1, :-2] + picture[1:-1, 2:]
    return float((around - 4 * middle).var())


def brightness(mean_luma_T: np.ndarray) -> float:
    """Returns the mean brightness of a clip, 0 (black) to 1 (white).

    Args:
        mean_luma_T: Mean luma of each frame, 0 to 255.
    """
    return float(np.mean(mean_luma_T) / 255)


def static_share(change_T: np.ndarray, equal: float = 2.0) -> float:
    """Returns the share of frames that repeat the one before, 0 to 1; a single frame has none.

    Args:
        change_T: `change` from the frame before, for all frames but the first.
        equal: Less counts as equal. Frames repeated in H.264 at crf 28 differ by 1.3 or less, and
            a slow small shape before a plain background by 3.3 or more.
    """
    return float(np.mean(np.asarray(change_T) < equal)) if len(change_T) else 0.0


def change(luma_HW: np.ndarray, before_HW: np.ndarray) -> float:
    """Returns the largest change of brightness of a block of 8x8 pixels, 0 to 255.

    Over a block what coding adds to a picture cancels out, and what moves does not.
    """
    n = _BLOCK  # a copy has no shorter side
    h, w = (size // n for size in luma_HW.shape)
    difference = luma_HW[: h * n, : w * n].astype(np.int16) - before_HW[: h * n, : w * n]
    return float(np.abs(difference.reshape(h, n, w, n).mean((1, 3))).max())


def black_share(dark_share_T: np.ndarray) -> float:
    """Returns the share of black frames, 0 to 1: frames with 98 % of their pixels under a tenth.

    These are the thresholds of FFmpeg's `blackdetect`.

    Args:
        dark_share_T: For each frame, the `dark_share` of its luma.
    """
    return float(np.mean(np.asarray(dark_share_T) >= 0.98))


def dark_share(luma_HW: np.ndarray) -> float:
    """Returns the share of pixels with less than a tenth of white."""
    return float((luma_HW <= _BLACK).mean())


def letterbox(low_HW: np.ndarray, high_HW: np.ndarray) -> float:
    """Returns the share of the picture that is border, 0 to 1: bars, pillars, frames of one colour.

    Border are the outer rows and columns that have one brightness over their length and all the
    time; a plain background that nothing moves over is no different, and counts.

    Args:
        low_HW: The least luma that each pixel had in the clip, uint8.
        high_HW: The greatest.
    """
    top, bottom = _inside(low_HW.min(1), high_HW.max(1))
    left, right = (
        _inside(low_HW[top:bottom].min(0), high_HW[top:bottom].max(0)) if bottom else (0, 0)
    )
    return 1 - (bottom - top) * (right - left) / low_HW.size


def _inside(low: np.ndarray, high: np.ndarray) -> tuple[int, int]:
    inside = np.flatnonzero(high.astype(int) - low > _BORDER_LEVELS)
    return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)


def opencv(threads: int = 1):
    """Returns OpenCV, with one thread for itself: the ingest runs many children side by side."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"scene cuts and optical flow need OpenCV, which cannot be imported ({error}): pip "
            'install "vidgen[data]"'
        ) from error
    cv2.setNumThreads(threads)
    return cv2


@functools.cache
def _dis():
    cv2 = opencv()
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
