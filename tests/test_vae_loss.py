"""Losses of the autoencoder have the values of their formulas; critics judge what they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from golden_utils import random_model, with_params

from vidgen.models import critics, vae_loss

SHAPE = (2, 3, 4, 6, 5)


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def loss(**chosen):
    latent = {
        name: normal(i, (2, 1, 2, 3, 4))
        for i, name in enumerate(
            ("x_z_BThwc", "x_z_rec_BThwc", "z_Bthwc", "mean_Bthwc", "logvar_Bthwc")
        )
    }
    video = {"video_BTHWC": normal(7), "decoded_BTHWC": normal(8)}
    off = {"pixel": False, "z_rec": False, "identity": False}
    return vae_loss.autoencoder_loss(**latent, **video, **off | chosen)


def test_reconstruction_sums_over_a_frame_and_averages_over_frames():
    a, b = np.asarray(normal(0)), np.asarray(normal(1))
    np.testing.assert_allclose(vae_loss.reconstruction(a, b), np.abs(a - b).sum() / 6, rtol=1e-5)
    squares = np.square(a - b).sum() / 6
    np.testing.assert_allclose(vae_loss.reconstruction(a, b, kind="l2"), squares, rtol=1e-5)


def test_perceptual_distance_counts_once_for_each_value_of_its_frame():
    a, b = normal(0), normal(1)
    distance_BT = jnp.arange(6.0).reshape(2, 3)
    with_it = vae_loss.reconstruction(a, b, perceptual_BT=distance_BT)
    expected = vae_loss.reconstruction(a, b) + distance_BT.mean() * 4 * 6 * 5
    np.testing.assert_allclose(with_it, expected, rtol=1e-5)


def test_stages_sum_their_own_terms():
    total, terms = loss(z_rec=True, identity=True)  # stage 1, an image
    assert set(terms) == {"z_rec", "identity"}
    np.testing.assert_allclose(total, terms["z_rec"] + terms["identity"], rtol=1e-6)
    assert set(loss(z_rec=True)[1]) == {"z_rec"}
    critic = lambda a, b: jnp.square(a - b).mean((1, 2, 3))
    total, terms = loss(pixel=True, critic=critic)
    assert set(terms) == {"pixel", "perceptual", "kl"}
    np.testing.assert_allclose(total, terms["pixel"] + terms["kl"], rtol=1e-6)
    without = loss(pixel=True)[1]["pixel"]
    added = 0.1 * terms["perceptual"] * 4 * 6 * 5
    np.testing.assert_allclose(terms["pixel"], without + added, rtol=1e-5)


def test_identity_term_is_zero_for_clips():
    clip = normal(0, (1, 4, 2, 3, 4))
    args = dict.fromkeys(("x_z_BThwc", "x_z_rec_BThwc"), clip)
    args |= dict.fromkeys(("z_Bthwc", "mean_Bthwc", "logvar_Bthwc"), clip[:, :1])
    total, terms = vae_loss.autoencoder_loss(
        video_BTHWC=None, decoded_BTHWC=None, **args, pixel=False, z_rec=False, identity=True
    )
    assert total == 0 and not terms


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="does not fit its target"):
        vae_loss.reconstruction(normal(0), normal(0)[:, :, :-1])
    with pytest.raises(ValueError, match="kind='l3'"):
        vae_loss.reconstruction(normal(0), normal(0), kind="l3")
    with pytest.raises(ValueError, match="no loss term is on"):
        loss()
    with pytest.raises(ValueError, match="kind='wgan'"):
        vae_loss.generator_loss(normal(0), kind="wgan")


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_adversarial_losses_pull_logits_apart_and_together(kind):
    real, fake = normal(0), normal(1)
    down = jax.grad(lambda real, fake: vae_loss.discriminator_loss(real, fake, kind), (0, 1))
    real_grad, fake_grad = down(real, fake)
    assert (real_grad <= 0).all() and (fake_grad >= 0).all()
    assert (jax.grad(lambda fake: vae_loss.generator_loss(fake, kind))(fake) < 0).all()
    sure = 20 * jnp.ones(3)
    assert vae_loss.discriminator_loss(sure, -sure, kind) < 1e-6


def test_adaptive_weight_makes_gradients_equally_long():
    long, short = normal(0) * 5, normal(1) * 0.2
    weight = vae_loss.adaptive_weight(long, short)
    np.testing.assert_allclose(
        jnp.linalg.norm((weight * short).ravel()), jnp.linalg.norm(long.ravel()), rtol=1e-3
    )
    assert vae_loss.adaptive_weight(long, 0 * short) == 1e4


def test_gradient_penalty_of_a_linear_discriminator_is_its_squared_slope():
    slope = normal(3, SHAPE[1:])
    penalty = vae_loss.gradient_penalty(lambda x: (x * slope[None]).sum((1, 2, 3, 4)), normal(0))
    np.testing.assert_allclose(penalty, jnp.square(slope).sum(), rtol=1e-5)


def test_lecam_penalty_is_zero_where_the_sides_do_not_cross():
    assert vae_loss.lecam_penalty(jnp.array([1.0]), jnp.array([3.0]), 2.0, 2.0) == 0
    assert vae_loss.lecam_penalty(jnp.array([3.0]), jnp.array([1.0]), 2.0, 2.0) == 2


@pytest.fixture(scope="module")
def lpips():
    return random_model(lambda rngs: critics.LPIPS(rngs=rngs))


def test_lpips_is_zero_only_for_equal_images_and_has_finite_gradients(lpips):
    a, b = normal(0, (2, 16, 17, 3)), normal(1, (2, 16, 17, 3))
    distance, grad = jax.jit(lambda a, b: (lpips(a, b), jax.grad(lambda a: lpips(a, b).sum())(a)))(
        a, jnp.stack([a[0], b[1]])
    )
    assert distance.shape == (2,) and distance[0] < 1e-6 < distance[1]
    assert np.isfinite(grad).all() and np.any(grad[1])


def test_load_lpips_reads_both_names_and_reports_what_is_missing(tmp_path, lpips):
    params = nnx.to_pure_dict(nnx.state(lpips))
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    tensors = {}
    for i, number in enumerate(numbers):
        name = f"features.{number}" if i % 2 else f"net.slice1.{number}"
        layer = params["features"][str(i)]
        tensors[f"{name}.weight"] = np.ascontiguousarray(
            np.transpose(layer["kernel"], (3, 2, 0, 1))
        )
        tensors[f"{name}.bias"] = np.asarray(layer["bias"])
    for i in range(5):
        tensors[f"lin{i}.model.1.weight"] = np.asarray(params["weights"][str(i)])[
            None, :, None, None
        ]
    safetensors.numpy.save_file(tensors, tmp_path / "lpips.safetensors")
    loaded = critics.load_lpips(tmp_path / "lpips.safetensors")
    with_params(lpips, loaded)  # asserts names and shapes
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    del tensors["features.2.bias"]
    safetensors.numpy.save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 tensors of LPIPS: \['features.2.bias'\]"):
        critics.load_lpips(tmp_path / "part.safetensors")


@pytest.mark.parametrize(("over_time", "shape"), [(False, (2, 5, 2, 2)), (True, (2, 1, 2, 2))])
def test_patch_discriminator_judges_patches(over_time, shape):
    model = random_model(
        lambda rngs: critics.PatchGAN(filters=8, groups=4, over_time=over_time, rngs=rngs)
    )
    video = normal(0, (2, 5, 32, 32, 3))
    assert jax.eval_shape(model, video).shape == shape
    seen = lambda i: np.abs(jax.grad(lambda x: model(x)[0, i].sum())(video)).sum((2, 3, 4)) > 0
    np.testing.assert_array_equal(seen(0)[0], [True] * 5 if over_time else [True] + [False] * 4)
    assert not seen(0)[1].any()  # clips of a batch are judged apart
