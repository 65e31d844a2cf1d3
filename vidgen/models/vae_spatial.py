"""Image autoencoder of Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752), a frame at a time.

Every level but the last halves height and width; odd sizes round down. Letters: `N` images,
`O` channels of an inner layer.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vidgen.models import conv

CHANNELS = (128, 256, 512, 512)  # of the published model, by level
EPS = 1e-6


class ResBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv, added to the input."""

    def __init__(self, inputs, outputs, groups, *, dtype):
        self.norm1 = conv.GroupNorm(inputs, groups, EPS, dtype=dtype)
        self.conv1 = conv.Conv2d(inputs, outputs, 3, dtype=dtype)
        self.norm2 = conv.GroupNorm(outputs, groups, EPS, dtype=dtype)
        self.conv2 = conv.Conv2d(outputs, outputs, 3, dtype=dtype)
        self.conv_shortcut = (
            conv.Conv2d(inputs, outputs, 1, dtype=dtype) if inputs != outputs else None
        )

    def __call__(self, x_NHWC):
        hidden = self.conv1(jax.nn.silu(self.norm1(x_NHWC)))
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)))
        return hidden + (x_NHWC if self.conv_shortcut is None else self.conv_shortcut(x_NHWC))


class Attention(nnx.Module):
    """Single-head attention among all positions of an image, added to the input."""

    def __init__(self, channels, groups, *, dtype):
        self.group_norm = conv.GroupNorm(channels, groups, EPS, dtype=dtype)
        make = lambda: conv.Linear(channels, channels, dtype=dtype)
        self.to_q, self.to_k, self.to_v, self.to_out = make(), make(), make(), make()

    def __call__(self, x_NHWC):
        x_NsC = self.group_norm(x_NHWC).reshape(x_NHWC.shape[0], -1, x_NHWC.shape[-1])
        q_NsC, k_NsC, v_NsC = self.to_q(x_NsC), self.to_k(x_NsC), self.to_v(x_NsC)
        logits_Nss = jnp.einsum(
            "nqc,nkc->nqk", q_NsC, k_NsC, preferred_element_type=jnp.float32
        ) / jnp.sqrt(x_NsC.shape[-1])
        weights_Nss = jax.nn.softmax(logits_Nss, axis=-1).astype(v_NsC.dtype)
        return x_NHWC + self.to_out(weights_Nss @ v_NsC).reshape(x_NHWC.shape)


class MidBlock(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels, groups, *, dtype):
        make = lambda: ResBlock(channels, channels, groups, dtype=dtype)
        self.resnets = conv.numbered([make(), make()])
        self.attention = Attention(channels, groups, dtype=dtype)

    def __call__(self, x_NHWC):
        return self.resnets["1"](self.attention(self.resnets["0"](x_NHWC)))


class Level(nnx.Module):
    """Residual blocks of one resolution, then a change of resolution: "down", "up" or none."""

    def __init__(self, inputs, outputs, blocks, groups, resample, *, dtype):
        self.resnets = conv.numbered(
            ResBlock(outputs if i else inputs, outputs, groups, dtype=dtype) for i in range(blocks)
        )
        self.resample = resample
        if resample == "down":  # zeros at the bottom and at the right only, so odd sizes round down
            self.conv = conv.Conv2d(
                outputs, outputs, 3, dtype=dtype, stride=2, padding=((0, 1), (0, 1))
            )
        elif resample == "up":
            self.conv = conv.Conv2d(outputs, outputs, 3, dtype=dtype)

    def __call__(self, x_NHWC):
        x_NHWC = conv.run(self.resnets, x_NHWC)
        if self.resample == "up":
            x_NHWC = x_NHWC.repeat(2, axis=1).repeat(2, axis=2)
        return self.conv(x_NHWC) if self.resample else x_NHWC


class Encoder(nnx.Module):
    """Image to the moments of its latent: [N, H, W, C] -> [N, h, w, 2c]."""

    def __init__(self, image_channels, latent_channels, channels, blocks, groups, *, dtype):
        kwargs = {"dtype": dtype}
        self.conv_in = conv.Conv2d(image_channels, channels[0], 3, **kwargs)
        self.down_blocks = conv.numbered(
            Level(below, above, blocks, groups, "down" if i + 1 < len(channels) else None, **kwargs)
            for i, (below, above) in enumerate(
                zip((channels[0], *channels), channels, strict=False)
            )
        )
        self.mid_block = MidBlock(channels[-1], groups, **kwargs)
        self.conv_norm_out = conv.GroupNorm(channels[-1], groups, EPS, dtype=dtype)
        self.conv_out = conv.Conv2d(channels[-1], 2 * latent_channels, 3, **kwargs)

    def __call__(self, x_NHWC):
        x = self.mid_block(conv.run(self.down_blocks, self.conv_in(x_NHWC)))
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    """Latent to image: [N, h, w, c] -> [N, H, W, C]; one more block a level than the encoder."""

    def __init__(self, image_channels, latent_channels, channels, blocks, groups, *, dtype):
        kwargs = {"dtype": dtype}
        channels = tuple(channels)[::-1]
        self.conv_in = conv.Conv2d(latent_channels, channels[0], 3, **kwargs)
        self.mid_block = MidBlock(channels[0], groups, **kwargs)
        self.up_blocks = conv.numbered(
            Level(
                above, below, blocks + 1, groups, "up" if i + 1 < len(channels) else None, **kwargs
            )
            for i, (above, below) in enumerate(
                zip((channels[0], *channels), channels, strict=False)
            )
        )
        self.conv_norm_out = conv.GroupNorm(channels[-1], groups, EPS, dtype=dtype)
        self.conv_out = conv.Conv2d(channels[-1], image_channels, 3, **kwargs)

    def __call__(self, z_Nhwc):
        x = conv.run(self.up_blocks, self.mid_block(self.conv_in(z_Nhwc)))
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class SpatialVAE(nnx.Module):
    """Image autoencoder with a Gaussian latent; `channels` has one entry a level."""

    def __init__(
        self,
        channels=CHANNELS,
        layers_per_block: int = 2,
        latent_channels: int = 4,
        image_channels: int = 3,
        groups: int = 32,
        *,
        init_gain: float = 1.0,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
    ):
        args = (image_channels, latent_channels, tuple(channels), layers_per_block, groups)
        self.encoder = Encoder(*args, dtype=dtype)
        self.decoder = Decoder(*args, dtype=dtype)
        self.quant_conv = conv.Conv2d(2 * latent_channels, 2 * latent_channels, 1, dtype=dtype)
        self.post_quant_conv = conv.Conv2d(latent_channels, latent_channels, 1, dtype=dtype)
        self.stride = 2 ** (len(channels) - 1)
        self.latent_channels, self.image_channels = latent_channels, image_channels
        conv.initialise(self, rngs.params(), init_gain)

    def moments(self, image_NHWC):
        """Mean and log-variance of the latent, stacked on the last axis: [N, h, w, 2c] float32."""
        return self.quant_conv(self.encoder(image_NHWC)).astype(jnp.float32)

    def decode(self, z_Nhwc):
        """Images [N, stride h, stride w, C], float32, about in [-1, 1]."""
        return self.decoder(self.post_quant_conv(z_Nhwc)).astype(jnp.float32)
