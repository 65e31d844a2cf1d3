import pytest

from data_pipelines.loading import buckets


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
    with pytest.raises(ValueError, match=r"0\.60, 1\.00, 1\.67"):
        buckets.Table({"32": {17: (1.0, 4)}}, aspects=["0.5"])
    with pytest.raises(ValueError, match="2s"):
        buckets.parse_num_frames("3s")


def test_a_clip_without_a_bucket_is_told_how_near_it_came():
    rows = {17: (1.0, 4), 9: ((1.0, 0.0), 8)}
    table = buckets.Table({"64": {33: (0.0, None), **rows}, "32": rows})
    reason = lambda *size: table.place(*size, row=0, epoch=0, seed=0)[1]
    assert reason(20, 64, 64) == ""
    assert reason(20, 8, 8) == "too few pixels"
    assert reason(1, 64, 64) == "no bucket of its kind"
    assert reason(9, 64, 64) == "too short"
    assert reason(17, 64, 64) == "length not drawn"
    no_chance = buckets.Table({"64": {33: (0.0, None)}, "32": {65: (1.0, 1)}})
    assert no_chance.place(40, 64, 64, row=0, epoch=0, seed=0) == (None, "keep is 0")
    half = buckets.Table({"32": {9: (0.5, 1)}})
    found = {half.place(10, 64, 64, row=row, epoch=0, seed=0)[1] for row in range(40)}
    assert found == {"", "not kept by the draw"}
    images = buckets.Table({"32": {1: (1.0, 1)}})
    assert images.place(40, 64, 64, row=0, epoch=0, seed=0)[1] == "no bucket of its kind"
