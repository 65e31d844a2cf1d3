"""Rows stay where they are, and slices of them are cut inside of each device's part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.models import places
from vidgen.training import sharding


def test_a_batch_is_cut_and_no_number_changes(mesh):
    x = jnp.arange(48.0).reshape(16, 3)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: places.as_batch(x * 2))(x)
        assert places.as_batch(jnp.ones((3, 2))).shape == (3, 2)  # 3 of 8: stays whole
    assert y.sharding.is_equivalent_to(sharding.batch(mesh), 2)
    np.testing.assert_array_equal(y, x * 2)


def test_nothing_is_cut_without_a_mesh_or_on_one_device():
    x = jnp.ones((4, 2))
    assert places.as_batch(x) is x
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
        assert places.as_batch(x) is x


@pytest.mark.parametrize("rows, size", [(48, 2), (48, 4), (48, 6), (48, None), (6, 2), (6, 4)])
def test_slices_give_what_the_whole_gives_and_its_gradient(rows, size, mesh):
    x = {"x": jnp.arange(rows * 5.0).reshape(rows, 5), "none": None}
    f = lambda tree: jnp.sin(tree["x"])[:, None, :2] * 3
    run = lambda x: places.in_slices(f, x, size)
    expected = f(x)
    np.testing.assert_allclose(jax.jit(run)(x), expected, rtol=1e-6)
    with jax.set_mesh(mesh):
        placed = {"x": jax.device_put(x["x"], sharding.batch(mesh)) if rows == 48 else x["x"]}
        placed["none"] = None
        np.testing.assert_allclose(jax.jit(run)(placed), expected, rtol=1e-6)
        grad = jax.jit(jax.grad(lambda x: run({"x": x, "none": None}).sum()))(placed["x"])
    want = jax.grad(lambda x: f({"x": x}).sum())(x["x"])
    np.testing.assert_allclose(grad, want, rtol=1e-6)


def test_a_device_does_its_own_share_and_gathers_nothing(mesh):
    """8 devices with 6 rows each, in slices of 2: a loop of 3 rounds, each of 2 rows a device."""
    weight = jnp.ones((64, 64))
    x = jax.ShapeDtypeStruct((48, 64), jnp.float32, sharding=sharding.batch(mesh))

    def compiled(size):
        run = lambda x: places.in_slices(lambda x: jnp.tanh(x @ weight), x, size)
        with jax.set_mesh(mesh):
            return jax.jit(run).lower(x).compile()

    whole, sliced = compiled(None), compiled(2)
    dot = lambda rows: 2 * rows * 64 * 64
    assert whole.cost_analysis()["flops"] == pytest.approx(dot(6), rel=0.1)
    assert sliced.cost_analysis()["flops"] == pytest.approx(dot(2), rel=0.1)  # of one round
    text = sliced.as_text()
    assert not [name for name in ("all-gather", "all-to-all", "permute") if f"{name}(" in text]
