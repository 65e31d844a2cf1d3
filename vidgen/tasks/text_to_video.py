"""Text to video as a task: an STDiT learns rectified flow in the latents of a frozen VAE."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidgen.diffusion import encoders, flow, generate
from vidgen.models import flops, stdit


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
