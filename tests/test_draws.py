import numpy as np
import pytest

from data_pipelines.loading import draws

EDGES = (0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


@pytest.mark.parametrize("turn", [0, 1, 4])
def test_draws_are_those_of_numpy_to_the_last_bit(turn):
    rng = np.random.default_rng(0)
    drawn = [rng.integers(2**bits, size=700, dtype=np.uint64) for bits in (12, 32, 36, 63)]
    seeds = np.concatenate([np.array(EDGES, np.uint64), np.arange(300, dtype=np.uint64), *drawn])
    found = draws.random(seeds, turn)
    wanted = [np.random.default_rng(int(seed)).random(turn + 1)[turn] for seed in seeds]
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == np.float64


def test_a_draw_does_not_depend_on_the_others_of_its_array(monkeypatch):
    seeds = np.arange(1000, dtype=np.uint64)
    whole = draws.random(seeds, 0)
    monkeypatch.setattr(draws, "_BLOCK", 7)
    np.testing.assert_array_equal(draws.random(seeds, 0), whole)
    np.testing.assert_array_equal(draws.random(seeds[999:], 0), whole[999:])
    assert len(draws.random(seeds[:0], 0)) == 0
