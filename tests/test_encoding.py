import numpy as np
import pytest
from test_video_io import moving

from data_pipelines.media import encoding, video_io


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (36, 60)])
def test_small_clips_encode_to_equal_bytes_every_time(size):
    video = moving(12, *size)
    assert len({encoding.encode_mp4(video, 12) for _ in range(30)}) == 1


@pytest.mark.parametrize("size", [(33, 64), (48, 21)])
def test_odd_sides_are_kept(size):
    video = moving(3, *size)
    assert video_io.decode(encoding.encode_mp4(video, 12)).shape == (3, *size, 3)


def test_encoder_names_what_is_wrong():
    with pytest.raises(ValueError, match="uint8"):
        encoding.encode_mp4(np.zeros((2, 8, 8, 3), np.float32), 12)
    with pytest.raises(ValueError, match="fps"):
        encoding.encode_mp4(moving(2), 0)
