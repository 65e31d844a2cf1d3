"""Copies of a clip have near hashes, and other clips have far ones."""

import itertools

import numpy as np
import pytest
from PIL import Image

from configs import data, miradata_data, openvid_data
from data_pipelines.stages import examine, phash
from tests.moving_textures import camera_move, clip, mp4

NEAR, FAR = data.get_config().dedup.near, 20  # of the 64 bits of a picture


def distance(one, other):
    """The largest number of different bits of a picture's hash."""
    assert len(one) == len(other) == 8 * len(phash.SHARES)
    words = np.frombuffer(one, ">u8") ^ np.frombuffer(other, ">u8")
    return int(np.bitwise_count(words).max())


def hashed(video_THWC, **encoding):
    options = examine.Options(scores=("phash",))
    (row,) = examine.examine(mp4(video_THWC, **encoding), clip(), options)
    return row["phash"]


def half(video_THWC):
    size = (video_THWC.shape[2] // 2, video_THWC.shape[1] // 2)
    return np.stack([np.asarray(Image.fromarray(f).resize(size)) for f in video_THWC])


@pytest.fixture(scope="module")
def videos():
    moves = [{"right": 0.5}, {"down": 0.5, "zoom": 1.01}, {"zoom": 0.99}, {}]
    return [camera_move(32, 90, 160, seed=i, **m) for i, m in enumerate(moves)]


def test_an_encoded_shrunk_or_shifted_copy_is_near(videos):
    for video_THWC in videos:
        original = hashed(video_THWC)
        copies = [hashed(video_THWC, crf=38), hashed(half(video_THWC)), hashed(video_THWC[1:])]
        copies += [hashed(video_THWC[:-1]), hashed(half(video_THWC)[1:], crf=32)]
        assert max(distance(original, copy) for copy in copies) <= NEAR


def test_the_configs_of_all_data_sets_find_them():
    assert {c.get_config().dedup.near for c in (data, miradata_data, openvid_data)} == {NEAR}


def test_other_clips_are_far(videos):
    hashes = [hashed(video_THWC) for video_THWC in videos]
    assert min(distance(a, b) for a, b in itertools.combinations(hashes, 2)) > FAR


def test_a_plain_picture_hashes_to_itself_whatever_its_level():
    plain = [np.full((40, 60), level, np.uint8) for level in (0, 7, 128, 255)]
    assert len({phash.phash([phash.thumbnail(picture)]) for picture in plain[1:]}) == 1
