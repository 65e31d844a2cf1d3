import collections
import csv
import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines import shapes
from data_pipelines.embedded import drawing, judge, vocabulary
from data_pipelines.loading import resolutions, transforms
from data_pipelines.media import encoding, probes, video_io

CLIPS = 150


def shrink(video_THWC):
    """Brings a clip to its bucket at resolution 32, by the functions of the loader."""
    aspect = resolutions.closest_aspect(*video_THWC.shape[1:3], "32")
    size = resolutions.sizes("32")[aspect]
    return np.stack([transforms.fit(image, *size, is_image=False) for image in video_THWC])


@pytest.fixture(scope="module")
def encoded():
    """(clip, 17 frames at 32 pixels) of real mp4 bytes."""
    result = []
    for number in range(CLIPS):
        clip, rng = shapes.plan(number, image=False, seed=11)
        frames = drawing.render(
            clip.attributes, clip.height, clip.width, clip.num_frames, clip.fps, rng
        )
        video = video_io.decode(encoding.encode_mp4(frames, clip.fps), range(17))
        result.append((clip, shrink(video)))
    return result


def accuracy(encoded, change=lambda video_THWC: video_THWC):
    right = dict.fromkeys(vocabulary.ATTRIBUTES, 0)
    for clip, video in encoded:
        seen = judge.judge(change(video), clip.fps)
        for k in right:
            right[k] += seen[k] == getattr(clip.attributes, k)
    return {k: n / len(encoded) for k, n in right.items()}


def test_judge_reads_clips_after_h264_and_resizing(encoded):
    assert min(accuracy(encoded).values()) >= 0.99


