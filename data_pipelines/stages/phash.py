"""Perceptual hashes: copies of a clip, encoded or made smaller, have near ones.

Each is the common 64-bit DCT hash: the signs of the 8x8 lowest frequencies of a 32x32 picture,
against their median. How far copies and other clips differ: `python -m tests.measure_dedup`.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

SHARES = (0.125, 0.375, 0.625, 0.875)  # of a clip's length: where its pictures are taken
SIDE = 32

_PLACES = (np.arange(SIDE) + 0.5) * np.pi / SIDE
_DCT = np.cos(np.arange(8)[:, None] * _PLACES)  # [8, 32], the DCT-II up to factors


def thumbnail(luma_HW: np.ndarray) -> np.ndarray:
    """Returns what a picture's hash is made from, uint8 [32, 32]."""
    return np.asarray(Image.fromarray(luma_HW).resize((SIDE, SIDE), Image.Resampling.BOX))


def phash(thumbnails: Sequence[np.ndarray]) -> bytes:
    """Returns the hashes of `thumbnail`s, 8 bytes each, one after the other."""
    hashes = []
    for picture_HW in thumbnails:
        # rounded, so that a plain picture has zeros and not the signs of rounding errors
        waves = np.round(_DCT @ picture_HW.astype(np.float64) @ _DCT.T).ravel()
        # the first is the mean brightness, always positive, and would shift the median
        hashes.append(np.packbits(waves > np.median(waves[1:])).tobytes())
    return b"".join(hashes)
