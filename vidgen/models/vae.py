"""Video autoencoder of Open-Sora 1.2: an image autoencoder, then a temporal one on its latents.

A chunk is `chunk_frames` frames (17, giving 5 latent frames at time stride 4) that are coded on
their own; the last chunk may be shorter. Latents here are those of the temporal part; `normalise`
gives the unit-variance ones that the diffusion model learns.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vidgen.models import compat as compat_lib
from vidgen.models import places, vae_spatial, vae_temporal

_TEMPORAL_PIXELS = 16  # the temporal part keeps a 64th of the places, and more of its channels
SHIFT = (-0.10, 0.34, 0.27, 0.98)  # mean and deviation of the published model's latents
SCALE = (3.85, 2.32, 2.33, 3.06)


def latent_frames(num_frames: int, *, chunk_frames: int | None = 17, time_stride: int = 4) -> int:
    """Latent frames of a clip; every chunk rounds up on its own."""
    chunk_frames = chunk_frames or num_frames
    chunks, rest = divmod(num_frames, chunk_frames)
    return chunks * -(-chunk_frames // time_stride) - (-rest // time_stride)


def latent_shape(
    num_frames: int,
    height: int,
    width: int,
    *,
    chunk_frames: int | None = 17,
    time_stride: int = 4,
    spatial_stride: int = 8,
    latent_channels: int = 4,
) -> tuple[int, int, int, int]:
    """Returns (t, h, w, c) of a clip's latent; height and width round down."""
    frames = latent_frames(num_frames, chunk_frames=chunk_frames, time_stride=time_stride)
    return frames, height // spatial_stride, width // spatial_stride, latent_channels


def check_frames(
    num_frames: int,
    *,
    chunk_frames: int | None = 17,
    time_stride: int = 4,
    name: str = "data.num_frames",
) -> None:
    """Refuses lengths whose last chunk would be padded more than every chunk is.

    The autoencoder takes any length, but a last chunk of neither `chunk_frames` nor 1 + a multiple
    of the time stride frames spends a latent frame on fewer new frames than the stride.

    Raises:
        ValueError: If `num_frames` is no such length. Names the nearest that are.
    """
    chunk = chunk_frames or num_frames + 2 * time_stride
    fits = lambda n: n > 0 and (n % chunk == 0 or n % chunk % time_stride == 1 % time_stride)
    if fits(num_frames):
        return
    low = next((n for n in range(num_frames, 0, -1) if fits(n)), None)
    high = next(n for n in range(max(num_frames, 1), num_frames + 2 * chunk + 1) if fits(n))
    chunks = f"whole chunks of {chunk_frames} frames and then " if chunk_frames else ""
    raise ValueError(
        f"{name}={num_frames} does not fit the VAE, which needs {chunks}1 + a multiple of "
        f"{time_stride}: use {high if low is None else f'{low} or {high}'}."
    )


