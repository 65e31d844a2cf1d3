import json
import pathlib

import pytest

from data_pipelines import buckets, transforms

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden/buckets/case.json").read_text())[
    "data"
]


@pytest.mark.parametrize("stage", GOLDEN["stages"])
@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("chances", ["probability_one", "configured_probabilities"])
def test_assignment_is_that_of_the_reference(stage, chances, interval):
    case = GOLDEN["stages"][stage]
    config = "bucket_config_probability_one" if chances == "probability_one" else "bucket_config"
    table = buckets.Table(case[config], frame_interval=interval)
    assert table.num_buckets == case["num_bucket"]
    expected = case[f"{chances}_frame_interval_{interval}"]
    for video, row in zip(GOLDEN["videos"], expected, strict=True):
        size = (video["num_frames"], video["height"], video["width"])
        got = table.assign(*size, row=video["id"], epoch=0, seed=GOLDEN["sampler_seed"])
        if row is None:
            assert got is None, video
        else:
            resolution, frames, aspect, _, height, width, batch_size = row
            assert got == buckets.Bucket(resolution, frames, aspect, height, width, batch_size)


def test_entries_are_numbered_from_large_to_small():
    case = GOLDEN["stages"]["stage1"]
    table = buckets.Table(case["bucket_config"])
    got = [[k, [[e.num_frames, e.ordinal] for e in v]] for k, v in table.entries.items()]
    assert got == case["bucket_order"]


def test_sizes_are_those_of_the_reference():
    for resolution, case in GOLDEN["target_size_by_resolution_and_aspect"].items():
        assert buckets.pixels(resolution) == case["pixels"]
        assert buckets.sizes(resolution) == {k: tuple(v) for k, v in case["sizes"].items()}
    for resolution, ratio, height, width in GOLDEN["get_image_size"]:
        assert buckets.image_size(resolution, ratio) == (height, width)
    for text, frames in GOLDEN["get_num_frames"]:
        assert buckets.parse_num_frames(text) == frames


def test_closest_aspect_is_that_of_the_reference():
    for height, width, resolution, aspect in GOLDEN["closest_aspect"]:
        assert buckets.closest_aspect(height, width, resolution) == aspect


def test_latent_frames_are_those_of_the_reference():
    for frames, chunked, whole, _ in GOLDEN["latent_frames"]:
        assert transforms.latent_frames(frames) == chunked
        assert transforms.latent_frames(frames, chunk_frames=None) == whole


@pytest.mark.parametrize("resolution", ["16", "32", "64", "96", "128"])
def test_toy_sizes_are_multiples_of_8_of_nearly_their_aspect(resolution):
    assert buckets.sizes(resolution)["1.00"] == (int(resolution),) * 2
    for aspect, (height, width) in buckets.sizes(resolution).items():
        assert height % 8 == width % 8 == 0
        assert f"{height / width:.2f}" == aspect
    assert buckets.sizes("32")["0.60"] == (24, 40)


def test_a_clip_has_to_be_longer_than_its_bucket():
    table = buckets.Table({"32": {17: (1.0, 4), 9: (1.0, 8)}})
    frames = [
        getattr(table.assign(n, 64, 64, row=0, epoch=0, seed=0), "num_frames", None)
        for n in (9, 10, 17, 18, 1)
    ]
    assert frames == [None, 9, 9, 17, None]


def test_aspects_can_be_limited():
    table = buckets.Table({"32": {17: (1.0, 4)}}, aspects=["1.00"])
    assert table.assign(20, 48, 80, row=0, epoch=0, seed=0).aspect == "1.00"
    assert [b.aspect for b in table.all_buckets()] == ["1.00"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "empty"),
        ({"33": {17: (1.0, 4)}}, "'33' is unknown"),
        ({"32": {17: 4}}, r"buckets\['32'\]\[17\]"),
        ({"32": {17: (1.5, 4)}}, "chances in 0..1"),
        ({"32": {17: (1.0, 0)}}, "whole number"),
        ({"32": {17: (0.5, None)}}, "whole number"),
        ({"32": {0: (1.0, 4)}}, "1 frame or more"),
    ],
)
def test_a_wrong_table_is_refused_by_name(table, words):
    with pytest.raises(ValueError, match=words):
        buckets.Table(table)


def test_wrong_names_list_the_right_ones():
    with pytest.raises(ValueError, match="16:9"):
        buckets.image_size("240p", "7:5")
    with pytest.raises(ValueError, match=r"0\.60, 1\.00, 1\.67"):
        buckets.Table({"32": {17: (1.0, 4)}}, aspects=["0.5"])
    with pytest.raises(ValueError, match="2s"):
        buckets.parse_num_frames("3s")
