"""The T5 encoder reads its files, and its random form sees near letters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_utils import random_model

from vidgen.models import text

SIZES = {"vocab_size": 64, "width": 32, "head_width": 8, "heads": 4, "mlp_width": 64, "depth": 2}


def encoder(**kwargs):
    return lambda rngs: text.T5Encoder(**SIZES | kwargs, rngs=rngs)


def test_padding_changes_no_real_token():
    model = jax.jit(random_model(encoder()))
    ids_BL = np.array([[5, 6, 7, 1, 0, 0], [9, 8, 1, 0, 0, 0]])
    mask_BL = ids_BL > 0
    emb = model(ids_BL, mask_BL)
    other = model(np.where(mask_BL, ids_BL, 33), mask_BL)
    np.testing.assert_allclose(emb[mask_BL], other[mask_BL], atol=1e-6)
    short = model(ids_BL[:, :4], mask_BL[:, :4])
    np.testing.assert_allclose(short[mask_BL[:, :4]], emb[:, :4][mask_BL[:, :4]], atol=1e-5)


def test_a_text_without_any_token_gives_finite_features():
    model = random_model(encoder())
    assert np.isfinite(model(np.zeros((1, 3), int), np.zeros((1, 3), bool))).all()


def test_neighbours_confine_a_token_to_the_letters_before_it():
    model = jax.jit(encoder(depth=1, neighbours=(0, -1, -2, -3), neighbour_bias=40.0))(nnx.Rngs(0))
    ids_BL = np.arange(2, 12)[None]
    mask_BL = np.ones((1, 10), bool)
    changed = ids_BL.copy()
    changed[0, 4] = 60
    call = jax.jit(model)
    moved = np.abs(call(ids_BL, mask_BL) - call(changed, mask_BL)).max((0, 2)) > 1e-3
    # the first three tokens lack an offset, where a head spreads over the whole text
    np.testing.assert_array_equal(np.flatnonzero(moved[3:]) + 3, [4, 5, 6, 7])
    assert np.std(call(ids_BL, mask_BL)) == pytest.approx(1, rel=0.05)  # the last norm's doing


def test_bfloat16_computes_near_float32():
    ids_BL, mask_BL = np.arange(2, 12)[None], np.ones((1, 10), bool)
    exact = random_model(encoder())(ids_BL, mask_BL)
    half = random_model(encoder(dtype=jnp.bfloat16))(ids_BL, mask_BL)
    assert half.dtype == jnp.float32
    assert 0 < jnp.abs(half - exact).max() < 0.1  # unit variance, 8 bits, a few layers
