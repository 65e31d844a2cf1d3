"""T5 v1.1 encoder (Raffel et al. 2020, arXiv:1910.10683), with gated GELU (arXiv:2002.05202).

It reads token numbers, and is always frozen here. Two kinds of weights: those of a published T5
(layout `t5` of `vidgen.weights.layouts`), or random ones. Random ones are made to be useful: with
`neighbours` each head looks at a fixed near offset, so that the features of a token are a random
function of the letters around it.

Letters: `V` tokens of the vocabulary, `L` text tokens, `E` width, `N K` heads and head width,
`F` width of the MLP, `R` buckets of relative positions.
"""

import math

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vidgen.models import layers


def relative_buckets(offset, buckets: int = 32, max_distance: int = 128):
    """Number of the bucket of key position minus query position (Raffel et al. 2020, section 2.1).

    The first half of the buckets is for keys at or before the query. In each half, small distances
    have a bucket each, larger ones share buckets whose width grows, up to `max_distance`.
    """
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # float32, as the reference computes it: the edges of buckets depend on the rounding
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    shared = exact + ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    bucket = np.where(distance < exact, distance, np.minimum(shared.astype(np.int64), half - 1))
    return bucket + half * (np.asarray(offset) > 0)


class Block(nnx.Module):
    """Self-attention and gated MLP, each after an RMS norm and added to its input; no biases."""

    def __init__(self, width, head_width, heads, mlp_width, *, rngs, dtype):
        inner = heads * head_width
        linear = lambda inputs, outputs, std: layers.Linear(
            inputs,
            outputs,
            use_bias=False,
            kernel_init=nnx.initializers.normal(std),
            dtype=dtype,
            rngs=rngs,
        )
        self.heads = heads
        self.attn_norm = layers.RMSNorm(width)
        self.q = linear(width, inner, (width * head_width) ** -0.5)  # stands for the missing scale
        self.k = linear(width, inner, width**-0.5)
        self.v = linear(width, inner, width**-0.5)
        self.o = linear(inner, width, inner**-0.5)
        self.mlp_norm = layers.RMSNorm(width)
        self.wi_0 = linear(width, mlp_width, width**-0.5)
        self.wi_1 = linear(width, mlp_width, width**-0.5)
        self.wo = linear(mlp_width, width, mlp_width**-0.5)

    def __call__(self, x_BLE, bias_BNLL):
        hidden_BLE = self.attn_norm(x_BLE)
        heads = lambda y: einops.rearrange(y, "b l (n k) -> b l n k", n=self.heads)
        q_BLNK, k_BLNK, v_BLNK = (heads(f(hidden_BLE)) for f in (self.q, self.k, self.v))
        logits_BNLL = jnp.einsum(
            "bqnk,blnk->bnql", q_BLNK, k_BLNK, preferred_element_type=jnp.float32
        )
        weights_BNLL = jax.nn.softmax(logits_BNLL + bias_BNLL, axis=-1).astype(v_BLNK.dtype)
        out_BLNK = jnp.einsum("bnql,blnk->bqnk", weights_BNLL, v_BLNK)
        x_BLE = x_BLE + self.o(einops.rearrange(out_BLNK, "b l n k -> b l (n k)"))
        hidden_BLE = self.mlp_norm(x_BLE)
        return x_BLE + self.wo(layers.gelu(self.wi_0(hidden_BLE)) * self.wi_1(hidden_BLE))


class T5Encoder(nnx.Module):
    """Callable: (ids_BL, mask_BL) -> text_emb_BLE in float32, values at padding included.

    Args:
        vocab_size: V. width: E. head_width: K. heads: N. mlp_width: F. depth: Blocks, stacked along
        the first axis of their parameters. buckets: R, buckets of relative positions; one table
        serves all blocks. max_distance: Distance from which on all positions share a bucket.
        neighbours: Offsets (key minus query) for the heads of a random encoder, head n taking entry
        n
            modulo their number; None draws the table at random, as T5 does.
        neighbour_bias: Logit that a head gives to its offset; 8 leaves 4% to 100 other tokens.
            Offsets 0 to -7 at width 64, depth 1 and 8 heads let an attention probe read all six
            attributes of the embedded captions after 60 updates (99.8%); T5's own random table
            takes 600 for 98%.
        dtype: Compute type; parameters are float32, as is the softmax.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int,
        head_width: int,
        heads: int,
        mlp_width: int,
        depth: int,
        buckets: int = 32,
        max_distance: int = 128,
        neighbours: tuple[int, ...] | None = None,
        neighbour_bias: float = 8.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.buckets, self.max_distance, self.dtype = buckets, max_distance, dtype
        self.embed = nnx.Param(jax.random.normal(rngs.params(), (vocab_size, width)))
        bias_RN = jax.random.normal(rngs.params(), (buckets, heads)) * width**-0.5
        if neighbours is not None:
            offsets = np.resize(neighbours, heads)
            chosen = relative_buckets(offsets, buckets, max_distance)
            bias_RN = bias_RN.at[chosen, np.arange(heads)].add(neighbour_bias)
        self.relative_bias = nnx.Param(bias_RN)
        make = lambda key: Block(
            width, head_width, heads, mlp_width, rngs=nnx.Rngs(key), dtype=dtype
        )
        self.blocks = jax.vmap(make)(jax.random.split(rngs.params(), depth))
        self.final_norm = layers.RMSNorm(width)

    def __call__(self, ids_BL, mask_BL):
        length = ids_BL.shape[1]
        offset_LL = np.arange(length)[None] - np.arange(length)[:, None]
        bucket_LL = relative_buckets(offset_LL, self.buckets, self.max_distance)
        bias_NLL = jnp.moveaxis(self.relative_bias[...][bucket_LL], -1, 0)
        # a large finite number, so that a row without any token stays free of NaN
        masked_BL = jnp.where(mask_BL.astype(bool), 0.0, jnp.finfo(jnp.float32).min)
        bias_BNLL = jnp.maximum(
            bias_NLL[None] + masked_BL[:, None, None], jnp.finfo(jnp.float32).min
        )
        x_BLE = self.embed[...][ids_BL].astype(self.dtype)
        step = lambda x_BLE, block: (block(x_BLE, bias_BNLL), None)
        x_BLE, _ = jax.lax.scan(step, x_BLE, self.blocks)
        return self.final_norm(x_BLE).astype(jnp.float32)
