"""One decode gives the ledger its facts, and no file however broken ends in an exception."""

import hashlib
import io
import subprocess
import sys

import av
import numpy as np
import pytest

from data_pipelines.media import encoding, video_io
from data_pipelines.stages import examine, look, scene
from tests import valid_media
from tests.moving_textures import camera_move, clip


def mp4(num_frames=12, height=32, width=48, fps=12.0):
    video_THWC = np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    return encoding.encode_mp4(video_THWC, fps)


@pytest.mark.parametrize(
    "end, is_refused", [(4.0, False), (3.9999999999999996, False), (3.99, True)]
)
def test_a_scene_of_just_the_least_length_stays(end, is_refused):
    found = look.Scene(first=24, stop=48, start=2.0, end=end, values={})
    row = examine._scene_row("a", found, {"id": "a"}, True, examine.Options(min_seconds=2.0))
    assert (row.get("rule") == examine.SCENE_TOO_SHORT) == is_refused


@pytest.mark.parametrize("rotation", [0, 90])
def test_a_refused_clip_keeps_what_its_header_told(rotation):
    content = valid_media.video(frames=3, rotation=rotation)
    probe = video_io.check(content)
    (row,) = examine.examine(io.BytesIO(content), clip(start=90.0, end=91.0))
    assert (row["rule"], row["codec"], row["fps"]) == ("too short", probe.codec, probe.fps)
    assert (row["height"], row["width"]) == (probe.height, probe.width)
    assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_good_file_gives_one_row_of_facts_without_a_verdict(tmp_path):
    content = mp4()
    (tmp_path / "a.mp4").write_bytes(content)
    for file in (str(tmp_path / "a.mp4"), io.BytesIO(content)):
        (row,) = examine.examine(file, clip(given={"aesthetic": 5.5}))
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert (row["bytes"], row["kind"], row["format"]) == (len(content), "video", "mov")
        assert (row["num_frames"], row["height"], row["width"], row["fps"]) == (12, 32, 48, 12.0)
        assert (row["id"], row["text"], row["given"]) == ("a", "a red square", '{"aesthetic": 5.5}')
        assert "status" not in row and "rule" not in row


@pytest.mark.parametrize(
    "content, rule",
    [
        (b"", "empty"),
        (b"#EXTM3U\nsecret.txt\n", "unknown format"),
        (mp4()[:60], "broken header"),
    ],
)
def test_a_broken_file_gives_one_row_with_its_reason(content, rule):
    (row,) = examine.examine(io.BytesIO(content), clip())
    assert (row["id"], row["status"], row["rule"]) == ("a", "left out", rule)
    assert row["message"]


def test_a_missing_file_and_one_over_the_limit_are_left_out(tmp_path):
    (row,) = examine.examine(tmp_path / "none.mp4", clip())
    assert row["rule"] == "missing file"
    options = examine.Options(video_io.Limits(max_bytes=10))
    (row,) = examine.examine(io.BytesIO(mp4()), clip(), options)
    assert (row["status"], row["rule"]) == ("left out", "too large")


def test_a_decoder_that_fails_in_its_own_way_is_a_row_too(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(video_io, "check", fail)
    (row,) = examine.examine(io.BytesIO(mp4()), clip())
    assert (row["rule"], row["message"]) == ("decoder error", "RuntimeError: a bug")


def test_all_of_it_runs_behind_the_guard_within_512_mib(tmp_path):
    video_THWC = camera_move(21, 360, 640, right=2)
    (tmp_path / "a.mp4").write_bytes(encoding.encode_mp4(video_THWC, 24.0))
    code = f"""
from data_pipelines.sources import clips
from data_pipelines.workers import guard
from data_pipelines.stages import examine, scene
file = open({str(tmp_path / "a.mp4")!r}, "rb")
guard.enter()
options = examine.Options(cuts=True, scores=scene.NAMES, num_stills=3)
(row,) = examine.examine(file, clips.Clip("a", "a.mp4", "t"), options)
assert "status" not in row and {{*scene.NAMES, "stills"}} <= {{*row}}, row
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 512 << 10  # KiB; measured: 130 MiB, and 310 MiB at 4096x4096


def test_full_range_colours_are_no_damage():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for picture in camera_move(8, 48, 64, right=1):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    options = examine.Options(scores=scene.NAMES, num_stills=1)
    (row,) = examine.examine(buffer, clip(), options)
    assert "status" not in row, row["message"]


def test_nothing_is_decoded_after_the_end_of_a_clip(monkeypatch):
    seen, visit = [], look.Visitor.__call__

    def count(visitor, number, *rest):
        seen.append(number)
        visit(visitor, number, *rest)

    monkeypatch.setattr(look.Visitor, "__call__", count)
    (row,) = examine.examine(io.BytesIO(mp4(12)), clip(start=0.25, end=0.5))
    assert row["num_frames"] == 3 and seen == [3, 4, 5]  # 12 a second


def test_options_say_which_values_make_no_sense():
    with pytest.raises(ValueError, match="max_seconds=1: no scene fits"):
        examine.Options(min_seconds=2, max_seconds=1)


@pytest.mark.parametrize(
    "module, options",
    [("cv2", {"scores": ("motion",)}), ("cv2", {"cuts": True}), ("scenedetect", {"cuts": True})],
)
def test_a_missing_package_is_told_before_any_work(module, options, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "vidgen\[data\]"'):
        examine.Options(**options)
    examine.Options(scores=("sharpness", "brightness", "letterbox", "phash"))
