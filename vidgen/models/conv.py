"""Convolutions and group norm of the autoencoder, channels last.

Kernels are stored in float32 as [(time,) row, column, in, out] and used in the compute `dtype`.
Letters: `N` images, `O` output channels.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx


def conv2d(x_NHWC, kernel, stride=1, padding=((0, 0), (0, 0))):
    """2D convolution; a 1x1 kernel becomes a matrix product."""
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return _pointwise(x_NHWC, kernel)
    return jax.lax.conv_general_dilated(
        x_NHWC, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def causal_conv3d(x_BTHWC, kernel, time_stride=1):
    """3D convolution that looks back in time only, same size in space.

    Zero frames are added in front, `kt - 1 + (1 - time_stride)` of them (2 for a kernel of 3
    frames, 1 when it also halves the rate); rows and columns are padded on both sides.

    On CPU the frames of the kernel become channels of one 2D convolution: XLA has no fast 3D
    convolution there. Forward and gradients of [8, 20, 8, 8, 32] -> 32 take 16 ms instead of 47 on
    two cores, and with time stride 2 and 64 channels 20 ms instead of 218. Both forms give the same
    sums.
    """
    kt, kh, kw, channels, _ = kernel.shape
    if (kt, kh, kw, time_stride) == (1, 1, 1, 1):
        return _pointwise(x_BTHWC, kernel)
    front = kt - time_stride
    space = ((kh // 2, kh // 2), (kw // 2, kw // 2))
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(
            x_BTHWC,
            kernel,
            (time_stride, 1, 1),
            ((front, 0), *space),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
    batch, frames, height, width, _ = x_BTHWC.shape
    frames_out = (frames + front - kt) // time_stride + 1
    padded = jnp.pad(x_BTHWC, ((0, 0), (front, 0), (0, 0), (0, 0), (0, 0)))
    last = (frames_out - 1) * time_stride + 1
    taps = jnp.concatenate([padded[:, i : i + last : time_stride] for i in range(kt)], axis=-1)
    kernel_2d = jnp.moveaxis(kernel, 0, 2).reshape(kh, kw, kt * channels, -1)
    out = conv2d(taps.reshape(-1, height, width, kt * channels), kernel_2d, padding=space)
    return out.reshape(batch, frames_out, height, width, -1)


def _pointwise(x, kernel):
    out = x.reshape(-1, x.shape[-1]) @ kernel.reshape(kernel.shape[-2:])
    return out.reshape(*x.shape[:-1], -1)


class Conv2d(nnx.Module):
    """2D convolution with bias."""

    def __init__(self, inputs, outputs, size, *, dtype, stride=1, padding=None):
        self.kernel = nnx.Param(jnp.zeros((size, size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.stride, self.dtype = stride, dtype
        self.padding = padding or ((size // 2, size // 2),) * 2

    def __call__(self, x_NHWC):
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        out = conv2d(x_NHWC.astype(self.dtype), kernel, self.stride, self.padding)
        return out + bias.reshape(1, 1, 1, -1)


class CausalConv3d(nnx.Module):
    """3D convolution that looks back in time only, with or without bias."""

    def __init__(self, inputs, outputs, size, *, dtype, time_stride=1, use_bias=True):
        self.kernel = nnx.Param(jnp.zeros((size, size, size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None
        self.time_stride, self.dtype = time_stride, dtype

    def __call__(self, x_BTHWC):
        kernel = self.kernel[...].astype(self.dtype)
        out = causal_conv3d(x_BTHWC.astype(self.dtype), kernel, self.time_stride)
        if self.bias is None:
            return out
        return out + self.bias[...].astype(self.dtype).reshape(1, 1, 1, 1, -1)


class Linear(nnx.Module):
    """Dense layer with bias."""

    def __init__(self, inputs, outputs, *, dtype):
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.dtype = dtype

    def __call__(self, x):
        out = _pointwise(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return out + self.bias[...].astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class GroupNorm(nnx.Module):
    """Group norm (Wu & He 2018, arXiv:1803.08494) over all axes between the first and the last.

    For a video that is time and space: each frame then depends on every frame of its chunk.
    Statistics are float32.

    Raises:
        ValueError: If the channels do not divide into the groups.
    """

    def __init__(self, channels: int, groups: int, eps: float, *, dtype):
        if channels % groups:
            raise ValueError(
                f"{channels} channels do not divide into {groups} norm groups: use multiples of "
                f"{groups}, or set `groups` to a divisor such as {math.gcd(channels, groups)}."
            )
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups, self.eps, self.dtype = groups, eps, dtype

    def __call__(self, x):
        x_NPC = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
        centred = x_NPC - self._group_mean(x_NPC)
        variance = self._group_mean(jnp.square(centred))
        factor = jax.lax.rsqrt(variance + self.eps) * self.scale[...].reshape(1, 1, -1)
        return (
            (centred * factor + self.bias[...].reshape(1, 1, -1))
            .astype(self.dtype)
            .reshape(x.shape)
        )

    def _group_mean(self, x_NPC):
        """Mean over positions and the channels of a group, repeated to [N, 1, C]."""
        mean_NC = x_NPC.mean(1)
        mean_NG = mean_NC.reshape(mean_NC.shape[0], self.groups, -1).mean(-1)
        return jnp.repeat(mean_NG, mean_NC.shape[1] // self.groups, axis=1)[:, None]


def initialise(module: nnx.Module, key, gain: float = 1.0) -> None:
    """Draws all kernels of a module, and the biases beside them, as PyTorch does by default.

    Both are uniform in +-1/sqrt(fan in), kernels times `gain`; norms keep 1 and 0. The layers of
    this file are created
    with zeros, and one draw for all of them keeps the program small: compiling a draw for each of
    the 227 tensors of a toy autoencoder took 54 s on a CPU.
    """
    state = nnx.state(module)
    params = nnx.to_pure_dict(state)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    values = jax.random.uniform(key, (size,), jnp.float32, -1.0, 1.0)
    used = 0

    def fill(tree):
        nonlocal used
        filled = {}
        for name, node in tree.items():
            if isinstance(node, dict):
                filled[name] = fill(node)
            elif "kernel" in tree:
                bound = math.prod(tree["kernel"].shape[:-1]) ** -0.5
                bound *= gain if name == "kernel" else 1.0
                filled[name] = values[used : used + node.size].reshape(node.shape) * bound
                used += node.size
            else:
                filled[name] = node
        return filled

    nnx.replace_by_pure_dict(state, fill(params))
    nnx.update(module, state)


def numbered(modules) -> nnx.Dict:
    """Modules under the names "0", "1", ...: a list whose parameter paths are strings."""
    return nnx.Dict({str(i): module for i, module in enumerate(modules)})


def run(modules: nnx.Dict, x):
    """Applies numbered modules one after the other."""
    for i in range(len(modules)):
        x = modules[str(i)](x)
    return x
