"""Golden cases of the transformer: the whole model, its blocks, and its inputs as it takes them."""

import re
from unittest import mock

import golden_utils
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidgen.models import layers, stdit
from vidgen.weights import torch_names

PATCH = (2, 2)


def make_model(config, state_dict):
    """(graph, params, tensors) of a golden config; `tensors` are those of `torch_names`."""
    assert config["patch_size"][0] == 1 and not config.get("drop_path")
    model = golden_utils.abstract(
        lambda rngs: stdit.STDiT(
            width=config["hidden_size"],
            depth=config["depth"],
            heads=config["num_heads"],
            mlp_ratio=config["mlp_ratio"],
            in_channels=config["in_channels"],
            patch=tuple(config["patch_size"][1:]),
            qk_norm=config["qk_norm"],
            predict_sigma=config["pred_sigma"],
            text_width=config["caption_channels"],
            text_tokens=config["model_max_length"],
            rngs=rngs,
        )
    )
    shapes = golden_utils.shapes_of(model)
    tensors = torch_names.stdit(shapes, config["patch_size"][1:])
    return nnx.graphdef(model), golden_utils.from_torch(state_dict, tensors), tensors


def value(tree, tensors, name: str):
    """The array of our tree that the reference calls `name`, in the reference's layout."""
    tensor = next(tensor for tensor in tensors if tensor.name == name)
    for key in tensor.path.split("/"):
        tree = tree[key]
    found = np.asarray(tree)
    return tensor.to_torch(found if tensor.layer is None else found[tensor.layer])


def tokens(x_BCthw, extra: int = 0, patch=PATCH):
    """Patches [B, t, S + extra, P] of a latent in the reference's layout."""
    latent = np.asarray(golden_utils.channels_last(x_BCthw))
    rows, columns = layers.patch_grid(*latent.shape[2:4], patch)
    return layers.patchify(latent, patch, rows * columns + extra)


def latent(tokens_BtSP, like_BCthw, patch=PATCH):
    """Inverse of `tokens`; keeps whatever channels the patches hold."""
    h, w = like_BCthw.shape[3:]
    return golden_utils.channels_first(layers.unpatchify(tokens_BtSP, h, w, patch))


def text_order(mask_BL):
    """Places of the text tokens, real ones first."""
    return np.argsort(-np.asarray(mask_BL, int), axis=1, kind="stable")


