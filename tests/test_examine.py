"""One decode gives the ledger its facts, and no file however broken ends in an exception."""

import hashlib
import io

import numpy as np
import pytest

from data_pipelines import video_io
from data_pipelines.stages import examine
from tests.moving_textures import clip


def mp4(num_frames=12, height=32, width=48, fps=12.0):
    video_THWC = np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    return video_io.encode_mp4(video_THWC, fps)


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
