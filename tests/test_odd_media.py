"""Odd but legal files keep their frames, in order, at their rate; what is lost has a name."""

import fractions
import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines import cut_miradata
from data_pipelines.media import video_io
from data_pipelines.shards import records
from data_pipelines.sources import clips
from data_pipelines.stages import examine, ingest, ledger, rules
from tests import odd_media, whole_files

DATA = pathlib.Path(__file__).parent / "data" / "odd_media"
OPEN_GROUPS = {"x265-params": "log-level=none:keyint=20:open-gop=1:bframes=3:scenecut=0"}
EVEN = [number / 30 for number in range(60)]


def numbers(content, places=None):
    """What the frames show, which is how many, in which order and which."""
    probe = video_io.check(content)
    found = [odd_media.number_of(image) for image in video_io.decode(content, places)]
    assert places is not None or len(found) == probe.num_frames
    return found


def numbers_given(name, places=None):
    """Those of the files in `data/odd_media`, whose bars stand in the middle."""
    assert video_io.check(DATA / name)
    frames = video_io.decode(DATA / name, places)
    return [odd_media.number_of(image[30:34, 20:76]) for image in frames]


def reason(content):
    with pytest.raises(video_io.MediaError) as error:
        video_io.check(content)
    return error.value.reason


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("container", "cover"),
    [("mp4", "mjpeg"), ("mp4", "png"), ("mov", "mjpeg"), ("matroska", "mjpeg")],
)
def test_a_cover_picture_is_not_the_video(container, cover, first):
    content = odd_media.video(container=container, cover=cover, cover_first=first)
    assert numbers(content) == list(range(60))


def test_a_cover_of_itunes_is_not_the_video():
    assert numbers_given("cover_first.mp4") == list(range(60))


def test_a_song_with_a_cover_is_no_clip():
    content = odd_media.song(cover="mjpeg")
    assert reason(content) == "no video"


@pytest.mark.parametrize("width", [96, 102, 130, 854])
@pytest.mark.parametrize(("format", "container"), [("yuv420p", "mp4"), ("yuv420p10le", "matroska")])
def test_hevc_that_begins_in_an_open_group(width, format, container):
    whole = odd_media.video("libx265", size=(64, width), format=format, options=OPEN_GROUPS)
    found = numbers(odd_media.from_keyframe(whole, 1, container))
    assert found == list(range(found[0], 60)) and 15 <= found[0] <= 20


def test_hevc_that_was_trimmed_elsewhere():
    assert numbers_given("hevc_trim.mp4") == list(range(22, 60))


@pytest.mark.parametrize("codec", ["mpeg2video", "mpeg4"])
def test_older_codecs_that_begin_in_an_open_group(codec):
    whole = odd_media.video(codec, container="matroska", options={"g": "12", "bf": "2"})
    found = numbers(odd_media.from_keyframe(whole, 2, "matroska"))
    assert found == list(range(found[0], 60)) and 20 <= found[0] <= 26


