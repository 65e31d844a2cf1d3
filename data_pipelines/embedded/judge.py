"""Reads the attributes of `data_pipelines.shapes` back from a video, with image code only.

The judge measures what a generated clip shows: no model and no caption take part. A pixel is taken
as a mixture of background and object, so that blur (of resizing, of 4:2:0 chroma, of a VAE) lowers
the share of the object in a pixel but leaves its colour readable. Shape and size come from fitting
drawn masks of all shapes, radii and a few blurs to the measured shares.
"""

import dataclasses
import functools

import numpy as np

from data_pipelines.embedded import drawing, vocabulary

_MIN_CONTRAST = 20.0  # of 255: less is noise, and no object
_FIT_FRAMES = 6  # frames used for shape and size
_RADII = np.geomspace(0.09, 0.34, 14)  # in short sides, around those of shapes.SIZES
_BLURS = (0.5, 1.1)  # standard deviation in pixels at a short side of 32


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was measured in a video; lengths in short sides, times in seconds.

    Fields that could not be measured are None (or nan in `velocity`): all but `background_rgb` when
    no object stands out, `velocity` for a single frame.
    """

    background_rgb: tuple[float, float, float]
    object_rgb: tuple[float, float, float] | None = None
    colour: str | None = None
    shape: str | None = None
    radius: float | None = None
    velocity: tuple[float, float] | None = None  # rows, columns
    residual: float | None = None  # share of the mask that the best drawn shape leaves unexplained


def judge(video_THWC: np.ndarray, fps: float) -> dict[str, str | None]:
    """Returns the six attributes of a clip; None where the clip shows nothing to read it from.

    Args:
        video_THWC: uint8 frames; the short side should have 24 pixels or more.
        fps: Frames per second, for the speed.
    """
    seen = measure(video_THWC, fps)
    result = dict.fromkeys(vocabulary.ATTRIBUTES)
    result["background"] = _nearest(seen.background_rgb, vocabulary.BACKGROUNDS)
    if seen.shape is None:
        return result
    result |= {"colour": seen.colour, "shape": seen.shape}
    result["size"] = _nearest_in_ratio(seen.radius, vocabulary.SIZES)
    if seen.velocity is not None:
        dy, dx = seen.velocity
        along_rows = abs(dy) > abs(dx)
        result["direction"] = (
            ("down" if dy > 0 else "up") if along_rows else ("right" if dx > 0 else "left")
        )
        result["speed"] = _nearest_in_ratio(np.hypot(dy, dx), vocabulary.SPEEDS)
    return result


def measure(video_THWC: np.ndarray, fps: float) -> Measurement:
    """Measures background, object colour, shape, radius and velocity of a clip.

    Raises:
        ValueError: If the video is not uint8 [T, H, W, 3].
    """
    if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[-1] != 3:
        raise ValueError(
            f"the video is {video_THWC.dtype} {video_THWC.shape}, but the judge needs uint8 "
            "[T, H, W, 3]."
        )
    video = video_THWC.astype(np.float32)
    short = min(video.shape[1:3])
    rim = max(1, short // 16)
    inner = video[:, rim:-rim, rim:-rim]
    border = np.ones(video.shape[1:3], bool)
    border[rim:-rim, rim:-rim] = False
    back = np.median(video[:, border].reshape(-1, 3), axis=0)
    seen = Measurement(tuple(float(v) for v in back))

    difference = video - back
    distance = np.linalg.norm(difference, axis=-1)
    peak = float(np.percentile(np.linalg.norm(inner - back, axis=-1), 98))
    if peak < _MIN_CONTRAST:
        return seen
    core = difference[distance > 0.6 * peak]
    front = back + np.median(core, axis=0)
    colour = _colour(core.mean(0), _nearest(back, vocabulary.BACKGROUNDS))

    axis = front - back
    share_THW = np.clip(difference @ axis / (axis @ axis), 0, 1)
    share_THW = np.where(share_THW < 0.2, 0, share_THW)
    mass_T = share_THW.sum((1, 2))
    frames = np.flatnonzero(mass_T > 0.4 * np.median(mass_T))
    if frames.size == 0:
        return seen
    centre_T2 = np.stack([_centroid(share_THW[i]) for i in frames])
    shape, radius, residual = _fit_shape(share_THW[frames], centre_T2)
    velocity = None
    if frames.size >= 3:
        slopes = [_slope(frames / fps, centre_T2[:, i] / short) for i in range(2)]
        velocity = (float(slopes[0]), float(slopes[1]))
    return dataclasses.replace(
        seen,
        object_rgb=tuple(float(v) for v in front),
        colour=colour,
        shape=shape,
        radius=radius,
        velocity=velocity,
        residual=residual,
    )


def _colour(difference: np.ndarray, background: str) -> str:
    """Names the colour whose difference from the background points the same way."""
    back = np.array(vocabulary.BACKGROUNDS[background], np.float32)
    unit = lambda v: v / max(np.linalg.norm(v), 1e-6)
    scores = {k: unit(difference) @ unit(np.array(v) - back) for k, v in vocabulary.COLOURS.items()}
    return max(scores, key=scores.get)


def _centroid(share_HW: np.ndarray) -> np.ndarray:
    """Returns row and column of the centroid in pixels, taken near the object to shut out noise."""
    grid = [np.arange(n) + 0.5 for n in share_HW.shape]
    window = np.ones_like(share_HW)
    for _ in range(3):
        weight = share_HW * window
        total = max(weight.sum(), 1e-6)
        centre = np.array([grid[0] @ weight.sum(1), grid[1] @ weight.sum(0)]) / total
        reach = 0.34 * min(share_HW.shape)
        window = (np.abs(grid[0] - centre[0]) <= reach)[:, None] * (
            np.abs(grid[1] - centre[1]) <= reach
        )
    return centre


def _slope(time: np.ndarray, position: np.ndarray) -> float:
    """Theil-Sen estimate: the median slope of all pairs, unmoved by a few wrong frames."""
    i, j = np.triu_indices(len(time), k=max(1, len(time) // 4))
    return float(np.median((position[j] - position[i]) / (time[j] - time[i])))


def _fit_shape(share_THW: np.ndarray, centre_T2: np.ndarray) -> tuple[str, float, float]:
    """Returns the shape and radius (short sides) whose drawn masks leave the least unexplained."""
    picked = np.unique(np.linspace(0, len(share_THW) - 1, _FIT_FRAMES).round().astype(int))
    height, width = share_THW.shape[1:]
    best = (np.inf, "", 0.0)
    for shape in vocabulary.SHAPES:
        for radius in _RADII:
            errors = np.zeros(len(_BLURS))
            total = 0.0
            for i in picked:
                mask = drawing.coverage(
                    shape, radius * min(height, width), centre_T2[i], height, width
                )
                for k, blur in enumerate(_BLURS):
                    drawn = _blur(mask, blur * min(height, width) / 32)
                    errors[k] += np.square(share_THW[i] - drawn).sum()
                total += np.square(share_THW[i]).sum()
            best = min(best, (float(errors.min() / total), shape, float(radius)))
    return best[1], best[2], best[0]


def _blur(mask_HW: np.ndarray, sigma: float) -> np.ndarray:
    rows, columns = (_gaussian(n, round(float(sigma), 3)) for n in mask_HW.shape)
    return rows @ mask_HW @ columns.T


@functools.lru_cache(maxsize=64)
def _gaussian(n: int, sigma: float) -> np.ndarray:
    """A matrix [n, n] that blurs along one axis; its rows sum to one."""
    offset = np.arange(n)[:, None] - np.arange(n)[None]
    weight = np.exp(-0.5 * np.square(offset / sigma))
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def _nearest(rgb, palette: dict) -> str:
    return min(palette, key=lambda k: np.linalg.norm(np.subtract(rgb, palette[k])))


def _nearest_in_ratio(value: float, table: dict) -> str:
    return min(table, key=lambda k: abs(np.log(max(value, 1e-6) / table[k])))
