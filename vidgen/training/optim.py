"""From config to optimizer: schedule, clipping, AdamW, frozen parameters."""

import re

import jax
import jax.numpy as jnp
import optax

from vidgen.models import compat as compat_lib
from vidgen.training import recent_norm, sharding


def schedule(
    num_steps: int,
    *,
    lr: float,
    warmup_steps: int = 0,
    decay: str = "constant",
    end: float = 0.0,
    cooldown_steps: int = 0,
    lr_start: float = 0.0,
    lr_peak: float = 0.0,
    anneal: str = "cos",
    compat: str = "",
):
    """Returns the learning rate as a function of the update's number, counted from 0.

    The warm-up takes lr (k + 1) / (warmup_steps + 1) at update k, as the original does. Then the
    rate stays (`constant`), or falls along a cosine to `end` times lr at `num_steps` (`cosine`).
    With `one_cycle` it rises from `lr_start` to `lr_peak` in `warmup_steps` updates, falls to `lr`
    in `cooldown_steps`, each along half a cosine or a line (`anneal`), and stays (spec 7.1).

    Args:
        compat: See `compat.Switches.swapped_linear_cycle`.

    Raises:
        ValueError: If `decay` or `anneal` is unknown.
    """
    if decay not in ("constant", "cosine", "one_cycle"):
        raise ValueError(
            f"schedule.decay={decay!r} is unknown: use 'constant', 'cosine' or 'one_cycle'."
        )
    if decay == "one_cycle":
        swap = anneal == "linear" and compat_lib.switches(compat).swapped_linear_cycle
        return _one_cycle(lr, lr_start, lr_peak, warmup_steps, cooldown_steps, anneal, swap)

    def rate(k):
        k = jnp.asarray(k, jnp.float32)
        warm = jnp.minimum(1.0, (k + 1) / (warmup_steps + 1))
        if decay == "constant":
            return lr * warm
        done = jnp.clip((k - warmup_steps) / max(1, num_steps - warmup_steps), 0.0, 1.0)
        return lr * warm * (end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * done)))

    return rate


def config_schedule(config):
    """The learning rate of a config, as a function of the update's number."""
    compat = config.get("compat", "")  # configs of older runs have no such field
    return schedule(config.num_steps, compat=compat, **config.schedule.to_dict())


def rate(config, opt_state):
    """The learning rate that the next update takes; refused updates do not count."""
    is_schedule = lambda path, _: getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"
    count = optax.tree_utils.tree_get(opt_state, "count", filtering=is_schedule)
    return config_schedule(config)(count)


def clip_facts(config, opt_state, norm) -> dict[str, jax.Array]:
    """Metrics of the clip by recent norms; none without it."""
    z = config.optim.get("clip_recent", 0.0)  # configs of older runs have no such field
    return recent_norm.facts(opt_state, norm, z=z, clip=config.optim.clip)


def _one_cycle(lr, lr_start, lr_peak, warmup_steps, cooldown_steps, anneal, swap):
    shares = {"cos": lambda done: 0.5 * (1 - jnp.cos(jnp.pi * done)), "linear": lambda done: done}
    if anneal not in shares:
        raise ValueError(f"schedule.anneal={anneal!r} is unknown: use 'cos' or 'linear'.")

    def between(first, last, done):
        first, last = (last, first) if swap else (first, last)
        return first + (last - first) * shares[anneal](done)

    def rate(k):
        k = jnp.asarray(k, jnp.float32)
        up = between(lr_start, lr_peak, k / max(1, warmup_steps))
        down = between(lr_peak, lr, (k - warmup_steps) / max(1, cooldown_steps))
        after = jnp.where(k < warmup_steps + cooldown_steps, down, lr)
        return jnp.where(k < warmup_steps, up, after)

    return rate


def make_optimizer(
    rate,
    *,
    clip: float = 1.0,
    clip_recent: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-15,
    weight_decay: float = 0.0,
    freeze: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) behind a clip of the global gradient norm.

    Args:
        rate: Learning rate by the update's number.
        clip: Largest global L2 norm of the gradient of the trained parameters.
        clip_recent: Before that, clips norms so many standard deviations above their recent mean,
            see `recent_norm`; 0: does not.
        b1, b2, eps: Of Adam.
        weight_decay: Decoupled, on every trained parameter.
        freeze: Patterns of whole parameter paths ("y_embedder/.*") that keep their values and have
            no moments.

    Raises:
        ValueError: On use, if a pattern matches no parameter.
    """
    clipping = optax.clip_by_global_norm(clip)
    if clip_recent:  # one place in the chain for both, so that the others keep their names
        clipping = optax.chain(recent_norm.clip_by_recent_norm(clip_recent), clipping)
    update = optax.chain(
        clipping,
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    return optax.partition(
        {"train": update, "freeze": optax.set_to_zero()}, lambda params: _labels(params, freeze)
    )


def _labels(params, freeze):
    matched = set()

    def label(path, _):
        name = sharding.path_name(path)
        hits = [pattern for pattern in freeze if re.fullmatch(pattern, name)]
        matched.update(hits)
        return "freeze" if hits else "train"

    labels = jax.tree_util.tree_map_with_path(label, params)
    unused = [pattern for pattern in freeze if pattern not in matched]
    if unused:
        raise ValueError(
            f"optim.freeze holds {unused}, which match no parameter: give patterns of whole "
            "paths such as 'y_embedder/.*'."
        )
    return labels


def global_norm(tree, freeze):
    """L2 norm of what is not frozen: of a gradient, that which the clip sees."""
    is_frozen = lambda path: any(re.fullmatch(p, sharding.path_name(path)) for p in freeze)
    return optax.global_norm(
        [x for path, x in jax.tree.leaves_with_path(tree) if not is_frozen(path)]
    )
