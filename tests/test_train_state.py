"""The update is pure, and the same on one device and on many."""

import ast
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import tiny
from data_pipelines.loading import buckets
from vidgen import tasks
from vidgen.training import optim, sharding, train_state


@pytest.fixture(scope="module")
def config():
    config = tiny.get_config()
    config.model.remat, config.microbatches = False, 1
    return config


def batch_of(task, config, clips=8):
    """A batch of random latents, with odd masks, and a caption dropped."""
    rng = np.random.default_rng(1)
    shape = clips, 5, 6, 10, config.model.in_channels  # one latent frame odd, 24 x 40 pixels
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    tokens, width = config.text.max_tokens, config.text.model.width
    batch = {
        "latent": normal(*shape),
        "latent_std": 0.1 * np.abs(normal(*shape)),
        "text_emb": normal(clips, tokens, width),
        "text_mask": np.arange(tokens)[None] < rng.integers(1, tokens, (clips, 1)),
        "mask": rng.random((clips, 5)) < 0.7,
        "drop_text": np.arange(clips) == 1,
        "fps": np.full(clips, 12.0, np.float32),
        "slot": np.arange(clips, dtype=np.int32),
    }
    batch["mask"][:, 0] = True
    bucket = buckets.Bucket("32", 17, "0.60", 24, 40, clips)
    collated = task.collate(batch, bucket)
    return task.prepare({}, jax.tree.map(jnp.asarray, collated), bucket, jax.random.key(7))


def an_update(task, tx, config, places=None):
    """A pure function of (state, micro-steps), as jax.jit makes no use of what it was given."""
    update = train_state.Update(task, tx, config, places)
    return lambda state, *micro_steps: update(jax.tree.map(jnp.copy, state), {}, micro_steps)


@pytest.fixture(scope="module")
def one_device(config):
    """(update, state before, batch, (state after, metrics)) on one device."""
    task, tx = tasks.make_task(config), train_state.make_optimizer(config)
    state = jax.jit(functools.partial(train_state.init_state, task=task, tx=tx))(jax.random.key(0))
    update, batch = an_update(task, tx, config), batch_of(task, config)
    return update, state, batch, update(state, (batch, 0, 1.0))


