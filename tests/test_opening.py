import io
import os

import numpy as np
import pytest
from test_video_io import moving

from data_pipelines.media import encoding, video_io


def test_paths_and_bytes_are_alike(tmp_path):
    content = encoding.encode_mp4(moving(), 12)
    (tmp_path / "clip.with.any-name").write_bytes(content)
    path = tmp_path / "clip.with.any-name"
    assert video_io.check(path) == video_io.check(str(path)) == video_io.check(content)
    np.testing.assert_array_equal(video_io.decode(path), video_io.decode(content))


def test_open_files_are_read_from_their_start_and_stay_open():
    content = encoding.encode_mp4(moving(), 12)
    file = io.BytesIO(content)
    file.seek(100)
    assert video_io.check(file) == video_io.probe(file) == video_io.check(content)
    np.testing.assert_array_equal(video_io.decode(file), video_io.decode(content))
    assert not file.closed


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    for path in (tmp_path / "pipe.mp4", tmp_path / "loop.mp4", tmp_path, "/dev/zero", "a\0b"):
        with pytest.raises(video_io.MediaError) as error:
            video_io.check(path)
        assert error.value.reason == "unreadable"


@pytest.mark.parametrize("name", ["evil.mp4", "evil.mkv"])
def test_playlists_are_refused_and_their_files_never_read(tmp_path, name):
    (tmp_path / "secret.mp4").write_bytes(encoding.encode_mp4(moving(3), 12))
    lists = (
        "ffconcat version 1.0\nfile secret.mp4\n",
        "file 'secret.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.mp4\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        "<?xml version='1.0'?><MPD><BaseURL>secret.mp4</BaseURL></MPD>",
    )
    for text in lists:
        (tmp_path / name).write_text(text)
        for call in (video_io.probe, video_io.check, video_io.decode):
            with pytest.raises(video_io.MediaError) as error:
                call(tmp_path / name)
            assert error.value.reason == "unknown format"
