"""Which micro-steps an update has, what each counts, and how batches are cut."""

import types

import numpy as np
import pytest

from data_pipelines.loading import buckets
from vidgen.training import micro_steps

BUCKETS = [
    buckets.Bucket("64", 17, "1.00", 64, 64, 8),
    buckets.Bucket("32", 1, "1.00", 32, 32, 24),
    buckets.Bucket("32", 17, "1.00", 32, 32, 16),
]
TOKENS = {"64/17/1.00": 80, "32/1/1.00": 4, "32/17/1.00": 20}


def a_loader():
    bucket = lambda number: BUCKETS[number % 3]

    def iterate(start):
        for number in range(start, start + 100):
            slot = np.arange(bucket(number).batch_size)
            yield {"slot": slot, "number": np.full(len(slot), number)}

    return types.SimpleNamespace(bucket=bucket, iterate=iterate)


def make(devices=8, **settings):
    settings = {"batches": 1, "weighting": "batch", "slices": 1} | settings
    return micro_steps.MicroSteps(a_loader(), lambda b: TOKENS[b.name], devices, **settings)


@pytest.mark.parametrize(
    "weighting, weights",
    [
        ("batch", [1 / 3, 1 / 3, 1 / 3]),
        ("clip", [8 / 48, 24 / 48, 16 / 48]),
        ("token", [640 / 1056, 96 / 1056, 320 / 1056]),
    ],
)
def test_an_update_takes_the_next_batches_by_weight(weighting, weights):
    plan = make(batches=3, weighting=weighting)(5)
    assert [m.number for m in plan] == [15, 16, 17]
    assert [m.bucket for m in plan] == BUCKETS
    assert [m.weight for m in plan] == pytest.approx(weights)
    work = micro_steps.work(
        plan, types.SimpleNamespace(tokens=lambda b: TOKENS[b.name], forward_flops=lambda b: 10)
    )
    assert work["tokens"] == 1056 and work["flops"] == 3 * 10 * 48
    assert work["labels"] == ("64/17/1.00", "32/1/1.00", "32/17/1.00")


@pytest.mark.parametrize(
    "clips, devices, least, parts",
    [(24, 8, 1, 1), (24, 8, 2, 3), (24, 8, 3, 3), (24, 8, 4, 3), (13, 1, 2, 13), (12, 1, 5, 6)],
)
def test_a_batch_is_cut_into_slices_that_divide_the_clips_of_a_device(clips, devices, least, parts):
    assert micro_steps.slices(clips, devices, least) == parts


def test_slices_are_the_batch_in_order_and_weigh_as_much_as_it():
    steps = make(batches=2, slices=2)
    plan = steps(0)
    assert [(m.number, m.part, m.parts, m.clips) for m in plan] == [
        (0, 0, 1, 8),  # one clip a device
        *((1, part, 3, 8) for part in range(3)),
    ]
    assert sum(m.weight for m in plan) == pytest.approx(1)
    assert sum(m.weight for m in plan[1:]) == pytest.approx(0.5)
    taken = steps.iterate(0)
    got = [next(taken) for _ in plan]
    assert [m for m, _ in got] == plan
    slots = np.concatenate([batch["slot"] for _, batch in got[1:]])
    np.testing.assert_array_equal(slots, np.arange(24))
    later = next(steps.iterate(3))
    assert later[0] == steps(3)[0] and (later[1]["number"] == 6).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batches": 0}, "accumulate.batches=0: use 1 or more"),
        ({"slices": 0}, "microbatches=0: use 1 or more"),
        ({"weighting": "rank"}, "accumulate.weighting='rank' is unknown: use one of batch, clip"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)