def test_equal_inputs_give_equal_bits(one_device):
    update, state, batch, (after, metrics) = one_device
    again, again_metrics = update(state, (batch, 0, 1.0))
    first, second = jax.tree.leaves((after, metrics)), jax.tree.leaves((again, again_metrics))
    for x, y in zip(first, second, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    changed = [
        sharding.path_name(path)
        for path, x in jax.tree.leaves_with_path(after.params)
        if not np.array_equal(x, _at(state.params, path))
    ]
    assert len(changed) > 10
    assert not {"y_embedder/y_embedding", "rope_freqs"} & set(changed)


def rows(batch, first, last):
    return {name: x[first:last] for name, x in batch.items()}


def test_slices_of_a_batch_make_the_update_of_the_whole(config, one_device):
    update, state, batch, (expected, metrics) = one_device
    parts = [(rows(batch, i, i + 2), 0, 0.25) for i in range(0, 8, 2)]
    got, got_metrics = update(state, *parts)
    for name in metrics:  # float32 sums in another order
        np.testing.assert_allclose(got_metrics[name], metrics[name], rtol=1e-4, err_msg=name)
    lr = float(optim.config_schedule(config)(0))
    for x, y in zip(jax.tree.leaves(got.params), jax.tree.leaves(expected.params), strict=True):
        assert np.abs(np.asarray(x) - np.asarray(y)).max() <= 2.01 * lr


def test_an_update_of_several_buckets_is_the_weighted_mean_of_their_gradients(config, one_device):
    update, state, batch, _ = one_device
    task = tasks.make_task(config)
    step = train_state.Update(task, train_state.make_optimizer(config), config)
    parts = [(rows(batch, 0, 6), 0, 0.75), (rows(batch, 6, 8), 1, 0.25)]
    separate, losses = [], []
    for part, number, _ in parts:
        zeros = step.zeros(state.params, {}, part)
        (grads, _), loss = step.gradient(state.params, zeros, {}, part, number, 1.0)
        separate.append(grads), losses.append(float(loss))
    mean = jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, *separate)
    _, metrics = update(state, *parts)
    assert float(metrics["loss"]) == pytest.approx(0.75 * losses[0] + 0.25 * losses[1], rel=1e-6)
    assert [float(x) for x in metrics["losses"]] == losses
    norm = optim.global_norm(mean, config.optim.freeze)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_sums_of_several_buckets_are_the_same_on_eight_devices(config, one_device, mesh):
    _, state, batch, _ = one_device
    task, tx = tasks.make_task(config), train_state.make_optimizer(config)
    sums = {}
    for devices in (1, 8):
        with jax.set_mesh(mesh if devices == 8 else sharding.make_mesh(devices=jax.devices()[:1])):
            places = sharding.by_path(jax.eval_shape(lambda: state), config.sharding, mesh)
            step = train_state.Update(task, tx, config, places if devices == 8 else None)
            params = jax.device_put(state.params, places.params) if devices == 8 else state.params
            place = sharding.batch(mesh) if devices == 8 else None
            total = step.zeros(params, {}, batch)
            for number, weight in ((0, 0.75), (1, 0.25)):
                part = {k: jnp.roll(x, number, axis=0) for k, x in batch.items()}
                part = jax.device_put(part, place)
                total, _ = step.gradient(params, total, {}, part, number, weight)
            sums[devices] = jax.device_get(total[0])
    for x, y in zip(jax.tree.leaves(sums[1]), jax.tree.leaves(sums[8]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)  # float32 sums in another order


@pytest.mark.parametrize("where", ["batch", "loss", "rate"])
def test_what_is_not_finite_changes_nothing_but_the_step(where, config, one_device, monkeypatch):
    update, state, batch, _ = one_device
    if where == "batch":
        batch = batch | {"tokens": batch["tokens"].at[1, 0, 0, 0].set(jnp.nan)}
    if where == "loss":  # finite, and its gradient is not
        batch = batch | {"tokens": batch["tokens"] * 1e18}
    if where == "rate":
        config = config.copy_and_resolve_references()
        config.schedule.lr = 1e38
        update = an_update(tasks.make_task(config), train_state.make_optimizer(config), config)
    after, metrics = update(state, (batch, 0, 1.0))
    assert int(metrics["refused"]) == 1 and int(after.step) == int(state.step) + 1
    for x, y in zip(
        jax.tree.leaves(after.replace(step=0)), jax.tree.leaves(state.replace(step=0)), strict=True
    ):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_the_average_of_what_is_constant_is_constant(config):
    config = config.copy_and_resolve_references()
    config.schedule.lr, config.ema_decay = 0.0, 0.9999
    task, tx = tasks.make_task(config), train_state.make_optimizer(config)
    state = train_state.init_state(jax.random.key(0), task=task, tx=tx)
    total = jax.tree.map(lambda x: jnp.full(x.shape, 0.1), state.params), {"loss": jnp.ones(())}
    apply = jax.jit(functools.partial(train_state.apply, tx=tx, config=config))
    first = jax.tree.map(np.asarray, state.ema)
    for _ in range(20):  # the old form drifts from the first update on
        state, _, metrics = apply(state, total)
    assert int(metrics["refused"]) == 0 and float(metrics["lr"]) == 0
    jax.tree.map(np.testing.assert_array_equal, state.ema, first)


def _at(tree, path):
    return functools.reduce(lambda node, key: node[key.key], path, tree)


def test_another_step_or_seed_draws_other_noise(config):
    draws = {
        tuple(jax.random.key_data(train_state.step_key(changed, step, purpose)).tolist())
        for changed in (config, ConfigDict({"seed": config.seed + 1}))
        for step in range(3)
        for purpose in (0, 1)
    }
    assert len(draws) == 12


def test_a_step_on_eight_devices_equals_one_device_and_shards_the_parameters(
    config, one_device, mesh
):
    _, _, _, (expected, expected_metrics) = one_device
    task, tx = tasks.make_task(config), train_state.make_optimizer(config)
    init = functools.partial(train_state.init_state, task=task, tx=tx)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    with jax.set_mesh(mesh):
        places = sharding.by_path(jax.eval_shape(init, jax.random.key(0)), config.sharding, mesh)
        state = jax.jit(init, out_shardings=places)(jax.random.key(0))
        batch = jax.device_put(batch_of(task, config), sharding.batch(mesh))
        got, metrics = an_update(task, tx, config, places)(state, (batch, 0, 1.0))
    for name in expected_metrics:  # float32 sums in another order
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-4, err_msg=name)
    kernel = got.params["spatial_blocks"]["attn"]["qkv"]["kernel"]
    assert kernel.addressable_shards[0].data.shape[1] * 2 == kernel.shape[1]
    whole = sum(x.nbytes for x in jax.tree.leaves(got))
    on_first = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(got))
    assert on_first < 0.65 * whole
    # Adam divides by the gradient's own size, so where that is rounding noise an update may turn.
    lr = float(optim.schedule(6, **config.schedule.to_dict())(0))
    for x, y in zip(jax.tree.leaves(got.params), jax.tree.leaves(expected.params), strict=True):
        assert np.abs(np.asarray(x) - np.asarray(y)).max() <= 2.01 * lr


@pytest.mark.parametrize("function", [train_state.gradient, train_state.apply])
def test_the_update_knows_no_task(function):
    tree = ast.parse(inspect.getsource(function))
    branches = (ast.If, ast.IfExp, ast.Match, ast.While, ast.Try, ast.BoolOp, ast.Compare)
    assert not [node for node in ast.walk(tree) if isinstance(node, branches)]
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    fields = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"isinstance", "hasattr", "getattr", "type", "tasks"}
    assert "task" not in fields  # config.task
