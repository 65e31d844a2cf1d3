import collections
import itertools
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from data_pipelines import transforms

GOLDEN = pathlib.Path(__file__).parent / "golden"
MASK_CASE = json.loads((GOLDEN / "masks/case.json").read_text())["data"]
CROP_CASE = json.loads((GOLDEN / "resize_crop/case.json").read_text())
CROP_TENSORS = safetensors.numpy.load_file(GOLDEN / "resize_crop/tensors.safetensors")


def name_of(mask_t):
    return "".join(str(int(m)) for m in mask_t)


class Replay:
    """A generator that gives listed numbers, and checks that they are asked for as listed."""

    def __init__(self, draws):
        self.draws = list(draws)

    def random(self, size=None):
        if size is not None:
            return np.array([self.random() for _ in range(size)])
        kind, _, value = self.draws.pop(0)
        assert kind == "random"
        return value

    def uniform(self, low, high):
        kind, _, value = self.draws.pop(0)
        assert kind == "uniform" and (low, high) == (0.1, 0.9)
        return value

    def integers(self, low, high, endpoint):
        kind, limits, value = self.draws.pop(0)
        assert kind == "randint" and limits == [low, high] and endpoint
        return value


@pytest.mark.parametrize("case", CROP_CASE["config"]["cases"])
def test_resize_crop_is_that_of_the_reference(case):
    height, width = CROP_CASE["config"]["cases"][case]["target_size"]
    frames_THWC = np.moveaxis(CROP_TENSORS[f"input/{case}/frames"], 1, -1)
    want_THWC = np.moveaxis(CROP_TENSORS[f"output/{case}/video_unit"], 1, -1)
    got_THWC = transforms.resize_crop(frames_THWC, height, width)
    atol = CROP_CASE["outputs"][f"output/{case}/video_unit"]["atol"]
    np.testing.assert_allclose(got_THWC, want_THWC, rtol=0, atol=atol)
    assert got_THWC.dtype == np.float32

    want_HWC = np.moveaxis(CROP_TENSORS[f"output/{case}/image_uint8"], 0, -1)
    got_HWC = transforms.resize_crop_image(frames_THWC[0], height, width)
    np.testing.assert_array_equal(got_HWC, want_HWC)


def test_fit_rounds_a_clip_and_keeps_an_image_exact():
    video_THWC = np.random.default_rng(0).integers(0, 256, (2, 20, 33, 3)).astype(np.uint8)
    clip = transforms.fit(video_THWC, 16, 16)
    exact = transforms.resize_crop(video_THWC, 16, 16) * 255
    assert clip.dtype == np.uint8 and np.abs(clip - exact).max() <= 0.5001  # rounding to 8 bits
    image = transforms.fit(video_THWC[:1], 16, 16)
    np.testing.assert_array_equal(image[0], transforms.resize_crop_image(video_THWC[0], 16, 16))


@pytest.mark.parametrize("name", [n for n in transforms.MASKS if n != "random"])
def test_masks_have_the_chances_of_the_reference(name):
    for text, expected in MASK_CASE["possible_masks"][name].items():
        t = int(text)
        if "error" in expected or t > 8:
            continue
        rng = np.random.default_rng(0)
        n = 3000
        got = collections.Counter(
            name_of(transforms.frame_mask(t, {name: 1.0}, rng)) for _ in range(n)
        )
        if all(set(k) == {"0"} for k in expected):  # the reference's trap: nothing left to learn
            expected = {"0" * (t - 1) + "1": 1.0}
        assert set(got) == set(expected)
        for mask, chance in expected.items():
            # 5 standard deviations of a count
            assert abs(got[mask] / n - chance) < 5 * np.sqrt(chance * (1 - chance) / n) + 1e-9


@pytest.mark.parametrize("case", MASK_CASE["seeded_batches"])
def test_masks_follow_the_draws_of_the_reference(case):
    rng = Replay(case["draws"])
    for expected in case["masks"]:
        if case["num_frames"] == 1:
            assert name_of(transforms.frame_mask(1, case["mask_ratios"], rng)) == "1"
        else:
            got = transforms.frame_mask(case["num_frames"], case["mask_ratios"], rng)
            assert name_of(got) == expected
    assert not rng.draws


def test_random_mask_follows_given_draws():
    for case in MASK_CASE["random_strategy_with_given_draws"]:
        draws = [["random", [], 0.0], ["uniform", [], case["mask_ratio"]]]
        draws += [["random", [], u] for u in case["uniform"]]
        got = transforms.frame_mask(case["num_frames"], {"random": 1.0}, Replay(draws))
        assert name_of(got) == case["mask"]


@pytest.mark.parametrize("stage", MASK_CASE["choice_of_strategy"])
def test_strategy_is_chosen_as_in_the_reference(stage):
    case = MASK_CASE["choice_of_strategy"][stage]
    for draw, name in case["choice_for_draw"]:
        assert transforms.choose_mask(draw, case["configured"]) == name


def test_every_mask_generates_something_at_every_length():
    rng = np.random.default_rng(0)
    for name, t in itertools.product(transforms.MASKS, range(1, 9)):
        for _ in range(30):
            mask_t = transforms.frame_mask(t, {name: 1.0}, rng)
            assert mask_t.shape == (t,) and mask_t.any()
    assert name_of(transforms.frame_mask(2, {"image_head_tail": 1.0}, rng)) == "01"


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
