"""From config to optimizer: schedule, clipping, AdamW, frozen parameters, gradient accumulation."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from vidgen.models import compat as compat_lib
from vidgen.training import sharding


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
        b1, b2, eps: Of Adam.
        weight_decay: Decoupled, on every trained parameter.
        freeze: Patterns of whole parameter paths ("y_embedder/.*") that keep their values and have
            no moments.

    Raises:
        ValueError: On use, if a pattern matches no parameter.
    """
    update = optax.chain(
        optax.clip_by_global_norm(clip),
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


def check_batches(table: Mapping[str, Mapping[int, tuple]], microbatches: int) -> None:
    """Refuses batches that do not divide into microbatches.

    Args:
        table: The buckets, {resolution: {frames: (keep, batch_size)}}.
        microbatches: Into how many slices each batch is cut.

    Raises:
        ValueError: Lists all that do not divide.
    """
    if microbatches < 1:
        raise ValueError(f"microbatches={microbatches}: use 1 or more.")
    odd = [
        f"{resolution}.{frames} ({size})"
        for resolution, entries in table.items()
        for frames, (_, size) in entries.items()
        if size and size % microbatches
    ]
    if odd:
        raise ValueError(
            f"microbatches={microbatches} does not divide the batch sizes of data.buckets "
            f"{', '.join(odd)}: make each a multiple of {microbatches}."
        )


def accumulate(loss, microbatches: int):
    """Returns (params, frozen, batch, key) -> (gradients, metrics), over slices of the batch.

    `loss` gives (scalar, metrics). The slices are equal parts of the batch, so the mean of their
    gradients is that of the batch wherever the loss is a mean over clips.
    """
    grad = jax.value_and_grad(loss, has_aux=True)
    if microbatches == 1:

        def whole(params, frozen, batch, key):
            (value, metrics), grads = grad(params, frozen, batch, key)
            return grads, {"loss": value, **metrics}

        return whole

    def sliced(params, frozen, batch, key):
        parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)
        keys = jax.random.split(key, microbatches)

        def body(total, part_key):
            (value, metrics), grads = grad(params, frozen, *part_key)
            return jax.tree.map(jnp.add, total, (grads, {"loss": value, **metrics})), None

        shapes = jax.eval_shape(
            lambda: _flat(grad(params, frozen, jax.tree.map(lambda x: x[0], parts), keys[0]))
        )
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(body, zero, (parts, keys))
        return jax.tree.map(lambda x: x / microbatches, total)

    return sliced


def _flat(result):
    (value, metrics), grads = result
    return grads, {"loss": value, **metrics}
