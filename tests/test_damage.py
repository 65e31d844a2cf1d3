"""Damage is found, and what many encoders write is not taken for it."""

import itertools

import numpy as np
import pytest

from data_pipelines.media import video_io
from tests import hostile_damage, hostile_files, valid_media


def test_valid_files_of_many_encoders_and_settings_pass_with_their_facts():
    count, wrong = 0, []
    for made in valid_media.variants():
        count += 1
        try:
            probe = video_io.check(made.content)
        except video_io.MediaError as error:
            wrong.append((made.name, error.reason, str(error)))
            continue
        seen = (probe.num_frames, probe.height, probe.width, round(probe.fps, 3))
        if seen != (made.num_frames, made.height, made.width, round(made.fps, 3)):
            wrong.append((made.name, probe))
    assert wrong == [] and count >= 500


@pytest.fixture(scope="module")
def caught():
    """Share of files with eight flipped bytes that are refused, by base."""
    rng = np.random.default_rng(0)
    shares = {}
    for name, (_, content) in hostile_damage.bases().items():
        refused = 0
        for _ in range(12):
            try:
                video_io.check(hostile_damage.flipped(content, 8, rng))
            except video_io.MediaError:
                refused += 1
        shares[name] = refused / 12
    return shares


@pytest.mark.parametrize(
    ("base", "share"),
    [
        ("mp4 h264", 0.8),  # the container, the decoder
        ("mp4 hevc", 0.95),  # read two ways
        ("mkv h264", 1.0),  # checksums
        ("webm vp9", 0.8),  # libvpx
        ("webm av1", 0.9),  # dav1d's strictness
        ("avi mpeg4", 0.8),
        ("avi mjpeg", 0.6),
        ("png", 1.0),  # checksums
        ("jpeg", 0.5),  # Huffman codes fall into step again
        ("webp", 0.9),  # whole without its last bytes
    ],
)
def test_most_damage_is_found(caught, base, share):
    assert caught[base] >= share


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_uneven_times_interlacing_and_hdr_have_verdicts_of_their_own(container):
    make = lambda **options: valid_media.video(container=container, frames=9, **options)
    hdr = "transfer=smpte2084:colorprim=bt2020:colormatrix=bt2020nc"
    for content, reason in (
        (make(times=[0, 1, 2, 7, 8, 14, 15, 16, 30]), "variable rate"),
        (make(interlaced=True), "interlaced"),
        (make(pix_fmt="yuv420p10le", options={"x264-params": hdr}), "high dynamic range"),
    ):
        with pytest.raises(video_io.MediaError) as error:
            video_io.check(content)
        assert error.value.reason == reason
    slightly = make(fps=240, times=[0, 10, 21, 30, 41, 49, 60, 71, 80])
    assert video_io.check(slightly).fps == pytest.approx(24, rel=0.02)


def test_hostile_tables_cost_little():
    small = hostile_files.small_video()
    boxes = b"".join(hostile_files.box(b"%04d" % (i % 10_000)) for i in range(300_000))
    chunks = hostile_files.box(b"ftyp", b"mp42\0\0\0\0") + hostile_files.box(b"moov", boxes)
    for content in (chunks, small + boxes):
        with pytest.raises(video_io.MediaError) as error:
            video_io.check(content)
        assert error.value.reason == "too large"
    for limits in (
        video_io.Limits(max_streams=0),
        video_io.Limits(max_samples=8),
        video_io.Limits(max_header_bytes=100),
    ):
        with pytest.raises(video_io.MediaError) as error:
            video_io.check(small, limits)
        assert error.value.reason == "too large"


def test_every_cut_of_a_file_is_refused():
    bases = {name: hostile_files.small_video(container=name) for name in ("mp4", "matroska", "mov")}
    bases["avi"] = hostile_files.small_video(container="avi", codec="mpeg4")
    bases["png"], bases["webp"] = valid_media.image("png"), valid_media.image("webp")
    bases["jpeg"] = valid_media.image("jpeg")
    for name, content in bases.items():
        taken = []
        for size in itertools.chain(range(0, 200, 7), range(200, len(content), 101)):
            try:
                video_io.check(content[:size])
                taken.append(size)
            except video_io.MediaError:
                pass
        assert taken == [], name
