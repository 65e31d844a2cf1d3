"""Each of eight devices does an eighth of the work: by XLA's own count of the compiled programs."""

import functools

import jax
import numpy as np
import pytest

from configs import tiny
from data_pipelines.loading import buckets
from tests import toy_runs
from vidgen import tasks
from vidgen.tasks import autoencoder as autoencoder_task
from vidgen.training import data, micro_steps, sharding, train_state

CLIPS = 256
BUCKET = buckets.Bucket("32", 17, "1.00", 32, 32, CLIPS)
MESHES = {1: {"data": 1}, 8: {"data": 4, "fsdp": 2}}


@pytest.fixture(scope="module")
def config():
    config = tiny.get_config()
    config.model.remat, config.model.unroll = False, True  # XLA counts a loop's body once
    # At width 16 a device of eight counts 2.8 % more than its share: sums over parameters and small
    # arrays of conditions, whose work does not shrink with the clips. At 64 it is 1.0 %.
    config.model.width = 64
    return config


def on(devices):
    return sharding.make_mesh(MESHES[devices], jax.devices()[:devices])


def flops(lowered):
    compiled = lowered.compile()
    gathers = [line for line in compiled.as_text().splitlines() if "all-gather(" in line]
    return compiled.cost_analysis()["flops"], gathers


def elements(line):
    """Of the result of an operation of HLO: `f32[4,16]{1,0} all-gather(...)`."""
    shape = line.split(" = ")[1].split("[")[1].split("]")[0]
    return int(np.prod([int(n) for n in shape.split(",") if n], initial=1))


def a_slice(task, config, mesh, parts):
    """A collated slice of a batch, placed."""
    part = micro_steps.MicroStep(0, 1, parts, BUCKET, 1 / parts)
    batch = micro_steps.cut(task.example_batch(BUCKET, np.random.default_rng(0)), part)
    return data.to_global(task.collate(batch, BUCKET), mesh)


def test_a_step_of_four_micro_steps(config):
    task, tx = tasks.make_task(config), train_state.make_optimizer(config)
    init = functools.partial(train_state.init_state, task=task, tx=tx)
    found = {}
    for devices in MESHES:
        mesh = on(devices)
        with jax.set_mesh(mesh):
            abstract = jax.eval_shape(init, jax.random.key(0))
            places = sharding.by_path(abstract, config.sharding, mesh)
            state = sharding.placed(abstract, places)
            batch = task.prepare({}, a_slice(task, config, mesh, 4), BUCKET, jax.random.key(0))
            update = train_state.Update(task, tx, config, places)
            total = jax.eval_shape(update.zeros, state.params, {}, batch)
            total = sharding.placed(total[0], places.params), total[1]
            scalars = np.uint32(0), np.float32(0.25)
            lowered = update.gradient.lower(state.params, total, {}, batch, *scalars)
            found[devices], gathers = flops(lowered)
    assert found[8] == pytest.approx(found[1] / 8, rel=0.02)
    largest = max(x.size for x in jax.tree.leaves(abstract.params))
    assert all(elements(line) <= largest for line in gathers)  # of parameters, and of no batch


def test_preparing_from_videos(config):
    task, found = tasks.make_task(config), {}
    video = {"video": np.zeros((CLIPS, 17, 32, 32, 3), np.uint8)}
    ids_BL, mask_BL = task.encoders.tokenize(["a"] * CLIPS)
    for devices in MESHES:
        mesh = on(devices)
        with jax.set_mesh(mesh):
            shapes = task.frozen_shapes(mesh)
            batch = task.example_batch(BUCKET, np.random.default_rng(0)) | video
            batch = task.collate(batch | {"text_ids": ids_BL, "text_mask": mask_BL}, BUCKET)
            batch = data.to_global(batch, mesh)
            size = BUCKET.num_frames, BUCKET.height, BUCKET.width
            lowered = task._prepare.lower(task, shapes, batch, jax.random.key(0), size)
            found[devices], gathers = flops(lowered)
        assert not gathers
    assert found[8] == pytest.approx(found[1] / 8, rel=0.02)


def test_encoding_in_slices(config):
    """Both meshes take a clip a device at a time, in a loop whose body is counted once."""
    config = config.copy_and_resolve_references()
    config.vae.slice_pixels = 17 * 32 * 32
    models, found = tasks.make_task(config).encoders, {}
    for devices in MESHES:
        mesh = on(devices)
        place = sharding.batch(mesh)
        video = jax.ShapeDtypeStruct((CLIPS, 17, 32, 32, 3), np.uint8, sharding=place)
        with jax.set_mesh(mesh):
            lowered = jax.jit(models.encode_video).lower(models.abstract(mesh), video)
            found[devices], gathers = flops(lowered)
        assert not gathers
    assert found[8] == pytest.approx(found[1], rel=0.02)  # in 8 rounds, and not in 64


def test_a_sliced_vae_is_trained_without_moving_pixels(config):
    config = config.copy_and_resolve_references()
    config.task, config.vae.slice_pixels = "autoencoder", 4 * 32 * 32
    task, mesh = autoencoder_task.Autoencoder(config), on(8)
    params = jax.eval_shape(lambda: toy_runs.random_params(task, 0))
    with jax.set_mesh(mesh):
        batch = a_slice(task, config, mesh, 4)
        key = jax.random.key(0)
        grad = jax.jit(jax.grad(lambda params, batch: task.loss(params, {}, batch, key)[0]))
        _, gathers = flops(grad.lower(params, batch))
    assert all(elements(line) < 16 * 17 * 32 * 32 for line in gathers)  # of no video
