"""Trains a model: one loop for the video VAE and for text-to-video.

    python -m vidgen.train --config=configs/tiny.py --workdir=outputs/tiny --config.schedule.lr=1e-3

The same command again goes on where the last one stopped. SIGTERM and Ctrl-C save and leave with
exit code 75; 0 means that all steps are done.
"""

import functools
import itertools

import jax
from absl import flags
from ml_collections import config_flags

from vidgen import tasks
from vidgen.process import command_line, endings, exit_codes, ranks, runtime
from vidgen.process import phases as phases_lib
from vidgen.tasks import loaders
from vidgen.training import checkpoint, data, goodput, metrics, resolve, sharding, train_state
from vidgen.training import micro_steps as micro_steps_lib
from vidgen.training import numbers as numbers_lib
from vidgen.training import replay as replay_lib
from vidgen.training import rewinds as rewinds_lib
from vidgen.training import spikes as spikes_lib
from vidgen.training import tiers as tiers_lib
from vidgen.training import workdir as workdir_lib
from vidgen.weights import tree_files

# What another start of the same run may set anew: cadences, and how and where things are computed.
# The contents behind paths are compared by fingerprints.
MAY_CHANGE = ("checkpoint", "checkpoint_every", "data.workers", "data.deadline_seconds")
MAY_CHANGE += ("data.bad_limit", "data.path", "frozen_sharding", "limits", "log", "max_refused")
MAY_CHANGE += ("mesh", "microbatches", "model.remat", "model.unroll", "num_steps", "preview")
MAY_CHANGE += ("replay_every", "sharding", "snapshot", "spike", "start_from")
MAY_CHANGE += ("stop_after_seconds", "text.folder", "vae.slice_pixels", "vae.weights")
# What the processes of one start may have each their own way: paths, compared by content, and help.
PER_PROCESS = ("data.path", "data.workers", "start_from", "text.folder", "vae.weights")


def train(config, folder, accept=()) -> int:
    """Trains to `config.num_steps`, from the newest state that is kept of it, if any.

    `accept` names what another start may change besides MAY_CHANGE; see `workdir.Run`.

    Returns:
        The process's exit code: 0, or `exit_codes.REQUEUE` when it was asked to stop.

    Raises:
        ValueError: If config, data and folder do not fit each other; nothing is written then.
    """
    floors = {"data": 2 * config.data.deadline_seconds, "save": checkpoint.LIMIT_SECONDS}
    phases = phases_lib.Phases(config.limits, **floors)
    with endings.refusing():
        task, tx = tasks.make_task(config), train_state.make_optimizer(config)
        loader = loaders.make_loader(config, task, folder)
        mesh = sharding.make_mesh(config.mesh.to_dict())
        rewinds = rewinds_lib.Rewinds(folder, config.data.skip_batches, config.accumulate.batches)
        micro_steps = micro_steps_lib.make(config, loader, task.tokens, mesh, rewinds.number)
        init = functools.partial(train_state.init_state, task=task, tx=tx)
        abstract = jax.eval_shape(init, jax.random.key(0))
        places = sharding.by_path(abstract, config.sharding, mesh)
        wanted = sharding.placed(abstract, places)
        resolve.check(config, task, tx, abstract, loader)
        run = workdir_lib.Run(folder, config, loader.fingerprint, MAY_CHANGE, accept)
        ranks.agree(run.facts(PER_PROCESS) | rewinds.facts())
        given = train_state.given_params(config, rewinds.valid_steps(), wanted.params)
        frozen = task.load_frozen(mesh, loader.kind)
        run.weights({name: tree_files.fingerprint(tree) for name, tree in frozen.items()})
        run.lock()
        phases.open(folder)
        runtime.stop_when(folder, config.stop_after_seconds)
        phases.enter("restore")
        tiers = tiers_lib.Tiers(run, config, rewinds)
        restored = tiers.restore(wanted)
        changed = run.keep()
    with jax.set_mesh(mesh):
        fresh = jax.jit(init, out_shardings=places)
        seeded = lambda: train_state.start_from(fresh(jax.random.key(config.seed)), given)
        state = restored or seeded()
        start = int(state.step)

        def place(pair):
            micro_step, batch = pair
            batch = data.to_global(task.collate(batch, micro_step.bucket), mesh)
            key = train_state.step_key(config, micro_step.number, 1)
            batch = task.prepare(frozen, batch, micro_step.bucket, key)
            return batch, micro_step.number, micro_step.weight

        batches = data.Prefetch(micro_steps.iterate(start), place)
        update = train_state.Update(task, tx, config, places)
        phases.note(goes_on_from=start)
        settings = config.log.to_dict() | {"account": goodput.Account(folder, phases.seconds)}
        log = metrics.Logger(folder, config.num_steps, start, **settings)
        tell = loader.clip_ids, log.note, tiers.close
        spikes = spikes_lib.Spikes(run, rewinds, **config.spike.to_dict())
        numbers = numbers_lib.Numbers(folder, config.max_refused, *tell, spikes)
        replay = replay_lib.Replay(config.replay_every, places.params, numbers.events, *tell[1:])
        for line in (*resolve.describe(config, changed, start), *rewinds.describe()):
            log.note(line)
        stopped = False
        for step in range(start + 1, config.num_steps + 1):
            plan, ahead = micro_steps(step - 1), micro_steps(step)
            phases.enter("data", step, micro_steps_lib.labels(plan + ahead))
            taken = list(itertools.islice(batches, len(plan)))
            phases.enter("step", step, micro_steps_lib.labels(plan))
            state, step_metrics = update(state, frozen, taken, replay.at(step, plan))
            numbers.step(step, step_metrics, plan)
            log.step(step, step_metrics, **micro_steps_lib.work(plan, task))
            tiers.check()
            stopped = runtime.should_stop()
            if tiers.is_due(step, stopped):
                phases.enter("save")
                numbers.check(state)
                log.flush()
                tiers.save(step, state, stopped, numbers.suspicious)
            if config.preview.every and step % config.preview.every == 0:
                phases.enter("preview")
                for name, videos in task.preview(state.ema, frozen, taken[-1][0]).items():
                    log.video(step, name, list(jax.device_get(videos)))
            if stopped:
                break
        phases.enter("close")
        tiers.finish()
        log.close()
        ranks.finish()
        phases.close()
    return exit_codes.REQUEUE if stopped else 0


def define_flags() -> None:
    """Defines the command's flags; called once, so that others can import this module."""
    config_flags.DEFINE_config_file("config", None, "File of the experiment.")
    flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, previews.")
    flags.DEFINE_list("accept", [], "Fields that another start of a run changes on purpose.")
    flags.mark_flags_as_required(["config", "workdir"])
    command_line.writes_folder("workdir")


def main(argv) -> int:
    del argv
    endings.end_on_error()
    runtime.start()
    return train(flags.FLAGS.config, flags.FLAGS.workdir, flags.FLAGS.accept)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
