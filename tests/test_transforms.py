import collections
import itertools

import numpy as np
import pytest

from data_pipelines.loading import transforms


def test_fit_rounds_a_frame_and_keeps_an_image_exact():
    image_HWC = np.random.default_rng(0).integers(0, 256, (20, 33, 3)).astype(np.uint8)
    frame = transforms.fit(image_HWC, 16, 16, is_image=False)
    exact = transforms.resize_crop(image_HWC[None], 16, 16)[0] * 255
    assert frame.dtype == np.uint8 and np.abs(frame - exact).max() <= 0.5001  # rounding to 8 bits
    image = transforms.fit(image_HWC, 16, 16, is_image=True)
    np.testing.assert_array_equal(image, transforms.resize_crop_image(image_HWC, 16, 16))


def test_a_frame_of_the_right_size_stays_as_the_arithmetic_leaves_it():
    image_HWC = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(3, axis=2)
    assert transforms.fit(image_HWC, 8, 32, is_image=False) is image_HWC
    computed = np.rint(transforms.resize_crop(image_HWC[None], 8, 32)[0] * 255)
    np.testing.assert_array_equal(computed, image_HWC)


def test_every_mask_generates_something_at_every_length():
    rng = np.random.default_rng(0)
    for name, t in itertools.product(transforms.MASKS, range(1, 9)):
        for _ in range(30):
            mask_t = transforms.frame_mask(t, {name: 1.0}, rng)
            assert mask_t.shape == (t,) and mask_t.any()
    assert transforms.frame_mask(2, {"image_head_tail": 1.0}, rng).tolist() == [False, True]


def test_wrong_mask_ratios_are_named():
    with pytest.raises(ValueError, match="interpolate"):
        transforms.check_mask_ratios({"interpolate": 0.1})
    with pytest.raises(ValueError, match="<= 1"):
        transforms.check_mask_ratios({"random": 0.7, "image_head": 0.6})


def test_frames_stay_inside_the_clip_and_cover_all_starts():
    rng = np.random.default_rng(0)
    starts = collections.Counter()
    for _ in range(500):
        frames = transforms.choose_frames(30, 5, 3, rng)
        starts[int(frames[0])] += 1
        assert frames[0] >= 0 and frames[-1] == frames[0] + 14  # both ends of the window of 15
        assert (np.diff(frames) >= 3).all()
    assert set(starts) == set(range(15))  # 0 .. 30 - 15 - 1
    np.testing.assert_array_equal(transforms.choose_frames(18, 17, 1, rng), np.arange(17))
    np.testing.assert_array_equal(transforms.choose_frames(5, 5, 1, rng), np.arange(5))
    with pytest.raises(ValueError, match="4 frames are too few"):
        transforms.choose_frames(4, 5, 1, rng)


def test_fps_is_rounded_down_and_120_for_images():
    assert transforms.clip_fps(29.97, 17, 1) == 29
    assert transforms.clip_fps(30.0, 17, 2) == 15
    assert transforms.clip_fps(24.0, 1, 1) == 120
