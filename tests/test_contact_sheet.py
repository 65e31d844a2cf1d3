"""Pictures of many clips."""

import numpy as np
import pytest
from PIL import Image

from vidgen.reporting import contact_sheet


def clips(count, frames, side=32):
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, frames, side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_moving_sheet_has_the_frames_of_the_clips(tmp_path, suffix):
    path = tmp_path / f"sheet{suffix}"
    contact_sheet.contact_sheet(clips(5, 7), ["a red circle"] * 5, path, fps=10, columns=3)
    with Image.open(path) as image:
        assert image.n_frames == 7 and image.info["loop"] == 0
        assert 3 * 128 < image.width < 3 * 150
        image.seek(1)
        assert image.info.get("duration", 100) == 100  # ms; WebP's reader does not always tell


def test_a_still_sheet_shows_pixels_as_squares(tmp_path):
    videos = [np.full((9, 32, 32, 3), shade, np.uint8) for shade in (20, 200)]
    contact_sheet.contact_sheet(videos, ["dark", "bright", "too many"], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image)
    for shade in (20, 200):  # four frames, each four times as large
        assert (pixels == shade).all(-1).sum() == 4 * 128 * 128


def test_a_moving_sheet_stays_small(tmp_path):
    path = tmp_path / "sheet.webp"
    contact_sheet.contact_sheet(clips(12, 17), ["noise"] * 12, path)
    assert path.stat().st_size <= contact_sheet.MAX_BYTES


@pytest.mark.parametrize("count, name", [(0, "x.png"), (1, "x.bmp")])
def test_what_cannot_be_shown_is_refused(tmp_path, count, name):
    with pytest.raises(ValueError, match="one video or more"):
        contact_sheet.contact_sheet(clips(count, 2), [], tmp_path / name)
