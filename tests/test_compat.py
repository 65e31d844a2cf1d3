"""The switches of compat="open-sora-1.2" give the numbers that were measured on the original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import tiny
from vidgen import tasks
from vidgen.diffusion import encoders, flow
from vidgen.models import compat, layers, stdit, vae
from vidgen.training import optim
from vidgen.weights import torch_names, tree_files

MODE = "open-sora-1.2"

# spec B.6: height, width, frames -> ratio in bfloat16, exact ratio
RATIOS = {
    (512, 512, 1): (1.0, 1.0),
    (240, 426, 51): (2.421875, 2.418723),
    (360, 640, 102): (5.125, 5.134899),
    (480, 854, 102): (6.84375, 6.849206),
    (720, 1280, 102): (10.25, 10.269798),
    (720, 1280, 408): (20.5, 20.539596),
}


@pytest.mark.parametrize("size", RATIOS)
def test_ratio_of_times_is_rounded_at_every_step(size):
    rounded, exact = RATIOS[size]
    assert float(flow.shift_ratio(*size, compat=MODE)) == rounded
    np.testing.assert_allclose(flow.shift_ratio(*size), exact, rtol=1e-6)


def test_short_clips_lose_their_times():
    assert float(flow.shift_ratio(512, 512, 16, compat=MODE)) == 0
    assert float(flow.shift_ratio(512, 512, 16)) == 1


@pytest.mark.parametrize(("frames", "error"), [(15, 0.041), (30, 0.082), (120, 0.44)])
def test_rotary_angles_err_as_measured(frames, error):  # spec 1.2
    frequencies = jnp.asarray(layers.rope_frequencies(72))
    exact = layers.rope_angles(frames, frequencies)
    rounded = layers.rope_angles(frames, frequencies, jnp.bfloat16)
    np.testing.assert_allclose(np.abs(rounded - exact).max(), error, rtol=0.02)


def test_a_target_is_rounded_three_times():
    rng = np.random.default_rng(0)
    latent, noise = (jnp.asarray(rng.normal(size=(1, 2, 3)), jnp.float32) for _ in range(2))
    half = lambda x: x.astype(jnp.bfloat16)
    noisy, velocity = flow.interpolate(latent, noise, jnp.array([0.5]), compat=MODE)
    np.testing.assert_array_equal(velocity, (half(latent) - half(noise)).astype(jnp.float32))
    mixed = 0.5 * half(latent).astype(jnp.float32) + 0.5 * half(noise).astype(jnp.float32)
    np.testing.assert_array_equal(noisy, mixed)


def test_statistics_of_latents_are_those_that_the_published_model_saw():  # spec 2.3
    tiny = {"spatial": {"channels": (4,), "layers_per_block": 1, "groups": 2}}
    tiny["temporal"] = {"filters": 2, "num_res_blocks": 1, "groups": 2}
    model = lambda **chosen: vae.VideoVAE(**tiny, **chosen, rngs=nnx.Rngs(0))
    half = model(dtype=jnp.bfloat16, compat=MODE)
    shift, scale = half.denormalise(jnp.zeros(4)), half.denormalise(jnp.ones(4))
    np.testing.assert_array_equal(shift, [-0.10009765625, 0.33984375, 0.26953125, 0.98046875])
    np.testing.assert_allclose(scale - shift, [3.84375, 2.3125, 2.328125, 3.0625], rtol=1e-6)


def measured_model(dtype, mode):
    """The model and input of spec B.1 and B.2: every value a sine of its place."""
    sizes = {"width": 144, "depth": 2, "heads": 2, "text_width": 32, "text_tokens": 8}
    make = lambda: stdit.STDiT(**sizes, dtype=dtype, compat=mode, rngs=nnx.Rngs(0))
    abstract = nnx.eval_shape(make)
    flat = tree_files.flatten(nnx.to_pure_dict(nnx.state(abstract)))
    tensors = torch_names.stdit({path: x.shape for path, x in flat.items()}, (2, 2))
    names = sorted(t.name for t in tensors if t.name != "rope.freqs")

    def read(name):
        if name == "rope.freqs":
            return layers.rope_frequencies(72)
        shape = next(t.shape for t in tensors if t.name == name)
        j = np.arange(np.prod(shape), dtype=np.float64)
        s = np.sin(0.37 * j**2 + 0.9 * j + 0.7 * names.index(name)).reshape(shape)
        if len(shape) > 1:
            is_table = name.endswith(("scale_shift_table", "y_embedding"))
            return np.float32(0.3 * s if is_table else s / np.sqrt(np.prod(shape[1:])))
        return np.float32(1 + 0.1 * s if "norm" in name and name.endswith("weight") else 0.1 * s)

    params = tree_files.unflatten(torch_names.to_params(tensors, read))
    return nnx.merge(nnx.graphdef(abstract), jax.tree.map(jnp.asarray, params))


def measured_output(model):
    """[B, C, t, h, w] of the case with a frame mask."""
    x = np.sin(0.11 * np.arange(2 * 4 * 3 * 5 * 7)).reshape(2, 4, 3, 5, 7)
    text = np.cos(0.05 * np.arange(2 * 8 * 32)).reshape(2, 8, 32)
    position = layers.patch_positions(3, 4, (40, 56), 512, 12)
    out = jax.jit(
        lambda m: m(
            jnp.asarray(layers.patchify(np.moveaxis(x, 1, -1), (2, 2)), jnp.float32),
            jnp.array([0.7, 0.25]),
            jnp.asarray(text, jnp.float32),
            text_length_B=jnp.array([5, 8]),
            position_BS2=jnp.asarray(np.stack([position] * 2)),
            length_B=jnp.array([12, 12]),
            fps_B=jnp.array([24.0, 30.0]),
            mask_Bt=jnp.array([[False, True, True], [True, True, False]]),
        )
    )(model)
    return np.moveaxis(layers.unpatchify(out, 5, 7, (2, 2)), -1, 1)


PLACES = (0, 0, 0, 0, 0), (0, 3, 1, 2, 4), (1, 1, 2, 4, 6), (1, 7, 0, 3, 1)


def test_the_model_gives_the_numbers_measured_on_the_original():  # spec B.2
    out = measured_output(measured_model(jnp.float32, ""))
    np.testing.assert_allclose([out.mean(), out.std()], [0.080349, 0.835808], atol=2e-6)
    got = [out[place] for place in PLACES]
    np.testing.assert_allclose(got, [1.87462, 1.14647, -0.73538, 0.17568], atol=1e-5)
    rounded = measured_output(measured_model(jnp.float32, MODE))
    np.testing.assert_allclose(rounded, out, atol=1e-5)  # in float32 nothing is rounded


def test_the_model_in_bfloat16_is_near_the_original_in_bfloat16():  # spec B.2
    out = measured_output(measured_model(jnp.bfloat16, MODE))
    # 8 bits, and sums in another order: a few units in the last place of values near 1
    np.testing.assert_allclose([out.mean(), out.std()], [0.080600, 0.835540], atol=2e-3)
    got = [out[place] for place in PLACES]
    np.testing.assert_allclose(got, [1.875, 1.15625, -0.73047, 0.18457], atol=0.03)


def test_a_linear_cycle_runs_backwards():
    cycle = {"lr": 1e-4, "lr_start": 1e-5, "lr_peak": 1e-3, "warmup_steps": 5, "cooldown_steps": 9}
    rate = optim.schedule(20, decay="one_cycle", anneal="linear", compat=MODE, **cycle)
    np.testing.assert_allclose([rate(0), rate(5), rate(14)], [1e-3, 1e-4, 1e-4], rtol=1e-6)


def test_an_unknown_mode_is_refused():
    with pytest.raises(
        ValueError, match="compat='open-sora' is unknown: use one of '', 'open-sora"
    ):
        compat.switches("open-sora")


def test_a_config_turns_them_on_in_model_vae_and_grid():
    config = tiny.get_config()
    config.compat, config.dtype = MODE, "bfloat16"
    task = tasks.make_task(config)
    model = nnx.merge(task.graph, jax.eval_shape(task.init, jax.random.key(0)))
    assert model.time_dtype == model.position_dtype == jnp.bfloat16
    assert model.spatial_blocks.attn.rope_dtype == jnp.bfloat16
    frozen = nnx.eval_shape(lambda: encoders.vae_maker(config)(rngs=nnx.Rngs(0)))
    assert frozen.statistics_dtype == jnp.bfloat16
    h, w = task.encoders.latent_shape(1, 1046, 925)[1:3]
    got = task.encoders.grid(1, h, w, (1046, 925))["position"][0]
    rows, columns = layers.patch_grid(h, w, task.encoders.patch)
    size = task.encoders.position_size
    expected = layers.patch_positions(rows, columns, (1048, 924), size, len(got))  # spec 1.2
    np.testing.assert_array_equal(got, expected)
    assert task.sampler.shift["compat"] == MODE
