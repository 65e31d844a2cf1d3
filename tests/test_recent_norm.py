"""The clip by recent norms is ZClip's, and a frozen or a refused gradient leaves it as it was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import tiny
from vidgen.training import optim, recent_norm, train_state

Z = 2.5


def by_hand(norms):
    """(norm that is taken, bound) of each update, in float64, by the moments of all weights."""
    weights, taken, found = np.zeros(0), [], []
    for seen, norm in enumerate(norms):
        values = np.array(taken)
        mean = (weights * values).sum() if seen else 0.0
        variance = (weights * (values - mean) ** 2).sum() if seen else 0.0
        bound = mean + Z * variance**0.5 if seen >= recent_norm.WARMUP else np.inf
        z = (norm - mean) / variance**0.5 if norm > bound else 0.0
        taken.append(mean + Z**2 / z * variance**0.5 if norm > bound else norm)
        found.append((taken[-1], bound))
        weight = max(1 - recent_norm.DECAY, 1 / (seen + 1))
        weights = np.append((1 - weight) * weights, weight)
    return found


def test_norms_are_clipped_as_in_the_paper():
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(scale=0.2, size=90))
    norms[[10, 40, 41, 70]] *= [3, 8, 30, 6]
    clip = recent_norm.clip_by_recent_norm(Z)
    state, direction = clip.init({}), jnp.array([0.6, -0.8])
    update = jax.jit(lambda grads, state: (*clip.update(grads, state), optax.global_norm(grads)))
    was_clipped = []
    for step, (norm, (expected, bound)) in enumerate(zip(norms, by_hand(norms), strict=True)):
        high = recent_norm.threshold(state, Z)
        grads, state, before = update({"a": norm * direction}, state)
        np.testing.assert_allclose(high, bound, rtol=1e-3)  # float32, a difference of squares
        np.testing.assert_allclose(optax.global_norm(grads), expected, rtol=1e-3)
        np.testing.assert_allclose(grads["a"] / grads["a"][0], direction / direction[0], rtol=1e-6)
        was_clipped += [step] * bool(before > high)
        if before <= high:
            np.testing.assert_array_equal(grads["a"], norm.astype(np.float32) * direction)
    assert {40, 41, 70} <= set(was_clipped) and 10 not in was_clipped and len(was_clipped) < 12


def test_equal_norms_are_left_as_they_are():
    clip = recent_norm.clip_by_recent_norm(Z)
    grads, state = {"a": jnp.array([3.0, 4.0])}, clip.init({})
    for _ in range(40):
        clipped, state = clip.update(grads, state)
        np.testing.assert_array_equal(clipped["a"], grads["a"])
    clipped, state = clip.update({"a": jnp.array([30.0, 40.0])}, state)
    np.testing.assert_allclose(clipped["a"], grads["a"], rtol=1e-6)


@pytest.fixture(scope="module")
def an_apply():
    """(apply, state, total): a small model with a frozen table, that has clipped for 30 updates."""
    config = tiny.get_config()
    config.optim.update({"clip_recent": Z, "clip": 100.0, "freeze": ("table",)})
    tx = train_state.make_optimizer(config)
    params = {"kernel": jnp.ones((2, 3)), "table": jnp.ones(4)}
    state = train_state.TrainState(jnp.zeros((), jnp.int32), params, params, tx.init(params))
    apply = jax.jit(functools.partial(train_state.apply, tx=tx, config=config))
    total = jax.tree.map(jnp.ones_like, params), {"loss": jnp.ones(())}
    total[0]["table"] *= 1e6  # frozen: it does not count
    for k in range(30):
        state, _, metrics = apply(state, jax.tree.map(lambda x, k=k: x * (1 + k % 3 / 10), total))
    assert metrics.keys() >= {"clip_threshold", "clipped"} and int(metrics["clipped"]) == 0
    return apply, state, total


def norms_of(state):
    is_recent = lambda x: isinstance(x, recent_norm.RecentNorm)
    (found,) = [
        x for x in jax.tree.leaves(state.opt_state, is_leaf=is_recent) if isinstance(x, tuple)
    ]
    return np.array(found)


def test_metrics_tell_of_the_clip_and_a_frozen_gradient_does_not_count(an_apply):
    apply, state, total = an_apply
    after, _, metrics = apply(state, jax.tree.map(lambda x: 5 * x, total))
    assert int(metrics["clipped"]) == 1
    seen, mean, variance = norms_of(state)
    assert seen == 30 and mean == pytest.approx(6**0.5 * 1.1, rel=0.02)
    assert float(metrics["clip_threshold"]) == pytest.approx(mean + Z * variance**0.5, rel=1e-5)
    assert norms_of(after)[1] < mean * 1.03  # it took the clipped norm


def test_a_refused_update_leaves_the_averages_to_the_bit(an_apply):
    apply, state, total = an_apply
    for bad in (jnp.nan, jnp.inf):
        after, _, metrics = apply(state, jax.tree.map(lambda x, bad=bad: x * bad, total))
        assert int(metrics["refused"]) == 1
        assert norms_of(after).tobytes() == norms_of(state).tobytes()


def test_without_it_the_state_is_that_of_older_checkpoints():
    params = {"kernel": jnp.ones((2, 3))}
    make = lambda **more: optim.make_optimizer(0.1, **more).init(params)
    names = lambda state: [
        jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)
    ]
    off, on = names(make()), names(make(clip_recent=Z))
    assert set(off) < set(on) and len(on) == len(off) + 3
    assert recent_norm.facts(make(), jnp.ones(()), z=0.0, clip=1.0) == {}
