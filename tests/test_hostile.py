"""A small corpus of hostile files in guarded children; the large one is `-m slow`."""

import collections
import hashlib

import numpy as np
import pytest

from tests import hostile, hostile_damage


def test_the_corpus_is_the_same_for_the_same_seed():
    digest = lambda case: (case.kind, case.link, hashlib.sha256(case.content).hexdigest())
    some = [[digest(case) for case in hostile.cases(150, seed)] for seed in (3, 3, 4)]
    assert [a for a, b in zip(some[0], some[1], strict=True) if a != b] == []
    assert some[0] != some[2] and len(some[0]) == len(some[2]) == 150


def test_the_corpus_has_many_kinds_each_of_its_own_content():
    cases = list(hostile.cases(3000))
    assert len(cases) == 3000 and len({case.kind for case in cases}) >= 40
    contents = {(case.content, case.suffix, case.link) for case in cases}
    assert len(contents) > 2900
    flips = collections.Counter(case.kind for case in cases if "flipped" in case.kind)
    assert min(flips.values()) > 400


def test_flips_change_so_many_bytes():
    content = bytes(range(256)) * 10
    spoiled = hostile_damage.flipped(content, 8, np.random.default_rng(0))
    assert sum(a != b for a, b in zip(content, spoiled, strict=True)) == 8


def check(report, flagged):
    assert report["failures"] == []
    assert report["peak_mib"] <= 512
    assert report["guard"] == ["files", "memory", "network", "programs"]
    columns = hostile.FLAGGED_COLUMNS
    flips = {
        k: dict(zip(columns, v, strict=True)) for k, v in report["flagged"]["all flips"].items()
    }
    assert flips["all"]["files"] == flips["videos"]["files"] + flips["images"]["files"]
    assert flips["all"]["flagged_of_harmful"] >= flagged
    assert flips["videos"]["flagged_share"] >= flagged


def test_hostile_files_get_verdicts_and_harm_nothing():
    check(hostile.run(200, seed=1, num_workers=2), 0.8)  # of some 60 flips


@pytest.mark.slow
def test_three_thousand_hostile_files_get_verdicts_and_nine_of_ten_flips_are_flagged():
    check(hostile.run(3300), 0.9)
