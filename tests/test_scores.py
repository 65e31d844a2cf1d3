"""Scores say what is true of clips whose truth is known, whatever the size of their pictures."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data_pipelines.embedded import drawing, vocabulary
from data_pipelines.stages import examine, scene, scores
from tests.moving_textures import camera_move, clip, mp4


def score(video_THWC, *names, **encoding):
    options = examine.Options(scores=names)
    (row,) = examine.examine(mp4(video_THWC, **encoding), clip(), options)
    assert "status" not in row, row
    return [row[name] for name in names] if len(names) > 1 else row[names[0]]


@pytest.mark.parametrize("right, down", [(0.5, 0), (-2, 0), (0, 1), (1, -1.5)])
def test_motion_is_the_mean_flow_component_over_ten_frames(right, down):
    video_THWC = camera_move(21, 160, 288, right=right / 2, down=down / 2)
    wanted = 10 * (abs(right) + abs(down)) / 2
    # in pixels of 320x576; the rim, where the texture leaves, is guessed
    assert score(video_THWC, "motion") == pytest.approx(wanted, rel=0.025)


def test_motion_does_not_depend_on_size_or_on_which_side_is_long():
    large_THWC = camera_move(11, 320, 576, right=1.5, grain=12)
    large = score(large_THWC, "motion")
    small = score(camera_move(11, 160, 288, right=0.75, grain=6), "motion")
    upright = score(large_THWC.transpose(0, 2, 1, 3), "motion")
    assert small == pytest.approx(large, rel=0.05)
    assert upright == pytest.approx(large, rel=0.05)


def test_a_clip_shorter_than_ten_frames_is_scaled_to_ten():
    long, short = camera_move(31, 96, 160, right=1), camera_move(6, 96, 160, right=1)
    assert score(short, "motion") == pytest.approx(score(long, "motion"), rel=0.1)


def test_a_still_clip_has_no_motion_and_a_fast_object_more_than_a_slow_one():
    assert score(np.repeat(camera_move(1, 96, 160), 24, axis=0), "motion") < 0.1
    measured = []
    drawn = vocabulary.Attributes("circle", "red", "right", "slow", "large", "gray")
    for speed in ("slow", "fast"):
        drawn = dataclasses.replace(drawn, speed=speed)
        video_THWC = drawing.render(drawn, 64, 112, 24, 12.0, np.random.default_rng(0))
        measured.append(score(video_THWC, "motion", fps=12.0))
    assert 0.1 < 1.5 * measured[0] < measured[1]


def test_sharpness_falls_with_blur_and_not_with_the_size_of_the_file():
    blocks = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    sharp = np.kron(blocks, np.ones((32, 32, 1), np.uint8))
    measured = []
    for picture in (
        Image.fromarray(sharp),
        Image.fromarray(sharp).resize((256, 256), Image.Resampling.BICUBIC),
        Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(6)),
        Image.fromarray(sharp).resize((32, 32)).resize((512, 512), Image.Resampling.BICUBIC),
    ):
        measured.append(scores.sharpness(scores.luma(np.asarray(picture))))
    full, half, blurred, enlarged = measured
    assert half == pytest.approx(full, rel=0.1)
    assert 3 * blurred < full and 3 * enlarged < full


def test_brightness_is_the_share_of_white():
    for level in (0, 64, 255):
        video_THWC = np.full((5, 32, 48, 3), level, np.uint8)
        assert score(video_THWC, "brightness") == pytest.approx(level / 255, abs=0.01)


def test_static_share_counts_repeated_frames():
    moving = camera_move(12, 180, 320, right=1)
    assert score(moving, "static_share", crf=23) == 0
    assert score(np.repeat(moving, 2, axis=0), "static_share", crf=23) == 12 / 23
    assert score(np.repeat(moving[:1], 12, axis=0), "static_share", crf=23) == 1


def test_black_share_counts_frames_of_98_percent_black():
    video_THWC = camera_move(8, 96, 160)
    video_THWC[:3] = 10
    video_THWC[3, :60] = 0  # most of it, but not all
    assert score(video_THWC, "black_share") == 3 / 8


@pytest.mark.parametrize("size", [(144, 256), (360, 640)])
def test_letterbox_is_the_share_of_bars_and_pillars(size):
    height, width = size
    video_THWC = camera_move(6, height, width, right=2)
    assert score(video_THWC, "letterbox") == 0
    bar, pillar = height // 8, width // 8
    video_THWC[:, :bar] = video_THWC[:, -bar:] = 16
    assert score(video_THWC, "letterbox") == pytest.approx(1 / 4, abs=0.015)
    inner_THWC = video_THWC[:, bar:-bar]
    inner_THWC[:, :, :pillar] = inner_THWC[:, :, -pillar:] = 60
    assert score(video_THWC, "letterbox") == pytest.approx(1 - 9 / 16, abs=0.015)


def test_a_plain_clip_is_all_border_and_a_title_in_a_bar_is_none():
    plain = np.full((5, 96, 160, 3), 90, np.uint8)
    assert score(plain, "letterbox") == 1
    plain[2:, 3:12, 20:140] = 250
    assert score(plain, "letterbox") == pytest.approx(1 - 9 * 120 / (96 * 160), abs=0.02)


def test_an_image_has_the_scores_that_need_no_time(tmp_path):
    Image.fromarray(camera_move(1, 96, 160)[0]).save(tmp_path / "a.png")
    options = examine.Options(scores=scene.NAMES)
    (row,) = examine.examine(tmp_path / "a.png", clip(), options)
    assert {*scene.NAMES} - {*row} == {"motion", "camera", "static_share"}
    assert len(row["phash"]) == 8


def test_all_scores_of_one_clip_come_from_one_decode_and_are_the_same_again(monkeypatch):
    from data_pipelines.media import video_io

    calls = []
    check = video_io.check
    counted = lambda *a, **k: calls.append(1) or check(*a, **k)
    monkeypatch.setattr(video_io, "check", counted)
    options = examine.Options(scores=scene.NAMES, cuts=True, num_stills=3)
    video_THWC = camera_move(40, 96, 160, right=1)
    first = examine.examine(mp4(video_THWC), clip(), options)
    assert len(calls) == 1
    assert first == examine.examine(mp4(video_THWC), clip(), options)


def test_an_unknown_score_is_refused_by_name():
    with pytest.raises(ValueError, match="aesthetic.*motion"):
        examine.Options(scores=("aesthetic",))
