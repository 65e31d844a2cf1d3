"""One update of the train state: the pure function at the heart of the loop."""

import flax
import jax
import jax.numpy as jnp
import optax

from vidgen.training import optim
from vidgen.weights import tree_files


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


def given_params(config, saved, places) -> dict | None:
    """The parameters that a run starts with, by `config.start_from`; each process reads its parts.

    Args:
        config: Of the run.
        saved: Its steps that have a checkpoint.
        places: Shapes and shardings of the parameters.

    Returns:
        The parameters; None without `start_from`, and where the run has saved and goes on.

    Raises:
        ValueError: If the file is not there, or its arrays are not those of the model.
    """
    path = config.get("start_from", "")  # configs of older runs have no such field
    if not path or saved:
        return None
    return tree_files.load_placed(path, places)


def start_from(state: TrainState, params: dict | None) -> TrainState:
    """The state with these as parameters and average; as it is for None."""
    if params is None:
        return state
    return state.replace(params=params, ema=jax.tree.map(jnp.copy, params))


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
    grad_norm = optim.global_norm(grads, config.optim.freeze)
    norms = {"grad_norm": grad_norm, "param_norm": optax.global_norm(params)}
    return TrainState(state.step + 1, params, ema, opt_state), step_metrics | norms


def make_optimizer(config) -> optax.GradientTransformation:
    """The optimizer of a config."""
    compat = config.get("compat", "")  # configs of older runs have no such field
    rate = optim.schedule(config.num_steps, compat=compat, **config.schedule.to_dict())
    return optim.make_optimizer(rate, **config.optim.to_dict())
