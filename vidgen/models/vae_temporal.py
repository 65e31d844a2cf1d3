"""Temporal autoencoder on the latents of the image autoencoder, with causal convolutions.

After the causal 3D VAE of MAGVIT-v2 (Yu et al. 2024, arXiv:2310.05737). Height and width stay;
every entry of `temporal_downsample` that is true halves the frame rate. Convolutions look back
only, but the group norms see a whole chunk, so a latent frame depends on all frames of its chunk.
"""

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from vidgen.models import conv

EPS = 1e-5


class ResBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv, added to the input; its convolutions have no bias."""

    def __init__(self, inputs, outputs, groups, *, dtype):
        kwargs = {"dtype": dtype, "use_bias": False}
        self.norm1 = conv.GroupNorm(inputs, groups, EPS, dtype=dtype)
        self.conv1 = conv.CausalConv3d(inputs, outputs, 3, **kwargs)
        self.norm2 = conv.GroupNorm(outputs, groups, EPS, dtype=dtype)
        self.conv2 = conv.CausalConv3d(outputs, outputs, 3, **kwargs)
        self.conv3 = conv.CausalConv3d(inputs, outputs, 1, **kwargs) if inputs != outputs else None

    def __call__(self, x_BTHWC):
        hidden = self.conv1(jax.nn.silu(self.norm1(x_BTHWC)))
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)))
        return hidden + (x_BTHWC if self.conv3 is None else self.conv3(x_BTHWC))


def _res_blocks(inputs, outputs, count, groups, *, dtype):
    return conv.numbered(
        ResBlock(outputs if i else inputs, outputs, groups, dtype=dtype) for i in range(count)
    )


class Encoder(nnx.Module):
    """Spatial latents to the moments of the latent: [B, T, h, w, c] -> [B, t, h, w, 2c]."""

    def __init__(self, channels, latent_channels, widths, downsample, blocks, groups, *, dtype):
        kwargs = {"dtype": dtype}
        self.conv_in = conv.CausalConv3d(channels, widths[0], 3, use_bias=False, **kwargs)
        self.block_res_blocks = conv.numbered(
            _res_blocks(below, above, blocks, groups, **kwargs)
            for below, above in zip((widths[0], *widths), widths, strict=False)
        )
        self.conv_blocks = nnx.Dict(
            {
                str(i): conv.CausalConv3d(widths[i], widths[i], 3, time_stride=2, **kwargs)
                for i, halve in enumerate(downsample)
                if halve
            }
        )
        self.res_blocks = _res_blocks(widths[-1], widths[-1], blocks, groups, **kwargs)
        self.norm1 = conv.GroupNorm(widths[-1], groups, EPS, dtype=dtype)
        self.conv2 = conv.CausalConv3d(widths[-1], 2 * latent_channels, 1, **kwargs)

    def __call__(self, x_BThwc):
        x = self.conv_in(x_BThwc)
        for i in range(len(self.block_res_blocks)):
            x = conv.run(self.block_res_blocks[str(i)], x)
            if str(i) in self.conv_blocks:
                x = self.conv_blocks[str(i)](x)
        x = conv.run(self.res_blocks, x)
        return self.conv2(jax.nn.silu(self.norm1(x)))


class Decoder(nnx.Module):
    """Latents to spatial latents: [B, t, h, w, c] -> [B, stride t, h, w, c]."""

    def __init__(self, channels, latent_channels, widths, downsample, blocks, groups, *, dtype):
        kwargs = {"dtype": dtype}
        self.conv1 = conv.CausalConv3d(latent_channels, widths[-1], 3, **kwargs)
        self.res_blocks = _res_blocks(widths[-1], widths[-1], blocks, groups, **kwargs)
        self.block_res_blocks = conv.numbered(  # numbered by level, so the last one runs first
            _res_blocks(above, below, blocks, groups, **kwargs)
            for above, below in zip((*widths[1:], widths[-1]), widths, strict=True)
        )
        self.conv_blocks = nnx.Dict(
            {
                str(i): conv.CausalConv3d(widths[i + 1], 2 * widths[i + 1], 3, **kwargs)
                for i, double in enumerate(downsample)
                if double
            }
        )
        self.norm1 = conv.GroupNorm(widths[0], groups, EPS, dtype=dtype)
        self.conv_out = conv.CausalConv3d(widths[0], channels, 3, **kwargs)

    def __call__(self, z_Bthwc):
        x = conv.run(self.res_blocks, self.conv1(z_Bthwc))
        for i in reversed(range(len(self.block_res_blocks))):
            x = conv.run(self.block_res_blocks[str(i)], x)
            if str(i - 1) in self.conv_blocks:
                x = self.conv_blocks[str(i - 1)](x)
                x = einops.rearrange(x, "b t h w (c two) -> b (t two) h w c", two=2)
        return self.conv_out(jax.nn.silu(self.norm1(x)))


class TemporalVAE(nnx.Module):
    """Autoencoder of one chunk of spatial latents.

    `temporal_downsample` has one entry for each step from a level to the next, so one fewer than
    `channel_multipliers`.

    Raises:
        ValueError: If those two lengths do not fit each other.
    """

    def __init__(
        self,
        filters: int = 128,
        channel_multipliers=(1, 2, 2, 4),
        temporal_downsample=(False, True, True),
        num_res_blocks: int = 4,
        latent_channels: int = 4,
        channels: int = 4,
        groups: int = 32,
        *,
        init_gain: float = 1.0,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        if len(temporal_downsample) != len(channel_multipliers) - 1:
            raise ValueError(
                f"temporal_downsample has {len(temporal_downsample)} entries and "
                f"channel_multipliers {len(channel_multipliers)}: give one entry for each step "
                f"between levels, {len(channel_multipliers) - 1} in all."
            )
        widths = tuple(filters * multiplier for multiplier in channel_multipliers)
        args = (
            channels,
            latent_channels,
            widths,
            tuple(temporal_downsample),
            num_res_blocks,
            groups,
        )
        self.encoder = Encoder(*args, dtype=dtype)
        self.decoder = Decoder(*args, dtype=dtype)
        kwargs = {"dtype": dtype}
        self.quant_conv = conv.CausalConv3d(2 * latent_channels, 2 * latent_channels, 1, **kwargs)
        self.post_quant_conv = conv.CausalConv3d(latent_channels, latent_channels, 1, **kwargs)
        self.stride = 2 ** sum(temporal_downsample)
        self.latent_channels = latent_channels
        conv.initialise(self, rngs.params(), init_gain)

    def moments(self, x_BThwc):
        """Mean and log-variance of a chunk, stacked on the last axis: [B, t, h, w, 2c] float32.

        Zero frames are added in front until the frames divide by the stride.
        """
        pad = -x_BThwc.shape[1] % self.stride
        padded = jnp.pad(x_BThwc, ((0, 0), (pad, 0), (0, 0), (0, 0), (0, 0)))
        return self.quant_conv(self.encoder(padded)).astype(jnp.float32)

    def decode(self, z_Bthwc, num_frames: int):
        """Spatial latents [B, num_frames, h, w, c] of a chunk, without its padding."""
        out = self.decoder(self.post_quant_conv(z_Bthwc)).astype(jnp.float32)
        return out[:, -num_frames % self.stride :]
