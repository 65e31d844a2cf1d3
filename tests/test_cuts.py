"""Scenes begin at the exact frame, each is a row, and what a file keeps in memory is bounded."""

import numpy as np
import pytest
import scenedetect

from data_pipelines.media import video_io
from data_pipelines.stages import examine, look
from tests.moving_textures import camera_move, clip, mp4

FPS = 24.0


@pytest.fixture(scope="module")
def film():
    """Scenes of 30, 20 and 45 frames: a pan, a still, a zoom."""
    pan = camera_move(30, 90, 160, right=2, seed=1)
    still = np.repeat(camera_move(1, 90, 160, seed=2), 20, axis=0)
    return np.concatenate([pan, still, camera_move(45, 90, 160, zoom=1.01, seed=3)])


def cut(video_THWC, given=None, **options):
    options = examine.Options(cuts=True, **options)
    return examine.examine(mp4(video_THWC, FPS), given or clip(), options)


def frames(rows):
    return [(row["first_frame"], row["first_frame"] + row["num_frames"]) for row in rows]


def test_each_scene_is_a_row_with_its_exact_frames(film):
    rows = cut(film)
    assert frames(rows) == [(0, 30), (30, 50), (50, 95)]
    assert [row["id"] for row in rows] == ["a#000", "a#001", "a#002"]
    assert {row["parent"] for row in rows} == {"a"} and len({row["sha256"] for row in rows}) == 1
    assert [row["num_frames"] for row in rows] == [30, 20, 45]
    assert rows[1]["start"] == 30 / FPS and not any("status" in row for row in rows)


def test_cuts_are_those_that_pyscenedetect_finds_in_the_file_by_itself(film, tmp_path):
    shots = [camera_move(n, 90, 160, right=0.5 * n % 3, seed=n) for n in (16, 9, 40, 25, 5, 31)]
    for number, video_THWC in enumerate((film, np.concatenate(shots))):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(mp4(video_THWC, FPS).getvalue())
        found = scenedetect.detect(str(path), scenedetect.AdaptiveDetector(), start_in_scene=True)
        wanted = [(start.frame_num, stop.frame_num) for start, stop in found]
        assert frames(cut(video_THWC)) == wanted and len(wanted) > 2


def test_a_clip_without_a_cut_is_one_scene_and_the_whole_file():
    (row,) = cut(camera_move(40, 90, 160, right=3))
    assert (row["id"], row["parent"], row["start"], row["end"]) == ("a#000", "a", None, None)


def test_fast_motion_and_a_fade_are_no_cuts():
    video_THWC = camera_move(40, 90, 160, right=8)
    fade_T = np.linspace(1, 0, 40)[:, None, None, None]
    assert len(cut((video_THWC * fade_T).astype(np.uint8))) == 1


def test_scores_of_a_scene_see_its_frames_alone(film):
    pan, still, zoom = cut(film, scores=("motion", "static_share", "camera"), num_stills=1)
    assert still["motion"] < 0.05 < 5 < pan["motion"]
    assert (pan["camera"], still["camera"], zoom["camera"]) == ("pan_right", "static", "zoom_in")
    assert (pan["static_share"], still["static_share"]) == (0, 1)
    for row, middle in ((pan, 15), (still, 40), (zoom, 72)):
        (picture,) = row["stills"]
        seen = video_io.decode(picture)[0].astype(int)
        error = [np.abs(seen - frame).mean() for frame in film]
        assert abs(int(np.argmin(error)) - middle) <= 2 or row is still


def test_a_scene_of_three_frames_at_the_end_has_its_stills(film):
    for options in ({"num_stills": 3}, {"scores": ("sharpness",)}):
        pan, tail = cut(film[1:33], **options)
        assert frames([pan, tail]) == [(0, 29), (29, 32)] and "status" not in tail
        assert len(tail.get("stills", "...")) == 3 and tail.get("sharpness", 1) > 0


def test_a_short_scene_is_left_out_and_a_long_one_ends_or_is_split(film):
    rows = cut(film, min_seconds=1.0, max_seconds=1.5)
    assert frames(rows) == [(0, 30), (30, 50), (50, 86)]
    assert [row.get("rule") for row in rows] == [None, "scene too short", None]
    assert "0.83 seconds, min_seconds=1" in rows[1]["message"]
    rows = cut(film, max_seconds=1.0, split_long=True)
    assert frames(rows) == [(0, 24), (24, 30), (30, 50), (50, 74), (74, 95)]
    (row,) = cut(film[:30], max_seconds=1.0)
    assert frames([row]) == [(0, 24)]


def test_scenes_are_sought_between_start_and_end_of_the_clip(film):
    rows = cut(film, clip(start=10 / FPS, end=60 / FPS))
    assert frames(rows) == [(10, 30), (30, 50), (50, 60)]
    (row,) = examine.examine(mp4(film, FPS), clip(start=10 / FPS, end=60 / FPS))
    assert row["num_frames"] == 50
    (row,) = examine.examine(mp4(film, FPS), clip(start=10.0, end=11.0))
    assert (row["status"], row["rule"]) == ("left out", "too short")


def test_frames_behind_the_end_are_not_decoded(film, monkeypatch):
    seen = []
    shrink = look.Shrink.__call__
    monkeypatch.setattr(look.Shrink, "__call__", lambda *a: seen.append(1) or shrink(*a))
    examine.examine(mp4(film, FPS), clip(end=12 / FPS), examine.Options(scores=("brightness",)))
    assert len(seen) == 12


def test_a_damaged_file_has_no_scenes(film):
    file = mp4(film, FPS)
    file.seek(len(file.getvalue()) // 2)
    file.write(bytes(2000))
    (row,) = examine.examine(file, clip(), examine.Options(cuts=True))
    assert row["status"] == "left out" and row["id"] == "a" and "parent" not in row


@pytest.mark.parametrize("most, length", [(4, 3), (4, 100), (7, 1000)])
def test_kept_items_are_few_and_evenly_spread(most, length):
    kept = look.Kept(most)
    for i in range(length):
        kept.add(i, i)
    indices = list(kept.items)
    assert min(length, (most + 1) // 2) <= len(indices) <= most
    assert indices == [*range(0, length, kept.stride)] and kept.stride.bit_count() == 1
    for share in (0.0, 0.3, 1.0):
        assert abs(kept.at(share * (length - 1)) - share * (length - 1)) <= max(1, kept.stride)


def test_a_strobe_of_scenes_is_refused(monkeypatch, film):
    monkeypatch.setattr(look, "_MAX_SCENES", 2)
    (row,) = cut(film)
    assert (row["status"], row["rule"]) == ("left out", "too many scenes")
