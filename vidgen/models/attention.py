"""Softmax attention: one function for every attention of the project, and the choice of its kernel.

Axes: `b` batch (any product of axes), `q` queries, `m` keys, `N` heads, `K` head width.
"""

import functools
import logging

import jax
import jax.numpy as jnp

_MASKED = -1e30  # finite, so that a row without any key gives a mean and not NaN


def attention(q_bqNK, k_bmNK, v_bmNK, *, length_b=None):
    """Returns softmax(q k / sqrt(K)) v, with the softmax in float32.

    Args:
        q_bqNK: Queries.
        k_bmNK: Keys.
        v_bmNK: Values.
        length_b: How many leading keys of each row are real; the rest is padding. None: all of
        them.

    Returns:
        An array like `q_bqNK`. Rows of queries beyond the real length are garbage, and finite.
    """
    kernel = _kernel(q_bqNK.shape[1], k_bmNK.shape[1], q_bqNK.shape[-1], q_bqNK.dtype.name)
    if kernel == "cudnn":
        return jax.nn.dot_product_attention(
            q_bqNK, k_bmNK, v_bmNK, key_value_seq_lengths=length_b, implementation="cudnn"
        )
    scale = q_bqNK.shape[-1] ** -0.5
    logits_bNqm = jnp.einsum(
        "bqnk,bmnk->bnqm", q_bqNK * scale, k_bmNK, preferred_element_type=jnp.float32
    )
    if length_b is not None:
        real_bm = jnp.arange(k_bmNK.shape[1])[None] < length_b[:, None]
        logits_bNqm = jnp.where(real_bm[:, None, None], logits_bNqm, _MASKED)
    weights_bNqm = jax.nn.softmax(logits_bNqm, axis=-1).astype(v_bmNK.dtype)
    return jnp.einsum("bnqm,bmnk->bqnk", weights_bNqm, v_bmNK)


@functools.cache
def _kernel(queries: int, keys: int, head_width: int, dtype: str) -> str:
    """Chooses by shape, once for each shape, and says so.

    cuDNN's flash kernel takes half precision, head widths up to 256 in steps of 8, and even lengths
    (odd ones are refused in training by jax 0.11).
    """
    flash = (
        jax.default_backend() == "gpu"
        and dtype in ("bfloat16", "float16")
        and head_width % 8 == 0
        and head_width <= 256
        and queries % 2 == keys % 2 == 0
    )
    kernel = "cudnn" if flash else "einsum"
    logging.getLogger(__name__).info(
        "attention of %d queries, %d keys, head width %d, %s: %s",
        queries,
        keys,
        head_width,
        dtype,
        kernel,
    )
    return kernel
