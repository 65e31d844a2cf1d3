"""Names and layouts of the published PyTorch weights, derived from our trees.

Each function takes the shapes of one of our params trees, flat ("spatial_blocks/attn/qkv/kernel" ->
shape), and lists the tensors of the PyTorch file. Our blocks are stacked, so one array of ours is a
tensor a layer there; a dense kernel is [in, out] here and [out, in] there, and a convolution's
[*size, in, out] is [out, in, *size].
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a PyTorch file, and its place in our tree.

    Args:
        name, shape: In the file.
        path: Of our array, with "/" between levels.
        layer: Its index along the first axis of our array; None if it is the whole array.
        kind: "as is", "kernel" or "patch": how the axes are permuted.
        aliases: Other names in the file for the same values, written as well.
        optional: A file without it is whole; the model's formula gives the values.
    """

    name: str
    shape: tuple[int, ...]
    path: str
    layer: int | None = None
    kind: str = "as is"
    aliases: tuple[str, ...] = ()
    optional: bool = False

    def to_ours(self, value):
        """Our array (of one layer) from the file's: a view where possible."""
        if self.kind == "kernel":
            return value.transpose(*range(2, value.ndim), 1, 0)
        if self.kind == "patch":
            outputs, channels, _, height, width = value.shape
            return value[:, :, 0].transpose(2, 3, 1, 0).reshape(height * width * channels, outputs)
        return value.reshape(-1) if len(self.shape) == 5 else value  # shift and scale of the VAE

    def to_torch(self, value):
        """The file's array from ours (of one layer); the inverse of `to_ours`."""
        if self.kind == "kernel":
            return value.transpose(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
        if self.kind == "patch":
            outputs, channels, _, height, width = self.shape
            cells = value.reshape(height, width, channels, outputs)
            return cells.transpose(3, 2, 0, 1).reshape(self.shape)
        return value.reshape(self.shape)


_STDIT_RULES = (
    (r"^rope_freqs$", "rope.freqs"),
    (r"^x_embedder\.", "x_embedder.proj."),
    (r"^(t|fps)_embedder\.fc1\.", r"\1_embedder.mlp.0."),
    (r"^(t|fps)_embedder\.fc2\.", r"\1_embedder.mlp.2."),
    (r"^t_block\.", "t_block.1."),
    (r"\.kernel$", ".weight"),
)
_VAE_RULES = (
    (r"^temporal\.((?:.*\.)?(?!norm)\w+)\.(kernel|bias)$", r"temporal.\1.conv.\2"),
    (r"^temporal\.", "temporal_vae."),
    (r"^spatial\.", "spatial_vae.module."),
    (r"\.down_blocks\.(\d+)\.conv\.", r".down_blocks.\1.downsamplers.0.conv."),
    (r"\.up_blocks\.(\d+)\.conv\.", r".up_blocks.\1.upsamplers.0.conv."),
    (r"\.attention\.", ".attentions.0."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.(kernel|scale)$", ".weight"),
)
_T5_RULES = (
    (r"^embed$", "shared.weight"),
    (r"^relative_bias$", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    (r"^final_norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"^blocks\.(\d+)\.attn_norm\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.mlp_norm\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.(w\w+)\.", r"encoder.block.\1.layer.1.DenseReluDense.\2."),
    (r"\.kernel$", ".weight"),
)
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def stdit(shapes: Shapes, patch: tuple[int, int]) -> list[Tensor]:
    """Tensors of an STDiT3 (spec 1.4)."""
    return _tensors(shapes, _STDIT_RULES, patch)


def vae(shapes: Shapes) -> list[Tensor]:
    """Tensors of an OpenSoraVAE_V1_2: image part, temporal part, shift and scale (spec 2)."""
    return _tensors(shapes, _VAE_RULES)


def t5(shapes: Shapes) -> list[Tensor]:
    """Tensors of a T5 v1.1 encoder (spec 3.1)."""
    return _tensors(shapes, _T5_RULES)


def modern(name: str) -> str:
    """Today's name of a tensor in an older file.

    Knows the attention of diffusers before 0.18 (`query`, `proj_attn`), the image autoencoder
    without the prefix of its wrapper, and the `module.` of a distributed wrapper.
    """
    name = name.removeprefix("module.") if name.startswith("module.spatial_vae.") else name
    name = name.removeprefix("module.") if name.startswith("module.temporal_vae.") else name
    match = re.fullmatch(r"(.*\.attentions\.0\.)(query|key|value|proj_attn)\.(\w+)", name)
    return f"{match[1]}{_OLD_ATTENTION[match[2]]}.{match[3]}" if match else name


def to_params(tensors: list[Tensor], read: Callable[[str], Any]) -> dict[str, Any]:
    """Our params by path, as NumPy, of the tensors that `read(name)` gives.

    Layers are written into their stack one by one, so that beside the tree one tensor is in memory.
    """
    flat: dict[str, np.ndarray] = {}
    depth = {tensor.path: (tensor.layer or 0) + 1 for tensor in tensors}
    for tensor in tensors:
        value = tensor.to_ours(np.asarray(read(tensor.name)))
        if tensor.layer is None:
            flat[tensor.path] = value
            continue
        if tensor.path not in flat:
            flat[tensor.path] = np.empty((depth[tensor.path], *value.shape), value.dtype)
        flat[tensor.path][tensor.layer] = value
    return flat


def _tensors(shapes: Shapes, rules, patch=None) -> list[Tensor]:
    found = []
    for path, shape in shapes.items():
        stacked = re.match(r"(spatial_|temporal_)?blocks/", path)
        for layer in range(shape[0]) if stacked else (None,):
            dotted = path.replace("/", ".")
            if stacked:
                dotted = dotted.replace("blocks.", f"blocks.{layer}.", 1)
            for pattern, replacement in rules:
                dotted = re.sub(pattern, replacement, dotted)
            own = tuple(shape[1:] if stacked else shape)
            found.append(_tensor(dotted, own, path, layer, patch))
    return found


def _tensor(name, shape, path, layer, patch) -> Tensor:
    if path == "x_embedder/kernel":
        height, width = patch
        torch_shape = shape[1], shape[0] // math.prod(patch), 1, height, width
        return Tensor(name, torch_shape, path, layer, "patch")
    if path.endswith("kernel"):
        return Tensor(name, (*shape[:-3:-1], *shape[:-2]), path, layer, "kernel")
    if path in ("shift", "scale"):
        return Tensor(name, (1, *shape, 1, 1, 1), path)
    aliases = ("encoder.embed_tokens.weight",) if path == "embed" else ()
    return Tensor(name, shape, path, layer, "as is", aliases, optional=path == "rope_freqs")
