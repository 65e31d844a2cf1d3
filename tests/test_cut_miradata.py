"""Cuts of whole videos have the clip's frames, to the last bit, and are found in place of them."""

import csv
import io
import os
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest

from data_pipelines import cut_miradata
from data_pipelines.media import encoding, video_io
from data_pipelines.sources import specs
from data_pipelines.stages import examine
from tests import data_sets, processes


def encode(num_frames, *, gop, b_frames, fps=12):
    """An mp4 file with a keyframe every `gop` frames, each frame of another grey."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {
            "g": str(gop),
            "bf": str(b_frames),
            "x264-params": "mbtree=0:scenecut=0:open-gop=0",
        }
        for number in range(num_frames):
            grey = np.full((48, 64, 3), 20 + 2 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize(("gop", "b_frames"), [(12, 0), (12, 3), (7, 2), (250, 3)])
@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (2.5, 4.5), (3.0, 4.0), (5.75, 8.0)])
def test_a_cut_decodes_to_the_frames_of_the_clip(gop, b_frames, start, end):
    whole = encode(96, gop=gop, b_frames=b_frames)
    content, begin = cut_miradata.cut(io.BytesIO(whole), start, end)
    video_io.check(content)  # nothing of it is damaged, and it has as many frames as it says
    first, stop = round(start * 12), round(end * 12)
    place = round(begin * 12)
    assert 0 <= place < min(gop, first + 1)
    expected = video_io.decode(whole, range(first, stop))
    found = video_io.decode(content, range(place, place + stop - first))
    np.testing.assert_array_equal(found, expected)
    assert len(content) < len(whole) or gop == 250 or end - start > 7


@pytest.mark.parametrize(
    ("content", "times", "reason"),
    [
        (b"", (0, 1), "unknown format"),
        (b"#EXTM3U\nfile:///etc/passwd", (0, 1), "unknown format"),
        (b"\0\0\0\x18ftypmp42" + b"\xff" * 500, (0, 1), "damaged"),
        (None, (100.0, 101.0), "too short"),
    ],
)
def test_what_cannot_be_cut_has_a_reason(content, times, reason):
    content = encode(24, gop=12, b_frames=0) if content is None else content
    with pytest.raises(video_io.MediaError) as error:
        cut_miradata.cut(io.BytesIO(content), *times)
    assert error.value.reason == reason


def run(folder):
    command = [sys.executable, "-m", "data_pipelines.cut_miradata", f"--source={folder}"]
    return subprocess.run([*command, "--jobs=1"], capture_output=True, text=True)


def test_the_command_cuts_what_is_there_and_sources_prefer_the_cuts(tmp_path):
    data = data_sets.write_miradata(tmp_path)
    before = {clip.id: clip for clip in specs.read(f"miradata:{tmp_path}")}
    pixels = {i: examine.examine(before[i].file, before[i])[0]["num_frames"] for i in data.present}
    broken = tmp_path / "raw_video/000000001/000000001001.mp4"
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    result = run(tmp_path)
    assert result.returncode == cut_miradata.SOME_FAILED, result.stderr
    assert "2 clips cut, 0 were there, 3 failed" in result.stdout
    with open(tmp_path / "cut_failed.csv", newline="") as file:
        failed = {line["id"]: line["reason"] for line in csv.DictReader(file)}
    assert failed == {"1001.0": "damaged", "1001.1": "damaged", "5000.0": "missing file"}
    broken.write_bytes(content)
    result = run(tmp_path)
    assert "2 clips cut, 2 were there, 1 failed" in result.stdout, result.stderr
    for path in (tmp_path / "raw_video").rglob("*.mp4"):
        os.remove(path)
    after = {clip.id: clip for clip in specs.read(f"miradata:{tmp_path}")}
    for clip_id in data.present:
        clip = after[clip_id]
        assert "video_clips" in clip.file and clip.text == data.texts[clip_id]
        assert clip.end - clip.start == pytest.approx(2.0)
        [row] = examine.examine(clip.file, clip)
        assert row["num_frames"] == pixels[clip_id] == 24
    assert "refused" in after["5000.0"].given


def test_any_table_of_times_with_the_three_columns_of_the_docs_is_cut(tmp_path):
    text = (processes.ROOT / "docs/prepare_data.md").read_text()
    (table,) = [block for block in text.split("```\n") if block.startswith("clip_id,")]
    (tmp_path / "miradata_own.csv").write_text(table)
    raw = tmp_path / "raw_video/000000000/000000000012.mp4"
    raw.parent.mkdir(parents=True)
    raw.write_bytes(encoding.encode_mp4(np.zeros((31 * 12, 48, 64, 3), np.uint8), 12))
    assert "2 clips cut, 0 were there, 0 failed" in run(tmp_path).stdout
    raw.unlink()
    found = specs.read(f"miradata:{tmp_path}")
    assert [examine.examine(c.file, c)[0]["num_frames"] for c in found] == [57, 126]  # 12 a second


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_the_same_command_goes_on(tmp_path, sent):
    data = data_sets.write_miradata(tmp_path, clips=60)
    command = [sys.executable, "-m", "data_pipelines.cut_miradata", f"--source={tmp_path}"]
    with subprocess.Popen([*command, "--jobs=1"], stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "video_clips").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(sent)
        _, said = process.communicate()
    assert process.returncode == cut_miradata.STOPPED
    assert "stopped: the same command goes on." in said and "Traceback" not in said
    made = list((tmp_path / "video_clips").rglob("*.mp4"))
    assert len(made) < len(data.present)
    assert f"{60 - len(made)} clips cut, {len(made)} were there, 1 failed" in run(tmp_path).stdout


def test_ids_that_would_leave_the_folder_are_refused(tmp_path):
    data = data_sets.write_miradata(tmp_path)
    columns = ("index", "start_frame", "end_frame", "fps", "dense_caption")
    row = {"index": "000000000998_a-/../../../../x", "start_frame": 0, "end_frame": 9, "fps": 12}
    os.remove(data.table)
    data_sets.write_table(tmp_path / "miradata_v0.csv", columns, [row | {"dense_caption": "x"}])
    result = run(tmp_path)
    assert result.returncode == cut_miradata.SOME_FAILED and "0 clips cut" in result.stdout
    [clip] = specs.read(f"miradata:{tmp_path}")
    assert clip.given["refused"].startswith("bad id")
