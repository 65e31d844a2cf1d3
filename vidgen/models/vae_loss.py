"""Losses of the video autoencoder (Open-Sora 1.2), and those of adversarial training.

Sums run over the values of a frame and are divided by the number of frames, so a loss grows with
the resolution. Its training had three stages:

1. `z_rec` and `identity`: the temporal part learns spatial latents, the image part is frozen.
2. `z_rec`.
3. `pixel` with `perceptual`, and `kl`: everything learns pixels.
"""

import jax
import jax.numpy as jnp

KL_WEIGHT = 1e-6
PERCEPTUAL_WEIGHT = 0.1


def reconstruction(got_BTHWC, target_BTHWC, *, kind: str = "l1", perceptual_BT=None):
    """Sum of a frame's differences, averaged over frames: a scalar.

    Args:
        got_BTHWC: Reconstruction: pixels or latents. target_BTHWC: What it should be. kind: "l1"
        for absolute differences, "l2" for squared ones. perceptual_BT: Perceptual distance of each
        frame, already weighed; it is added to every value
            of the frame, so it counts H W C times.

    Raises:
        ValueError: If the kind is unknown or the shapes differ.
    """
    if got_BTHWC.shape != target_BTHWC.shape:
        raise ValueError(
            f"a reconstruction of shape {got_BTHWC.shape} does not fit its target of shape "
            f"{target_BTHWC.shape}: crop the target to the size that the autoencoder gives back."
        )
    if kind not in ("l1", "l2"):
        raise ValueError(f"kind={kind!r} is no reconstruction loss: use 'l1' or 'l2'.")
    difference = got_BTHWC.astype(jnp.float32) - target_BTHWC.astype(jnp.float32)
    each = jnp.abs(difference) if kind == "l1" else jnp.square(difference)
    if perceptual_BT is not None:
        each += perceptual_BT[..., None, None, None]
    return each.sum((2, 3, 4)).mean()


def kl_divergence(mean_Bthwc, logvar_Bthwc):
    """Divergence of the posterior from the standard normal, summed over a clip: [B]."""
    each = jnp.square(mean_Bthwc) + jnp.exp(logvar_Bthwc) - 1.0 - logvar_Bthwc
    return 0.5 * each.sum((1, 2, 3, 4))


def perceptual(critic, got_BTHWC, target_BTHWC):
    """Distance of each frame by `critic(a_NHWC, b_NHWC) -> [N]`: [B, T]."""
    frames = lambda video: video.reshape(-1, *video.shape[2:])
    return critic(frames(got_BTHWC), frames(target_BTHWC)).reshape(got_BTHWC.shape[:2])


def autoencoder_loss(
    *,
    video_BTHWC,
    decoded_BTHWC,
    x_z_BThwc,
    x_z_rec_BThwc,
    z_Bthwc,
    mean_Bthwc,
    logvar_Bthwc,
    pixel: bool,
    z_rec: bool,
    identity: bool,
    kind: str = "l1",
    critic=None,
    perceptual_weight: float = PERCEPTUAL_WEIGHT,
    kl_weight: float = KL_WEIGHT,
):
    """Returns (loss, terms): the sum of the chosen terms, and each of them by name.

    Args:
        video_BTHWC: Clip in [-1, 1], cropped to the size of the reconstruction. decoded_BTHWC: Its
        reconstruction; may be None without `pixel`. x_z_BThwc: Scaled spatial latents.
        x_z_rec_BThwc: Their reconstruction by the temporal part. z_Bthwc: Latent of the temporal
        part, not normalised. mean_Bthwc: Mean of its posterior. logvar_Bthwc: Log-variance of its
        posterior. pixel: Learn pixels: reconstruction with the perceptual term, and divergence.
        z_rec: Learn the spatial latents. identity: For images (T = 1), learn that the latent equals
        the spatial latent; for clips this
            term is zero.
        kind: Of the reconstruction terms, "l1" or "l2".
        critic: Perceptual distance, such as `critics.LPIPS`; None leaves the term out.
        perceptual_weight: Weight of the critic.
        kl_weight: Weight of the divergence.

    Raises:
        ValueError: If no term is chosen.
    """
    terms = {}
    if pixel:
        distance_BT = None
        if critic is not None:
            distance_BT = perceptual(critic, decoded_BTHWC, video_BTHWC)
            terms["perceptual"] = distance_BT.mean()
            distance_BT *= perceptual_weight
        terms["pixel"] = reconstruction(
            decoded_BTHWC, video_BTHWC, kind=kind, perceptual_BT=distance_BT
        )
        terms["kl"] = kl_weight * kl_divergence(mean_Bthwc, logvar_Bthwc).mean()
    if z_rec:
        terms["z_rec"] = reconstruction(x_z_rec_BThwc, x_z_BThwc, kind=kind)
    if identity and x_z_BThwc.shape[1] == 1:
        terms["identity"] = reconstruction(z_Bthwc, x_z_BThwc, kind=kind)
    if not (pixel or z_rec or identity):
        raise ValueError("no loss term is on: set pixel, z_rec or identity.")
    loss = sum(value for name, value in terms.items() if name != "perceptual")
    return jnp.asarray(loss, jnp.float32), terms  # "perceptual" is inside "pixel"


def generator_loss(fake_logits, kind: str = "hinge"):
    """What the autoencoder minimises: its reconstructions should pass for real.

    "hinge" (Lim & Ye 2017, arXiv:1705.02894) or "non_saturating" (Goodfellow et al. 2014,
    arXiv:1406.2661).
    """
    losses = {"hinge": lambda x: -x, "non_saturating": lambda x: jax.nn.softplus(-x)}
    return _named(losses, kind)(fake_logits).mean()


def discriminator_loss(real_logits, fake_logits, kind: str = "hinge"):
    """What the discriminator minimises, "hinge" or "non_saturating" (cross-entropy, halved)."""
    losses = {
        "hinge": (lambda x: jax.nn.relu(1 - x), lambda x: jax.nn.relu(1 + x)),
        "non_saturating": (lambda x: jax.nn.softplus(-x), jax.nn.softplus),
    }
    real, fake = _named(losses, kind)
    return 0.5 * (real(real_logits).mean() + fake(fake_logits).mean())


def lecam_penalty(real_logits, fake_logits, real_average, fake_average):
    """Holds logits near the other side's running mean (Tseng et al. 2021, arXiv:2104.03310)."""
    real = jnp.square(jax.nn.relu(real_logits - fake_average)).mean()
    fake = jnp.square(jax.nn.relu(real_average - fake_logits)).mean()
    return real + fake


def gradient_penalty(discriminator, real_BTHWC):
    """Mean squared gradient at real videos (R1: Mescheder et al. 2018, arXiv:1801.04406)."""
    grad = jax.grad(lambda video: discriminator(video).sum())(real_BTHWC)
    return jnp.square(grad).sum((1, 2, 3, 4)).mean()


def adaptive_weight(reconstruction_grad, adversarial_grad, largest: float = 1e4):
    """Weight that makes both gradients on the decoder's last kernel equally long.

    Esser et al. 2021 (arXiv:2012.09841), Eq. 7.
    """
    ratio = jnp.linalg.norm(reconstruction_grad.ravel()) / (
        jnp.linalg.norm(adversarial_grad.ravel()) + 1e-4
    )
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, largest))


def _named(choices, kind):
    if kind not in choices:
        raise ValueError(f"kind={kind!r} is no adversarial loss: use one of {sorted(choices)}.")
    return choices[kind]
