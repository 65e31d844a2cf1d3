"""Golden cases of the transformer: its parameters, and its inputs as the model takes them."""

import re

import golden_utils
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidgen.models import layers, stdit

PATCH = (2, 2)
_RULES = (
    (r"^rope\.freqs$", "rope_freqs"),
    (r"^x_embedder\.proj\.", "x_embedder."),
    (r"^(t|fps)_embedder\.mlp\.0\.", r"\1_embedder.fc1."),
    (r"^(t|fps)_embedder\.mlp\.2\.", r"\1_embedder.fc2."),
    (r"^t_block\.1\.", "t_block."),
    (r"^((spatial|temporal)_blocks)\.(\d+)\.", r"\1."),
    (r"(?<!_norm)\.weight$", ".kernel"),
)


def params(state_dict) -> dict:
    """The reference's parameters as our tree: blocks stacked, the patch kernel flat."""
    flat = {}
    for name, value in state_dict.items():
        if name == "x_embedder.proj.weight":
            value = np.transpose(value[:, :, 0], (2, 3, 1, 0)).reshape(-1, len(value))
        elif name.endswith(".weight") and value.ndim == 2:
            value = value.T
        flat.setdefault(golden_utils.rename(name, _RULES), []).append((name, value))
    tree = {}
    for path, named in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        number = lambda item: int(re.search(r"blocks\.(\d+)\.", item[0]).group(1))
        stacked = "blocks." in named[0][0]
        values = [v for _, v in (sorted(named, key=number) if stacked else named)]
        node[leaf] = jnp.asarray(np.stack(values) if stacked else values[0])
    return tree


def value(tree, name: str):
    """The array of our tree that the reference calls `name`, in the reference's layout."""
    *parents, leaf = golden_utils.rename(name, _RULES).split(".")
    for key in parents:
        tree = tree[key]
    found = np.asarray(tree[leaf])
    if "blocks." in name:
        found = found[int(re.search(r"blocks\.(\d+)\.", name).group(1))]
    if name == "x_embedder.proj.weight":
        return found.reshape(*PATCH, -1, found.shape[-1]).transpose(3, 2, 0, 1)[:, :, None]
    return found.T if leaf == "kernel" else found


def make_model(config, state_dict):
    """(graph, params) of a golden config."""
    model = stdit.STDiT(
        width=config["hidden_size"],
        depth=config["depth"],
        heads=config["num_heads"],
        text_width=config["caption_channels"],
        text_tokens=config["model_max_length"],
        rngs=nnx.Rngs(0),
    )
    return nnx.graphdef(model), params(state_dict)


def tokens(x_BCthw, extra: int = 0):
    """Patches [B, t, S + extra, P] of a latent in the reference's layout."""
    latent = np.asarray(golden_utils.channels_last(x_BCthw))
    rows, columns = layers.patch_grid(*latent.shape[2:4], PATCH)
    return layers.patchify(latent, PATCH, rows * columns + extra)


def latent(tokens_BtSP, like_BCthw):
    """Inverse of `tokens`; keeps whatever channels the patches hold."""
    h, w = like_BCthw.shape[3:]
    return golden_utils.channels_first(layers.unpatchify(tokens_BtSP, h, w, PATCH))


def context(inputs, clips: int, x_BCthw, extra: int = 0) -> dict:
    """Keyword arguments of the model beside latents and time; short inputs are repeated."""
    repeat = lambda x: np.concatenate([x] * (clips // len(x)))
    rows, columns = layers.patch_grid(*x_BCthw.shape[3:], PATCH)
    size = float(inputs["height"][0]), float(inputs["width"][0])
    position_S2 = layers.patch_positions(rows, columns, size, 512, rows * columns + extra)
    text_BLE = inputs["y"][:, 0]
    mask = inputs.get("mask", inputs.get("text_mask"))
    mask_BL = repeat(mask) if mask is not None else np.ones(text_BLE.shape[:2], int)
    order_BL = np.argsort(-mask_BL, axis=1, kind="stable")  # real tokens first
    text_BLE = np.take_along_axis(repeat(text_BLE), order_BL[..., None], axis=1)
    frames = inputs.get("x_mask", inputs.get("frame_mask"))
    return {
        "text_BLE": jnp.asarray(text_BLE),
        "text_length_B": jnp.asarray(mask_BL.sum(1)),
        "position_BS2": jnp.asarray(np.stack([position_S2] * clips)),
        "length_B": jnp.full(clips, rows * columns),
        "fps_B": jnp.asarray(repeat(inputs["fps"])),
        "mask_Bt": None if frames is None else jnp.asarray(frames),
    }
