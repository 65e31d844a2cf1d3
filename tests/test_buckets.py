import numpy as np
import pytest
import scalar_rule

from data_pipelines.loading import buckets, resolutions


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


def random_table(rng):
    """A table of one to five resolutions with chances of every kind."""
    chance = lambda: rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    names = rng.permutation(["32", "64", "144p", "256", "240p", "512", "2880"])
    table = {}
    for name in names[: rng.integers(1, 6)]:
        lengths = rng.permutation([1, 2, 9, 17, 51, 102])[: rng.integers(1, 7)].tolist()
        chances = [(chance(), chance()) if rng.random() < 0.6 else chance() for _ in lengths]
        table[str(name)] = {n: (c, 4) for n, c in zip(lengths, chances, strict=True)}
    aspects = [None, ["1.00"], ["0.56", "1.00", "1.78", "0.60"]][rng.integers(3)]
    return buckets.Table(table, aspects, int(rng.choice([1, 1, 2, 3])))


def random_clips(rng, count):
    """(num_frames_N, height_N, width_N): images, videos, portrait; sizes of buckets themselves."""
    frames = rng.choice([0, 1, 2, 3, 9, 10, 18, 34, 51, 52, 103, 104, 300, 4000], count)
    long, short = rng.integers(8, 2600, (2, count))
    square = rng.random(count) < 0.2
    height, width = long, np.where(square, long, short)
    known = [b for name in ("32", "144p", "256") for b in resolutions.sizes(name).values()]
    exact = np.array(known)[rng.integers(len(known), size=count)]
    use = rng.random(count) < 0.3
    return frames, np.where(use, exact[:, 0], height), np.where(use, exact[:, 1], width)


@pytest.mark.parametrize("case", range(12))
def test_clips_of_an_array_go_where_the_rule_puts_each_of_them(case, monkeypatch):
    monkeypatch.setattr(buckets, "_CHUNK", 100)
    rng = np.random.default_rng(case)
    table, facts_N = random_table(rng), random_clips(rng, 250)
    rows_N = rng.integers(0, 2 ** int(rng.choice([8, 31, 40])), 250)
    place = {"epoch": int(rng.integers(0, 50)), "seed": int(rng.choice([0, 42, 2**32 - 3, 2**50]))}
    numbers_N, reasons_N = table.place_all(*facts_N, rows_N, **place)
    names = [(b.resolution, b.num_frames, b.aspect) for b in table.all_buckets()]
    for number, reason, row, *facts in zip(numbers_N, reasons_N, rows_N, *facts_N, strict=True):
        facts = [int(fact) for fact in facts]
        bucket, why = scalar_rule.place(table, *facts, row=int(row), **place)
        assert (names[number] if number >= 0 else None) == bucket
        assert number >= 0 or buckets.REASONS[reason] == why
    np.testing.assert_array_equal(table.assign_all(*facts_N, rows_N, **place), numbers_N)
    bucket = table.assign(*(int(fact_N[7]) for fact_N in facts_N), row=int(rows_N[7]), **place)
    assert bucket == (table.all_buckets()[numbers_N[7]] if numbers_N[7] >= 0 else None)


@pytest.mark.parametrize("case", range(6))
def test_fitting_buckets_are_those_that_some_draw_gives(case):
    rng = np.random.default_rng(case)
    table, facts_N = random_table(rng), random_clips(rng, 60)
    clips_M, numbers_M = table.fitting(*facts_N)
    pairs = list(zip(clips_M.tolist(), numbers_M.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    found = set()
    for epoch in range(300):
        numbers_N = table.assign_all(*facts_N, np.arange(60), epoch=epoch * 1009, seed=0)
        found |= {(i, int(n)) for i, n in enumerate(numbers_N) if n >= 0}
    assert found <= set(pairs)
    for number, bucket in enumerate(table.all_buckets()):
        clips = {clip for clip, n in pairs if n == number}
        assert clips <= set(np.flatnonzero(table.fits(bucket, *facts_N)).tolist())


def test_seeds_that_no_draw_can_have_are_refused():
    table = buckets.Table({"32": {17: (0.5, 4)}})
    for seed in (-1, 2**64 - 1):
        with pytest.raises(ValueError, match=f"seed={seed} has to be 0 or more"):
            table.assign(20, 32, 32, row=1, epoch=0, seed=seed)
