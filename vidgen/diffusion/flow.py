"""Rectified flow: the path from data to noise, its times, its loss, and the way back by steps.

Time t runs from 0 (data) to 1 (noise). The velocity points from noise to data, so that a sampler
adds it: the convention of the published weights. All functions take latents or patches alike:
arrays [B, t, ...], whose second axis counts latent frames.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vidgen.models import compat as compat_lib


def _spread(values, like):
    """Adds axes behind `values` until it broadcasts against `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def interpolate(latent, noise, t_B, mask_Bt=None, compat: str = ""):
    """Returns the noisy latent at time t, and the velocity that the model learns.

    Rectified flow (Liu et al. 2022, arXiv:2209.03003, Eq. 1), with time reversed: t = 0 is data and
    t = 1 is noise.

    Args:
        latent: [B, t, ...], normalised to unit variance per channel.
        noise: Standard normal noise of the same shape.
        t_B: One time per clip, in [0, 1].
        mask_Bt: False where a latent frame is given: it stays clean.
        compat: See `compat.Switches.bfloat16_target`.

    Returns:
        (noisy, velocity). The velocity is latent - noise, on every frame.

    Raises:
        ValueError: If latent and noise differ in shape.
    """
    if latent.shape != noise.shape:
        raise ValueError(
            f"latent {latent.shape} and noise {noise.shape} differ in shape: draw noise like it."
        )
    rounded = lambda x: x
    if compat_lib.switches(compat).bfloat16_target:
        rounded = lambda x: x.astype(jnp.bfloat16).astype(x.dtype)
    latent, noise = rounded(latent), rounded(noise)
    t = _spread(t_B, latent)
    if mask_Bt is not None:
        t = jnp.where(_spread(mask_Bt, latent), t, 0.0)
    return (1 - t) * latent + t * noise, rounded(latent - noise)


def loss(prediction, velocity, real, mask_Bt=None):
    """Mean squared error of each clip, over its real cells and the frames to be generated: [B].

    Args:
        prediction, velocity: [B, t, S, P].
        real: 1 where a patch holds a cell of the latent, 0 in padding; broadcastable to them.
        mask_Bt: False where a frame was given, which counts nothing.
    """
    weight = jnp.broadcast_to(real, velocity.shape).astype(jnp.float32)
    if mask_Bt is not None:
        weight = weight * _spread(mask_Bt, weight)
    return (jnp.square(prediction - velocity) * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def sample_t(
    key, count: int, *, method: str = "logit-normal", loc: float = 0.0, scale: float = 1.0
):
    """Draws training times in (0, 1): uniform, or the sigmoid of a normal (arXiv:2403.03206,
    3.1)."""
    if method == "uniform":
        return jax.random.uniform(key, (count,))
    if method == "logit-normal":
        return jax.nn.sigmoid(loc + scale * jax.random.normal(key, (count,)))
    raise ValueError(f"flow.sample_method={method!r} is unknown: use 'uniform' or 'logit-normal'.")


def shift_ratio(
    height, width, num_frames, *, base_size: int = 512, scale: float = 1.0, compat: str = ""
):
    """How much later in time a clip should be seen, for its pixels and its frames (spec section 4).

    Larger and longer clips keep more of their signal at the same t. Latent frames are counted as
    five for each whole 17 frames, and as one below that: the original gives 2 to 16 frames a ratio
    of zero, with which nothing can be drawn. `height`, `width` and `num_frames` are pixel
    quantities: numbers or arrays [B], of NumPy where all are, and then nothing is computed by JAX.

    Args:
        base_size: Pixels a side at which one frame has the ratio 1.
        compat: See `compat.Switches`: `bfloat16_sizes` rounds every step and gives bfloat16,
            `short_clips_unshifted` takes the zero.
    """
    switches = compat_lib.switches(compat)
    dtype = jnp.bfloat16 if switches.bfloat16_sizes else jnp.float32
    sizes = height, width, num_frames
    xp = jnp if any(isinstance(x, jax.Array) for x in sizes) else np
    height, width, num_frames = (xp.asarray(x, dtype) for x in sizes)
    latent_frames = num_frames // 17 * 5
    least = xp.where(num_frames == 1, 1, 0) if switches.short_clips_unshifted else 1
    latent_frames = xp.maximum(latent_frames, xp.asarray(least, dtype))
    return xp.sqrt(height * width / base_size**2) * xp.sqrt(latent_frames) * scale


def shift_t(t, ratio):
    """Moves times towards noise (ratio > 1) or data (ratio < 1); 0 and 1 stay."""
    return ratio * t / (1 + (ratio - 1) * t)


def time_steps(steps: int, ratio_B):
    """The sampler's times, from 1 down to 0, shifted for each clip: [steps + 1, B]."""
    uniform_n = 1.0 - jnp.arange(steps + 1) / steps
    return shift_t(uniform_n[:, None], ratio_B[None])


def guide(conditional, unconditional, scale):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)."""
    return unconditional + scale * (conditional - unconditional)


def euler_step(velocity: Callable, latent, t_B, next_t_B, *, edit_Bt=None, done_Bt=None, key=None):
    """Moves latents from time t to the next, smaller one.

    Frames can be given: `latent` then starts with their clean latents, and `edit_Bt` says how far
    each
    may change. 1 generates a frame, 0 keeps it, and a value between noises it afresh at the first
    step
    whose t has fallen to the value (spec section 4, "Conditioning frames").

    Args:
        velocity: (latent, t_B, mask_Bt) -> velocity like latent; mask_Bt is None without `edit_Bt`.
        latent: [B, t, ...].
        edit_Bt: Freedom of each latent frame, in [0, 1], or None.
        done_Bt: Frames that are being generated already: `edit_Bt == 1` at first, then what the
        step
            before returned.
        key: For the noise of frames that join; needed only with `edit_Bt`.

    Returns:
        (latent, done_Bt).
    """
    dt = _spread(t_B - next_t_B, latent)
    if edit_Bt is None:
        return latent + dt * velocity(latent, t_B, None), None
    active_Bt = edit_Bt >= t_B[:, None]
    noised, _ = interpolate(latent, jax.random.normal(key, latent.shape), t_B)
    start = jnp.where(_spread(active_Bt & ~done_Bt, latent), noised, latent)
    moved = start + dt * velocity(start, t_B, active_Bt)
    return jnp.where(_spread(active_Bt, latent), moved, start), active_Bt
