"""Layouts of published weights: their config.json, and which tensors they hold.

A layout says how to get from a folder of PyTorch weights to the arguments of one of our models,
and back. `stdit`, `vae` and `t5` hold a whole model; `pixart` holds a part of an STDiT, `image_vae`
and `temporal_vae` the halves of a video VAE; what they lack starts as in a new model (spec 1.5).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from vidgen.models import layers, stdit, text, vae
from vidgen.weights import torch_names, tree_files

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One layout.

    Args:
        model: The class of ours that the weights belong to.
        arguments: (config.json or {}, shapes by name) -> arguments of the model.
        config: Arguments of the model -> config.json.
        tensors: (shapes of our tree, arguments) -> tensors of the file.
        rename: Name in a file -> today's name; "" for a tensor that no model has.
        fresh: Which of our paths such a file lacks; a new model's values take their places.
        prefix: Of a part that can be written: what its file leaves out of the whole's names.
        file: Name of the file of weights, without its ending.
    """

    model: type
    arguments: Callable[[Mapping[str, Any], Shapes], dict[str, Any]]
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    tensors: Callable[[Shapes, Mapping[str, Any]], list[torch_names.Tensor]]
    rename: Callable[[str], str]
    fresh: Callable[[str], bool] = lambda path: False
    prefix: str = ""
    file: str = "model"

    def our_shapes(self, arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Shapes of the model's params by path; allocates nothing."""
        make = functools.partial(self.model, **arguments)
        state = nnx.state(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
        flat = tree_files.flatten(nnx.to_pure_dict(state))
        return {path: tuple(leaf.shape) for path, leaf in flat.items()}

    def fresh_values(
        self, paths: Collection[str], arguments: Mapping[str, Any], seed: int = 0
    ) -> dict[str, np.ndarray]:
        """What a new model has at these paths; computes nothing else."""

        def init(key):
            model = self.model(**arguments, rngs=nnx.Rngs(key))
            flat = tree_files.flatten(nnx.to_pure_dict(nnx.state(model)))
            return {path: flat[path] for path in paths}

        return jax.device_get(jax.jit(init)(jax.random.key(seed)))


def kind_of(paths) -> str:
    """The layout of a whole model, from the paths of our params.

    Raises:
        ValueError: If they are those of no model with a published layout.
    """
    marks = {"stdit": "x_embedder/kernel", "vae": "temporal/encoder/conv_in/kernel", "t5": "embed"}
    for kind, mark in marks.items():
        if mark in paths:
            return kind
    raise ValueError(
        f"params such as {sorted(paths)[:3]} are of no model that has a PyTorch layout: give those "
        f"of one of {', '.join(marks)}."
    )


def _need(found: Shapes, name: str, what: str) -> tuple[int, ...]:
    if name not in found:
        raise ValueError(
            f"there is no tensor {name}, so this is no {what}; it has {sorted(found)[:5]} and "
            f"{max(0, len(found) - 5)} more. Choose another --layout."
        )
    return found[name]


def _stdit_arguments(config, found):
    width, channels, *patch = _need(found, "x_embedder.proj.weight", "STDiT3")
    patch = config.get("patch_size") or (patch if len(patch) == 3 else [1, *patch])
    if patch[0] != 1 or config.get("drop_path") or config.get("skip_y_embedder"):
        raise ValueError(
            f"config.json has patch_size={patch}, drop_path={config.get('drop_path', 0)} and "
            f"skip_y_embedder={config.get('skip_y_embedder', False)}: patches of one latent frame, "
            "no drop path and an own caption embedder are supported."
        )
    blocks = [re.match(r"spatial_blocks\.(\d+)\.", name) for name in found]
    head = found.get("spatial_blocks.0.attn.q_norm.weight", (72,))[0]
    mlp = _need(found, "spatial_blocks.0.mlp.fc1.weight", "STDiT3")[0]
    outputs = _need(found, "final_layer.linear.weight", "STDiT3")[0]
    text_tokens, text_width = _need(found, "y_embedder.y_embedding", "STDiT3")
    get = lambda name, default: default if config.get(name) is None else config[name]
    return {
        "width": get("hidden_size", width),
        "depth": get("depth", max(int(match[1]) for match in blocks if match) + 1),
        "heads": get("num_heads", width // head),
        "mlp_ratio": get("mlp_ratio", mlp / width),
        "patch": tuple(patch[1:]),
        "in_channels": get("in_channels", channels),
        "predict_sigma": get("pred_sigma", outputs == 2 * channels * math.prod(patch)),
        "qk_norm": get("qk_norm", "spatial_blocks.0.attn.q_norm.weight" in found),
        "text_width": get("caption_channels", text_width),
        "text_tokens": get("model_max_length", text_tokens),
    }


def _stdit_config(arguments):
    return {
        "architectures": ["STDiT3"],
        "model_type": "STDiT3",
        "input_size": [None, None, None],
        "input_sq_size": 512,
        "in_channels": arguments.get("in_channels", 4),
        "patch_size": [1, *arguments.get("patch", (2, 2))],
        "hidden_size": arguments["width"],
        "depth": arguments["depth"],
        "num_heads": arguments["heads"],
        "mlp_ratio": arguments.get("mlp_ratio", 4.0),
        "class_dropout_prob": 0.1,
        "pred_sigma": arguments.get("predict_sigma", True),
        "drop_path": 0.0,
        "caption_channels": arguments["text_width"],
        "model_max_length": arguments["text_tokens"],
        "qk_norm": arguments.get("qk_norm", True),
        "enable_flash_attn": False,
        "enable_layernorm_kernel": False,
        "enable_sequence_parallelism": False,
        "only_train_temporal": False,
        "freeze_y_embedder": False,
        "skip_y_embedder": False,
    }


def _stdit_rename(name):
    name = torch_names.modern(name).removeprefix("module.")
    return "" if name in ("pos_embed", "pos_embed_temporal", "pos_embed.inv_freq") else name


def _pixart_rename(name):
    """PixArt's blocks are spatial; its size conditions and compressed keys have no place here."""
    name = re.sub(r"^blocks\.", "spatial_blocks.", name)
    is_known_extra = name == "pos_embed" or name.startswith(("csize_embedder.", "ar_embedder."))
    return "" if is_known_extra else name


def _pixart_arguments(config, found):
    arguments = _stdit_arguments({}, found)
    chosen = {"qk_norm": True, "text_tokens": 300}
    return arguments | chosen | {"heads": arguments["width"] // 72}


def _pixart_lacks(path):
    new = ("temporal_blocks/", "fps_embedder/", "rope_freqs")
    return path.startswith(new) or path.endswith(("q_norm/weight", "k_norm/weight"))


_IMAGE_VAE = {
    "block_out_channels": "channels",
    "layers_per_block": "layers_per_block",
    "latent_channels": "latent_channels",
    "in_channels": "image_channels",
    "norm_num_groups": "groups",
}
_TEMPORAL_VAE = {
    "filters": "filters",
    "channel_multipliers": "channel_multipliers",
    "temporal_downsample": "temporal_downsample",
    "num_res_blocks": "num_res_blocks",
    "num_groups": "groups",
    "embed_dim": "latent_channels",
    "in_out_channels": "channels",
}


def _renamed(config, names):
    return {ours: config[name] for name, ours in names.items() if name in config}


def _vae_arguments(config, found):
    _need(found, "temporal_vae.encoder.conv_in.conv.weight", "video VAE")
    arguments = {
        "spatial": _renamed(config.get("vae_2d") or {}, _IMAGE_VAE),
        "temporal": _renamed(config.get("vae_temporal") or {}, _TEMPORAL_VAE),
    }
    arguments |= _renamed(config, {"shift": "shift", "scale": "scale"})
    arguments |= _renamed(config, {"spatial_scaling_factor": "scaling_factor"})
    if "micro_frame_size" in config:
        arguments["chunk_frames"] = config["micro_frame_size"]
    return arguments | (config.get("vidgen") or {})


def _vae_config(arguments):
    keep = ("spatial", "temporal", "chunk_frames", "scaling_factor", "shift", "scale")
    own = {name: arguments[name] for name in keep if name in arguments}
    published = "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers"
    return {
        "architectures": ["VideoAutoencoderPipeline"],
        "model_type": "VideoAutoencoderPipeline",
        "cal_loss": False,
        "freeze_vae_2d": False,
        "from_pretrained": None,
        "micro_frame_size": own.get("chunk_frames", 17),
        "shift": list(own.get("shift", vae.SHIFT)),
        "scale": list(own.get("scale", vae.SCALE)),
        "vae_2d": {
            "type": "VideoAutoencoderKL",
            "from_pretrained": published,
            "subfolder": "vae",
            "local_files_only": False,
            "micro_batch_size": 4,
        },
        "vae_temporal": {"type": "VAE_Temporal_SD", "from_pretrained": None},
        "vidgen": own,  # sizes, for which the original's file has no fields
    }


def _image_vae_rename(name):
    name = torch_names.modern(name)
    for prefix in ("spatial_vae.module.", "module."):
        name = name.removeprefix(prefix)
    return f"spatial_vae.module.{name}"


def _image_vae_config(arguments):
    """That of diffusers' AutoencoderKL."""
    spatial = {"channels": (128, 256, 512, 512), "layers_per_block": 2, "groups": 32}
    spatial |= {"latent_channels": 4, "image_channels": 3} | dict(arguments.get("spatial") or {})
    levels = len(spatial["channels"])
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "out_channels": spatial["image_channels"],
        "sample_size": 512,
        "scaling_factor": arguments.get("scaling_factor", 0.18215),
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        **{theirs: spatial[ours] for theirs, ours in _IMAGE_VAE.items()},
        "vidgen": dict(arguments),
    }


def _temporal_vae_rename(name):
    for prefix in ("module.", "temporal_vae."):
        name = name.removeprefix(prefix)
    return f"temporal_vae.{name}"


def _temporal_vae_config(arguments):
    temporal = dict(arguments.get("temporal") or {})
    fields = {theirs: temporal[ours] for theirs, ours in _TEMPORAL_VAE.items() if ours in temporal}
    return {"type": "VAE_Temporal_SD", **fields, "vidgen": dict(arguments)}


def _t5_rename(name):
    return "" if name.startswith(("decoder.", "lm_head.")) else name


def _t5_arguments(config, found):
    if config.get("feed_forward_proj") != "gated-gelu":
        raise ValueError(
            f"config.json has feed_forward_proj={config.get('feed_forward_proj')!r}: only T5 v1.1 "
            "with 'gated-gelu' is supported."
        )
    return {
        "vocab_size": config["vocab_size"],
        "width": config["d_model"],
        "head_width": config["d_kv"],
        "heads": config["num_heads"],
        "mlp_width": config["d_ff"],
        "depth": config["num_layers"],
        "buckets": config.get("relative_attention_num_buckets", 32),
        "max_distance": config.get("relative_attention_max_distance", 128),
    }


def _t5_config(arguments):
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "vocab_size": arguments["vocab_size"],
        "d_model": arguments["width"],
        "d_kv": arguments["head_width"],
        "num_heads": arguments["heads"],
        "d_ff": arguments["mlp_width"],
        "num_layers": arguments["depth"],
        "relative_attention_num_buckets": arguments.get("buckets", 32),
        "relative_attention_max_distance": arguments.get("max_distance", 128),
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def _stdit_tensors(shapes, arguments):
    return torch_names.stdit(shapes, arguments.get("patch", (2, 2)))


_vae_tensors = lambda shapes, arguments: torch_names.vae(shapes)
_t5_tensors = lambda shapes, arguments: torch_names.t5(shapes)
_identity = lambda arguments: dict(arguments)

LAYOUTS = {
    "stdit": Layout(stdit.STDiT, _stdit_arguments, _stdit_config, _stdit_tensors, _stdit_rename),
    "vae": Layout(vae.VideoVAE, _vae_arguments, _vae_config, _vae_tensors, torch_names.modern),
    "t5": Layout(text.T5Encoder, _t5_arguments, _t5_config, _t5_tensors, _t5_rename),
    "pixart": Layout(
        *(stdit.STDiT, _pixart_arguments, _stdit_config, _stdit_tensors, _pixart_rename),
        fresh=_pixart_lacks,
    ),
    "image_vae": Layout(
        vae.VideoVAE,
        lambda config, found: (
            {"spatial": _renamed(config, _IMAGE_VAE)} | (config.get("vidgen") or {})
        ),
        *(_image_vae_config, _vae_tensors, _image_vae_rename),
        fresh=lambda path: not path.startswith("spatial/"),
        prefix="spatial_vae.module.",
        file="diffusion_pytorch_model",  # where diffusers looks
    ),
    "temporal_vae": Layout(
        vae.VideoVAE,
        lambda config, found: (
            {"temporal": _renamed(config, _TEMPORAL_VAE)} | (config.get("vidgen") or {})
        ),
        *(_temporal_vae_config, _vae_tensors, _temporal_vae_rename),
        fresh=lambda path: not path.startswith("temporal/"),
        prefix="temporal_vae.",
    ),
}


def absent_value(tensor: torch_names.Tensor) -> np.ndarray:
    """Values of an optional tensor that a file lacks: the rotary frequencies (spec 1.4)."""
    assert tensor.path == "rope_freqs"
    return layers.rope_frequencies(2 * tensor.shape[0])
