"""How the camera moves, read from dense optical flow."""

import collections

import numpy as np

LABELS = ("pan_left", "pan_right", "tilt_up", "tilt_down", "zoom_in", "zoom_out", "static")
UNKNOWN = "unknown"
_STILL = 1.0  # pixels of a 320x576 picture in ten frames
_INWARD, _OUTWARD = 0.4, 0.6  # shares of pixels that move away from the middle


def camera(flows: list[np.ndarray]) -> str:
    """Returns what more than half of the frame pairs say of the camera, or "unknown".

    Args:
        flows: Results of `scores.flow`, for pairs of frames ten apart.
    """
    if not flows:
        return UNKNOWN
    label, count = collections.Counter(map(pair_label, flows)).most_common(1)[0]
    return label if 2 * count > len(flows) else UNKNOWN


def pair_label(flow_hw2: np.ndarray) -> str:
    """Returns one of LABELS for one pair of frames, by the rules of Open-Sora 1.2 (spec 9).

    A median flow of less than a pixel is static. If pixels move away from the middle, or towards
    it, the camera zooms. Else it turns against the median direction of the picture.
    """
    right, down = flow_hw2[..., 0], flow_hw2[..., 1]
    length = np.hypot(right, down)
    if np.median(length) < _STILL:
        return "static"
    h, w = length.shape
    y, x = np.arange(h)[:, None] - (h - 1) / 2, np.arange(w)[None] - (w - 1) / 2
    outward = float((right * x + down * y > 0).mean())
    if outward > _OUTWARD:
        return "zoom_in"
    if outward < _INWARD:
        return "zoom_out"
    # the median of the components is a direction also where angles wrap around
    right, down = np.median(right), np.median(down)
    if abs(right) >= abs(down):
        return "pan_left" if right > 0 else "pan_right"
    return "tilt_up" if down > 0 else "tilt_down"
