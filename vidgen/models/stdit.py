"""STDiT3: the spatial-temporal diffusion transformer of Open-Sora 1.2.

Pairs of blocks alternate between attention inside a latent frame (over `S`) and attention along
time (over `t`); every block also attends to the text. The core sees padded tokens with their true
number and positions, so the aspect ratio is data and not shape.

Letters: `S` padded tokens of a frame, `P` values of a patch, `L` text tokens, `E` text width,
`D` model width, `N K` heads and head width.
"""

import functools

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from vidgen.models import attention, layers, places
from vidgen.models import compat as compat_lib

_ZERO = nnx.initializers.zeros_init()


class SelfAttention(nnx.Module):
    """Attention among the tokens of axis 1, with normalised queries and keys and optional
    rotation."""

    def __init__(
        self, width, heads, *, rngs, dtype, qk_norm, init_out=None, rope_dtype=jnp.float32
    ):
        self.heads, self.rope_dtype = heads, rope_dtype
        self.qkv = layers.linear(width, 3 * width, rngs=rngs, dtype=dtype)
        self.q_norm = layers.RMSNorm(width // heads) if qk_norm else None
        self.k_norm = layers.RMSNorm(width // heads) if qk_norm else None
        self.proj = layers.linear(width, width, rngs=rngs, dtype=dtype, init=init_out)

    def __call__(self, x_bqD, *, length_b=None, rope_F=None):
        qkv = einops.rearrange(
            self.qkv(x_bqD), "b q (three n k) -> three b q n k", three=3, n=self.heads
        )
        q_bqNK, k_bqNK, v_bqNK = qkv
        if self.q_norm is not None:
            q_bqNK, k_bqNK = self.q_norm(q_bqNK), self.k_norm(k_bqNK)
        if rope_F is not None:
            q_bqNK = layers.rotate(q_bqNK, rope_F, self.rope_dtype)
            k_bqNK = layers.rotate(k_bqNK, rope_F, self.rope_dtype)
        out_bqNK = attention.attention(q_bqNK, k_bqNK, v_bqNK, length_b=length_b)
        return self.proj(einops.rearrange(out_bqNK, "b q n k -> b q (n k)"))


class CrossAttention(nnx.Module):
    """Attention from video tokens to the text of their own clip."""

    def __init__(self, width, heads, *, rngs, dtype, init_out=None):
        self.heads = heads
        self.q_linear = layers.linear(width, width, rngs=rngs, dtype=dtype)
        self.kv_linear = layers.linear(width, 2 * width, rngs=rngs, dtype=dtype)
        self.proj = layers.linear(width, width, rngs=rngs, dtype=dtype, init=init_out)

    def __call__(self, x_BqD, text_BLD, length_B):
        q_BqNK = einops.rearrange(self.q_linear(x_BqD), "b q (n k) -> b q n k", n=self.heads)
        k_BLNK, v_BLNK = einops.rearrange(
            self.kv_linear(text_BLD), "b l (two n k) -> two b l n k", two=2, n=self.heads
        )
        out_BqNK = attention.attention(q_BqNK, k_BLNK, v_BLNK, length_b=length_B)
        return self.proj(einops.rearrange(out_BqNK, "b q n k -> b q (n k)"))


class Block(nnx.Module):
    """Self-attention along `axis`, cross-attention to the text, MLP; modulated by time (section
    1.3).

    `axis="space"` attends inside each latent frame; `axis="time"` attends along time at each place,
    with rotary positions, and starts as the identity.
    """

    def __init__(self, axis, width, heads, mlp_ratio, *, rngs, dtype, qk_norm, rope_dtype):
        init_out = _ZERO if axis == "time" else None
        self.axis = axis
        self.scale_shift_table = nnx.Param(
            jax.random.normal(rngs.params(), (6, width)) / width**0.5
        )
        self.attn = SelfAttention(
            *(width, heads),
            rngs=rngs,
            dtype=dtype,
            qk_norm=qk_norm,
            init_out=init_out,
            rope_dtype=rope_dtype,
        )
        self.cross_attn = CrossAttention(width, heads, rngs=rngs, dtype=dtype, init_out=init_out)
        self.mlp = layers.MLP(
            width,
            int(width * mlp_ratio),
            width,
            rngs=rngs,
            dtype=dtype,
            activation=layers.gelu,
            init2=init_out,
        )

    def __call__(self, x_BtSD, text_BLD, cond_Bt6D, *, text_length_B, length_B, rope_F):
        B, t = x_BtSD.shape[:2]
        table_6D = self.scale_shift_table[...].astype(x_BtSD.dtype)
        six = jnp.moveaxis(table_6D[None, None] + cond_Bt6D, 2, 0)[:, :, :, None]  # [6, B, t, 1, D]
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = six

        u_BtSD = layers.modulate(layers.layer_norm(x_BtSD), shift_attn, scale_attn)
        if self.axis == "space":
            u = einops.rearrange(u_BtSD, "b t s d -> (b t) s d")
            u = self.attn(u, length_b=jnp.repeat(length_B, t))
            u_BtSD = einops.rearrange(u, "(b t) s d -> b t s d", b=B)
        else:
            u = einops.rearrange(u_BtSD, "b t s d -> (b s) t d")
            u = self.attn(u, rope_F=rope_F)
            u_BtSD = einops.rearrange(u, "(b s) t d -> b t s d", b=B)
        x_BtSD = x_BtSD + gate_attn * u_BtSD

        flat_BqD = einops.rearrange(x_BtSD, "b t s d -> b (t s) d")
        x_BtSD = x_BtSD + self.cross_attn(flat_BqD, text_BLD, text_length_B).reshape(x_BtSD.shape)

        u_BtSD = self.mlp(layers.modulate(layers.layer_norm(x_BtSD), shift_mlp, scale_mlp))
        return x_BtSD + gate_mlp * u_BtSD


class CaptionEmbedder(nnx.Module):
    """Projects text features; a dropped caption becomes the null caption, a buffer never
    trained."""

    def __init__(self, text_width, text_tokens, width, *, rngs, dtype):
        self.y_embedding = nnx.Param(
            jax.random.normal(rngs.params(), (text_tokens, text_width)) / text_width**0.5
        )
        self.y_proj = layers.MLP(
            text_width, width, width, rngs=rngs, dtype=dtype, activation=layers.gelu
        )

    def __call__(self, text_BLE, drop_B=None):
        if drop_B is not None:
            null_LE = jax.lax.stop_gradient(self.y_embedding[...])[: text_BLE.shape[1]]
            text_BLE = jnp.where(
                drop_B[:, None, None], null_LE[None].astype(text_BLE.dtype), text_BLE
            )
        return self.y_proj(text_BLE)


class FinalLayer(nnx.Module):
    """Last modulation, and the projection to patches."""

    def __init__(self, width, outputs, *, rngs, dtype):
        self.scale_shift_table = nnx.Param(
            jax.random.normal(rngs.params(), (2, width)) / width**0.5
        )
        self.linear = layers.linear(width, outputs, rngs=rngs, dtype=dtype)

    def __call__(self, x_BtSD, t_BD, t0_BD=None, mask_Bt=None):
        """With a frame mask, frames that are given (False) pass norm and modulation a second time.

        That is how the published weights were trained. It changes only those frames, whose
        prediction nobody uses.
        """
        table_2D = self.scale_shift_table[...].astype(x_BtSD.dtype)

        def once(x_BtSD, t_BD):
            shift_B11D, scale_B11D = jnp.moveaxis(table_2D[None] + t_BD[:, None], 1, 0)[
                :, :, None, None
            ]
            return layers.modulate(layers.layer_norm(x_BtSD), shift_B11D, scale_B11D)

        u_BtSD = once(x_BtSD, t_BD)
        if mask_Bt is not None:
            u_BtSD = jnp.where(mask_Bt[:, :, None, None], u_BtSD, once(u_BtSD, t0_BD))
        return self.linear(u_BtSD)


class STDiT(nnx.Module):
    """Predicts the velocity of noisy latents, given time, text, frame rate and given frames.

    Args:
        in_channels: Channels of a latent.
        patch: Height and width of a patch, in latent cells (the patch takes one latent frame).
        width, depth, heads, mlp_ratio: Of the transformer; `depth` counts pairs of blocks.
        text_width, text_tokens: Of the text features: E, and the rows of the null caption.
        predict_sigma: Doubles the output channels, as the published weights have it; the second
        half
            is not used.
        dtype: Of the computation; parameters stay in float32.
        remat: Recompute each block in the backward pass, to save memory.
        unroll: How many pairs of blocks the compiler sees at once (`True`: all).
        compat: "open-sora-1.2" rounds positions, times and rotary angles to `dtype`, as the
            original does: see `vidgen.models.compat`.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        text_width: int,
        text_tokens: int,
        in_channels: int = 4,
        patch: tuple[int, int] = (2, 2),
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        predict_sigma: bool = True,
        dtype="float32",
        remat: bool = False,
        unroll: int | bool = 1,
        compat: str = "",
        rngs: nnx.Rngs,
    ):
        if width % heads or (width // heads) % 2 or width % 4:
            raise ValueError(
                f"model.width={width} with model.heads={heads}: the width must be a multiple "
                "of 4, and divide into heads of even width."
            )
        self.dtype, self.remat, self.unroll = jnp.dtype(dtype), remat, unroll
        switches, exact = compat_lib.switches(compat), jnp.dtype(jnp.float32)
        self.time_dtype = self.dtype if switches.rounded_time else exact
        self.position_dtype = self.dtype if switches.rounded_positions else exact
        rope_dtype = self.dtype if switches.rounded_rotary else exact
        kinds = {"rngs": rngs, "dtype": self.dtype}
        self.in_channels, self.predict_sigma = in_channels, predict_sigma
        patch_values = in_channels * patch[0] * patch[1]
        # The reference leaves PyTorch's Conv3d default here: uniform within 1/sqrt(fan in).
        fan_in_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.x_embedder = layers.linear(patch_values, width, init=fan_in_uniform, **kinds)
        of_vectors = {"dot_general": places.whole_kernel_dot, **kinds}
        silu = {"activation": jax.nn.silu, **of_vectors}
        self.t_embedder = layers.MLP(256, width, width, **silu)
        self.fps_embedder = layers.MLP(
            256, width, width, init1=nnx.initializers.normal(0.02), init2=_ZERO, **silu
        )
        self.t_block = layers.linear(width, 6 * width, **of_vectors)
        self.y_embedder = CaptionEmbedder(text_width, text_tokens, width, **kinds)
        self.rope_freqs = nnx.Param(jnp.asarray(layers.rope_frequencies(width // heads)))

        def stack(axis):
            make = lambda key: Block(
                *(axis, width, heads, mlp_ratio),
                rngs=nnx.Rngs(key),
                dtype=self.dtype,
                qk_norm=qk_norm,
                rope_dtype=rope_dtype,
            )
            return jax.vmap(make)(jax.random.split(rngs.params(), depth))

        self.spatial_blocks = stack("space")  # every array has a leading axis [depth]
        self.temporal_blocks = stack("time")
        self.final_layer = FinalLayer(width, patch_values * (2 if predict_sigma else 1), **kinds)

    def __call__(
        self,
        tokens_BtSP,
        t_B,
        text_BLE,
        *,
        text_length_B,
        position_BS2,
        length_B,
        fps_B,
        mask_Bt=None,
        drop_text_B=None,
    ):
        """Returns the prediction [B, t, S, P'] in float32, with P' = 2 P where sigma is predicted.

        Args:
            tokens_BtSP: Noisy latents cut into patches (`layers.patchify`).
            t_B: Flow time in [0, 1], 1 is pure noise.
            text_BLE: Text features, padded.
            text_length_B: True number of text tokens, at least 1.
            position_BS2: Coordinates of the tokens (`layers.patch_positions`).
            length_B: True number of tokens of a frame.
            fps_B: Frames a second; 120 for images.
            mask_Bt: True where a latent frame is to be denoised, False where it is given clean.
            drop_text_B: True where the null caption replaces the text.
        """
        tokens_BtSP, text_BLE = tokens_BtSP.astype(self.dtype), text_BLE.astype(self.dtype)
        embed = lambda x_B: layers.sinusoid(x_B.astype(self.time_dtype)).astype(self.dtype)
        fps_BD = places.as_batch(self.fps_embedder(embed(fps_B)))

        def embed_time(t_B):
            t_BD = places.as_batch(self.t_embedder(embed(1000.0 * t_B)) + fps_BD)
            six = places.as_batch(self.t_block(jax.nn.silu(t_BD)))
            return t_BD, einops.rearrange(six, "b (six d) -> b 1 six d", six=6)

        t_BD, cond_Bt6D = embed_time(t_B)
        t0_BD = None
        if mask_Bt is not None:
            t0_BD, cond0_B16D = embed_time(jnp.zeros_like(t_B))
            cond_Bt6D = jnp.where(mask_Bt[:, :, None, None], cond_Bt6D, cond0_B16D)

        text_BLD = places.as_batch(self.y_embedder(text_BLE, drop_text_B))
        x_BtSD = places.as_batch(self.x_embedder(tokens_BtSP))
        position_BSD = layers.position_embedding(
            position_BS2, x_BtSD.shape[-1], self.position_dtype
        )
        x_BtSD = x_BtSD + position_BSD[:, None].astype(self.dtype)

        x_BtSD = self._run_blocks(
            x_BtSD,
            text_BLD,
            cond_Bt6D,
            text_length_B=text_length_B,
            length_B=length_B,
            rope_F=jax.lax.stop_gradient(self.rope_freqs[...]),
        )
        return self.final_layer(x_BtSD, t_BD, t0_BD, mask_Bt).astype(jnp.float32)

    def velocity(self, prediction_BtSP):
        """The part [B, t, S, P] of a prediction that is the velocity, without sigma."""
        cells = prediction_BtSP.shape[-1] // (self.in_channels * (2 if self.predict_sigma else 1))
        by_cell = einops.rearrange(prediction_BtSP, "b t s (cell c) -> b t s cell c", cell=cells)
        return einops.rearrange(by_cell[..., : self.in_channels], "b t s cell c -> b t s (cell c)")

    def _run_blocks(self, x_BtSD, text_BLD, cond_Bt6D, **context):
        def run(block, x_BtSD):
            return block(x_BtSD, text_BLD, cond_Bt6D, **context)

        if self.remat:
            run = jax.checkpoint(run, prevent_cse=False)

        def pair(x_BtSD, blocks):
            spatial, temporal = blocks
            return places.as_batch(run(temporal, run(spatial, x_BtSD))), None

        scan = functools.partial(jax.lax.scan, pair, unroll=self.unroll)
        return scan(x_BtSD, (self.spatial_blocks, self.temporal_blocks))[0]
