"""Trains a model: one loop for the video VAE and for text-to-video.

    python -m vidgen.train --config=configs/tiny.py --workdir=outputs/tiny --config.schedule.lr=1e-3

The same command again goes on where the last one stopped. SIGTERM and Ctrl-C save and leave with
exit code 75; 0 means that all steps are done.
"""

import functools
import itertools
import pathlib

import jax
from absl import flags
from ml_collections import config_flags

from data_pipelines.loading import loader as loader_lib
from data_pipelines.loading import mixture
from vidgen import tasks
from vidgen.diffusion import encoders
from vidgen.process import command_line, runtime
from vidgen.training import checkpoint, data, metrics, resolve, sharding, train_state, workdir
from vidgen.training import micro_steps as micro_steps_lib
from vidgen.training import numbers as numbers_lib
from vidgen.weights import tree_files

# What another start of the same run may set anew: cadences, and how and where things are computed.
# The contents behind paths are compared by fingerprints.
MAY_CHANGE = ("checkpoint", "checkpoint_every", "data.workers", "data.deadline_seconds")
MAY_CHANGE += ("data.bad_limit", "data.path", "frozen_sharding", "log", "max_refused", "mesh")
MAY_CHANGE += ("microbatches", "model.remat", "model.unroll", "num_steps", "preview", "sharding")
MAY_CHANGE += ("start_from", "text.folder", "vae.slice_pixels", "vae.weights", "watchdog_seconds")


def make_loader(config, task, folder) -> loader_lib.Loader:
    """The loader of a config, for this process's part of every batch.

    Clips that cannot be read are listed in `folder`/bad_clips-PROCESS.jsonl.

    Raises:
        ValueError: If the data are not there, or do not fit the config.
    """
    table = encoders.bucket_table(config)
    kind = mixture.read(config.data.path).kind
    if kind not in task.kinds:
        raise ValueError(
            f"data.path={config.data.path} holds {kind} shards, and task={config.task!r} learns "
            f"from {' or '.join(task.kinds)} shards: give the --out folder of "
            "data_pipelines.pipeline."
        )
    return loader_lib.Loader(
        config.data.path,
        buckets=table,
        seed=config.seed,
        frame_interval=config.data.frame_interval,
        mask_ratios=config.data.mask_ratios.to_dict(),
        text_dropout=config.data.text_dropout,
        num_workers=config.data.workers,
        **{name: config.data[name] for name in ("deadline_seconds", "bad_limit")},
        bad_list=pathlib.Path(folder) / f"bad_clips-{jax.process_index()}.jsonl",
        counts_file=pathlib.Path(folder) / "epoch_counts.txt",
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **task.loader_settings,
    )


def train(config, folder) -> int:
    """Trains to `config.num_steps`, from the newest checkpoint in `folder` if there is one.

    Returns:
        The process's exit code: 0, or `runtime.EXIT_PREEMPTED` when it was asked to stop.

    Raises:
        ValueError: If config, data and folder do not fit each other; nothing is written then.
    """
    with runtime.refusing():
        task, tx = tasks.make_task(config), train_state.make_optimizer(config)
        loader = make_loader(config, task, folder)
        mesh = sharding.make_mesh(config.mesh.to_dict())
        devices = sharding.batch_devices(mesh)
        settings = config.accumulate.to_dict() | {"slices": config.microbatches}
        micro_steps = micro_steps_lib.MicroSteps(loader, task.tokens, devices, **settings)
        init = functools.partial(train_state.init_state, task=task, tx=tx)
        abstract = jax.eval_shape(init, jax.random.key(0))
        places = sharding.by_path(abstract, config.sharding, mesh)
        wanted = sharding.placed(abstract, places)
        resolve.check(config, task, tx, abstract, loader)
        given = train_state.given_params(config, checkpoint.steps(folder), wanted.params)
        frozen = task.load_frozen(mesh, loader.kind)
        contents = {name: tree_files.fingerprint(tree) for name, tree in frozen.items()}
        changed = workdir.guard(folder, config, loader.fingerprint, MAY_CHANGE, contents)
        ckpt = checkpoint.Checkpointer(folder, **config.checkpoint.to_dict())
        restored = ckpt.restore(wanted)
    watchdog = runtime.Watchdog(pathlib.Path(folder) / "stacks.txt")
    with jax.set_mesh(mesh):
        fresh = jax.jit(init, out_shardings=places)
        seeded = lambda: train_state.start_from(fresh(jax.random.key(config.seed)), given)
        state = restored[0] if restored else seeded()
        start = int(state.step)

        def place(pair):
            micro_step, batch = pair
            batch = data.to_global(task.collate(batch, micro_step.bucket), mesh)
            key = train_state.step_key(config, micro_step.number, 1)
            batch = task.prepare(frozen, batch, micro_step.bucket, key)
            return batch, micro_step.number, micro_step.weight

        batches = data.Prefetch(micro_steps.iterate(start), place)
        update = train_state.Update(task, tx, config, places)
        log = metrics.Logger(folder, config.num_steps, start, **config.log.to_dict())
        tell = loader.clip_ids, log.note, ckpt.close
        numbers = numbers_lib.Numbers(folder, config.max_refused, *tell)
        for line in resolve.describe(config, changed, start):
            log.note(line)
        stopped = False
        for step in range(start + 1, config.num_steps + 1):
            watchdog.expect(f"step {step}", config.watchdog_seconds)
            plan = micro_steps(step - 1)
            taken = list(itertools.islice(batches, len(plan)))
            state, step_metrics = update(state, frozen, taken)
            numbers.step(step, step_metrics, plan)
            log.step(step, step_metrics, **micro_steps_lib.work(plan, task))
            ckpt.check()
            stopped = runtime.should_stop()
            if step % config.checkpoint_every == 0 or step == config.num_steps or stopped:
                numbers.check(state)
                log.flush()
                ckpt.save(step, state, {"position": step, "fingerprint": loader.fingerprint})
            if config.preview.every and step % config.preview.every == 0:
                for name, videos in task.preview(state.ema, frozen, taken[-1][0]).items():
                    log.video(step, name, list(jax.device_get(videos)))
            if stopped:
                break
        watchdog.close()
        ckpt.close()
        log.close()
    return runtime.EXIT_PREEMPTED if stopped else 0


def define_flags() -> None:
    """Defines the command's flags; called once, so that others can import this module."""
    config_flags.DEFINE_config_file("config", None, "File of the experiment.")
    flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, previews.")
    flags.mark_flags_as_required(["config", "workdir"])
    command_line.writes_folder("workdir")


def main(argv) -> int:
    del argv
    runtime.end_on_error()
    runtime.start()
    return train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
