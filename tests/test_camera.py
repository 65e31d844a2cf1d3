"""The camera's motion is read from the flow of the picture."""

import io

import av
import numpy as np
import pytest

from data_pipelines.media import video_io
from data_pipelines.stages import camera, examine
from tests.moving_textures import camera_move, clip, mp4

MOVES = {
    "pan_left": {"right": -0.5},
    "pan_right": {"right": 0.5, "down": 0.2},
    "tilt_up": {"down": -0.5},
    "tilt_down": {"down": 0.5, "right": 0.2},
    "zoom_in": {"zoom": 1.01},
    "zoom_out": {"zoom": 1 / 1.01},
    "static": {},
}


def label(*videos):
    options = examine.Options(scores=("camera",))
    (row,) = examine.examine(mp4(np.concatenate(videos)), clip(), options)
    return row["camera"]


@pytest.mark.parametrize("size", [(96, 160), (160, 96)])
@pytest.mark.parametrize("name", MOVES)
def test_a_camera_that_moves_one_way_is_named(name, size):
    assert label(camera_move(21, *size, **MOVES[name])) == name


def test_a_turned_file_is_seen_as_it_is_shown():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.set_display_rotation(90)
        for picture in camera_move(21, 96, 160, right=0.5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    options = examine.Options(scores=("camera",), num_stills=1)
    (row,) = examine.examine(buffer, clip(), options)
    assert (row["height"], row["width"]) == (160, 96)
    assert row["camera"] in ("tilt_up", "tilt_down")
    assert video_io.decode(row["stills"][0]).shape == (1, 160, 96, 3)


def test_a_moving_object_before_a_still_background_is_static():
    video_THWC = np.repeat(camera_move(1, 96, 160), 21, axis=0)
    for t in range(21):
        video_THWC[t, 30:60, 20 + 4 * t : 50 + 4 * t] = camera_move(1, 30, 30, seed=1)[0]
    assert label(video_THWC) == "static"


def test_no_majority_is_unknown():
    two = [camera_move(21, 96, 160, **MOVES[name]) for name in ("pan_left", "tilt_up")]
    assert label(*two) == camera.UNKNOWN
    assert camera.camera([]) == camera.UNKNOWN
