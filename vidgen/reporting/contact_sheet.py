"""Pictures of many clips with their prompts under them: for a README, or a glance."""

import io
import os
import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidgen.weights import digests

MAX_BYTES = 500_000  # of a moving picture: it loads with the page
_PAPER, _INK = (255, 255, 255), (55, 60, 70)
_SIDE, _GAP, _TEXT = 128, 16, 13  # pixels: longer side of a clip, space around it, text size
_STRIP_FRAMES = 4


def contact_sheet(
    videos: Sequence[np.ndarray],
    prompts: Sequence[str],
    path: str | os.PathLike,
    *,
    fps: float = 12.0,
    columns: int = 6,
) -> None:
    """Writes a grid of clips: moving (.webp or .gif), or a few frames of each side by side (.png).

    Args:
        videos: uint8 [T, H, W, 3], of one shape.
        prompts: Their prompts; more than there are videos are left out.
        path: The file; its suffix says what it becomes.
        fps: Of the moving picture.
        columns: Clips side by side in a moving picture.

    Raises:
        ValueError: If there is no video, or the suffix is another one.
    """
    path = pathlib.Path(path)
    if not len(videos) or path.suffix not in (".webp", ".gif", ".png"):
        raise ValueError(
            f"{path} with {len(videos)} videos: give one video or more, and a path that ends in "
            ".webp, .gif or .png."
        )
    if path.suffix == ".png":
        every = np.linspace(0, videos[0].shape[0] - 1, _STRIP_FRAMES).round().astype(int)
        edge = [(0, 0), (0, 0), (0, 1), (0, 0)]  # a white line between frames
        shown = [np.pad(video[np.unique(every)], edge, constant_values=255) for video in videos]
        strips = [np.concatenate(list(frames), axis=1)[:, :-1] for frames in shown]
        longest = _SIDE * strips[0].shape[1] // max(videos[0].shape[1:3])
        sheet = _page([strip[None] for strip in strips], prompts, 3, longest)[0]
        data = _encode([sheet], "PNG", optimize=True)
    else:
        pages = _page(videos, prompts, columns, _SIDE)
        timing = {"save_all": True, "append_images": pages[1:], "loop": 0, "duration": 1000 / fps}
        data = _encode(pages, path.suffix[1:].upper(), **timing, quality=80, method=4)
        while len(data) > MAX_BYTES and pages[0].width > 320:
            pages = [page.resize((page.width * 3 // 4, page.height * 3 // 4)) for page in pages]
            timing["append_images"] = pages[1:]
            data = _encode(pages, path.suffix[1:].upper(), **timing, quality=60, method=4)
    digests.write_atomically(path, data)


def _page(videos, prompts, columns: int, longest: int) -> list[Image.Image]:
    """The frames of the sheet; the longer side of a clip becomes about `longest` pixels."""
    frames, height, width, _ = videos[0].shape
    scale = max(1, longest // max(height, width))
    height, width = scale * height, scale * width
    font = ImageFont.load_default(_TEXT)
    wrapped = [textwrap.wrap(p, max(12, int(width / (0.52 * _TEXT)))) for p in prompts]
    wrapped = wrapped[: len(videos)]
    line = int(1.3 * _TEXT)
    cell_height = height + _GAP + line * max(map(len, wrapped))
    columns = min(columns, len(videos))
    rows = -(-len(videos) // columns)
    size = (_GAP + columns * (width + _GAP), _GAP + rows * (cell_height + _GAP // 2))
    blank = Image.new("RGB", size, _PAPER)
    places = [
        (_GAP + i % columns * (width + _GAP), _GAP + i // columns * (cell_height + _GAP // 2))
        for i in range(len(videos))
    ]
    pen = ImageDraw.Draw(blank)
    for (x, y), lines in zip(places, wrapped, strict=True):
        for number, text in enumerate(lines):
            pen.text((x, y + height + 4 + number * line), text, _INK, font)
        pen.rectangle((x - 1, y - 1, x + width, y + height), outline=(215, 218, 224))
    pages = []
    for t in range(frames):
        page = blank.copy()
        for place, video in zip(places, videos, strict=True):
            large = np.repeat(np.repeat(video[t], scale, axis=0), scale, axis=1)
            page.paste(Image.fromarray(large), place)
        pages.append(page)
    return pages


def _encode(pages, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    pages[0].save(buffer, kind, **settings)
    return buffer.getvalue()
