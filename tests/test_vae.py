"""The video autoencoder: its lengths, sizes and causality are as stated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_utils import abstract, quick_jit, random_model

from vidgen.models import conv, vae, vae_spatial, vae_temporal

TINY = {
    "spatial": {"channels": (4, 8), "layers_per_block": 1, "latent_channels": 4, "groups": 2},
    "temporal": {
        "filters": 4,
        "channel_multipliers": (1, 2, 2),
        "temporal_downsample": (True, True),
    }
    | {"num_res_blocks": 1, "groups": 2},
}


def tiny_vae(**kwargs):
    return random_model(lambda rngs: vae.VideoVAE(**TINY, **kwargs, rngs=rngs))


@pytest.fixture(scope="module")
def tiny():
    return tiny_vae()


def video(frames, height=6, width=4, batch=1):
    return jax.random.uniform(jax.random.key(1), (batch, frames, height, width, 3), minval=-1.0)


@pytest.mark.parametrize("time_stride", [1, 2])
def test_cpu_form_of_the_causal_convolution_equals_the_3d_one(time_stride, monkeypatch):
    x_BTHWC = jax.random.normal(jax.random.key(0), (2, 6, 5, 4, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 3, 7))
    value_and_grad = lambda: jax.value_and_grad(
        lambda x, k: jnp.sum(jnp.sin(conv.causal_conv3d(x, k, time_stride))), argnums=(0, 1)
    )(x_BTHWC, kernel)
    by_2d = value_and_grad()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    by_3d = value_and_grad()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), by_2d, by_3d)


@pytest.mark.parametrize("time_stride", [1, 2])
def test_causal_convolution_ignores_later_frames(time_stride):
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 2, 3))
    x_BTHWC = jax.random.normal(jax.random.key(0), (1, 6, 5, 4, 2))
    for i in range(6 // time_stride):
        frame = lambda x, i=i: conv.causal_conv3d(x, kernel, time_stride)[:, i].sum()
        seen_T = np.abs(jax.grad(frame)(x_BTHWC)).sum((0, 2, 3, 4)) > 0
        last = (
            i * time_stride + time_stride - 1
        )  # of the stride's frames, so stride 2 pads one frame
        np.testing.assert_array_equal(seen_T, [last - 2 <= t <= last for t in range(6)])


def test_latent_frame_depends_on_all_frames_of_its_chunk_and_on_no_other():
    model = tiny_vae(chunk_frames=5)
    frame = lambda video_BTHWC, i: jnp.square(model.encode(video_BTHWC)[0][:, i]).sum()
    grad = quick_jit(jax.grad(frame))
    seen = lambda i: np.abs(grad(video(7), i)).sum((0, 2, 3, 4)) > 0  # chunks of 5 and 2 frames
    np.testing.assert_array_equal(seen(0), [True] * 5 + [False] * 2)  # group norm looks ahead
    np.testing.assert_array_equal(seen(2), [False] * 5 + [True] * 2)


@pytest.mark.parametrize(
    ("chunk_frames", "frames"), [(17, 1), (17, 4), (17, 17), (17, 18), (17, 39), (None, 6), (5, 11)]
)
def test_latent_shape_is_that_of_the_encoder_and_decode_gives_the_length_back(chunk_frames, frames):
    model = tiny_vae(chunk_frames=chunk_frames)
    video_BTHWC = video(frames, height=7, width=5, batch=2)
    mean, logvar = jax.eval_shape(model.encode, video_BTHWC)
    shape = vae.latent_shape(frames, 7, 5, chunk_frames=chunk_frames, spatial_stride=2)
    assert mean.shape == logvar.shape == (2, *shape)
    decoded = jax.eval_shape(lambda z: model.decode(z, frames), mean)
    assert decoded.shape == (2, frames, 6, 4, 3)  # odd sizes round down


def test_latent_frames_of_the_published_chunks():
    lengths = {
        1: 1,
        17: 5,
        18: 6,
        33: 9,
        34: 10,
        51: 15,
        64: 19,
        102: 30,
        204: 60,
        408: 120,
        816: 240,
    }
    assert {frames: vae.latent_frames(frames) for frames in lengths} == lengths
    assert vae.latent_shape(51, 240, 426) == (15, 30, 53, 4)


@pytest.mark.parametrize("frames", [1, 5, 13, 17, 18, 34, 51, 102])
def test_check_frames_accepts_whole_chunks_and_one_plus_a_multiple_of_the_stride(frames):
    vae.check_frames(frames)


@pytest.mark.parametrize(
    ("frames", "nearest"), [(16, "13 or 17"), (33, "30 or 34"), (2, "1 or 5"), (0, "use 1.")]
)
def test_check_frames_names_the_nearest_lengths_that_fit(frames, nearest):
    with pytest.raises(ValueError, match=f"data.num_frames={frames} does not fit.*{nearest}"):
        vae.check_frames(frames)


def test_check_frames_without_chunks():
    vae.check_frames(33, chunk_frames=None)
    with pytest.raises(ValueError, match=r"clip=32 .* needs 1 [+] a multiple of 8: use 25 or 33"):
        vae.check_frames(32, chunk_frames=None, time_stride=8, name="clip")


def test_decode_refuses_a_length_that_the_latent_does_not_have(tiny):
    with pytest.raises(ValueError, match="num_frames=18 has 6 latent frames, but the latent has 5"):
        tiny.decode(jnp.zeros((1, 5, 3, 2, 4)), 18)


def test_slices_change_nothing(tiny):
    sliced = tiny_vae(slice_pixels=4 * 6 * 4)
    video_BTHWC = video(5, batch=2)  # 10 images of 6 x 4: two slices of 4, and 2
    latent = quick_jit(tiny.encode_spatial)(video_BTHWC)
    # another order of sums
    np.testing.assert_allclose(quick_jit(sliced.encode_spatial)(video_BTHWC), latent, atol=1e-5)


def test_slices_of_whole_clips_keep_their_shapes():
    sliced = tiny_vae(chunk_frames=5, slice_pixels=3 * 6 * 4)
    mean, _ = jax.eval_shape(sliced.encode, video(12, batch=2))  # 4 chunks and 2 rests
    assert mean.shape == (2, 5, 3, 2, 4)
    assert jax.eval_shape(lambda z: sliced.decode(z, 12), mean).shape == (2, 12, 6, 4, 3)


def test_normalise_is_undone_by_denormalise_and_uses_shift_and_scale(tiny):
    z = jax.random.normal(jax.random.key(0), (1, 2, 3, 2, 4))
    np.testing.assert_allclose(tiny.denormalise(tiny.normalise(z)), z, atol=1e-6)
    np.testing.assert_allclose(tiny.normalise(tiny.shift[...]), 0, atol=1e-7)
    np.testing.assert_allclose(tiny.normalise(tiny.shift[...] + tiny.scale[...]), 1, rtol=1e-6)


def test_a_key_draws_the_spatial_latent_and_none_takes_its_mean(tiny):
    video_BTHWC = video(2)
    encode = quick_jit(tiny.encode_spatial)
    one, same, other = (encode(video_BTHWC, jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    moments = tiny.spatial.moments(video_BTHWC[0])
    mean = vae.split_moments(moments)[0] * tiny.scaling_factor
    np.testing.assert_allclose(tiny.encode_spatial(video_BTHWC)[0], mean, atol=1e-6)


def test_bfloat16_computes_near_float32_and_keeps_float32_results(tiny):
    half = tiny_vae(dtype=jnp.bfloat16)
    mean, _ = quick_jit(tiny.encode)(video(5))
    half_mean, _ = quick_jit(half.encode)(video(5))
    assert half_mean.dtype == jnp.float32
    # bfloat16 keeps 8 bits; about ten layers add up their rounding
    assert 0 < jnp.abs(half_mean - mean).max() < 0.05 * jnp.abs(mean).max()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(half)))


def test_full_size_tree_has_the_tensors_of_the_published_one():
    model = abstract(lambda rngs: vae.VideoVAE(rngs=rngs))
    params = nnx.to_pure_dict(nnx.state(model))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert len(jax.tree.leaves(params)) == 517
    assert count(params["spatial"]) == 83_653_863
    assert count(params["temporal"]["encoder"]) == 144_421_128
    assert count(params["temporal"]["decoder"]) == 165_265_924
    assert count(params["temporal"]) == 309_687_144


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(
        ValueError, match=r"10 channels do not divide into 4 norm groups.* such as 2"
    ):
        conv.GroupNorm(10, 4, 1e-6, dtype=jnp.float32)


def test_one_downsampling_entry_too_many_is_refused():
    with pytest.raises(ValueError, match=r"temporal_downsample has 2 entries.* 1 in all"):
        vae_temporal.TemporalVAE(4, (1, 2), (True, True), groups=2, rngs=nnx.Rngs(0))


def test_shift_of_another_length_is_refused():
    with pytest.raises(ValueError, match="shift has 3 values and the latent has 4 channels"):
        abstract(lambda rngs: vae.VideoVAE(**TINY, shift=(0, 0, 0), rngs=rngs))


def test_initialisation_is_uniform_with_the_deviation_of_its_fan_in():
    model = vae_spatial.SpatialVAE((8, 16), 1, groups=4, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model))["encoder"]["mid_block"]["resnets"]["0"]
    bound = (16 * 9) ** -0.5
    for kernel in (params["conv1"]["kernel"], params["conv2"]["kernel"]):
        assert bound * 0.99 < np.abs(kernel).max() <= bound
        assert np.std(kernel) == pytest.approx(bound / 3**0.5, rel=0.05)  # of 2304 values
    assert np.abs(params["conv1"]["kernel"] - params["conv2"]["kernel"]).max() > bound
    assert 0 < np.abs(params["conv1"]["bias"]).max() <= bound
    np.testing.assert_array_equal(params["norm1"]["scale"], 1)
