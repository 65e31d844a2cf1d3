"""The video VAE as a task: what it learns from clips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidgen.diffusion import encoders
from vidgen.models import flops, vae


class Autoencoder:
    """Trains the video VAE on clips (spec section 2.4)."""

    kinds = ("video",)

    def __init__(self, config):
        self.graph, self.init = encoders.split(encoders.vae_maker(config))
        self.config = config
        self.weights, self.image_frames = config.vae.loss.to_dict(), config.vae.image_frames
        self.loader_settings = {"tokenize": None, "text_tokens": config.text.max_tokens}

    def frozen_shapes(self, mesh=None, kind="video"):
        return {}

    load_frozen = frozen_shapes

    def collate(self, batch, bucket):
        return {name: batch[name] for name in ("video", "slot")}

    def prepare(self, frozen, batch, bucket, key):
        return batch

    def tokens(self, bucket):
        return bucket.num_frames * bucket.height * bucket.width

    def forward_flops(self, bucket, padded=False):
        """Of both parts; the image autoencoder also encodes, without learning, every frame."""
        model, size = self.config.vae.model.to_dict(), (bucket.height, bucket.width)
        chosen = min(self.image_frames, bucket.num_frames)
        image = lambda decode: flops.image_flops(*size, decode=decode, **model["spatial"])
        encode = flops.vae_encode_flops(bucket.num_frames, *size, **model)
        decode = flops.vae_decode_flops(bucket.num_frames, *size, **model)
        if not self.weights["pixel"]:
            decode -= bucket.num_frames * image(decode=True)
        return chosen * (image(decode=False) + image(decode=True)) + encode + decode

    def example_batch(self, bucket, rng):
        shape = bucket.batch_size, bucket.num_frames, bucket.height, bucket.width, 3
        video_BTHWC = rng.integers(0, 256, shape, np.uint8)
        return {"video": video_BTHWC, "slot": np.arange(bucket.batch_size, dtype=np.int32)}

    def loss(self, params, frozen, batch, key):
        """The two parts learn side by side, which is quicker than through each other.

        The image autoencoder learns from some frames of each clip; the temporal one learns to give
        back the latents of all of them, through which no gradient passes. With a weight on `pixel`
        the whole chain learns its pixels too.
        """
        model, weight = nnx.merge(self.graph, params), self.weights
        video_BTHWC = encoders.from_uint8(batch["video"])
        key = jax.random.fold_in(key, batch["slot"][0])  # of this part of the batch
        pick_key, image_key, chain_key, latent_key = jax.random.split(key, 4)

        clips, frames = video_BTHWC.shape[:2]
        chosen_BF = jax.random.randint(pick_key, (clips, min(self.image_frames, frames)), 0, frames)
        image_BFHWC = jnp.take_along_axis(video_BTHWC, chosen_BF[..., None, None, None], axis=1)
        image_NHWC = image_BFHWC.reshape(-1, *video_BTHWC.shape[2:])
        image_posterior = vae.split_moments(model.spatial.moments(image_NHWC))
        decoded_NHWC = model.spatial.decode(vae.sample(*image_posterior, image_key))

        x_BThwc = jax.lax.stop_gradient(model.encode_spatial(video_BTHWC, chain_key))
        posterior = model.encode_temporal(x_BThwc)
        z_Bthwc = vae.sample(*posterior, latent_key)
        decoded_BThwc = model.decode_temporal(z_Bthwc, frames)
        terms = {
            "image": jnp.square(decoded_NHWC - image_NHWC).mean(),
            "latent": jnp.square(decoded_BThwc - x_BThwc).mean() / x_BThwc.var(),
            "image_kl": _kl(*image_posterior),
            "kl": _kl(*posterior),
            "statistics": _statistics_distance(model, posterior[0]),
        }
        if weight["pixel"]:
            pixel_BTHWC = model.decode_spatial(decoded_BThwc)
            terms["pixel"] = jnp.square(pixel_BTHWC - video_BTHWC).mean()
        return sum(weight[name] * value for name, value in terms.items()), terms

    def preview(self, params, frozen, batch):
        """Clips above what the VAE makes of them."""
        video_BTHWC = batch["video"][:4]
        decoded_BTHWC = self._reconstruct(params, video_BTHWC)
        return {"reconstruction": jnp.concatenate([video_BTHWC, decoded_BTHWC], axis=2)}

    @functools.partial(jax.jit, static_argnums=0)
    def _reconstruct(self, params, video_BTHWC):
        model = nnx.merge(self.graph, params)
        mean_Bthwc, _ = model.encode(encoders.from_uint8(video_BTHWC))
        return encoders.to_uint8(model.decode(mean_Bthwc, video_BTHWC.shape[1]))


def _kl(mean, logvar):
    """Of a Gaussian from the standard normal, a latent value."""
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()


def _statistics_distance(model, mean_Bthwc):
    """Teaches `shift` and `scale` the mean and deviation of each channel, and the rest nothing."""
    z_Nc = jax.lax.stop_gradient(mean_Bthwc).reshape(-1, mean_Bthwc.shape[-1])
    return (
        jnp.abs(model.shift[...] - z_Nc.mean(0)).sum()
        + jnp.abs(model.scale[...] - z_Nc.std(0)).sum()
    )
