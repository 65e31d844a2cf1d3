import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipelines.media import display, video_io
from tests import valid_media


def test_frames_stand_upright_as_players_show_them():
    upright = video_io.decode(valid_media.video(frames=3))
    for angle, turns in ((90, 1), (180, 2), (-90, -1)):  # both count counterclockwise
        content = valid_media.video(frames=3, rotation=angle)
        shown = np.rot90(upright, turns, axes=(1, 2))
        np.testing.assert_array_equal(video_io.decode(content), shown)
        probe = video_io.probe(content)
        assert probe == video_io.check(content) and probe.orientation != 1
        assert (probe.height, probe.width) == shown.shape[1:3]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_turn_as_exif_says(orientation):
    image = Image.fromarray(valid_media.scene(1, 20, 30)[0])
    exif = image.getexif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    turned = display.turn(np.asarray(image), orientation)
    np.testing.assert_array_equal(turned, np.asarray(ImageOps.exif_transpose(image)))


def test_transparency_is_shown_over_white():
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[:, :10, 3], pixels[:, 10:20, 3] = 255, 51
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    image_HWC = video_io.decode(buffer.getvalue())[0]
    assert [image_HWC[5, x, 0] for x in (5, 15, 25)] == [0, 204, 255]
