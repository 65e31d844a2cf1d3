"""Networks that judge a picture: the perceptual distance LPIPS, and patch discriminators.

The stages of Open-Sora 1.2 use LPIPS only; the discriminators are for adversarial training of the
autoencoder. Letters: `N` images.
"""

import re

import einops
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from vidgen.models import conv

# VGG-16 (Simonyan & Zisserman 2015, arXiv:1409.1556): channels and layers of each stage
_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_VGG_NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in files
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class LPIPS(nnx.Module):
    """Callable: two batches of images [N, H, W, 3] in [-1, 1] -> perceptual distance [N], float32.

    Learned perceptual image patch similarity (Zhang et al. 2018, arXiv:1801.03924): squared
    distance of unit-length VGG-16 features after each stage, weighed by channel, averaged over
    positions and summed over stages. Height and width have to be 16 or more.
    """

    def __init__(self, *, dtype=jnp.float32, rngs: nnx.Rngs):
        widths = [width for width, layers in _STAGES for _ in range(layers)]
        self.features = conv.numbered(
            conv.Conv2d(below, above, 3, dtype=dtype)
            for below, above in zip([3, *widths], widths, strict=False)
        )
        self.weights = conv.numbered(nnx.Param(jnp.full(width, 1 / width)) for width, _ in _STAGES)
        conv.initialise(self, rngs.params())

    def __call__(self, a_NHWC, b_NHWC):
        pairs = zip(self._stages(a_NHWC), self._stages(b_NHWC), strict=True)
        distance_N = jnp.zeros(a_NHWC.shape[0])
        for i, (a, b) in enumerate(pairs):
            weights = self.weights[str(i)][...].reshape(1, 1, 1, -1)
            distance_N += (jnp.square(_unit(a) - _unit(b)) * weights).sum(-1).mean((1, 2))
        return distance_N

    def _stages(self, x_NHWC):
        x = (x_NHWC - _SHIFT.reshape(1, 1, 1, 3)) / _SCALE.reshape(1, 1, 1, 3)
        done = 0
        for stage, (_, layers) in enumerate(_STAGES):
            if stage:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
            for i in range(done, done + layers):
                x = jax.nn.relu(self.features[str(i)](x))
            done += layers
            yield x


def load_lpips(path) -> dict:
    """Params of `LPIPS` as NumPy from one safetensors file.

    It holds the VGG-16 convolutions as `features.N.weight` (torchvision) or `net.sliceK.N.weight`,
    and the weights of the channels as `linK.model.1.weight`, with the PyTorch layout.

    Raises:
        ValueError: If tensors are missing. Names all of them.
    """
    tensors = safetensors.numpy.load_file(path)
    short = {re.sub(r"^(net\.slice\d+|features)\.", "vgg.", name): t for name, t in tensors.items()}
    needed = [f"vgg.{n}.{kind}" for n in _VGG_NUMBERS for kind in ("weight", "bias")]
    needed += [f"lin{i}.model.1.weight" for i in range(len(_STAGES))]
    missing = [name.replace("vgg.", "features.") for name in needed if name not in short]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} tensors of LPIPS: {missing}. It needs torchvision's "
            "VGG-16 features and the published channel weights, merged into one file."
        )
    features = {
        str(i): {
            "kernel": np.transpose(short[f"vgg.{n}.weight"], (2, 3, 1, 0)),
            "bias": short[f"vgg.{n}.bias"],
        }
        for i, n in enumerate(_VGG_NUMBERS)
    }
    weights = {str(i): short[f"lin{i}.model.1.weight"].reshape(-1) for i in range(len(_STAGES))}
    return {"features": features, "weights": weights}


class PatchGAN(nnx.Module):
    """Discriminator of patches: video [B, T, H, W, C] -> logits [B, t, h, w].

    After Isola et al. 2017 (arXiv:1611.07004): `strides` layers that halve height and width and
    double the width, one more at stride 1, then the logits. With `over_time` the patches reach over
    frames and time is halved as well; without, each frame is judged alone. Group norm replaces
    batch norm, so that clips of a batch do not influence each other.
    """

    def __init__(
        self,
        image_channels: int = 3,
        filters: int = 64,
        strides: int = 3,
        *,
        over_time: bool,
        groups: int = 8,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        widths = [filters * min(2**i, 8) for i in range(strides + 1)]
        make = lambda below, above, stride: _Conv3d(
            below, above, stride, over_time=over_time, dtype=dtype
        )
        self.convs = conv.numbered(
            make(below, above, 2 if i < strides else 1)
            for i, (below, above) in enumerate(zip([image_channels, *widths], widths, strict=False))
        )
        self.norms = conv.numbered(
            conv.GroupNorm(width, groups, 1e-5, dtype=dtype) for width in widths[1:]
        )
        self.logits = make(widths[-1], 1, 1)
        self.over_time = over_time
        conv.initialise(self, rngs.params())

    def __call__(self, video_BTHWC):
        batch = video_BTHWC.shape[0]
        x = video_BTHWC
        if not self.over_time:
            x = einops.rearrange(x, "b t h w c -> (b t) 1 h w c")
        for i in range(len(self.convs)):
            x = self.convs[str(i)](x)
            x = jax.nn.leaky_relu(self.norms[str(i - 1)](x) if i else x, 0.2)
        logits = self.logits(x).astype(jnp.float32)
        return logits.reshape(batch, -1, *logits.shape[2:4])


class _Conv3d(nnx.Module):
    """4x4 convolution in space, over 3 frames too with `over_time`; padded by 1, with bias."""

    def __init__(self, inputs, outputs, stride, *, over_time, dtype):
        frames = 3 if over_time else 1
        self.kernel = nnx.Param(jnp.zeros((frames, 4, 4, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.strides = (stride if over_time else 1, stride, stride)
        self.padding = (((1, 1) if over_time else (0, 0)), (1, 1), (1, 1))
        self.dtype = dtype

    def __call__(self, x_BTHWC):
        out = jax.lax.conv_general_dilated(
            x_BTHWC.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            self.strides,
            self.padding,
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
        return out + self.bias[...].astype(self.dtype).reshape(1, 1, 1, 1, -1)


def _unit(features):
    """Features of unit length over channels; 1e-20 keeps the gradient finite where all are zero."""
    features = features.astype(jnp.float32)
    length = jnp.sqrt(jnp.square(features).sum(-1, keepdims=True) + 1e-20)
    return features / (length + 1e-10)
