"""Trains a model: one loop for the video VAE and for text-to-video.

    python -m vidgen.train --config=configs/tiny.py --workdir=outputs/tiny --config.schedule.lr=1e-3

The same command again goes on where the last one stopped. SIGTERM and Ctrl-C save and leave with
exit code 75; 0 means that all steps are done.
"""

import functools
import itertools
import pathlib

import flax
import jax
import jax.numpy as jnp
import optax
from absl import flags
from ml_collections import config_flags

from data_pipelines import loader as loader_lib
from vidgen import checkpoint, command_line, data, encoders, metrics, optim, runtime, sharding
from vidgen import tasks, workdir

# What another start of the same run may set anew.
MAY_CHANGE = ("checkpoint", "checkpoint_every", "data.workers", "log", "mesh", "num_steps")
MAY_CHANGE += ("preview", "sharding", "watchdog_seconds")

_CONFIG = config_flags.DEFINE_config_file("config", None, "File of the experiment.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints and metrics.")


@flax.struct.dataclass
class TrainState:
    """All that a step changes. `step` counts the updates that are done."""

    step: jax.Array
    params: dict
    ema: dict
    opt_state: optax.OptState


def init_state(key, *, task, tx) -> TrainState:
    """The state before the first step."""
    params = task.init(key)
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, tx.init(params))


def step_key(config, step, purpose: int):
    """The random key of a step for one purpose: a function of (seed, step) alone."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), step), purpose)


def train_step(state, frozen, batch, *, task, tx, config):
    """One update. Pure: equal inputs give equal outputs, to the last bit."""
    key = step_key(config, state.step, 0)
    gradients = optim.accumulate(task.loss, config.microbatches)
    grads, step_metrics = gradients(state.params, frozen, batch, key)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = optax.incremental_update(params, state.ema, 1 - config.ema_decay)
    norms = {"grad_norm": optax.global_norm(grads), "param_norm": optax.global_norm(params)}
    return TrainState(state.step + 1, params, ema, opt_state), step_metrics | norms


def make_optimizer(config) -> optax.GradientTransformation:
    """The optimizer of a config."""
    rate = optim.schedule(config.num_steps, **config.schedule.to_dict())
    return optim.make_optimizer(rate, **config.optim.to_dict())


def make_loader(config, task) -> loader_lib.Loader:
    """The loader of a config, for this process's part of every batch."""
    return loader_lib.Loader(
        config.data.path,
        buckets=encoders.bucket_table(config),
        seed=config.seed,
        frame_interval=config.data.frame_interval,
        mask_ratios=config.data.mask_ratios.to_dict(),
        text_dropout=config.data.text_dropout,
        num_workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **task.loader_settings,
    )


def train(config, folder) -> int:
    """Trains to `config.num_steps`, from the newest checkpoint in `folder` if there is one.

    Returns:
        The process's exit code: 0, or `runtime.EXIT_PREEMPTED` when it was asked to stop.

    Raises:
        ValueError: If config, data and folder do not fit each other.
    """
    task, tx = tasks.make_task(config), make_optimizer(config)
    loader = make_loader(config, task)
    workdir.guard(folder, config, loader.fingerprint, MAY_CHANGE)
    mesh = sharding.make_mesh(config.mesh.to_dict())
    watchdog = runtime.Watchdog(pathlib.Path(folder) / "stacks.txt")
    with jax.set_mesh(mesh):
        init = functools.partial(init_state, task=task, tx=tx)
        abstract = jax.eval_shape(init, jax.random.key(0))
        places = sharding.by_path(abstract, config.sharding, mesh)
        ckpt = checkpoint.Checkpointer(folder, **config.checkpoint.to_dict())
        restored = ckpt.restore(sharding.placed(abstract, places))
        fresh = jax.jit(init, out_shardings=places)
        state = restored[0] if restored else fresh(jax.random.key(config.seed))
        frozen, start = task.load_frozen(), int(state.step)

        def place(numbered):
            step, batch = numbered
            arrays = data.to_global(batch, mesh)
            return task.prepare(frozen, arrays, loader.bucket(step), step_key(config, step, 1))

        batches = data.Prefetch(zip(itertools.count(start), loader.iterate(start)), place)
        update = functools.partial(train_step, task=task, tx=tx, config=config)
        update = jax.jit(update, donate_argnums=0, out_shardings=(places, None))
        log = metrics.Logger(folder, config.num_steps, start, **config.log.to_dict())
        stopped = False
        for step in range(start + 1, config.num_steps + 1):
            watchdog.expect(f"step {step}", config.watchdog_seconds)
            batch = next(batches)
            state, step_metrics = update(state, frozen, batch)
            log.step(step, step_metrics, tokens=task.tokens(batch), label=loader.bucket(step - 1))
            ckpt.check()
            stopped = runtime.should_stop()
            if step % config.checkpoint_every == 0 or step == config.num_steps or stopped:
                ckpt.save(step, state, {"position": step, "fingerprint": loader.fingerprint})
            if config.preview.every and step % config.preview.every == 0:
                for name, videos in task.preview(state.ema, frozen, batch).items():
                    log.video(step, name, list(jax.device_get(videos)))
            if stopped:
                break
        watchdog.close()
        ckpt.close()
        log.close()
    return runtime.EXIT_PREEMPTED if stopped else 0


def main(argv):
    runtime.start()
    runtime.end_on_error()
    return train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    command_line.run(main)