def split_moments(moments):
    """Returns (mean, logvar) of a posterior; the log-variance is clamped to [-30, 20]."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)


def sample(mean, logvar, key):
    """Draws from a Gaussian posterior; returns its mean when `key` is None.

    An array of keys, one for each row of the first axis, makes the draw of a row its own: it does
    not depend on the rows beside it.
    """
    if key is None:
        return mean
    draw = lambda key, shape: jax.random.normal(key, shape, mean.dtype)
    noise = jax.vmap(lambda k: draw(k, mean.shape[1:]))(key) if key.ndim else draw(key, mean.shape)
    return mean + jnp.exp(0.5 * logvar) * noise


class VideoVAE(nnx.Module):
    """Image autoencoder and temporal autoencoder, chained (Open-Sora 1.2's OpenSoraVAE_V1_2).

    Args:
        spatial: Arguments of `vae_spatial.SpatialVAE`.
        temporal: Arguments of `vae_temporal.TemporalVAE`; channel counts follow the spatial part.
        chunk_frames: Frames that are coded together; None codes the whole clip at once.
        scaling_factor: Factor on the image autoencoder's latents.
        shift: Mean of each latent channel.
        scale: Deviation of each latent channel.
        slice_pixels: Pixels of a clip that each device takes through the image autoencoder at a
            time, and, of the smaller latents, 16 times as many through the temporal one; a frame or
            a chunk at least. Bounds memory; None takes all at once.
        init_gain: Factor on PyTorch's default initial kernels. sqrt(6), He's variance, lets small
            models leave the plateau of gray blobs: 22.8 dB instead of 18.9 after 300 updates.
        dtype: Compute type; parameters, norm statistics and results are float32.
        compat: See `compat.Switches.rounded_statistics`.
    """

    def __init__(
        self,
        *,
        spatial: dict | None = None,
        temporal: dict | None = None,
        chunk_frames: int | None = 17,
        scaling_factor: float = 0.18215,
        shift=SHIFT,
        scale=SCALE,
        slice_pixels: int | None = None,
        init_gain: float = 1.0,
        dtype=jnp.float32,
        compat: str = "",
        rngs: nnx.Rngs,
    ):
        is_rounded = compat_lib.switches(compat).rounded_statistics
        self.statistics_dtype = jnp.dtype(dtype if is_rounded else jnp.float32)
        kinds = {"init_gain": init_gain, "dtype": dtype, "rngs": rngs}
        self.spatial = vae_spatial.SpatialVAE(**(spatial or {}), **kinds)
        channels = self.spatial.latent_channels
        temporal = {"channels": channels, "latent_channels": channels, **(temporal or {})}
        self.temporal = vae_temporal.TemporalVAE(**temporal, **kinds)
        for name, value in (("shift", shift), ("scale", scale)):
            if len(value) != self.temporal.latent_channels:
                raise ValueError(
                    f"{name} has {len(value)} values and the latent has "
                    f"{self.temporal.latent_channels} channels: give one value a channel."
                )
        self.shift = nnx.Param(jnp.asarray(shift, jnp.float32))
        self.scale = nnx.Param(jnp.asarray(scale, jnp.float32))
        self.scaling_factor = scaling_factor
        self.chunk_frames, self.slice_pixels = chunk_frames, slice_pixels

    @property
    def spatial_stride(self) -> int:
        return self.spatial.stride

    @property
    def time_stride(self) -> int:
        return self.temporal.stride

    def encode(self, video_BTHWC, key=None):
        """Returns (mean_Bthwc, logvar_Bthwc) of a clip in [-1, 1], before `normalise`.

        The spatial latent between the two parts is drawn with `key`; without one it is its mean.
        """
        return self.encode_temporal(self.encode_spatial(video_BTHWC, key))

    def decode(self, z_Bthwc, num_frames: int):
        """Returns the clip of `num_frames` frames, float32, about in [-1, 1]. Inverse of `encode`.

        Raises:
            ValueError: If the latent has another number of frames than such a clip.
        """
        return self.decode_spatial(self.decode_temporal(z_Bthwc, num_frames))

    def normalise(self, z):
        """Latents of zero mean and unit deviation in each channel."""
        return (z - self._wide(self.shift, z)) / self._wide(self.scale, z)

    def denormalise(self, z):
        """Inverse of `normalise`."""
        return z * self._wide(self.scale, z) + self._wide(self.shift, z)

    def encode_spatial(self, video_BTHWC, key=None):
        """Scaled spatial latents [B, T, h, w, c]: a draw with `key`, the mean without."""
        batch, frames = video_BTHWC.shape[:2]
        image_NHWC = video_BTHWC.reshape(-1, *video_BTHWC.shape[2:])
        rows = self._rows(image_NHWC.shape[1] * image_NHWC.shape[2])
        moments = places.in_slices(self.spatial.moments, image_NHWC, rows)
        moments = moments.reshape(batch, frames, *moments.shape[1:])
        return sample(*split_moments(moments), key) * self.scaling_factor

    def decode_spatial(self, x_BThwc):
        """Clip [B, T, H, W, C] of scaled spatial latents."""
        batch, frames = x_BThwc.shape[:2]
        z_Nhwc = x_BThwc.reshape(-1, *x_BThwc.shape[2:]) / self.scaling_factor
        rows = self._rows(z_Nhwc.shape[1] * z_Nhwc.shape[2] * self.spatial_stride**2)
        image_NHWC = places.in_slices(self.spatial.decode, z_Nhwc, rows)
        return image_NHWC.reshape(batch, frames, *image_NHWC.shape[1:])

    def encode_temporal(self, x_BThwc):
        """Returns (mean_Bthwc, logvar_Bthwc) of scaled spatial latents, chunk by chunk."""
        moments = self._by_chunk(
            self.temporal.moments, x_BThwc, self.chunk_frames or x_BThwc.shape[1], 1
        )
        return split_moments(moments)

    def decode_temporal(self, z_Bthwc, num_frames: int):
        """Scaled spatial latents [B, num_frames, h, w, c] of a latent, chunk by chunk."""
        strides = {"chunk_frames": self.chunk_frames, "time_stride": self.time_stride}
        needed = latent_frames(num_frames, **strides)
        if z_Bthwc.shape[1] != needed:
            raise ValueError(
                f"a clip of num_frames={num_frames} has {needed} latent frames, but the latent has "
                f"{z_Bthwc.shape[1]}: pass the number of frames that was encoded."
            )
        chunk_frames = self.chunk_frames or num_frames
        full = min(chunk_frames, num_frames)
        decode = lambda z: self.temporal.decode(z, full)
        decode_rest = lambda z: self.temporal.decode(z, num_frames % chunk_frames)
        stride = self.time_stride
        return self._by_chunk(decode, z_Bthwc, -(-chunk_frames // stride), stride, decode_rest)

    def _by_chunk(self, f, x, size, stride, f_rest=None):
        """Applies `f` to pieces of `size` frames, `f_rest` to a shorter last one, and joins them.

        Whole chunks do not see each other, so they share one call as rows of the batch. A frame of
        `x` stands for `stride` frames of the clip.
        """
        batch, whole = x.shape[0], x.shape[1] // size
        frame_pixels = x.shape[2] * x.shape[3] * self.spatial_stride**2
        rows = self._rows(size * stride * frame_pixels // _TEMPORAL_PIXELS)
        parts = []
        if whole:
            chunks = x[:, : whole * size].reshape(batch * whole, size, *x.shape[2:])
            out = places.in_slices(f, chunks, rows)
            parts.append(out.reshape(batch, -1, *out.shape[2:]))
        if x.shape[1] % size:
            parts.append(places.in_slices(f_rest or f, x[:, whole * size :], rows))
        return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def _rows(self, pixels: int) -> int | None:
        """How many rows of so many pixels are taken at a time."""
        return self.slice_pixels and max(1, self.slice_pixels // max(1, pixels))

    def _wide(self, value, z):
        value = value[...].astype(self.statistics_dtype).astype(jnp.float32)
        return value.reshape((1,) * (z.ndim - 1) + (-1,))
