"""Schedules, freezing and accumulation do what the config says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidgen.training import optim


def test_a_cosine_falls_from_the_warm_up_to_its_end():
    rate = optim.schedule(30, lr=2.0, warmup_steps=10, decay="cosine", end=0.1)
    np.testing.assert_allclose(rate(9), 2.0 * 10 / 11, rtol=1e-6)
    np.testing.assert_allclose(rate(10), 2.0, rtol=1e-6)
    np.testing.assert_allclose(rate(20), 2.0 * (0.1 + 0.9 * 0.5), rtol=1e-6)  # half of the way
    np.testing.assert_allclose(rate(jnp.array([30, 40, 10**6])), 0.2, rtol=1e-6)
    falling = np.diff([float(rate(k)) for k in range(10, 31)])
    assert (falling < 0).all()


@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_rises_to_its_peak_falls_to_the_rate_and_stays(anneal):
    cycle = {"lr": 2.0, "lr_start": 1.0, "lr_peak": 4.0, "warmup_steps": 6, "cooldown_steps": 4}
    rate = optim.schedule(30, decay="one_cycle", anneal=anneal, **cycle)
    np.testing.assert_allclose([rate(k) for k in (0, 3, 6, 8, 10, 29)], [1, 2.5, 4, 3, 2, 2])
    with pytest.raises(ValueError, match="schedule.anneal='sine' is unknown: use 'cos' or"):
        optim.schedule(30, decay="one_cycle", anneal="sine", **cycle)


def test_an_unknown_decay_is_refused():
    with pytest.raises(
        ValueError, match="schedule.decay='linear' is unknown: use 'constant', 'cosine' or"
    ):
        optim.schedule(10, lr=1.0, decay="linear")


PARAMS = {
    "block": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)},
    "table": jnp.full((4,), 2.0),
}


def update(tx, params, steps=3):
    state = tx.init(params)
    for k in range(steps):
        grads = jax.tree.map(lambda x, k=k: jnp.sin(x + k) + 2, params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_what_is_frozen_keeps_its_value_and_has_no_moments():
    tx = optim.make_optimizer(0.1, weight_decay=0.1, freeze=("block/bias", "tab.*"))
    params, state = update(tx, PARAMS)
    np.testing.assert_array_equal(params["block"]["bias"], PARAMS["block"]["bias"])
    np.testing.assert_array_equal(params["table"], PARAMS["table"])
    assert not np.allclose(params["block"]["kernel"], PARAMS["block"]["kernel"])
    moments = [x.shape for x in jax.tree.leaves(state) if x.ndim]
    assert moments == [(2, 3), (2, 3)]  # mu and nu of the kernel


def test_a_frozen_gradient_does_not_count_in_the_clip():
    def first_update(grads, freeze):
        tx = optim.make_optimizer(0.1, clip=1.0, eps=1.0, freeze=freeze)
        params = jax.tree.map(jnp.ones_like, grads)
        return tx.update(grads, tx.init(params), params)[0]

    grads = {"kernel": jnp.full(3, 0.1), "table": jnp.full(2, 1e4)}
    updates = first_update(grads, ("table",))
    alone = first_update({"kernel": grads["kernel"]}, ())
    np.testing.assert_array_equal(updates["kernel"], alone["kernel"])
    np.testing.assert_allclose(optim.global_norm(grads, ("table",)), 0.1 * 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(optim.global_norm(grads, ()), optax.global_norm(grads), rtol=1e-6)


def test_a_pattern_that_matches_no_whole_path_is_refused():
    for pattern in ("bias", "block/bia", "blok/.*"):
        with pytest.raises(ValueError, match=rf"optim.freeze holds \['{pattern}'\], which match"):
            optim.make_optimizer(0.1, freeze=(pattern, "table")).init(PARAMS)
