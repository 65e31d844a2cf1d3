"""Golden cases of the frozen models: both parts of the video VAE, their chain, and the T5."""

import golden_utils
import jax
import jax.numpy as jnp
import numpy as np
from golden_utils import channels_first, channels_last, quick_jit

from vidgen.models import conv, text, vae, vae_loss, vae_spatial, vae_temporal
from vidgen.weights import torch_names


def spatial_arguments(config):
    """Arguments of `vae_spatial.SpatialVAE` of a golden config."""
    assert config["act_fn"] == "silu" and config["in_channels"] == config["out_channels"]
    return {
        "channels": config["block_out_channels"],
        "layers_per_block": config["layers_per_block"],
        "latent_channels": config["latent_channels"],
        "image_channels": config["in_channels"],
        "groups": config["norm_num_groups"],
    }


def temporal_arguments(config):
    """Arguments of `vae_temporal.TemporalVAE` of a golden config."""
    assert config["latent_embed_dim"] == config["embed_dim"]
    names = ("filters", "channel_multipliers", "temporal_downsample", "num_res_blocks")
    arguments = {name: config[name] for name in names}
    arguments |= {"latent_channels": config["embed_dim"], "channels": config["in_out_channels"]}
    return arguments | {"groups": config["num_groups"]}


def _load(make, state_dict, part=None):
    """The model with the weights of a state dict; `part` of the VAE, if it is not the whole."""
    model = golden_utils.abstract(make)
    shapes = golden_utils.shapes_of(model)
    if part:
        shapes = {f"{part}/{path}": shape for path, shape in shapes.items()}
    params = golden_utils.from_torch(state_dict, torch_names.vae(shapes))
    return golden_utils.with_params(model, params[part] if part else params)


def _images(x_BCTHW):
    """Frames [B T, H, W, C] of a video in the reference's layout."""
    x_BTHWC = channels_last(x_BCTHW)
    return x_BTHWC.reshape(-1, *x_BTHWC.shape[2:])


def _check_latent_sizes(case, found):
    for variant, size in case.spec.get("extra", {}).get("latent_size", {}).items():
        assert list(found[variant]) == size, variant


def check_spatial(case):
    arguments = spatial_arguments(case.config["autoencoder_kl"])
    state = case.state_dict()
    state = {f"spatial_vae.{name}": value for name, value in state.items()}
    model = _load(lambda rngs: vae_spatial.SpatialVAE(**arguments, rngs=rngs), state, "spatial")
    factor = case.config["wrapper_scaling_factor"]

    @quick_jit
    def encode(image_NHWC):
        classes = conv.Conv2d, vae_spatial.Level, vae_spatial.MidBlock
        with golden_utils.recording(*classes) as calls:
            moments = model.moments(image_NHWC)
        downs = [out for _, _, out in calls["Level"]]
        stages = {f"down_{i}": out for i, out in enumerate(downs)}
        stages |= {"conv_in": calls["Conv2d"][0][2], "mid": calls["MidBlock"][0][2]}
        return moments, {f"encoder_stage/{name}": out[:1] for name, out in stages.items()}

    decode, sizes = quick_jit(model.decode), {}
    for variant in case.variants:
        inputs = case.inputs(variant)
        moments, got = encode(_images(inputs["x"]))
        mean, logvar = vae.split_moments(moments)
        std = jnp.exp(0.5 * logvar)
        got |= {"moments": moments, "mean": mean, "std": std}
        got = {name: channels_first(x) for name, x in got.items()}
        drawn = (mean + std * channels_last(inputs["noise"])) * factor
        clips = len(inputs["x"])
        got["latent"] = channels_first(drawn.reshape(clips, -1, *drawn.shape[1:]))
        sizes[variant] = got["latent"].shape[2:]
        images = decode(_images(inputs["z"]) / factor)
        got["decoded"] = channels_first(images.reshape(clips, -1, *images.shape[1:]))
        case.check_all(variant, got)
    _check_latent_sizes(case, sizes)


def check_temporal(case):
    arguments = temporal_arguments(case.config)
    state = {f"temporal_vae.{name}": value for name, value in case.state_dict().items()}
    model = _load(lambda rngs: vae_temporal.TemporalVAE(**arguments, rngs=rngs), state, "temporal")

    @quick_jit
    def encode(x_BThwc):
        with golden_utils.recording(conv.CausalConv3d, vae_temporal.ResBlock) as calls:
            moments = model.moments(x_BThwc)
        stages = {"conv_in": calls["CausalConv3d"][0][2]}
        stages["first_res_block"] = calls["ResBlock"][0][2]
        return moments, {f"encoder_stage/{name}": out for name, out in stages.items()}

    decode, sizes = quick_jit(model.decode, static_argnums=1), {}
    for variant in case.variants:
        inputs, got = case.inputs(variant), {}
        if "moments" in inputs:
            moments = channels_last(inputs["moments"])
        else:
            moments, got = encode(channels_last(inputs["x"]))
            got["moments"] = moments
        mean, logvar = vae.split_moments(moments)
        std = jnp.exp(0.5 * logvar)
        got |= {"mean": mean, "logvar": logvar, "std": std}
        got["sample"] = mean + std * channels_last(inputs["noise"])
        if "x" in inputs:
            frames = inputs["x"].shape[2]
            sizes[variant] = mean.shape[1:4]
            got["decoded"] = decode(channels_last(inputs["z"]), frames)
            got["reconstruction_of_mean"] = decode(mean, frames)
        got = {name: channels_first(x) for name, x in got.items()}
        got["kl"] = vae_loss.kl_divergence(mean, logvar)
        case.check_all(variant, got)
    _check_latent_sizes(case, sizes)


