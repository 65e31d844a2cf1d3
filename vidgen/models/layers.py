"""Building blocks of the diffusion transformer: norms, modulation, MLP, embeddings, patches.

Letters: `D` model width, `S` tokens of a latent frame after padding, `P` values of a patch,
`F` frequencies, and those of the style guide.
"""

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

MAX_PERIOD = 10_000.0


def layer_norm(x_D: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Normalises the last axis without learned parameters; statistics in float32."""
    x = x_D.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps)).astype(x_D.dtype)


def modulate(x, shift, scale):
    """Returns x (1 + scale) + shift (adaptive layer norm, Peebles & Xie 2023, arXiv:2212.09748)."""
    return x * (1 + scale) + shift


class RMSNorm(nnx.Module):
    """Root-mean-square norm of the last axis, with a learned weight applied in the input's
    dtype."""

    def __init__(self, width: int, eps: float = 1e-6):
        self.weight = nnx.Param(jnp.ones(width))
        self.eps = eps

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        unit = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        weight = self.weight[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return unit.astype(x.dtype) * weight


class Linear(nnx.Linear):
    """Dense layer that multiplies plain matrices: all axes but the last are merged first.

    XLA on CPU takes three times as long for the gradient of a kernel when it has to contract
    several
    axes; elsewhere the reshape costs nothing.
    """

    def __call__(self, x):
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def linear(inputs: int, outputs: int, *, init=None, **kinds) -> Linear:
    """Dense layer with bias: Xavier-uniform kernel (or `init`) and zero bias.

    Args:
        inputs, outputs: Widths.
        init: Of the kernel.
        kinds: Arguments of nnx.Linear, `rngs` and `dtype` among them.
    """
    init = init or nnx.initializers.xavier_uniform()
    return Linear(inputs, outputs, kernel_init=init, **kinds)


class MLP(nnx.Module):
    """Linear, activation, linear."""

    def __init__(self, inputs, hidden, outputs, *, activation, init1=None, init2=None, **kinds):
        self.fc1 = linear(inputs, hidden, init=init1, **kinds)
        self.fc2 = linear(hidden, outputs, init=init2, **kinds)
        self.activation = activation

    def __call__(self, x):
        return self.fc2(self.activation(self.fc1(x)))


def gelu(x):
    """GELU in its tanh approximation, as the published weights expect."""
    return jax.nn.gelu(x, approximate=True)


def sinusoid(value_B: jax.Array, features: int = 256) -> jax.Array:
    """Embeds scalars as cosines, then sines, of geometric frequencies from 1 down to 1/10000.

    Returns [B, features] in float32; an odd last column stays zero.
    """
    half = features // 2
    frequencies_F = jnp.exp(-np.log(MAX_PERIOD) * jnp.arange(half) / half)
    angle_BF = value_B.astype(jnp.float32)[:, None] * frequencies_F[None]
    table = jnp.concatenate([jnp.cos(angle_BF), jnp.sin(angle_BF)], axis=-1)
    return jnp.pad(table, ((0, 0), (0, features % 2)))


def position_embedding(position_BS2: jax.Array, width: int, dtype=jnp.float32) -> jax.Array:
    """Fixed sine-cosine embedding of (row, column) coordinates: [B, S, width] in float32.

    The first half of the width encodes the column, the second half the row; each half holds its
    sines, then its cosines. Frequencies are rounded to `dtype` (`compat.rounded_positions`).
    """
    frequencies_F = MAX_PERIOD ** (-2 * jnp.arange(width // 4) / (width // 2))
    frequencies_F = frequencies_F.astype(dtype).astype(jnp.float32)
    angle_BS2F = position_BS2[..., ::-1, None].astype(jnp.float32) * frequencies_F.reshape(
        1, 1, 1, -1
    )
    return einops.rearrange(
        jnp.stack([jnp.sin(angle_BS2F), jnp.cos(angle_BS2F)], axis=3), "b s x k f -> b s (x k f)"
    )


def rope_frequencies(head_width: int) -> np.ndarray:
    """Angle per position of each pair of channels (Su et al. 2021, arXiv:2104.09864): [K / 2]."""
    return (MAX_PERIOD ** (-2 * np.arange(head_width // 2) / head_width)).astype(np.float32)


def rope_angles(length: int, frequencies_F: jax.Array, dtype=jnp.float32) -> jax.Array:
    """Angles [length, F] in float32, rounded like their frequencies to `dtype`
    (`compat.rounded_rotary`)."""
    position_T = jnp.arange(length).astype(dtype)
    return (position_T[:, None] * frequencies_F.astype(dtype)[None]).astype(jnp.float32)


def rotate(x_bTNK: jax.Array, frequencies_F: jax.Array, dtype=jnp.float32) -> jax.Array:
    """Rotates neighbouring pairs of channels by position times frequency, along axis 1."""
    angle_TF = rope_angles(x_bTNK.shape[1], frequencies_F, dtype)
    cos = jnp.cos(angle_TF)[None, :, None, :, None].astype(x_bTNK.dtype)
    sin = jnp.sin(angle_TF)[None, :, None, :, None].astype(x_bTNK.dtype)
    pairs = einops.rearrange(x_bTNK, "b t n (f two) -> b t n f two", two=2)
    swapped = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1)
    return (pairs * cos + swapped * sin).reshape(x_bTNK.shape)


def patch_grid(latent_height: int, latent_width: int, patch: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches; a latent that does not divide is padded at the far side."""
    return -(-latent_height // patch[0]), -(-latent_width // patch[1])


def patchify(latent_Bthwc, patch: tuple[int, int], pad_to: int | None = None):
    """Cuts each latent frame into patches, row by row: [B, t, S, P], NumPy or JAX alike.

    A patch holds its values in the order (row, column, channel). The token axis is padded with
    zeros
    to `pad_to`, so that frames of different aspect share one shape.

    Raises:
        ValueError: If the frame has more patches than `pad_to`.
    """
    xp = np if isinstance(latent_Bthwc, np.ndarray) else jnp
    _, _, h, w, _ = latent_Bthwc.shape
    rows, columns = patch_grid(h, w, patch)
    pad = ((0, 0), (0, 0), (0, rows * patch[0] - h), (0, columns * patch[1] - w), (0, 0))
    tokens = einops.rearrange(
        xp.pad(latent_Bthwc, pad), "b t (h i) (w j) c -> b t (h w) (i j c)", i=patch[0], j=patch[1]
    )
    extra = 0 if pad_to is None else pad_to - rows * columns
    if extra < 0:
        raise ValueError(
            f"a latent of {h}x{w} gives {rows * columns} tokens, more than the {pad_to} that "
            "its bucket is padded to: raise the token budget or lower the resolution."
        )
    return xp.pad(tokens, ((0, 0), (0, 0), (0, extra), (0, 0)))


def unpatchify(tokens_BtSP, latent_height: int, latent_width: int, patch: tuple[int, int]):
    """Inverse of `patchify`: [B, t, h, w, P / patch area]."""
    rows, columns = patch_grid(latent_height, latent_width, patch)
    latent = einops.rearrange(
        tokens_BtSP[:, :, : rows * columns],
        "b t (h w) (i j c) -> b t (h i) (w j) c",
        h=rows,
        w=columns,
        i=patch[0],
        j=patch[1],
    )
    return latent[:, :, :latent_height, :latent_width]


def patch_positions(
    rows: int, columns: int, pixel_size: tuple[int, int], reference_size: int, pad_to: int
) -> np.ndarray:
    """(row, column) coordinate of every patch of a frame: [pad_to, 2] float32, zeros beyond the
    frame.

    Coordinates shrink with the pixel size, so that a frame of side `reference_size` counts whole
    patches and larger ones interpolate.
    """
    base = round((rows * columns) ** 0.5)  # Python's rounding: halves to even
    scale = (pixel_size[0] * pixel_size[1]) ** 0.5 / reference_size
    row_S = np.repeat(np.arange(rows) / scale * (base / rows), columns)
    column_S = np.tile(np.arange(columns) / scale * (base / columns), rows)
    position_S2 = np.stack([row_S, column_S], axis=-1).astype(np.float32)
    return np.pad(position_S2, ((0, pad_to - rows * columns), (0, 0)))
