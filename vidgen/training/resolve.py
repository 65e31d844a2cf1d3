"""A run, resolved before anything is written: does all of it fit together, and is it the same run?

The whole step is evaluated abstractly, by shapes alone: seconds at any size.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import traverse_util

from vidgen.training import optim, train_state


def check(config, task, tx, state, loader) -> None:
    """Refuses a config whose step cannot be made of these data and models.

    Args:
        config: Of the run.
        task: Its task.
        tx: Its optimizer.
        state: Shapes of the train state.
        loader: Of the run's data.

    Raises:
        ValueError: With what does not fit, and the bucket where it showed.
    """
    _check_numbers(config)
    bucket = min(loader.used_buckets(), key=lambda b: b.batch_size * task.tokens(b))
    where = f"bucket {bucket.name} of {loader.reader.folder}"
    try:
        batch = task.collate(loader.example(bucket), bucket)  # of one clip: quick at any size
        prepare = lambda frozen, batch, key: task.prepare(frozen, batch, bucket, key)
        frozen, key = task.frozen_shapes(kind=loader.kind), jax.random.key(0)
        batch = jax.eval_shape(prepare, frozen, batch, key)
        update = train_state.Update(task, tx, config)
        total = jax.eval_shape(update.zeros, state.params, frozen, batch)
        scalars = np.uint32(0), np.float32(1)
        total, _ = jax.eval_shape(update.gradient, state.params, total, frozen, batch, *scalars)
        jax.eval_shape(update.apply, state, total)
    except (TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"config, data and models do not fit together: in {where}, {reason}. Check channels "
            "and widths of config.model, config.vae.model and config.text.model against those that "
            "the data were encoded with."
        ) from error


def _check_numbers(config) -> None:
    least = {
        "num_steps": 1,
        "checkpoint_every": 1,
        "checkpoint.keep": 1,
        "checkpoint.keep_every": 0,
    }
    least |= {"max_refused": 0, "preview.every": 0, "schedule.warmup_steps": 0, "optim.clip": 0}
    least |= {"replay_every": 0, "spike.z": 0, "spike.in_a_row": 1, "spike.skip": 1}
    least |= {"spike.limit": 0}
    flat = traverse_util.flatten_dict(config.to_dict(), sep=".")
    wrong = [
        f"{name}={flat[name]}: use {low} or more."
        for name, low in least.items()
        if not (isinstance(flat[name], int | float) and flat[name] >= low)
    ]
    if not 0 <= config.ema_decay <= 1:
        wrong.append(f"ema_decay={config.ema_decay}: use 0 to 1.")
    recent = config.optim.clip_recent
    if recent and not 1 <= recent < math.inf:
        wrong.append(f"optim.clip_recent={recent}: use 1 or more standard deviations, or 0: off.")
    if not (math.isfinite(config.schedule.lr) and config.schedule.lr >= 0):
        wrong.append(f"schedule.lr={config.schedule.lr}: use a finite number of 0 or more.")
    if not 0 < config.snapshot.share < 1:
        wrong.append(f"snapshot.share={config.snapshot.share}: use more than 0 and less than 1.")
    wrong += [
        f"limits.{name}={seconds}: use more than 0."
        for name, seconds in config.limits.to_dict().items()
        if not seconds > 0
    ]
    if wrong:
        raise ValueError("\n".join(wrong))


def describe(config, changed: Sequence[tuple], start: int) -> Iterator[str]:
    """What another start of a run does otherwise than the one before, a line each.

    Args:
        config: As it is now.
        changed: (field, value before, value now) of `workdir.guard`.
        start: The step that the run goes on after.
    """
    for name, old, new in changed:
        yield f"{name}: {old} before, {new} now"
        if name == "num_steps" and config.schedule.decay == "cosine" and start:
            before = config.copy_and_resolve_references()
            with before.unlocked():
                before.num_steps = old
            rates = [float(optim.config_schedule(c)(start)) for c in (before, config)]
            yield (
                f"  the cosine of the learning rate is stretched with it: at step {start + 1} "
                f"it is {rates[1]:.4g}, and would have been {rates[0]:.4g}."
            )