def test_judge_reads_noisy_and_blurred_clips(encoded):
    rng = np.random.default_rng(0)

    def spoil(video_THWC):  # half the resolution, then noise of 5 % of the range
        height, width = video_THWC.shape[1:3]
        small = [
            Image.fromarray(image).resize((width // 2, height // 2), Image.BOX)
            for image in video_THWC
        ]
        video = np.stack([np.asarray(i.resize((width, height), Image.BICUBIC)) for i in small])
        return np.clip(video + rng.normal(0, 12, video.shape), 0, 255).astype(np.uint8)

    assert min(accuracy(encoded[:60], spoil).values()) >= 0.97


def test_judge_of_an_image_has_no_motion():
    for number in range(20):
        clip, rng = shapes.plan(number, image=True, seed=3)
        frames = drawing.render(clip.attributes, clip.height, clip.width, 1, None, rng)
        seen = judge.judge(shrink(frames), probes.IMAGE_FPS)
        assert seen == dataclasses.asdict(clip.attributes)


def test_judge_sees_no_object_in_a_plain_or_noisy_picture():
    noise = np.random.default_rng(0).integers(120, 135, (5, 32, 32, 3)).astype(np.uint8)
    seen = judge.judge(noise, 12)
    assert seen.pop("background") == "gray"
    assert set(seen.values()) == {None}


def test_judge_refuses_floats():
    with pytest.raises(ValueError, match="uint8"):
        judge.judge(np.zeros((5, 32, 32, 3), np.float32), 12)


def test_object_stays_visible_and_moves_at_its_speed():
    for number in range(40):
        clip, rng = shapes.plan(number, image=False, seed=5)
        frames = drawing.render(
            clip.attributes, clip.height, clip.width, clip.num_frames, clip.fps, rng
        )
        back = np.array(vocabulary.BACKGROUNDS[clip.attributes.background])
        mass = np.abs(frames.astype(float) - back).sum((1, 2, 3))
        # 3 %: edges fall differently on the pixels; a cut object would lose far more
        np.testing.assert_allclose(mass, mass.mean(), rtol=0.03)
        seen = judge.measure(frames, clip.fps)
        speed = vocabulary.SPEEDS[clip.attributes.speed]
        np.testing.assert_allclose(np.hypot(*seen.velocity), speed, rtol=0.05)


def test_averages_show_where_objects_are_and_where_they_go():
    mean_colour = np.mean(list(vocabulary.COLOURS.values()), axis=0)
    assert all(
        (mean_colour > np.array(back) + 20).all() for back in vocabulary.BACKGROUNDS.values()
    )
    rng = np.random.default_rng(0)
    for _ in range(40):
        attributes = vocabulary.sample_attributes(rng)
        frames = drawing.render(attributes, 32, 32, 17, 12, rng)
        back = np.array(vocabulary.BACKGROUNDS[attributes.background])
        swept_HW = (frames != back).any((0, 3))
        dy, dx = vocabulary.DIRECTIONS[attributes.direction]
        covered = np.flatnonzero(swept_HW.any(1 if dy else 0))
        gaps = [covered[0], 31 - covered[-1]]  # before and behind what the object sweeps
        behind, ahead = gaps if dy + dx > 0 else gaps[::-1]
        assert ahead < behind


def test_render_refuses_to_lose_the_object():
    attributes = vocabulary.Attributes("circle", "red", "left", "fast", "large", "black")
    with pytest.raises(ValueError, match=r"use \d+ frames or fewer"):
        drawing.render(attributes, 32, 32, 40, 12, np.random.default_rng(0))


def test_held_out_combinations_leave_every_pair_in_training():
    axes = (vocabulary.SHAPES, tuple(vocabulary.COLOURS), tuple(vocabulary.DIRECTIONS))
    out, kept = set(), set()
    for combination in itertools.product(*axes):
        attributes = vocabulary.Attributes(*combination, "slow", "small", "black")
        (out if vocabulary.held_out(attributes) else kept).add(combination)
    assert 0.15 < len(out) / (len(out) + len(kept)) < 0.25
    for i, j in ((0, 1), (0, 2), (1, 2)):
        left = collections.Counter((c[i], c[j]) for c in kept)
        of = np.prod([len(a) for a in axes]) / len(axes[i]) / len(axes[j])
        assert min(left[pair] for pair in itertools.product(axes[i], axes[j])) >= 2 / 3 * of


def test_training_never_draws_a_held_out_combination_and_prompts_always_do():
    rng = np.random.default_rng(0)
    assert not any(vocabulary.held_out(vocabulary.sample_attributes(rng)) for _ in range(300))
    prompts = vocabulary.held_out_prompts(50, seed=1)
    assert all(vocabulary.held_out(attributes) for _, attributes in prompts)
    assert (
        prompts
        == vocabulary.held_out_prompts(50, seed=1)
        != vocabulary.held_out_prompts(50, seed=2)
    )


def test_captions_name_every_attribute_within_80_bytes():
    rng = np.random.default_rng(0)
    longest, texts = 0, set()
    for i in range(2000):
        attributes = vocabulary.sample_attributes(rng, image=i % 5 == 0)
        text = vocabulary.caption(attributes, rng)
        assert vocabulary.parse(text) == dataclasses.asdict(attributes)
        assert text == text.lower()
        longest = max(longest, len(text.encode()))
        texts.add(text)
    assert longest <= 80
    assert (
        vocabulary.caption(vocabulary.Attributes("circle", "red", "left", "slow", "small", "black"))
        == "a small red circle moves left slowly on a black background"
    )


def test_most_clips_suit_the_square_bucket_of_17_frames():
    plans = [shapes.plan(i, image=False, seed=0)[0] for i in range(500)]
    main = [p for p in plans if p.height == p.width and p.fps == 12 and p.num_frames > 17]
    assert 0.65 < len(main) / len(plans) < 0.85
    assert {p.fps for p in plans} == {12.0, 15.0, 24.0, 29.97}
    assert any(p.height > p.width for p in plans) and any(p.height < p.width for p in plans)


def test_command_writes_equal_bytes_after_an_interruption(tmp_path):
    command = [sys.executable, "-m", "data_pipelines.shapes", "--clips=5", "--images=3", "--seed=4"]
    subprocess.run([*command, f"--out={tmp_path / 'a'}"], check=True, capture_output=True)
    shapes.write(tmp_path / "b", clips=3, images=1, seed=4)  # as if stopped early
    shapes.write(tmp_path / "b", clips=5, images=3, seed=4)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 5 + 3 + 2
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with open(tmp_path / "a" / "clips.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["path"] for r in rows][4:6] == ["clips/000004.mp4", "images/000000.png"]
    again = subprocess.run(
        [*command, "--seed=5", f"--out={tmp_path / 'a'}"], capture_output=True, text=True
    )
    assert again.returncode == 2 and "another seed" in again.stderr


def test_h264_keeps_the_colours(encoded):
    for number in range(20):
        clip, rng = shapes.plan(number, image=False, seed=2)
        frames = drawing.render(
            clip.attributes, clip.height, clip.width, clip.num_frames, clip.fps, rng
        )
        video = video_io.decode(encoding.encode_mp4(frames, clip.fps))
        assert video.shape == frames.shape
        seen = judge.measure(video, clip.fps)
        # 12 of 255: rounding to 8-bit YUV and quantisation at crf 10
        expected = vocabulary.BACKGROUNDS[clip.attributes.background]
        np.testing.assert_allclose(seen.background_rgb, expected, atol=12)
