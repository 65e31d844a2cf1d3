"""The frozen models around the transformer, and the grid of tokens between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import toy_training as toy
from vidgen.diffusion import encoders
from vidgen.models import layers
from vidgen.weights import tree_files


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = toy.config()
    config.vae.weights = str(toy.vae(tmp_path_factory.mktemp("encoders")))
    return config


@pytest.fixture(scope="module")
def models(config):
    return encoders.Encoders(config)


@pytest.fixture(scope="module")
def frozen(models):
    frozen = models.load()
    shift, scale = jnp.array([0.5, -1.0, 0.0, 2.0]), jnp.array([2.0, 0.5, 1.0, 3.0])
    return frozen | {"vae": frozen["vae"] | {"shift": shift, "scale": scale}}


def test_all_pixel_values_come_back():
    pixels = np.arange(256, dtype=np.uint8)
    floats = encoders.from_uint8(pixels)
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(encoders.to_uint8(floats), pixels)
    beyond = jnp.array([-1.7, -1.001, 1.001, 9.0, 0.0037])
    np.testing.assert_array_equal(encoders.to_uint8(beyond), [0, 0, 255, 255, 128])


def test_a_picture_that_the_vae_would_cut_is_refused():
    encoders.check_size(24, 40, 4)
    for size, message in [
        ((30, 40), "height=30 is no multiple of the VAE's stride 4: use 32"),
        ((24, 41), "width=41 .* use 40"),
        ((0, 40), "height=0 .* use 4"),
        ((-4, 40), "height=-4"),
    ]:
        with pytest.raises(ValueError, match=message):
            encoders.check_size(*size, 4)


def test_buckets_are_checked_against_the_vae():
    config = toy.config()  # chunks of 17 frames, time stride 2
    config.data.buckets = {"32": {"1x": (1.0, 2), "17": (0.5, 4)}, "64": {"20": (1.0, 2)}}
    table = encoders.bucket_table(config)
    assert table == {"32": {51: (1.0, 2), 17: (0.5, 4)}, "64": {20: (1.0, 2)}}
    config.data.buckets["64"]["16"] = (1.0, 2)
    with pytest.raises(ValueError, match=r"data.buckets.64: frames=16 does not fit .* 15 or 17"):
        encoders.bucket_table(config)


def test_weights_of_another_vae_are_refused_tensor_by_tensor(config, tmp_path):
    other = config.copy_and_resolve_references()
    other.vae.model.temporal.filters = 8
    with pytest.raises(ValueError) as error:
        encoders.Encoders(other).load()
    lines = str(error.value).splitlines()
    assert config.vae.weights in lines[0] and "Use the config" in lines[-1]
    conv_in = "  temporal/encoder/conv_in/kernel: (3, 3, 3, 4, 4) there, (3, 3, 3, 4, 8) in the"
    assert conv_in in str(error.value)
    other.vae.weights = ""
    with pytest.raises(ValueError, match="vae.weights is empty: give the working folder of a"):
        encoders.Encoders(other).load()


def test_the_random_text_encoder_is_always_the_same_one(config, models, frozen):
    again = encoders.Encoders(config).load()
    for x, y in zip(jax.tree.leaves(frozen["text"]), jax.tree.leaves(again["text"]), strict=True):
        np.testing.assert_array_equal(x, y)
    ids_BL, mask_BL = models.tokenize(["a red circle", "a blue square"])
    text_BLE = models.encode_text(frozen, ids_BL, mask_BL)
    assert text_BLE.shape == (2, config.text.max_tokens, config.text.model.width)
    assert not np.allclose(text_BLE[0], text_BLE[1])


def test_latents_are_normalised_and_decoded_from_there(models, frozen):
    video_BTHWC = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 12, 3), np.uint8)
    model = nnx.merge(models.vae_graph, frozen["vae"])
    mean_Bthwc, logvar_Bthwc = model.encode(encoders.from_uint8(video_BTHWC))
    got_mean, got_std = models.encode_video(frozen, video_BTHWC, None)
    assert got_mean.shape[1:] == models.latent_shape(3, 8, 12)
    shift, scale = (np.asarray(frozen["vae"][name]) for name in ("shift", "scale"))
    np.testing.assert_allclose(got_mean, (np.asarray(mean_Bthwc) - shift) / scale, atol=1e-5)
    std_Bthwc = np.exp(0.5 * np.asarray(logvar_Bthwc))
    np.testing.assert_allclose(got_std, std_Bthwc / scale, rtol=1e-5)  # float32
    decoded = models.decode_video(frozen, got_mean, 3)
    expected = encoders.to_uint8(model.decode(mean_Bthwc, 3))
    difference = np.abs(np.asarray(decoded, int) - np.asarray(expected, int))
    assert difference.max() <= 1  # where rounding tips


def test_all_aspects_of_a_resolution_share_the_number_of_tokens(models):
    sizes = {"0.60": (24, 40), "1.00": (32, 32), "1.67": (40, 24)}
    grids = {}
    for aspect, (height, width) in sizes.items():
        _, h, w, _ = models.latent_shape(17, height, width)
        grids[aspect] = grid = models.grid(3, h, w, (height, width))
        assert grid["length"].tolist() == [h * w // 4] * 3
        assert grid["position"].shape == (3, 64, 2)
        assert grid["real"].shape == (3, 1, 64, 16)
        np.testing.assert_array_equal(grid["real"].sum((1, 2, 3)), h * w * 4)


def test_odd_latents_are_padded_and_come_back(models):
    latent_Bthwc = np.random.default_rng(0).normal(size=(2, 3, 5, 7, 4)).astype(np.float32)
    tokens_BtSP = models.to_tokens(latent_Bthwc)
    assert tokens_BtSP.shape == (2, 3, 16, 16)  # 3 x 4 patches, up to a multiple of 8
    grid = models.grid(2, 5, 7, (10, 14))
    assert grid["length"].tolist() == [12, 12]
    np.testing.assert_array_equal(grid["real"].sum((1, 2, 3)), 5 * 7 * 4)
    np.testing.assert_array_equal(tokens_BtSP * (1 - grid["real"]), 0)
    np.testing.assert_array_equal(layers.unpatchify(tokens_BtSP, 5, 7, (2, 2)), latent_Bthwc)


def test_a_module_is_split_without_its_arrays():
    kinds = {"activation": jnp.tanh, "dtype": jnp.float32}
    graph, init = encoders.split(lambda rngs: layers.MLP(3, 5, 2, rngs=rngs, **kinds))
    params, again = init(jax.random.key(1)), init(jax.random.key(1))
    shapes = {name: x.shape for name, x in tree_files.flatten(params).items()}
    assert shapes["fc1/kernel"] == (3, 5) and shapes["fc2/bias"] == (2,)
    np.testing.assert_array_equal(params["fc1"]["kernel"], again["fc1"]["kernel"])
    assert not np.allclose(params["fc1"]["kernel"], init(jax.random.key(2))["fc1"]["kernel"])
    assert nnx.merge(graph, params)(jnp.ones((4, 3))).shape == (4, 2)


@pytest.mark.parametrize("asked, expected", [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_computation_is_in_float32_on_a_cpu_unless_asked(asked, expected):
    config = toy.config()
    config.dtype = asked
    assert encoders.compute_dtype(config) == expected
