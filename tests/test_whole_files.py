import collections

from tests import whole_files


def test_whole_files_in_odd_ways_are_not_taken_for_damaged():
    """`python -m tests.whole_files` does it with 300, and with the program ffmpeg."""
    found = [one for one in whole_files.results(24, seed=1, program=False) if one]
    refused = [one for one in found if one.rule and one.rule not in whole_files.EARNED]
    assert refused == [] and len(found) == 24
    assert sum(one.rule is None for one in found) >= 20
    kinds = {(one.recipe.codec, one.recipe.container, one.recipe.oddity) for one in found}
    assert len(kinds) > 20
    assert len(collections.Counter(codec for codec, _, _ in kinds)) >= 8
