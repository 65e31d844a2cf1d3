"""From decoded frames to a training sample: frame choice, resize and crop, frame mask, text drop.

All after Open-Sora 1.2. Every function that draws takes a generator, so that a sample is a function
of its place in the stream and of nothing else.
"""

from collections.abc import Mapping

import numpy as np
from PIL import Image

MASKS = (
    "identity",
    "quarter_random",
    "quarter_head",
    "quarter_tail",
    "quarter_head_tail",
    "image_random",
    "image_head",
    "image_tail",
    "image_head_tail",
    "intepolate",  # the spelling of the published configs
    "random",
)


def choose_frames(
    total: int, num_frames: int, frame_interval: int, rng: np.random.Generator
) -> np.ndarray:
    """Chooses ascending frame numbers [num_frames] of a clip with `total` frames.

    A window of num_frames * frame_interval frames starts at random; from it num_frames evenly
    spaced numbers are taken, both ends included, and rounded down.

    Raises:
        ValueError: If the clip has fewer than num_frames frames.
    """
    span = num_frames * frame_interval
    start = int(rng.integers(0, max(0, total - span - 1), endpoint=True))
    end = min(start + span, total)
    if end - start < num_frames:
        raise ValueError(f"{total} frames are too few for {num_frames} frames of the bucket.")
    return np.linspace(start, end - 1, num_frames).astype(np.int64)


def clip_fps(fps: float, num_frames: int, frame_interval: int) -> float:
    """Returns the frame rate that the model is told: rounded down (29.97 is 29), 120 for images."""
    return 120.0 if num_frames == 1 else float(fps // frame_interval)


def resize_crop(video_THWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales to cover height x width and crops the middle, float32 in 0..1.

    Bilinear between pixel centres, without antialiasing, in float32; the offset of the crop is
    rounded down.

    Args:
        video_THWC: uint8 frames.
        height: Of the result, in pixels.
        width: Of the result, in pixels.
    """
    old_height, old_width = video_THWC.shape[1:3]
    new_height, new_width = _cover(old_height, old_width, height, width)
    top, left = (new_height - height) // 2, (new_width - width) // 2
    low, high, share_H = _taps(old_height, new_height, top, height)
    share_H = share_H[:, None, None]
    rows_THWC = video_THWC[:, low] * (1 - share_H) + video_THWC[:, high] * share_H
    low, high, share_W = _taps(old_width, new_width, left, width)
    share_W = share_W[:, None]
    result = rows_THWC[:, :, low] * (1 - share_W) + rows_THWC[:, :, high] * share_W
    return result * np.float32(1 / 255)


def resize_crop_image(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales one image to cover height x width and crops the middle, uint8.

    Bicubic with antialiasing (PIL); the offset of the crop is rounded, halves to even.
    """
    new_height, new_width = _cover(*image_HWC.shape[:2], height, width)
    image = Image.fromarray(image_HWC).resize((new_width, new_height), Image.Resampling.BICUBIC)
    top, left = round((new_height - height) / 2), round((new_width - width) / 2)
    return np.asarray(image)[top : top + height, left : left + width]


def fit(image_HWC: np.ndarray, height: int, width: int, *, is_image: bool) -> np.ndarray:
    """Brings a frame of a clip, or an image, to the size of its bucket, uint8."""
    if is_image:
        return resize_crop_image(image_HWC, height, width)
    if image_HWC.shape[:2] == (height, width):
        return image_HWC  # what the arithmetic gives too
    return np.rint(resize_crop(image_HWC[None], height, width)[0] * 255).astype(np.uint8)


def latent_frames(num_frames: int, time_stride: int = 4, chunk_frames: int | None = 17) -> int:
    """Returns the latent frames of a clip that a causal VAE encodes in chunks of chunk_frames."""
    chunk = chunk_frames or num_frames
    whole, rest = divmod(num_frames, chunk)
    return whole * -(-chunk // time_stride) + -(-rest // time_stride)


def check_mask_ratios(ratios: Mapping[str, float]):
    """Raises ValueError unless the names are known and the shares are in 0..1 and sum to <= 1."""
    unknown = [name for name in ratios if name not in MASKS]
    if unknown:
        raise ValueError(f"mask_ratios names {unknown}: known are {', '.join(MASKS)}.")
    total = sum(ratios.values())
    if min(ratios.values(), default=0) < 0 or total > 1 + 1e-6:
        raise ValueError(f"mask_ratios={dict(ratios)} has to be shares of 0 or more, in all <= 1.")


def choose_mask(draw: float, ratios: Mapping[str, float]) -> str:
    """Returns the first name whose summed share exceeds the draw; "identity" has the rest."""
    total = 0.0
    for name, share in ratios.items():
        total += share
        if draw < total:
            return name
    return "identity"


def frame_mask(t: int, ratios: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """Draws which latent frames are generated (True) and which are given (False), bool [t].

    An image is always generated. At least one frame is: where a strategy would leave none (the
    first and last of two frames), the last one is generated. Strategies of quarters take at least
    one frame, also from clips of fewer than four.
    """
    name = choose_mask(rng.random(), ratios)
    mask_t = np.ones(t, bool)
    if t == 1:
        return mask_t
    integer = lambda low, high: int(rng.integers(low, high, endpoint=True))
    if name.startswith("quarter"):
        k = integer(1, max(1, t // 4))
        if name == "quarter_random":
            start = integer(0, t - k)
            mask_t[start : start + k] = False
        if "head" in name:
            mask_t[:k] = False
        if "tail" in name:
            mask_t[-k:] = False
    elif name == "image_random":
        mask_t[integer(0, t - 1)] = False
    elif name.startswith("image"):
        if "head" in name:
            mask_t[0] = False
        if "tail" in name:
            mask_t[-1] = False
    elif name == "intepolate":
        mask_t[integer(0, 1) :: 2] = False
    elif name == "random":
        share = rng.uniform(0.1, 0.9)
        mask_t = rng.random(t) > share
    if not mask_t.any():
        mask_t[-1] = True
    return mask_t


def _cover(height: int, width: int, min_height: int, min_width: int) -> tuple[int, int]:
    """Returns the size that keeps the aspect and just covers the target."""
    by_height, by_width = min_height / height, min_width / width
    if by_height > by_width:
        return min_height, round(width * by_height)
    return round(height * by_width), min_width


def _taps(old: int, new: int, offset: int, count: int):
    """Returns the two source pixels of each target pixel along an axis, and the second's share."""
    scale = np.float32(old) / np.float32(new)
    target = np.arange(offset, offset + count, dtype=np.float32)
    position = np.maximum((target + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = np.minimum(position.astype(np.int64), old - 1)
    return low, np.minimum(low + 1, old - 1), position - low.astype(np.float32)