def test_frames_that_are_missing_elsewhere_are_still_missed():
    whole = odd_media.video("mpeg2video", container="matroska", options={"g": "12", "bf": "2"})
    place = len(whole) // 2
    assert reason(whole[:place]) == "damaged"


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize(
    ("times", "fps"),
    [
        ([t + 1 for t in EVEN], 30),  # a late start
        ([t + 0.004 * (i % 3) for i, t in enumerate(EVEN)], 30),  # a clock that trembles
        ([t + 0.1 * (i > 30) for i, t in enumerate(EVEN)], 30),  # one short hole
        ([(i + i // 4) / 30 for i in range(60)], 24.3),  # film at 30: each fifth frame is not there
        ([t + 2 * (i > 30) for i, t in enumerate(EVEN)], None),  # one long hole
        ([t + 0.5 * (i // 15) for i, t in enumerate(EVEN)], None),  # a recorder that stutters
        ([i / 30 if i < 30 else 1 + (i - 30) / 10 for i in range(60)], None),  # two rates
    ],
)
def test_times_tell_the_rate_or_that_there_is_none(times, fps, container):
    content = odd_media.video(container=container, times=times, options={"bf": "0"})
    if fps is None:
        assert reason(content) == "variable rate"
    else:
        assert numbers(content) == list(range(60))
        assert video_io.check(content).fps == pytest.approx(fps, rel=0.01)


def test_a_recording_with_holes_has_no_rate():
    assert reason(DATA / "vfr_holes.mp4") == "variable rate"


@pytest.mark.parametrize("codec", ["libvpx", "ffv1", "libvpx-vp9", "libx264"])
@pytest.mark.parametrize("curve", [16, 18, 1])
def test_a_curve_that_the_container_alone_tells(codec, curve):
    content = odd_media.video(codec, 8, container="matroska", color_trc=curve)
    if curve == 1:
        assert numbers(content) == list(range(8))
    else:
        assert reason(content) == "high dynamic range"


def png(array, **settings):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png", **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("low, high", [(0, 65535), (0, 255), (20_000, 30_000), (65_000, 65_535)])
def test_grey_of_16_bits_keeps_its_high_byte(low, high):
    grey_HW = np.linspace(low, high, 64 * 96).astype(np.uint16).reshape(64, 96)
    shown = video_io.decode(png(grey_HW))[0]
    np.testing.assert_array_equal(shown, np.repeat((grey_HW >> 8)[..., None], 3, -1))


def test_grey_of_16_bits_may_have_a_clear_value():
    grey_HW = np.array([[0, 300], [40_000, 65_535]], np.uint16)
    shown = video_io.decode(png(grey_HW, transparency=300))[0]
    assert shown[..., 0].tolist() == [[0, 255], [156, 255]]


def test_a_grey_ramp_is_half_grey():
    assert video_io.decode(DATA / "gray16.png").mean() == pytest.approx(127.5)


@pytest.mark.parametrize("format", ["webp", "png"])
def test_a_moving_picture_is_no_still(format):
    pictures = [Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)) for i in range(5)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, format, save_all=True, append_images=pictures[1:], duration=40)
    assert reason(buffer.getvalue()) == "animated image"
    buffer = io.BytesIO()
    pictures[1].save(buffer, format, save_all=True)
    assert video_io.check(buffer.getvalue()).num_frames == 1


LATE = [t + 1.5 for t in EVEN]


@pytest.mark.parametrize(
    ("codec", "container", "times"),
    [
        ("libx264", "mp4", None),
        ("libx264", "mp4", LATE),
        ("libx264", "matroska", LATE),
        ("mpeg4", "avi", None),
        ("libsvtav1", "mp4", None),
        ("libsvtav1", "webm", LATE),
        ("libvpx-vp9", "webm", None),
    ],
)
def test_cuts_of_any_codec_begin_at_their_frame(codec, container, times):
    whole = odd_media.video(codec, container=container, options={"g": "10"}, times=times)
    content, begin = cut_miradata.cut(io.BytesIO(whole), 0.7, 1.2)
    probe = video_io.check(content)
    first = round(begin * probe.fps)
    assert first <= 10 and numbers(content, range(first, first + 15)) == list(range(21, 36))


def test_a_cut_of_av1_of_a_browser():
    with open(DATA / "av1.webm", "rb") as file:
        content, begin = cut_miradata.cut(file, 0.7, 1.2)
    first = round(begin * video_io.check(content).fps)
    frames = video_io.decode(content, range(first, first + 15))
    assert [odd_media.number_of(image[30:34, 20:76]) for image in frames] == list(range(21, 36))


def test_a_cover_is_not_cut():
    whole = odd_media.video(container="matroska", cover="mjpeg", cover_first=True)
    content, _ = cut_miradata.cut(io.BytesIO(whole), 0.7, 1.2)
    assert 35 in numbers(content)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        (None, range(30, 45)),
        (LATE, range(30, 45)),  # seconds count from the first frame
        ([t + 0.1 * (i > 20) for i, t in enumerate(EVEN)], range(27, 42)),
        ([(i + i // 4) / 30 for i in range(60)], range(24, 36)),
    ],
)
def test_a_part_is_what_is_shown_at_its_times(times, wanted, container, tmp_path):
    """From the table to the record: the frames that were examined, at the rate that is told."""
    kind = {"mkv": "matroska"}.get(container, container)
    content = odd_media.video(container=kind, times=times, options={"bf": "0"})
    (tmp_path / f"a.{container}").write_bytes(content)
    table = tmp_path / "clips.csv"
    table.write_text(f"path,text,start,end\na.{container},a dog,1,1.5\n")
    ingest.run(table, tmp_path / "out", num_workers=1)
    sample = records.Reader(tmp_path / "out")[0]
    frames = video_io.decode(sample["video"])
    assert [odd_media.number_of(image) for image in frames] == list(wanted)
    assert sample["num_frames"] == len(wanted)
    assert sample["fps"] == pytest.approx(30 if len(wanted) == 15 else 24.3, rel=0.01)


def part(content, start, end):
    (row,) = examine.examine(io.BytesIO(content), clips.Clip("a", "a", None, "", start, end))
    if row.get("status"):
        return row["rule"]
    return row["first_frame"], row["num_frames"]


@pytest.mark.parametrize("container", ["avi", "mp4", "matroska"])
@pytest.mark.parametrize("first, count", [(0, 5), (12, 5), (3, 1), (20, 28)])
def test_parts_are_exact_whatever_the_order_of_decoding(container, first, count):
    content = odd_media.video("libx264", 48, container=container, rate=24, options={"bf": "2"})
    assert part(content, first / 24, (first + count) / 24) == (first, count)


def test_a_header_that_lies_about_the_rate_moves_no_part():
    """A last frame of a minute makes the mean rate that of a slide show."""
    content = odd_media.video(num_frames=48, rate=24, options={"bf": "0"}, last_seconds=60)
    assert video_io.probe(content).fps < 2
    assert part(content, 1.0, 1.5) == (24, 12)


def test_a_part_is_judged_by_its_own_frames():
    hole = [t + 0.5 * (n > 30) for n, t in enumerate(t / 30 for t in range(180))]
    content = odd_media.video(num_frames=180, times=hole, options={"bf": "0"})
    assert part(content, 3.0, 5.0) == (75, 60)
    assert part(content, 0.5, 2.0) == "variable rate"
    assert part(content, 90, 91) == part(content, 0.0, 0.001) == "too short"


def test_scenes_come_back_by_their_times():
    hole = [t + 0.05 * (n > 30) for n, t in enumerate(t / 30 for t in range(150))]
    content = odd_media.video(num_frames=150, times=hole, options={"bf": "0"})
    options = examine.Options(cuts=True, cut_threshold=99, max_seconds=1.0, split_long=True)
    rows = examine.examine(io.BytesIO(content), clips.Clip("a", "a", None), options)
    assert len(rows) >= 5 and sum(row["num_frames"] for row in rows) == 150
    for row in rows:
        found = row["first_frame"], row["num_frames"]
        assert part(content, row["start"], row["end"]) == found
    assert {row["num_frames"] for row in rows[2:-1]} == {30}


def test_a_photo_of_two_pictures_is_no_animation():
    pictures = [Image.fromarray(np.full((32, 32, 3), 90 * i, np.uint8)) for i in range(2)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "MPO", save_all=True, append_images=pictures[1:])
    assert video_io.decode(buffer.getvalue()).shape == (1, 32, 32, 3)


def test_avi_with_frames_out_of_order_is_not_cut():
    content = odd_media.video("libx264", container="avi", options={"bf": "2"})
    with pytest.raises(video_io.MediaError, match="have no times"):
        cut_miradata.cut(io.BytesIO(content), 0.7, 1.2)


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
@pytest.mark.parametrize("aspect", ["16/11", "8/9", "1/1"])
def test_pixels_that_are_not_square_are_told(container, aspect):
    shape = fractions.Fraction(aspect)
    content = odd_media.video(num_frames=9, container=container, sample_aspect_ratio=shape)
    assert video_io.check(content).pixel_aspect == pytest.approx(float(shape), rel=0.01)
    (row,) = examine.examine(io.BytesIO(content), clips.Clip("a", "a", None))
    (verdict,) = rules.apply(rules.parse(["pixel_aspect == 1"]), ledger.table([row]))
    assert (verdict is None) == (aspect == "1/1")


def test_keyframes_that_need_what_comes_before_are_marked_by_quicktime():
    options = {"g": "12", "bf": "2"}
    content = odd_media.video("mpeg2video", container="mov", options=options)
    assert b"stps" in content and numbers(content) == list(range(60))


def test_a_cut_whose_rate_is_guessed_wrong_has_that_of_its_times():
    options = {"x264-params": "stitchable=1:bluray-compat=1"}
    times = [number / 60 for number in range(24)]
    settings = {"size": (96, 40), "format": "yuvj420p", "rate": 60, "times": times}
    whole = odd_media.video("libx264", 24, container="matroska", options=options, **settings)
    content = odd_media.from_keyframe(whole, 1, "matroska")
    assert round(video_io.check(content).fps) == 60
    assert numbers(content) == list(range(8, 24))


def test_the_duration_of_a_first_fragment_may_be_that_of_all(tmp_path):
    recipe = whole_files.Recipe(
        *("libx264", "yuvj420p", {"preset": "veryslow"}, "mov", {"movflags": "frag_every_frame"}),
        *("none", (100, 72), 30, 7, "PyAV"),
    )
    assert video_io.check(whole_files.make(recipe, tmp_path)).num_frames == 7
