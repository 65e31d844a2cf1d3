"""Text to video as a task: an STDiT learns rectified flow in the latents of a frozen VAE."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidgen.diffusion import encoders, flow, generate
from vidgen.models import flops, layers, places, stdit


class TextToVideo:
    """Trains an STDiT by rectified flow, on clips or on their latents and text features."""

    kinds = ("video", "latent")

    def __init__(self, config):
        self.model_config = config.model.to_dict()
        self.dtype = dtype = encoders.compute_dtype(config)
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
        self.has_previews = bool(config.preview.every)
        if self.has_previews:
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

    def load_frozen(self, mesh=None, kind="video"):
        """Latents come with their text features: then only previews need the encoders."""
        return self.encoders.load(mesh) if kind == "video" or self.has_previews else {}

    def frozen_shapes(self, mesh=None, kind="video"):
        return self.encoders.abstract(mesh) if kind == "video" or self.has_previews else {}

    def collate(self, batch, bucket):
        """Cuts latents into patches and says what the model is told of them.

        That depends on the aspect, which is data from here on: clips of one (resolution, frames)
        have one shape.
        """
        _, h, w, _ = self.encoders.latent_shape(bucket.num_frames, bucket.height, bucket.width)
        clips = len(batch["slot"])
        told = self.encoders.grid(clips, h, w, (bucket.height, bucket.width))
        told["ratio"] = np.full(clips, self._shift_ratio(*_size(bucket)), np.float32)
        names = ("slot", "drop_text", "mask", "fps")
        if "video" in batch:
            names += ("video", "text_ids", "text_mask")
            return told | {name: batch[name] for name in names}
        told["text"], told["text_length"] = batch["text_emb"], batch["text_mask"].sum(-1, np.int32)
        cut = {"tokens": "latent", "tokens_std": "latent_std"}
        told |= {name: self.encoders.to_tokens(batch[latent]) for name, latent in cut.items()}
        return told | {name: batch[name] for name in names}

    @functools.lru_cache(maxsize=4096)  # noqa: B019 (a task lives as long as its process)
    def _shift_ratio(self, num_frames, height, width):
        return float(flow.shift_ratio(height, width, num_frames, **self.shift))

    def prepare(self, frozen, batch, bucket, key):
        """Turns a collated batch into patches of latents and text features.

        Latents are drawn from their posterior afresh at every step.
        """
        return self._prepare(frozen, batch, key, _size(bucket) if "video" in batch else None)

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def _prepare(self, frozen, batch, key, size):
        batch = dict(batch)
        key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["slot"])
        if size is not None:  # of videos, which the encoder sees in their own shape
            again = lambda key: jax.random.fold_in(key, 1)  # equal keys give equal noise
            encoded = self.encoders.encode_video(frozen, batch.pop("video"), jax.vmap(again)(key_B))
            batch["tokens"], batch["tokens_std"] = map(self.encoders.to_tokens, encoded)
            ids_BL, mask_BL = batch.pop("text_ids"), batch.pop("text_mask")
            text_BLE = self.encoders.encode_text(frozen, ids_BL, mask_BL)
            batch["text"] = text_BLE.astype(self.dtype)  # the model would cast it at its start
            batch["text_length"] = mask_BL.sum(-1)
        # shards and batches hold float16
        mean_BtSP, std_BtSP = (batch[k].astype(jnp.float32) for k in ("tokens", "tokens_std"))
        batch["tokens"] = mean_BtSP + std_BtSP * _normal(key_B, mean_BtSP.shape[1:])
        del batch["tokens_std"]
        return places.as_batch(batch)

    def tokens(self, bucket):
        t, h, w, _ = self.encoders.latent_shape(*_size(bucket))
        rows, columns = layers.patch_grid(h, w, self.encoders.patch)
        return t * rows * columns

    def forward_flops(self, bucket, padded=False):
        t, h, w, _ = self.encoders.latent_shape(*_size(bucket))
        tokens = self.encoders.budget(h, w) if padded else self.tokens(bucket) // t
        shape = {"latent_frames": t, "tokens": tokens}
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
            "slot": np.arange(clips, dtype=np.int32),
        }

    def loss(self, params, frozen, batch, key):
        model = nnx.merge(self.graph, params)
        tokens_BtSP, mask_Bt = batch["tokens"], batch["mask"]
        keys_B2 = jax.vmap(lambda slot: jax.random.split(jax.random.fold_in(key, slot)))(
            batch["slot"]
        )
        draw_t = lambda key: flow.sample_t(key, 1, method=self.sample_method)[0]
        t_B = flow.shift_t(jax.vmap(draw_t)(keys_B2[:, 0]), batch["ratio"])
        noise_BtSP = _normal(keys_B2[:, 1], tokens_BtSP.shape[1:]) * batch["real"]
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


def _size(bucket):
    return bucket.num_frames, bucket.height, bucket.width


def _normal(key_B, shape):
    """Standard normal noise, with a key for each clip."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(key_B)