def context(inputs, clips: int, x_BCthw, extra: int = 0, config=None, text=None) -> dict:
    """Keyword arguments of the model beside latents and time; short inputs are repeated."""
    config = config or {"patch_size": (1, *PATCH), "input_sq_size": 512}
    repeat = lambda x: np.concatenate([x] * (clips // len(x)))
    rows, columns = layers.patch_grid(*x_BCthw.shape[3:], config["patch_size"][1:])
    size = float(inputs["height"][0]), float(inputs["width"][0])
    position_S2 = layers.patch_positions(
        rows, columns, size, config["input_sq_size"], rows * columns + extra
    )
    text_BLE = inputs["y"][:, 0] if text is None else text
    mask = inputs.get("mask", inputs.get("text_mask"))
    mask_BL = repeat(mask) if mask is not None else np.ones(text_BLE.shape[:2], int)
    text_BLE = np.take_along_axis(repeat(text_BLE), text_order(mask_BL)[..., None], axis=1)
    frames = inputs.get("x_mask", inputs.get("frame_mask"))
    return {
        "text_BLE": jnp.asarray(text_BLE),
        "text_length_B": jnp.asarray(mask_BL.sum(1)),
        "position_BS2": jnp.asarray(np.stack([position_S2] * clips)),
        "length_B": jnp.full(clips, rows * columns),
        "fps_B": jnp.asarray(repeat(inputs["fps"])),
        "mask_Bt": None if frames is None else jnp.asarray(frames),
    }


def check_model(case):
    """Predictions, every activation that was recorded, and gradients."""
    with jax.default_matmul_precision("highest"):
        graph, params, tensors = make_model(case.config, case.state_dict())
        for variant in case.variants:
            inputs = case.inputs(variant)
            if "drop" in inputs:
                embed = nnx.merge(graph, params).y_embedder
                out = embed(jnp.asarray(inputs["y"][:, 0]), jnp.asarray(inputs["drop"] == 1))
                case.check(
                    f"{variant}/y",
                    np.asarray(out)[:, None].reshape(case.outputs(variant)["y"].shape),
                )
            else:
                _check_forward(case, variant, graph, params)
                if "loss" in case.outputs(variant):
                    _check_gradients(case, variant, graph, params, tensors)


def _arguments(case, inputs, extra=0):
    """(patches, time, text, keyword arguments) of the model."""
    x, t_B, config = inputs["x"], jnp.asarray(inputs["timestep"]) / 1000, case.config
    projected = None
    if inputs["y"].ndim == 3:  # projected already, and packed: `mask` holds the lengths
        lengths = inputs["mask"]
        parts = np.split(inputs["y"][0], np.cumsum(lengths)[:-1])
        pad = lambda part: np.pad(part, ((0, max(lengths) - len(part)), (0, 0)))
        projected = np.stack([pad(part) for part in parts])
        mask = np.arange(max(lengths))[None] < lengths[:, None]
        inputs = golden_utils.Inputs(inputs | {"mask": mask.astype(int)})
    settings = context(inputs, len(x), x, extra, config, projected)
    text = settings.pop("text_BLE")
    patches = jnp.asarray(tokens(x, extra, config["patch_size"][1:]))
    return patches, t_B, text, settings


def _check_forward(case, variant, graph, params):
    inputs, patch = case.inputs(variant), case.config["patch_size"][1:]
    for name in ("height", "width", "fps"):
        assert inputs[name].ndim == 1
    is_projected = inputs["y"].ndim == 3
    as_is = lambda self, text, drop=None: text

    @golden_utils.quick_jit
    def run(params, patches, t_B, text, settings):
        model = nnx.merge(graph, params)
        classes = stdit.SelfAttention, stdit.CrossAttention, stdit.Block, stdit.FinalLayer
        classes += layers.MLP, layers.Linear, stdit.CaptionEmbedder
        functions = (layers, "rotate"), (layers, "position_embedding")
        with golden_utils.recording(*classes, functions=functions) as calls:
            prediction = model(patches, t_B, text, **settings)
        return prediction, _activations(model, calls)

    with mock.patch.object(
        stdit.CaptionEmbedder, "__call__", as_is if is_projected else stdit.CaptionEmbedder.__call__
    ):
        patches, t_B, text, settings = _arguments(case, inputs)
        prediction, seen = run(params, patches, t_B, text, settings)
        plain = nnx.merge(graph, params)
        padded = _arguments(case, inputs, extra=3)
        again = golden_utils.quick_jit(
            lambda: plain(*padded[:3], **padded[3])
        )()  # stacked, padded tokens
    lengths = np.asarray(settings["text_length_B"])
    rows = seen.pop("y_embedder")
    if not is_projected:
        seen["y_packed"] = np.concatenate([row[:n] for row, n in zip(rows, lengths, strict=True)])[
            None
        ]
        mask = inputs.get("mask")
        if mask is None:
            mask = np.ones(rows.shape[:2])
        mask = np.concatenate([mask] * (len(rows) // len(mask)))
        back = np.argsort(text_order(mask), axis=1)
        seen["y_embedder"] = np.take_along_axis(rows, back[..., None], axis=1)[:, None]
    seen["pos_embed"] = seen["pos_embed"][:1]
    seen["pred"] = latent(prediction, inputs["x"], patch)
    case.check_all(variant, seen)
    case.check(f"{variant}/pred", latent(again, inputs["x"], patch))


def _activations(model, calls):
    """What the reference recorded, by its names, from the recorded calls of ours."""
    flat = lambda x: x.reshape(len(x), -1, x.shape[-1])
    of = lambda cls, module: [out for self, _, out in calls[cls] if self is module]
    seen = {"x_embedder": flat(of("Linear", model.x_embedder)[0])}
    t, t_block = of("MLP", model.t_embedder), of("Linear", model.t_block)
    seen |= {"t_embedder": t[0], "t_block": t_block[0]}
    if len(t) > 1:
        seen |= {"t0_embedder": t[1], "t0_block": t_block[1]}
    seen["fps_embedder"] = of("MLP", model.fps_embedder)[0]
    seen["pos_embed"] = calls["position_embedding"][0][2]
    captions = of("CaptionEmbedder", model.y_embedder)
    seen["y_embedder"] = captions[0] if captions else jnp.zeros((1, 1, 1))
    embedders = model.t_embedder, model.fps_embedder, model.y_embedder.y_proj
    mlps = [out for self, _, out in calls["MLP"] if not any(self is e for e in embedders)]
    for i, (_, arguments, out) in enumerate(calls["Block"]):
        if i == 0:
            seen["block_input"] = flat(arguments[0])
        name = f"{('spatial', 'temporal')[i % 2]}_block_{i // 2}"
        seen[f"{name}/attn"] = calls["SelfAttention"][i][2]
        seen[f"{name}/cross_attn"] = flat(calls["CrossAttention"][i][2])
        seen[f"{name}/mlp"] = flat(mlps[i])
        seen[f"{name}/out"] = seen["before_final_layer"] = flat(out)
    by_head = lambda x: jnp.moveaxis(x, 2, 1)
    for i, (before, _, after) in enumerate(calls["rotate"]):
        name = f"temporal_block_{i // 2}/{'qk'[i % 2]}"
        seen[f"{name}_before_rope"] = by_head(before)
        seen[f"{name}_after_rope"] = by_head(after)
    seen["final_layer"] = flat(calls["FinalLayer"][0][2])
    return seen


def _check_gradients(case, variant, graph, params, tensors):
    inputs, patch = case.inputs(variant), case.config["patch_size"][1:]
    patches, t_B, text, settings = _arguments(case, inputs)
    h, w = inputs["x"].shape[3:]

    @golden_utils.quick_jit
    @jax.value_and_grad
    def loss_and_grads(trees):
        params, patches = trees
        prediction = nnx.merge(graph, params)(patches, t_B, text, **settings)
        return jnp.square(layers.unpatchify(prediction, h, w, patch)).mean()

    loss, (grads, grad_patches) = loss_and_grads((params, patches))
    got = {
        "loss": np.asarray(loss).reshape(1),
        "grad_input": latent(grad_patches, inputs["x"], patch),
    }
    got |= {f"grad/{tensor.name}": value(grads, tensors, tensor.name) for tensor in tensors}
    case.check_all(variant, got)
    for name, norm in case.spec["extra"]["grad_l2_norms"].get(variant, {}).items():
        atol = 1e-4 * norm + 1e-6  # float32; some gradients are zero in exact arithmetic
        case.compare(f"norm of {name}", np.linalg.norm(got[f"grad/{name}"]), norm, atol)


def check_parts(case):
    """Single blocks; the names of their weights start with the block's."""
    with jax.default_matmul_precision("highest"):
        for variant in case.variants:
            checks = [(r"pos_embed", _check_positions), (r"timestep", _check_sinusoid)]
            checks += [(r"rope", _check_rope), (r"rmsnorm.*", _check_rmsnorm)]
            checks += [(r"layernorm.*", _check_layernorm), (r"self_attention.*", _check_self)]
            checks += [(r"cross_attention", _check_cross), (r"patch_embed.*", _check_patches)]
            checks += [(r"size_embed", _check_size), (r"final_layer", _check_final)]
            check = next((f for pattern, f in checks if re.fullmatch(pattern, variant)), None)
            assert check, f"{case.name} has the part {variant}, which is unknown here"
            check(case, variant, case.inputs(variant))


def _part(case, name, make):
    """A module of ours with the weights of a part."""
    state = case.group("state_dict")
    state = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
    state = {k.replace("mlp.0.", "fc1.").replace("mlp.2.", "fc2."): v for k, v in state.items()}
    model = golden_utils.abstract(make)
    tensors = [
        torch_names.Tensor(
            re.sub("kernel$", "weight", path.replace("/", ".")),
            shape[::-1] if path.endswith("kernel") else shape,
            path,
            kind="kernel" if path.endswith("kernel") else "as is",
        )
        for path, shape in golden_utils.shapes_of(model).items()
    ]
    return golden_utils.with_params(model, golden_utils.from_torch(state, tensors))


def _check_positions(case, variant, inputs):
    for i, settings in enumerate(case.config["pos_embed_cases"]):
        rows, columns, scale = settings["h"], settings["w"], settings["scale"]
        stretch = lambda n: (settings["base_size"] or n) / n / scale
        position_S2 = np.stack(np.mgrid[:rows, :columns], -1).reshape(-1, 2).astype(np.float64)
        position_S2 *= [stretch(rows), stretch(columns)]
        if settings["base_size"] == round((rows * columns) ** 0.5):
            made = layers.patch_positions(rows, columns, (scale, scale), 1, rows * columns)
            np.testing.assert_allclose(made, position_S2, rtol=1e-6)
        position_BS2 = jnp.asarray(position_S2, jnp.float32)[None]
        got = layers.position_embedding(position_BS2, case.config["pos_embed_dim"])
        case.check(f"{variant}/{i}", got)


def _check_sinusoid(case, variant, inputs):
    t = jnp.asarray(inputs["t"])
    got = {"emb": layers.sinusoid(t, case.config["timestep_dim"])}
    got["emb_odd"] = layers.sinusoid(t, case.config["odd_timestep_dim"])
    case.check_all(variant, got)


def _check_rope(case, variant, inputs):
    frequencies = jnp.asarray(layers.rope_frequencies(case.config["rope_dim"]))
    rotated = layers.rotate(jnp.moveaxis(jnp.asarray(inputs["x"]), 1, 2), frequencies)
    case.check_all(variant, {"freqs": frequencies, "out": jnp.moveaxis(rotated, 2, 1)})


def _check_rmsnorm(case, variant, inputs):
    x = jnp.asarray(inputs["x"])
    model = _part(case, "rmsnorm", lambda rngs: layers.RMSNorm(x.shape[-1]))
    case.check(f"{variant}/out", model(x))


def _check_layernorm(case, variant, inputs):
    norm = layers.layer_norm(jnp.asarray(inputs["x"]))
    if "shift" not in inputs:
        case.check(f"{variant}/out", norm)
        return
    out = layers.modulate(norm, jnp.asarray(inputs["shift"]), jnp.asarray(inputs["scale"]))
    case.check_all(variant, {"norm": norm, "out": out})


def _check_self(case, variant, inputs):
    width, heads = case.config["attn_dim"], case.config["attn_heads"]
    make = lambda rngs: stdit.SelfAttention(
        width, heads, rngs=rngs, dtype=jnp.float32, qk_norm=True
    )
    rope = layers.rope_frequencies(width // heads) if variant.endswith("rope") else None
    model = _part(case, variant, make)
    out = model(jnp.asarray(inputs["x"]), rope_F=None if rope is None else jnp.asarray(rope))
    case.check(f"{variant}/out", out)


def _check_cross(case, variant, inputs):
    width, heads = case.config["attn_dim"], case.config["attn_heads"]
    make = lambda rngs: stdit.CrossAttention(width, heads, rngs=rngs, dtype=jnp.float32)
    lengths = inputs["lens"]
    parts = np.split(inputs["cond"][0], np.cumsum(lengths)[:-1])
    text = np.stack([np.pad(part, ((0, max(lengths) - len(part)), (0, 0))) for part in parts])
    model = _part(case, variant, make)
    case.check(f"{variant}/out", model(*map(jnp.asarray, (inputs["x"], text, lengths))))


def _check_patches(case, variant, inputs):
    """Patches of several frames are cut as patches of one, with the frames as channels."""
    weight = case.state_dict()[f"{variant}.proj.weight"]
    bias = case.state_dict()[f"{variant}.proj.bias"]
    frames, patch = weight.shape[2], weight.shape[3:]
    x = np.asarray(inputs["x"])
    x = np.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % frames), (0, 0), (0, 0)))
    B, C, T, H, W = x.shape
    x = np.moveaxis(x.reshape(B, C, T // frames, frames, H, W), 3, 2)
    x = x.reshape(B, C * frames, T // frames, H, W)
    weight = weight.reshape(len(weight), C * frames, 1, *patch)
    tensor = torch_names.Tensor("", weight.shape, "x_embedder/kernel", kind="patch")
    out = tokens(x, 0, patch) @ tensor.to_ours(weight) + bias
    case.check(f"{variant}/out", out.reshape(B, -1, out.shape[-1]))


def _check_size(case, variant, inputs):
    width = case.config["attn_dim"]
    silu = {"dtype": jnp.float32, "activation": jax.nn.silu}
    model = _part(case, variant, lambda rngs: layers.MLP(256, width, width, rngs=rngs, **silu))
    out = np.asarray(model(layers.sinusoid(jnp.asarray(inputs["s"]))))
    repeated = case.outputs(variant)["repeated"]
    case.check_all(variant, {"out": out, "repeated": np.repeat(out[:1], len(repeated), 0)})


def _check_final(case, variant, inputs):
    B, q, D = inputs["x"].shape
    mask_Bt = jnp.asarray(inputs["x_mask"])
    x_BtSD = jnp.asarray(inputs["x"]).reshape(B, mask_Bt.shape[1], -1, D)
    outputs = case.outputs(variant)["out"].shape[-1]
    make = lambda rngs: stdit.FinalLayer(D, outputs, rngs=rngs, dtype=jnp.float32)
    model = _part(case, variant, make)
    t_BD, t0_BD = jnp.asarray(inputs["t"]), jnp.asarray(inputs["t0"])
    got = {"out": model(x_BtSD, t_BD), "out_masked": model(x_BtSD, t_BD, t0_BD, mask_Bt)}
    case.check_all(variant, {name: out.reshape(B, q, -1) for name, out in got.items()})
