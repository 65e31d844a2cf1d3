"""Clips with a known truth: a random texture seen through a window that moves as asked."""

import functools
import io

import numpy as np
from PIL import Image

from data_pipelines.media import encoding
from data_pipelines.sources import clips

SIZE = 1024  # of the texture


@functools.cache
def texture(seed: int, grain: int = 8) -> Image.Image:
    """Returns a random picture of SIZE, as rough in the large as in the small, like natural ones.

    Its finest blobs have `grain` pixels.
    """
    rng, layers = np.random.default_rng(seed), []
    while grain < SIZE:
        size = -(-SIZE // grain)
        coarse = Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))
        layers.append(np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32))
        grain *= 3
    mean = np.mean(layers, 0) - 128
    return Image.fromarray(np.uint8(np.clip(128 + 60 * mean / mean.std(), 0, 255)))


def camera_move(
    num_frames: int,
    height: int,
    width: int,
    *,
    right: float = 0.0,
    down: float = 0.0,
    zoom: float = 1.0,
    seed: int = 0,
    grain: int = 8,
) -> np.ndarray:
    """Films the texture, uint8 [T, H, W, 3].

    Args:
        num_frames: T.
        height: H.
        width: W.
        right: How far the camera moves a frame, in pixels of the picture.
        down: The same downwards.
        zoom: How much larger things become a frame.
        seed: Of the texture.
        grain: Size of the texture's blobs, in pixels of the picture.
    """
    picture, frames = texture(seed, grain), []
    for t in range(num_frames):
        scale = zoom ** -(t - num_frames / 2)
        y, x = SIZE / 2 + down * (t - num_frames / 2), SIZE / 2 + right * (t - num_frames / 2)
        box = (x - width / 2 * scale, y - height / 2 * scale)
        box += (x + width / 2 * scale, y + height / 2 * scale)
        frame = picture.transform(
            (width, height), Image.Transform.EXTENT, box, Image.Resampling.BICUBIC
        )
        frames.append(np.asarray(frame))
    return np.stack(frames)


def mp4(video_THWC: np.ndarray, fps: float = 24.0, **options) -> io.BytesIO:
    """Encodes a clip into a file in memory."""
    return io.BytesIO(encoding.encode_mp4(video_THWC, fps, **options))


def clip(**fields) -> clips.Clip:
    """A row of a clip table."""
    return clips.Clip(**{"id": "a", "file": "a.mp4", "text": "a red square"} | fields)
