import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.diffusion import flow


def test_times_of_the_sampler_fall_from_one_to_zero_and_larger_clips_linger():
    t_nB = flow.time_steps(5, jnp.asarray([1.0, 4.0]))
    np.testing.assert_allclose(t_nB[:, 0], [1, 0.8, 0.6, 0.4, 0.2, 0], atol=1e-6)
    np.testing.assert_array_equal(t_nB[[0, -1], 1], [1, 0])
    assert (t_nB[1:-1, 1] > t_nB[1:-1, 0]).all()


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
