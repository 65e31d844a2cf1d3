"""The sampling loop as a library call: from prompts to videos.

The noise of a video follows from (seed, prompt number, sample number) alone, so a sample does not
depend on what else is drawn with it.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidgen.diffusion import encoders as encoders_lib
from vidgen.diffusion import flow
from vidgen.models import layers, vae

IMAGE_FPS = 120  # what the model is told of a still image


class Sampler:
    """Draws videos from a diffusion transformer.

    Args:
        graph: Graph of the STDiT.
        encoders: The config's `Encoders`.
        shift: `base_size`, `scale` and `compat` of `flow.shift_ratio`.
    """

    def __init__(self, graph, encoders, **shift):
        self.graph, self.encoders, self.shift = graph, encoders, shift

    def __call__(
        self,
        params,
        frozen,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        samples: int = 1,
        height: int,
        width: int,
        num_frames: int,
        fps: float = 24.0,
        steps: int = 30,
        guidance: float = 7.0,
        batch_size: int = 8,
        on_step: Callable[[int], None] = lambda videos: None,
    ) -> np.ndarray:
        """Returns uint8 videos [prompts * samples, T, H, W, 3], the samples of a prompt together.

        Args:
            seed: Of the noise.
            height, width, num_frames, fps: Of the videos; one frame is an image.
            steps: Euler steps.
            guidance: Scale of classifier-free guidance; 1 follows the text without amplification.
            batch_size: Videos drawn at once.
            on_step: Called after each step with the number of videos that it moved.

        Raises:
            ValueError: If a prompt is empty or too long, or if size or length do not fit the VAE.
        """
        self.check(prompts, height=height, width=width, num_frames=num_frames, steps=steps)
        ids_PL, mask_PL = self.encoders.tokenize(list(prompts), strict=True)
        jobs = [(p, k) for p in range(len(prompts)) for k in range(samples)]
        videos = []
        for start in range(0, len(jobs), batch_size):
            part = jobs[start : start + batch_size]
            padded = part + [part[-1]] * (batch_size - len(part))  # one shape, one program
            rows = np.asarray([p for p, _ in padded])
            video_BTHWC = self._batch(
                params,
                frozen,
                (jnp.asarray(ids_PL[rows]), jnp.asarray(mask_PL[rows])),
                jnp.asarray(padded, jnp.uint32),
                jax.random.key(seed),
                shape=(num_frames, height, width),
                fps=IMAGE_FPS if num_frames == 1 else fps,
                steps=steps,
                guidance=guidance,
                on_step=lambda _: on_step(len(part)),
            )
            videos.append(np.asarray(video_BTHWC)[: len(part)])
        return np.concatenate(videos)

    def check(self, prompts, *, height, width, num_frames, steps):
        """Refuses what cannot be drawn, before anything is computed.

        Raises:
            ValueError: As `__call__`.
        """
        if not prompts:
            raise ValueError("there is no prompt: give at least one.")
        if steps < 1:
            raise ValueError(f"steps={steps} is too few: use at least 1.")
        self.encoders.tokenize(list(prompts), strict=True)
        strides = self.encoders.strides
        encoders_lib.check_size(height, width, strides["spatial_stride"])
        vae.check_frames(
            num_frames,
            chunk_frames=strides["chunk_frames"],
            time_stride=strides["time_stride"],
            name="num_frames",
        )

    def _batch(self, params, frozen, text, jobs_B2, key, *, shape, fps, steps, guidance, on_step):
        num_frames, height, width = shape
        shape_thwc = self.encoders.latent_shape(num_frames, height, width)
        clips = len(jobs_B2)
        latent, real, context = self._start(frozen, text, jobs_B2, key, shape_thwc, (height, width))
        ratio = flow.shift_ratio(height, width, num_frames, **self.shift)
        t_nB = flow.time_steps(steps, jnp.full(clips, ratio))
        context |= {"fps_B": jnp.full(clips, fps, jnp.float32)}
        for i in range(steps):
            latent = self._step(params, latent, real, t_nB[i], t_nB[i + 1], context, guidance)
            on_step(jax.block_until_ready(latent))
        return self._finish(frozen, latent, shape_thwc, num_frames)

    @functools.partial(jax.jit, static_argnums=(0, 5, 6))
    def _start(self, frozen, text, jobs_B2, key, shape_thwc, pixel_size):
        """Noise in patches, and what the model is told beside it."""
        draw = lambda job: jax.random.normal(
            jax.random.fold_in(jax.random.fold_in(key, job[0]), job[1]), shape_thwc
        )
        ids_BL, mask_BL = text
        grid = self.encoders.grid(len(ids_BL), *shape_thwc[1:3], pixel_size)
        context = {
            "text_BLE": self.encoders.encode_text(frozen, ids_BL, mask_BL),
            "text_length_B": mask_BL.sum(-1),
            "position_BS2": grid["position"],
            "length_B": grid["length"],
        }
        return self.encoders.to_tokens(jax.vmap(draw)(jobs_B2)), grid["real"], context

    @functools.partial(jax.jit, static_argnums=0)
    def _step(self, params, latent_BtSP, real_B1SP, t_B, next_t_B, context, guidance):
        model = nnx.merge(self.graph, params)
        twice = lambda x: jnp.concatenate([x, x])
        clips = len(latent_BtSP)
        drop_B = jnp.arange(2 * clips) >= clips
        doubled = jax.tree.map(twice, context)
        text_BLE = doubled.pop("text_BLE")

        def velocity(latent_BtSP, t_B, mask_Bt):
            out = model(twice(latent_BtSP), twice(t_B), text_BLE, drop_text_B=drop_B, **doubled)
            conditional, unconditional = jnp.split(model.velocity(out), 2)
            return flow.guide(conditional, unconditional, guidance) * real_B1SP

        return flow.euler_step(velocity, latent_BtSP, t_B, next_t_B)[0]

    @functools.partial(jax.jit, static_argnums=(0, 3, 4))
    def _finish(self, frozen, latent_BtSP, shape_thwc, num_frames):
        _, h, w, _ = shape_thwc
        latent_Bthwc = layers.unpatchify(latent_BtSP, h, w, self.encoders.patch)
        return self.encoders.decode_video(frozen, latent_Bthwc, num_frames)
