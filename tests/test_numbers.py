"""Refused updates are told with their clips, and end a run that has only them."""

import json

import jax.numpy as jnp
import pytest

from data_pipelines.loading import buckets
from vidgen.training import micro_steps, numbers

BUCKET = buckets.Bucket("32", 17, "1.00", 32, 32, 2)
PLAN = [micro_steps.MicroStep(7, 0, 1, BUCKET, 1.0)]


def metrics(refused):
    loss = jnp.nan if refused else 1.0
    names = ("loss", "grad_norm", "param_norm", "lr")
    return {name: jnp.asarray(loss) for name in names} | {"refused": jnp.asarray(int(refused))}


@pytest.fixture
def watch(tmp_path):
    told = []
    watch = numbers.Numbers(tmp_path, 2, lambda number: [f"clip{number}", "other"], told.append)
    watch.told, watch.path = told, tmp_path / "events.jsonl"
    return watch


def test_a_refused_update_is_told_with_bucket_and_clips(watch):
    for step, refused in enumerate([False, True, False], 1):
        watch.step(step, metrics(refused), PLAN)
    watch.flush()
    (event,) = map(json.loads, watch.path.read_text().splitlines())
    assert event["step"] == 2 and event["buckets"] == ["32/17/1.00"] and event["loss"] == "nan"
    assert event["clips"] == {"7": ["clip7", "other"]}
    assert len(watch.told) == 1 and "step 2 was REFUSED" in watch.told[0]


def test_only_updates_in_a_row_end_the_run(watch):
    for step in range(1, 13):
        watch.step(step, metrics(step % 3 > 0), PLAN)  # two, and one that is taken
    watch.flush()
    for step in range(13, 16):
        watch.step(step, metrics(True), PLAN)
    with pytest.raises(numbers.NumbersError, match="3 updates in a row .* max_refused=2") as error:
        watch.flush()
    assert error.value.exit_code == 79


def test_a_state_that_is_not_finite_is_not_saved(watch):
    watch.check({"a": jnp.ones(2), "count": jnp.zeros((), jnp.int32)})
    with pytest.raises(numbers.NumbersError, match="NOT saved"):
        watch.check({"a": jnp.ones(2), "b": jnp.array([1.0, jnp.inf])})
