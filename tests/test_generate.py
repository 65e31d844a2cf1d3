"""Samples follow from prompt, seed and settings alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.loading import transforms
from tests import toy_runs
from tests import toy_training as toy
from vidgen import tasks
from vidgen.diffusion import generate

SIZE = {"height": 22, "width": 26, "num_frames": 5}  # odd latents: 11 x 13 at stride 2
SETTINGS = SIZE | {"steps": 3, "guidance": 3.0, "fps": 12.0, "batch_size": 2}
PROMPTS = ["a small red circle", "ein größerer Kreis"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    config = toy.config()
    config.vae.weights = str(toy.vae(tmp_path_factory.mktemp("generate")))
    config.model.remat = False
    return tasks.make_task(config)


@pytest.fixture(scope="module")
def weights(task):
    """(params, frozen); the transformer answers with its whole depth, which at first is silent."""
    params = jax.tree.map(jnp.asarray, toy_runs.random_params(task, 3))
    return params, task.load_frozen()


@pytest.fixture(scope="module")
def draw(task, weights):
    return lambda prompts, **changes: task.sampler(*weights, prompts, **(SETTINGS | changes))


@pytest.fixture(scope="module")
def both(draw):
    return draw(PROMPTS)


def test_equal_seeds_give_equal_bytes_and_others_do_not(draw, both):
    assert both.shape == (2, 5, 22, 26, 3) and both.dtype == np.uint8
    np.testing.assert_array_equal(draw(PROMPTS), both)
    assert (draw(PROMPTS, seed=1) != both).mean() > 0.5
    assert (both[0] != both[1]).mean() > 0.5


def test_a_sample_does_not_depend_on_what_else_is_in_its_batch(draw, both):
    np.testing.assert_array_equal(draw(PROMPTS[:1])[0], both[0])
    np.testing.assert_array_equal(draw([PROMPTS[0], "something else"])[0], both[0])
    three = draw(["another", PROMPTS[1], PROMPTS[0]])  # its place in the list is its noise
    np.testing.assert_array_equal(three[1], both[1])


def test_the_size_of_the_batch_changes_rounding_at_most(draw, both):
    alone = draw(PROMPTS, batch_size=1).astype(int)
    assert np.abs(alone - both.astype(int)).max() <= 1  # other programs, and levels of 1/255


def test_samples_of_a_prompt_differ_and_the_first_stays(draw, both):
    twice = draw(PROMPTS, samples=2)
    np.testing.assert_array_equal(twice[[0, 2]], both)
    assert (twice[0] != twice[1]).mean() > 0.5


def test_one_frame_is_an_image_at_its_own_frame_rate(draw):
    image = draw(PROMPTS, num_frames=1)
    assert image.shape == (2, 1, 22, 26, 3)
    np.testing.assert_array_equal(draw(PROMPTS, num_frames=1, fps=50.0), image)


def test_each_step_is_reported_with_the_videos_that_it_moves(draw):
    seen = []
    draw([*PROMPTS, "a third"], on_step=seen.append)
    assert seen == [2, 2, 2, 1, 1, 1]


@pytest.fixture(scope="module")
def started(task, weights):
    """(noise in patches, what of them is real, what the model is told), of two clips."""
    ids_BL, mask_BL = task.encoders.tokenize(PROMPTS, strict=True)
    size = SIZE["height"], SIZE["width"]
    shape = task.encoders.latent_shape(SIZE["num_frames"], *size)
    jobs, text = (
        jnp.array([[0, 0], [1, 0]], jnp.uint32),
        (jnp.asarray(ids_BL), jnp.asarray(mask_BL)),
    )
    latent, real, context = task.sampler._start(
        weights[1], text, jobs, jax.random.key(0), shape, size
    )
    return latent, real, context | {"fps_B": jnp.full(2, 12.0)}


def test_guidance_of_one_is_the_conditional_velocity(task, weights, started):
    latent, real, context = started
    t_B, next_t_B = jnp.array([0.8, 0.6]), jnp.array([0.5, 0.6])
    stepped = task.sampler._step(weights[0], latent, real, t_B, next_t_B, context, 1.0)

    @jax.jit
    def conditional(params, latent, t_B, context):
        model, context = nnx.merge(task.graph, params), dict(context)
        return model.velocity(model(latent, t_B, context.pop("text_BLE"), **context)) * real

    velocity = conditional(weights[0], latent, t_B, context)
    assert np.abs(velocity[0]).max() > 0.1
    expected = latent + (t_B - next_t_B)[:, None, None, None] * velocity
    # float32 over values up to 50: the step takes both halves as one batch
    np.testing.assert_allclose(stepped, expected, atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(stepped[1], latent[1])  # no time passes for the second clip


def test_guidance_moves_away_from_the_unconditional_velocity(task, weights, started):
    latent, real, context = started
    t_B, next_t_B = jnp.full(2, 0.8), jnp.full(2, 0.5)
    none, text, more = (
        np.asarray(task.sampler._step(weights[0], latent, real, t_B, next_t_B, context, scale))
        for scale in (0.0, 1.0, 3.0)
    )
    assert np.abs(text - none).max() > 1e-3
    np.testing.assert_allclose(more - none, 3 * (text - none), atol=1e-3)  # float32


def test_the_padding_of_odd_latents_stays_zero(task, weights, started):
    latent, real, context = started
    for i in range(2):
        t_B, next_t_B = jnp.full(2, 1 - i / 2), jnp.full(2, 0.5 - i / 2)
        latent = task.sampler._step(weights[0], latent, real, t_B, next_t_B, context, 3.0)
        padding = np.broadcast_to(np.asarray(real) == 0, latent.shape)
        assert padding.any()
        np.testing.assert_array_equal(np.asarray(latent)[padding], 0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompts": []}, "there is no prompt"),
        ({"prompts": ["fine", ""]}, "prompt 1 is empty"),
        ({"prompts": ["x" * 72]}, "prompt 0 .*73 tokens, but the model takes 72: shorten it by 1"),
        ({"steps": 0}, "steps=0 is too few"),
        ({"height": 23}, "height=23 is no multiple of the VAE's stride 2"),
        ({"num_frames": 4}, "num_frames=4 does not fit the VAE.*3 or 5"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_work(task, changes, message):
    settings = {"prompts": PROMPTS, "steps": 3} | SIZE | changes
    prompts = settings.pop("prompts")
    with pytest.raises(ValueError, match=message):
        task.sampler.check(prompts, **settings)
    with pytest.raises(ValueError, match=message):
        task.sampler(None, None, prompts, **settings)


def test_images_are_told_the_frame_rate_of_training():
    assert transforms.clip_fps(24.0, 1, 1) == generate.IMAGE_FPS
