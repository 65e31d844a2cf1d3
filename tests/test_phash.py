"""Copies of a clip have near hashes, and other clips have far ones."""

import itertools

import numpy as np
import pytest
from PIL import Image

from data_pipelines.stages import examine, phash
from tests.moving_textures import camera_move, clip, mp4

NEAR = 8 * len(phash.SHARES)  # bits: an eighth


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
        assert len(original) == 8 * len(phash.SHARES)
        copies = [hashed(video_THWC, crf=38), hashed(half(video_THWC)), hashed(video_THWC[1:])]
        copies += [hashed(video_THWC[:-1]), hashed(half(video_THWC)[1:], crf=32)]
        assert max(phash.distance(original, copy) for copy in copies) <= NEAR


def test_other_clips_are_far(videos):
    hashes = [hashed(video_THWC) for video_THWC in videos]
    nearest = min(phash.distance(a, b) for a, b in itertools.combinations(hashes, 2))
    assert nearest > 2 * NEAR


def test_a_picture_has_one_hash_and_lengths_do_not_mix():
    picture = camera_move(1, 96, 160)[0]
    one = phash.phash([phash.thumbnail(picture[..., 0])])
    assert len(one) == 8 and phash.distance(one, one) == 0
    with pytest.raises(ValueError, match="8 and 32 bytes"):
        phash.distance(one, one * 4)


def test_a_plain_picture_hashes_to_itself_whatever_its_level():
    plain = [np.full((40, 60), level, np.uint8) for level in (0, 7, 128, 255)]
    assert len({phash.phash([phash.thumbnail(picture)]) for picture in plain[1:]}) == 1
