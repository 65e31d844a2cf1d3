"""What a training step means: between models, which are modules, and the loop, which knows trees.

A task offers
    kinds: the kinds of data sets that it can learn from;
    loader_settings: arguments of the loader that follow from the models;
    init(key) -> params, the tree that is trained;
    load_frozen() -> frozen, the trees that are only used (VAE, text encoder);
    prepare(frozen, batch, bucket, key) -> the batch as the loss takes it, by a small program a
    shape;
    loss(params, frozen, batch, key) -> (scalar, metrics);
    tokens(batch) -> how many tokens (text-to-video) or pixels (VAE) a prepared batch holds;
    forward_flops(bucket) -> floating-point operations of the loss for one clip;
    example_batch(bucket, rng) -> a random batch as the loader gives it;
    preview(params, frozen, batch) -> {name: uint8 videos BTHWC}.
The loop knows no other word about models.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidgen import encoders, flops, flow, generate
from vidgen.models import stdit, vae


def make_task(config):
    """Returns the task that `config.task` names.

    Raises:
        ValueError: If there is no such task.
    """
    tasks = {"text_to_video": TextToVideo, "autoencoder": Autoencoder}
    if config.task not in tasks:
        raise ValueError(f"task={config.task!r} is unknown: use one of {', '.join(tasks)}.")
    return tasks[config.task](config)


class Autoencoder:
    """Trains the video VAE on clips (spec section 2.4)."""

    kinds = ("video",)

    def __init__(self, config):
        self.graph, self.init = encoders.split(encoders.vae_maker(config))
        self.config = config
        self.weights, self.image_frames = config.vae.loss.to_dict(), config.vae.image_frames
        self.loader_settings = {"tokenize": None, "text_tokens": config.text.max_tokens}

    def load_frozen(self):
        return {}

    def prepare(self, frozen, batch, bucket, key):
        return {"video": batch["video"]}

    def tokens(self, batch):
        clips, frames, height, width, _ = batch["video"].shape
        return clips * frames * height * width

    def forward_flops(self, bucket):
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
        return {"video": rng.integers(0, 256, shape, np.uint8)}

    def loss(self, params, frozen, batch, key):
        """The two parts learn side by side, which is quicker than through each other.

        The image autoencoder learns from some frames of each clip; the temporal one learns to give
        back the latents of all of them, through which no gradient passes. With a weight on `pixel`
        the whole chain learns its pixels too.
        """
        model, weight = nnx.merge(self.graph, params), self.weights
        video_BTHWC = encoders.from_uint8(batch["video"])
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


class TextToVideo:
    """Trains an STDiT by rectified flow, on clips or on their latents and text features."""

    kinds = ("video", "latent")

    def __init__(self, config):
        self.model_config = config.model.to_dict()
        dtype = encoders.compute_dtype(config)
        self.compat = config.get("compat", "")  # runs of older versions have no such field
        kinds = {"dtype": dtype, "compat": self.compat}
        make_model = functools.partial(stdit.STDiT, **self.model_config, **kinds)
        self.graph, self.init = encoders.split(make_model)
        self.encoders = encoders.Encoders(config)
        self.sample_method = config.flow.sample_method
        self.shift = {"base_size": config.flow.base_size, "scale": config.flow.shift}
        self.shift["compat"] = self.compat
        self.sampler = generate.Sampler(self.graph, self.encoders, **self.shift)
        self.preview_settings = config.preview.settings.to_dict()
        if config.preview.every:
            self._check_preview()
        self.loader_settings = {
            "tokenize": self.encoders.tokenize,
            "text_tokens": config.text.max_tokens,
            "time_stride": self.encoders.strides["time_stride"],
            "chunk_frames": self.encoders.strides["chunk_frames"],
        }

    def _check_preview(self):
        """Refuses at the start what could not be drawn at the first preview."""
        try:
            bound = inspect.signature(self.sampler.__call__).bind(
                None, None, **self.preview_settings
            )
        except TypeError as error:
            raise ValueError(
                f"preview.settings do not fit generate.Sampler ({error}): give prompts, height, "
                "width, num_frames and, if need be, its other settings."
            ) from error
        bound.apply_defaults()
        names = ("prompts", "height", "width", "num_frames", "steps")
        self.sampler.check(**{name: bound.arguments[name] for name in names})

    def load_frozen(self):
        return self.encoders.load()

    def prepare(self, frozen, batch, bucket, key):
        """Turns a batch of the loader into patches of latents, text features and positions.

        Latents are drawn from their posterior afresh at every step.
        """
        return self._prepare(frozen, batch, key, (bucket.num_frames, bucket.height, bucket.width))

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def _prepare(self, frozen, batch, key, shape):
        num_frames, height, width = shape
        if "video" in batch:
            image_key = jax.random.fold_in(key, 1)  # equal keys give equal, not independent noise
            mean_Bthwc, std_Bthwc = self.encoders.encode_video(frozen, batch["video"], image_key)
            text_BLE = self.encoders.encode_text(frozen, batch["text_ids"], batch["text_mask"])
        else:
            # shards and batches hold float16
            names = ("latent", "latent_std", "text_emb")
            mean_Bthwc, std_Bthwc, text_BLE = (batch[k].astype(jnp.float32) for k in names)
        latent_Bthwc = mean_Bthwc + std_Bthwc * jax.random.normal(key, mean_Bthwc.shape)
        clips, _, h, w, _ = latent_Bthwc.shape
        ratio = flow.shift_ratio(height, width, num_frames, **self.shift)
        return self.encoders.grid(clips, h, w, (height, width)) | {
            "tokens": self.encoders.to_tokens(latent_Bthwc),
            "ratio": jnp.full(clips, ratio),
            "text": text_BLE,
            "text_length": batch["text_mask"].sum(-1),
            "drop_text": batch["drop_text"],
            "mask": batch["mask"],
            "fps": batch["fps"],
        }

    def tokens(self, batch):
        clips, frames, tokens, _ = batch["tokens"].shape
        return clips * frames * tokens

    def forward_flops(self, bucket):
        t, h, w, _ = self.encoders.latent_shape(bucket.num_frames, bucket.height, bucket.width)
        shape = {"latent_frames": t, "tokens": self.encoders.budget(h, w)}
        return sum(flops.stdit_forward_flops(**self.model_config, **shape).values())

    def example_batch(self, bucket, rng):
        """Of latents, so that no encoder is needed."""
        clips, tokens = bucket.batch_size, self.model_config["text_tokens"]
        t, h, w, c = self.encoders.latent_shape(bucket.num_frames, bucket.height, bucket.width)
        normal = lambda *shape: rng.normal(size=(clips, *shape)).astype(np.float16)
        return {
            "latent": normal(t, h, w, c),
            "latent_std": np.zeros((clips, t, h, w, c), np.float16),
            "text_emb": normal(tokens, self.model_config["text_width"]),
            "text_mask": np.ones((clips, tokens), bool),
            "mask": np.ones((clips, t), bool),
            "drop_text": np.zeros(clips, bool),
            "fps": np.full(clips, 24, np.float32),
        }

    def loss(self, params, frozen, batch, key):
        model = nnx.merge(self.graph, params)
        tokens_BtSP, mask_Bt = batch["tokens"], batch["mask"]
        t_key, noise_key = jax.random.split(key)
        t_B = flow.sample_t(t_key, len(tokens_BtSP), method=self.sample_method)
        t_B = flow.shift_t(t_B, batch["ratio"])
        noise_BtSP = jax.random.normal(noise_key, tokens_BtSP.shape) * batch["real"]
        noisy_BtSP, velocity_BtSP = flow.interpolate(
            tokens_BtSP, noise_BtSP, t_B, mask_Bt, self.compat
        )
        prediction_BtSP = model(
            noisy_BtSP,
            t_B,
            batch["text"],
            text_length_B=batch["text_length"],
            position_BS2=batch["position"],
            length_B=batch["length"],
            fps_B=batch["fps"],
            mask_Bt=mask_Bt,
            drop_text_B=batch["drop_text"],
        )
        loss_B = flow.loss(model.velocity(prediction_BtSP), velocity_BtSP, batch["real"], mask_Bt)
        return loss_B.mean(), {}

    def preview(self, params, frozen, batch):
        """Videos of the config's fixed prompts."""
        return {"sample": self.sampler(params, frozen, **self.preview_settings)}
