"""One update of the train state: pure functions at the heart of the loop."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
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


def gradient(params, total, frozen, batch, number, weight, *, task, config):
    """Adds what one micro-step says, by its weight, to the running sums of the update.

    Args:
        params: Of the model.
        total: (gradient, metrics) so far, float32; zeros at first.
        frozen: What the task only uses.
        batch: A prepared batch, or a part of one.
        number: Of the batch in the loader's order, which its random numbers follow from.
        weight: Share of the micro-step in the update; those of an update add up to 1.

    Returns:
        (total, loss): the sums, and the loss of this micro-step alone.
    """
    key = step_key(config, number, 0)
    (loss, metrics), grads = jax.value_and_grad(task.loss, has_aux=True)(params, frozen, batch, key)
    found = grads, {"loss": loss, **metrics}
    add = lambda so_far, x: so_far + weight * x.astype(so_far.dtype)
    return jax.tree.map(add, total, found), loss


def apply(state, total, *, tx, config):
    """One update by the sums of its micro-steps. Pure: equal inputs give equal outputs, to the bit.

    An update whose loss, gradient or outcome is not finite is refused: parameters, moments and
    average stay as they were, and the step is counted.

    Returns:
        (state, zeros for the next update's sums, metrics).
    """
    grads, metrics = total
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # In this form equal values stay equal; decay * average + (1 - decay) * x drifts by rounding.
    average = lambda ema, x: ema + (1 - config.ema_decay) * (x - ema)
    ema = jax.tree.map(average, state.ema, params)
    norms = {"grad_norm": optim.global_norm(grads, config.optim.freeze)}
    norms["param_norm"] = optax.global_norm(params)
    finite = [jnp.isfinite(x) for x in (metrics["loss"], *norms.values())]
    is_finite = jnp.stack(finite).all()
    new = TrainState(state.step, params, ema, opt_state)
    kept = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, state)
    kept = kept.replace(step=state.step + 1)
    facts = {"lr": optim.rate(config, state.opt_state), "refused": (~is_finite).astype(jnp.int32)}
    facts |= optim.clip_facts(config, state.opt_state, norms["grad_norm"])
    return kept, jax.tree.map(jnp.zeros_like, total), metrics | norms | facts


class Update:
    """Makes updates of micro-steps: one gradient program a shape, and one that applies their sum.

    The sums are kept in float32, cut among the devices as the parameters are, so that the gradient
    of a micro-step is reduced to where it is applied.

    Args:
        task: The task.
        tx: The optimizer.
        config: Of the run.
        places: A TrainState of shardings; None leaves all to the compiler.
    """

    def __init__(self, task, tx, config, places=None):
        self._loss, self._total = task.loss, None
        sums = None if places is None else (places.params, None)
        self.gradient = jax.jit(
            functools.partial(gradient, task=task, config=config),
            donate_argnums=1,
            out_shardings=None if places is None else (sums, None),
        )
        self.apply = jax.jit(
            functools.partial(apply, tx=tx, config=config),
            donate_argnums=(0, 1),
            out_shardings=None if places is None else (places, sums, None),
        )
        self._zeros = jax.jit(self.zeros, out_shardings=sums)

    def __call__(self, state, frozen, micro_steps, first=None):
        """Returns (state, metrics) of an update.

        Args:
            state: The train state, which is used up.
            frozen: What the task only uses.
            micro_steps: (batch, number, weight) of each, as `gradient` takes them.
            first: Called as first(gradient, *arguments) for the first of them, which adds to zeros,
                instead of gradient(*arguments); see `replay`.
        """
        losses = []
        for batch, number, weight in micro_steps:
            if self._total is None:
                self._total = self._zeros(state.params, frozen, batch)
            scalars = np.uint32(number), np.float32(weight)
            arguments = state.params, self._total, frozen, batch, *scalars
            self._total, loss = (
                first(self.gradient, *arguments) if first else self.gradient(*arguments)
            )
            losses.append(loss)
            first = None
        state, self._total, metrics = self.apply(state, self._total)
        return state, metrics | ({"losses": losses} if len(losses) > 1 else {})

    def zeros(self, params, frozen, batch):
        """The sums before the first micro-step."""
        _, metrics = jax.eval_shape(self._loss, params, frozen, batch, jax.random.key(0))
        grads = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        return grads, {"loss": jnp.zeros(()), **{name: jnp.zeros(()) for name in metrics}}


def make_optimizer(config) -> optax.GradientTransformation:
    """The optimizer of a config."""
    return optim.make_optimizer(optim.config_schedule(config), **config.optim.to_dict())
