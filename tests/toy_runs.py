"""Working folders of runs with random weights, for tests of the commands that read them."""

import pathlib
import types

import jax
import numpy as np

from configs import tiny
from vidgen import tasks
from vidgen.tasks.autoencoder import Autoencoder
from vidgen.training import checkpoint, sharding, workdir
from vidgen.weights import tree_files


def text_to_video(folder: pathlib.Path, config=None) -> pathlib.Path:
    """A text-to-video run in `folder/run`, of configs/tiny.py or another, with two checkpoints."""
    config = config or tiny.get_config()
    config.data.path = str(folder / "shards")  # there is none
    config.vae.weights = str(folder / "vae.safetensors")
    tree_files.save_safetensors(random_params(Autoencoder(config), 0), config.vae.weights)
    task = tasks.make_task(config)
    run = folder / "run"
    workdir.Run(run, config, "none").keep()
    _save(run, {2: random_params(task, 1), 4: random_params(task, 2)})
    return run


def autoencoder(folder: pathlib.Path, config=None) -> pathlib.Path:
    """A run of the video VAE."""
    config = config or tiny.get_config()
    config.task = "autoencoder"
    workdir.Run(folder, config, "none").keep()
    _save(folder, {2: random_params(tasks.make_task(config), 0)})
    return folder


def random_params(task, seed):
    """Random weights, quicker than `task.init`, which compiles."""
    rng = np.random.default_rng(seed)

    def draw(path, like):
        if sharding.path_name(path).endswith("scale"):
            return np.ones(like.shape, like.dtype)
        fan_in = np.prod(like.shape[:-1][-4:], initial=1)
        return (rng.normal(size=like.shape) / np.sqrt(fan_in)).astype(like.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(task.init, jax.random.key(0)))


def _save(folder, params_of_steps):
    saver = checkpoint.Checkpointer(folder)
    for step, params in params_of_steps.items():
        raw = jax.tree.map(lambda x: x + 0.01, params)
        saver.save(
            step, types.SimpleNamespace(params=raw, ema=params, opt_state={}), {"step": step}
        )
    saver.close()