def _by_batch(f, x, size=17):
    """f of rows that do not see each other, `size` at a time: all lengths share a program."""
    padded = np.pad(x, ((0, -len(x) % size),) + ((0, 0),) * (x.ndim - 1))
    return jnp.concatenate([f(part) for part in np.split(padded, len(padded) // size)])[: len(x)]


def check_pipeline(case):
    config, sizes = case.config, {}
    encode = decode = None  # of the image autoencoder, the same in all variants
    for variant in case.variants:
        chunk = None if "no_chunking" in variant else config["micro_frame_size"]
        arguments = {
            "spatial": spatial_arguments(config["vae_2d"]),
            "temporal": temporal_arguments(config["vae_temporal"]),
            "chunk_frames": chunk,
            "scaling_factor": config["spatial_scaling_factor"],
        }
        model = _load(lambda rngs: vae.VideoVAE(**arguments, rngs=rngs), case.state_dict())
        encode = encode or quick_jit(model.spatial.moments)
        decode = decode or quick_jit(model.spatial.decode)
        np.testing.assert_array_equal(model.shift[...], np.float32(config["shift"]))
        np.testing.assert_array_equal(model.scale[...], np.float32(config["scale"]))
        inputs = case.inputs(variant)
        clips, _, frames, height, width = inputs["x"].shape
        sizes[variant] = vae.latent_shape(frames, height, width, chunk_frames=chunk)[:3]
        mean, logvar = vae.split_moments(_by_batch(encode, _images(inputs["x"])))
        x_z = mean + jnp.exp(0.5 * logvar) * channels_last(inputs["noise_spatial"])
        x_z = (x_z * model.scaling_factor).reshape(clips, frames, *x_z.shape[1:])

        @quick_jit
        def encode_temporal(x_z):
            with golden_utils.recording(functions=[(vae, "split_moments")]) as calls:
                return model.encode_temporal(x_z), calls["split_moments"][0][0]

        (mean, logvar), moments = encode_temporal(x_z)
        drawn = mean + jnp.exp(0.5 * logvar) * channels_last(inputs["noise_temporal"])
        got = {"spatial_latent": x_z, "temporal_moments": moments, "z": model.normalise(drawn)}
        z = model.denormalise(channels_last(inputs["z"]))
        spatial = quick_jit(model.decode_temporal, static_argnums=1)(z, frames)
        got |= {"decoded_spatial_latent": spatial}
        images = _by_batch(decode, spatial.reshape(-1, *spatial.shape[2:]) / model.scaling_factor)
        got["decoded"] = images.reshape(clips, frames, *images.shape[1:])
        case.check_all(variant, {name: channels_first(x) for name, x in got.items()})
    _check_latent_sizes(case, sizes)


def check_t5(case):
    config = case.config
    assert config["feed_forward_proj"] == "gated-gelu"
    bucket_settings = {
        "buckets": config["relative_attention_num_buckets"],
        "max_distance": config["relative_attention_max_distance"],
    }
    model = golden_utils.abstract(
        lambda rngs: text.T5Encoder(
            vocab_size=config["vocab_size"],
            width=config["d_model"],
            head_width=config["d_kv"],
            heads=config["num_heads"],
            mlp_width=config["d_ff"],
            depth=config["num_layers"],
            **bucket_settings,
            rngs=rngs,
        )
    )
    tensors = torch_names.t5(golden_utils.shapes_of(model))
    params = golden_utils.from_torch(case.state_dict(), tensors)
    model = golden_utils.with_params(model, params)

    @jax.jit
    def encode(ids_BL, mask_BL):
        with golden_utils.recording(text.Block) as calls:
            out = model(ids_BL, mask_BL)
        inputs = {f"block_input/{i}": args[0] for i, (_, args, _) in enumerate(calls["Block"])}
        return {"last_hidden_state": out} | inputs

    for variant in case.variants:
        inputs, outputs = case.inputs(variant), case.outputs(variant)
        if "relative_position" in outputs:
            case.check(f"{variant}/relative_position", outputs["relative_position"])
            found = text.relative_buckets(outputs["relative_position"], **bucket_settings)
            case.check(f"{variant}/bucket", found)
        else:
            got = encode(inputs["input_ids"], inputs["attention_mask"])
            case.check_all(variant, got)
