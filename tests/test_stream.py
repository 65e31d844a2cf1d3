import itertools

import numpy as np
import pytest

from data_pipelines.loading import stream

COUNTS = (23, 7, 2, 0)
SIZES = (4, 3, 5, 2)  # the third bucket fills a batch only every few epochs


def fixed(epoch):
    first = np.cumsum((0, *COUNTS))
    return [np.arange(n) + first[i] for i, n in enumerate(COUNTS)]


def random(epoch):
    """Rows that change bucket, or are left out, from epoch to epoch."""
    to = np.random.default_rng(epoch).integers(-1, 3, sum(COUNTS))
    return [np.flatnonzero(to == i) for i in range(4)]


@pytest.fixture(params=[fixed, random])
def rows_of(request):
    return request.param


def take(rows_of, steps, seed=0):
    made = stream.Stream(rows_of, SIZES, seed)
    return [made.at(step) for step in steps]


def test_each_epoch_of_a_bucket_holds_each_of_its_rows_once(rows_of):
    steps = take(rows_of, range(200))
    for bucket in range(4):
        got = np.concatenate([[], *(s.rows for s in steps if s.bucket == bucket)])
        for epoch in itertools.count():
            want = rows_of(epoch)[bucket]
            piece, got = got[: len(want)], got[len(want) :]
            assert set(piece) <= set(want) and len(set(piece)) == len(piece)
            if len(piece) < len(want) or (len(want) == 0 and epoch > 30):
                break
            assert set(piece) == set(want)
        assert len(got) == 0


def test_every_step_is_the_same_from_every_start(rows_of):
    whole = take(rows_of, range(60))
    for start in range(0, 60, 7):
        for step, other in zip(whole[start:], take(rows_of, range(start, 60)), strict=True):
            assert (step.bucket, step.epoch) == (other.bucket, other.epoch)
            np.testing.assert_array_equal(step.rows, other.rows)
    backwards = take(rows_of, range(59, -1, -1))[::-1]
    for step, other in zip(whole, backwards, strict=True):
        np.testing.assert_array_equal(step.rows, other.rows)


def test_batches_are_full_and_of_one_bucket(rows_of):
    for step in take(rows_of, range(100)):
        assert len(step.rows) == SIZES[step.bucket]


def test_epochs_are_shuffled_and_differ():
    steps = take(fixed, range(40))
    epochs = [[s.bucket for s in steps if s.epoch == e] for e in range(3)]
    assert epochs[0] != sorted(epochs[0])
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    order = [
        [row for s in steps if s.bucket == 0 for row in s.rows][i * 23 : i * 23 + 23]
        for i in (0, 1)
    ]
    assert order[0] != order[1] and sorted(order[0]) == sorted(order[1]) == list(range(23))


def test_seed_changes_the_order():
    one, two = (take(fixed, range(20), seed) for seed in (0, 1))
    assert any((a.rows.tolist() != b.rows.tolist()) for a, b in zip(one, two, strict=True))


def test_counts_of_steps_add_up():
    made = stream.Stream(fixed, SIZES, 0)
    total = sum(made.steps_in_epoch(e) for e in range(15))
    assert made.at(total).epoch == 15 and made.at(total - 1).epoch == 14
    rows = sum(SIZES[made.at(step).bucket] for step in range(total))
    assert 15 * sum(COUNTS) - sum(SIZES) < rows <= 15 * sum(COUNTS)


def test_no_batch_ever_is_an_error_and_not_a_hang():
    made = stream.Stream(lambda epoch: [np.arange(0)], [4], 0)
    with pytest.raises(ValueError, match="no batch could be filled"):
        made.at(0)


def test_the_order_of_an_epoch_counts_how_often_a_bucket_came_before():
    made = stream.Stream(fixed, SIZES, 3)
    for epoch in range(4):
        made.steps_in_epoch(epoch)
        order, place = made._order(epoch)
        seen = [0] * len(SIZES)
        for bucket, turn in zip(order, place, strict=True):
            assert turn == seen[bucket]
            seen[bucket] += 1
        wanted = np.repeat(np.arange(4), made._epoch(epoch).batches)
        np.random.default_rng((3, epoch, stream._ORDER)).shuffle(wanted)
        np.testing.assert_array_equal(order, wanted)


def test_rows_of_any_integers_are_shuffled_alike():
    rows = np.arange(1000)
    for seed in range(3):
        shuffled = [
            np.random.default_rng(seed).permutation(rows.astype(kind)).tolist()
            for kind in (np.int32, np.int64)
        ]
        assert shuffled[0] == shuffled[1]


def test_with_counts_only_epochs_that_a_step_takes_from_are_asked_for(rows_of):
    whole = stream.Stream(rows_of, SIZES, 0)
    first_step = sum(whole.steps_in_epoch(epoch) for epoch in range(12))
    count = whole.steps_in_epoch(12)
    wanted = [whole.at(step) for step in range(first_step, first_step + count)]
    asked = []

    def rows_in(epoch, bucket):
        asked.append((epoch, bucket))
        return rows_of(epoch)[bucket]

    only = lambda epoch: rows_of(epoch) if epoch == 12 else pytest.fail(f"asked for {epoch}")
    counts = {epoch: whole.counts(epoch) for epoch in range(13)}
    made = stream.Stream(only, SIZES, 0, rows_in=rows_in, counts=counts)
    for step, want in enumerate(wanted, first_step):
        np.testing.assert_array_equal(made.at(step).rows, want.rows)
    assert len(asked) == len(set(asked)) and {epoch for epoch, _ in asked} <= set(range(6, 13))


def test_shuffled_rows_of_two_epochs_are_kept_and_no_more():
    made = stream.Stream(fixed, SIZES, 0)
    for step in range(150):
        made.at(step)
        held = sum(map(len, made._shuffled.values()))
        assert held == made._num_shuffled <= 2 * sum(COUNTS)
