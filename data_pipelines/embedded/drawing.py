"""Draws the embedded clips: one plain object that moves over a plain background."""

import numpy as np

from data_pipelines.embedded import vocabulary

_SUPERSAMPLES = 4  # an edge has 16 levels


def extent(shape: str, radius: float) -> tuple[float, float, float, float]:
    """Returns how far a shape of this radius reaches from its centroid: up, down, left, right."""
    if shape == "circle":
        return radius, radius, radius, radius
    if shape == "bar":  # lying, nearly the circle's area
        return 0.65 * radius, 0.65 * radius, 1.15 * radius, 1.15 * radius
    half = 1.1 * radius  # equilateral, on its base: the centroid is a third up
    return 2 / np.sqrt(3) * half, half / np.sqrt(3), half, half


def coverage(shape: str, radius: float, centre: tuple[float, float], height: int, width: int):
    """Returns the share of each pixel that the shape covers, [H, W] float32 in 0..1.

    Args:
        shape: One of vocabulary.SHAPES.
        radius: In pixels; see `extent` for what it means for each shape.
        centre: Row and column of the centroid, in pixels from the top left corner.
        height: H.
        width: W.
    """
    n = _SUPERSAMPLES
    up, down, left, right = extent(shape, radius)
    top, first = (max(0, int(np.floor(c - e))) for c, e in zip(centre, (up, left), strict=True))
    bottom = max(top, min(height, int(np.ceil(centre[0] + down))))
    last = max(first, min(width, int(np.ceil(centre[1] + right))))
    y = ((np.arange(top * n, bottom * n) + 0.5) / n - centre[0])[:, None]
    x = ((np.arange(first * n, last * n) + 0.5) / n - centre[1])[None]
    if shape == "circle":
        inside = y**2 + x**2 <= radius**2
    elif shape == "bar":
        inside = (np.abs(y) <= up) & (np.abs(x) <= left)
    else:
        inside = (y <= down) & (np.abs(x) * ((up + down) / left) <= y + up)
    mask = np.zeros((height, width), np.float32)
    window = inside.reshape(bottom - top, n, last - first, n)
    mask[top:bottom, first:last] = window.mean((1, 3), dtype=np.float32)
    return mask


def max_frames(attributes: vocabulary.Attributes, height: int, width: int, fps: float) -> int:
    """Returns the longest clip during which the object stays fully visible."""
    short = min(height, width)
    up, down, left, right = extent(attributes.shape, vocabulary.SIZES[attributes.size])
    dy, _ = vocabulary.DIRECTIONS[attributes.direction]
    room = height / short - up - down if dy else width / short - left - right
    return 1 + int(room / vocabulary.SPEEDS[attributes.speed] * fps + 1e-6)


def render(
    attributes: vocabulary.Attributes,
    height: int,
    width: int,
    num_frames: int,
    fps: float | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws the clip, uint8 [T, H, W, 3]; the place is random, in the third that it moves to.

    Raises:
        ValueError: If the object would leave the picture before the last frame.
    """
    short = min(height, width)
    radius = vocabulary.SIZES[attributes.size] * short
    up, down, left, right = extent(attributes.shape, radius)
    if attributes.direction is None:
        step = np.zeros(2)
    else:
        longest = max_frames(attributes, height, width, fps)
        if num_frames > longest:
            raise ValueError(
                f"num_frames={num_frames} at {fps} fps takes a {attributes.size} "
                f"{attributes.speed} {attributes.shape} out of {height}x{width} pixels: use "
                f"{longest} frames or fewer."
            )
        step = (
            np.array(vocabulary.DIRECTIONS[attributes.direction])
            * vocabulary.SPEEDS[attributes.speed]
            * short
            / fps
        )
    path = np.arange(num_frames)[:, None] * step  # [T, 2]
    low = np.array([up, left]) - path.min(0)
    high = np.array([height - down, width - right]) - path.max(0)
    place = rng.random(2)  # of the room that the path leaves: 0 is at the top or left
    place = np.where(step == 0, place, 0.5 + np.sign(step) * (0.2 + 0.3 * place))
    centres = low + place * np.maximum(high - low, 0) + path
    mask = np.stack([coverage(attributes.shape, radius, c, height, width) for c in centres])
    back = np.array(vocabulary.BACKGROUNDS[attributes.background], np.float32)
    front = np.array(vocabulary.COLOURS[attributes.colour], np.float32)
    return np.rint(back + mask[..., None] * (front - back)).astype(np.uint8)
