import golden_stdit
import golden_utils
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vidgen import flow

CASE = golden_utils.load_case("rflow")
LOSSES = [v for v in CASE.variants if v.startswith("loss_")]
SAMPLES = [v for v in CASE.variants if v.startswith("sample_")]


@pytest.fixture(scope="module")
def golden():
    with jax.default_matmul_precision("highest"):
        yield golden_stdit.make_model(CASE.config["model"], CASE.state_dict())


def test_noising_equals_the_reference():
    x, noise, t = (jnp.asarray(CASE.inputs("add_noise")[k]) for k in ("x", "noise", "t"))
    CASE.check("add_noise/x_t", flow.interpolate(x, noise, t / 1000)[0])


def test_time_shift_equals_the_reference():
    inputs = CASE.inputs("timestep_warp")
    height, width, frames = (jnp.asarray(inputs[k]) for k in ("height", "width", "num_frames"))
    ratio = flow.shift_ratio(height, width, frames)
    scaled = jnp.asarray(inputs["scale"])[:, None, None] * ratio[None, :, None]
    CASE.check(
        "timestep_warp/t", 1000 * flow.shift_t(jnp.asarray(inputs["t"])[None, None] / 1000, scaled)
    )


@pytest.mark.parametrize("variant", LOSSES)
def test_loss_equals_the_reference_where_its_times_are_used(golden, variant):
    graph, params = golden
    inputs, outputs = CASE.inputs(variant), CASE.outputs(variant)
    x, noise = (jnp.asarray(golden_stdit.tokens(inputs[k])) for k in ("x", "noise"))
    settings = golden_stdit.context(inputs, len(x), inputs["x"])
    text, mask = settings.pop("text_BLE"), settings["mask_Bt"]
    if "drop_uniform" in inputs:
        settings["drop_text_B"] = jnp.asarray(inputs["drop_uniform"] < 0.1)
    t_B = jnp.asarray(outputs["t"]) / 1000
    noisy, velocity = flow.interpolate(x, noise, t_B, mask)
    CASE.check(f"{variant}/x_t", golden_stdit.latent(noisy, inputs["x"]))
    model = nnx.merge(graph, params)
    prediction = model.velocity(model(noisy, t_B, text, **settings))
    real = jnp.asarray(golden_stdit.tokens(np.ones_like(inputs["x"])))
    CASE.check(f"{variant}/loss", flow.loss(prediction, velocity, real, mask))


@pytest.mark.parametrize("variant", SAMPLES)
def test_guided_sampling_equals_the_reference(golden, variant, monkeypatch):
    graph, params = golden
    inputs, outputs = CASE.inputs(variant), CASE.outputs(variant)
    z = jnp.asarray(golden_stdit.tokens(outputs.get("z_start", inputs["noise"])))
    real = jnp.asarray(golden_stdit.tokens(np.ones_like(inputs["noise"])))
    clips = len(z)
    settings = golden_stdit.context(
        inputs | {"y": np.concatenate([inputs["y"]] * 2)}, 2 * clips, inputs["noise"]
    )
    settings.pop("mask_Bt")
    text = settings.pop("text_BLE")
    drop = jnp.arange(2 * clips) >= clips
    mask = outputs.get("mask")
    edit = None if mask is None else jnp.asarray(mask)
    done = None if edit is None else edit == 1
    t_nB = jnp.concatenate([jnp.asarray(outputs["step_t"]) / 1000, jnp.zeros((1, clips))])

    def velocity(z, t_B, mask_Bt):
        twice = lambda v: None if v is None else jnp.concatenate([v, v])
        model = nnx.merge(graph, params)
        out = model(
            twice(z), twice(t_B), text, drop_text_B=drop, mask_Bt=twice(mask_Bt), **settings
        )
        return flow.guide(*jnp.split(model.velocity(out), 2), CASE.config["cfg_scale"]) * real

    for i in range(len(t_nB) - 1):
        step_noise = inputs.get("step_noise", inputs["noise"][None].repeat(9, 0))[i]
        noise = jnp.asarray(golden_stdit.tokens(step_noise))
        monkeypatch.setattr(jax.random, "normal", lambda key, shape, noise=noise: noise)
        z, done = flow.euler_step(
            velocity, z, t_nB[i], t_nB[i + 1], edit_Bt=edit, done_Bt=done, key=0
        )
    CASE.check(f"{variant}/samples", golden_stdit.latent(z, inputs["noise"]))


def test_steps_of_the_sampler_follow_the_shifted_times():
    variant = "sample_warped"
    step_t = CASE.outputs(variant)["step_t"]
    height, width = CASE.config["pixel_size"]
    ratio = flow.shift_ratio(height, width, CASE.config["num_frames"])
    t_nB = flow.time_steps(CASE.config["num_sampling_steps"], jnp.full(step_t.shape[1], ratio))
    np.testing.assert_allclose(1000 * t_nB[:-1], step_t, rtol=1e-6)
    np.testing.assert_array_equal(t_nB[-1], 0)


def test_a_straight_path_is_sampled_exactly_in_one_step():
    latent, noise = jnp.ones((2, 3, 4)), jnp.zeros((2, 3, 4))
    velocity = lambda z, t_B, mask_Bt: latent - noise
    end, _ = flow.euler_step(velocity, noise, jnp.ones(2), jnp.zeros(2))
    np.testing.assert_array_equal(end, latent)


def test_padding_and_given_frames_do_not_count_in_the_loss():
    rng = np.random.default_rng(0)
    prediction, velocity = (jnp.asarray(rng.normal(size=(2, 3, 4, 5))) for _ in range(2))
    real = jnp.asarray([[1, 1, 1, 0], [1, 1, 0, 0]])[:, None, :, None]
    mask = jnp.asarray([[True, False, True], [True, True, True]])
    got = flow.loss(prediction, velocity, real, mask)
    expected = [
        np.square(prediction - velocity)[0, [0, 2], :3].mean(),
        np.square(prediction - velocity)[1, :, :2].mean(),
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-5)  # float32 sums


def test_unlike_shapes_and_unknown_draws_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        flow.interpolate(jnp.ones((1, 2)), jnp.ones((1, 3)), jnp.ones(1))
    with pytest.raises(ValueError, match="'uniform' or 'logit-normal'"):
        flow.sample_t(jax.random.key(0), 2, method="normal")
