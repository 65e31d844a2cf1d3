"""Clips a gradient by what its norm was of late, inside of the update's program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

DECAY = 0.97  # of the averages, as in the paper
WARMUP = 25  # updates before anything is clipped, as in the paper


class RecentNorm(NamedTuple):
    """Mean and variance of the norms of the updates that were taken."""

    seen: jax.Array
    mean: jax.Array
    variance: jax.Array


def clip_by_recent_norm(z: float) -> optax.GradientTransformation:
    """Scales a gradient down whose norm is `z` standard deviations above the recent mean.

    ZClip (Kumar et al. 2025, arXiv:2504.02507, Algorithm 1, "reciprocal"): a norm g above
    mean + z sd becomes mean + z^2 sd^2 / (g - mean), so that the further out, the smaller; the
    averages then take the smaller norm. Unlike there the variance is the exact one of the weights
    that the mean has (West 1979), and the first updates weigh alike until DECAY takes over.

    The state is three scalars. An update that is refused keeps the old state, and leaves no trace.

    Args:
        z: Standard deviations, 1 or more.
    """

    def init(params):
        del params
        return RecentNorm(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))

    def update(grads, state, params=None):
        del params
        norm = optax.global_norm(grads)
        above = norm - state.mean
        is_high = norm > threshold(state, z)
        low = state.mean + z**2 * state.variance / jnp.where(is_high, above, 1.0)
        taken = jnp.where(is_high, low, norm)
        scale = jnp.where(is_high, low / norm, 1.0)
        grads = jax.tree.map(lambda x: x * scale.astype(x.dtype), grads)
        return grads, _with(state, taken)

    return optax.GradientTransformation(init, update)


def threshold(state: RecentNorm, z: float) -> jax.Array:
    """The largest norm that is left as it is; infinite in the warm-up."""
    high = state.mean + z * jnp.sqrt(state.variance)
    return jnp.where(state.seen < WARMUP, jnp.inf, high)


def facts(opt_state: optax.OptState, norm: jax.Array, *, z: float, clip: float) -> dict:
    """Metrics of an update: the norm from which it was clipped, and whether it was.

    Args:
        opt_state: Before the update.
        norm: Of its gradient.
        z: Standard deviations.
        clip: The fixed bound, which comes after.

    Returns:
        {"clip_threshold", "clipped"}; nothing for an optimizer without recent norms.
    """
    is_recent = lambda x: isinstance(x, RecentNorm)
    states = [x for x in jax.tree.leaves(opt_state, is_leaf=is_recent) if is_recent(x)]
    highs = [jnp.minimum(threshold(state, z), clip) for state in states]
    return {
        name: value
        for high in highs
        for name, value in (("clip_threshold", high), ("clipped", (norm > high).astype(jnp.int32)))
    }


def _with(state: RecentNorm, norm: jax.Array) -> RecentNorm:
    weight = jnp.maximum(1.0 - DECAY, 1.0 / (state.seen + 1))
    above = norm - state.mean
    variance = (1 - weight) * (state.variance + weight * above**2)
    return RecentNorm(state.seen + 1, state.mean + weight * above, variance)
