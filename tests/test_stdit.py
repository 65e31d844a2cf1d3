import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vidgen.models import stdit


def make(**changes):
    settings = dict(width=32, depth=2, heads=2, text_width=12, text_tokens=6) | changes
    return stdit.STDiT(**settings, rngs=nnx.Rngs(0))


def test_full_size_has_the_published_number_of_parameters():
    published = {"width": 1152, "depth": 28, "heads": 16, "text_width": 4096, "text_tokens": 300}
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: make(**published))))
    total = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert total == 1_208_872_772  # spec 1.4, the null caption included


def test_temporal_blocks_start_as_the_identity():
    """So frames of a new model do not see each other, whatever the width of the step."""
    model, rng = make(), np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(1, 3, 4, 16)), jnp.float32)
    settings = dict(
        text_length_B=jnp.array([6]),
        position_BS2=jnp.zeros((1, 4, 2)),
        length_B=jnp.array([4]),
        fps_B=jnp.array([12.0]),
    )
    text = jnp.asarray(rng.normal(size=(1, 6, 12)), jnp.float32)
    whole = model(tokens, jnp.array([0.5]), text, **settings)
    alone = model(tokens[:, 1:2], jnp.array([0.5]), text, **settings)
    np.testing.assert_allclose(whole[:, 1:2], alone, atol=1e-5)  # float32 rounding


@pytest.mark.parametrize("changes", [{"remat": True}, {"unroll": True}])
def test_memory_and_compile_settings_do_not_change_the_prediction(changes):
    rng = np.random.default_rng(0)
    arguments = (
        jnp.asarray(rng.normal(size=(2, 3, 4, 16)), jnp.float32),
        jnp.array([0.2, 0.9]),
        jnp.asarray(rng.normal(size=(2, 6, 12)), jnp.float32),
    )
    settings = dict(
        text_length_B=jnp.array([6, 2]),
        position_BS2=jnp.zeros((2, 4, 2)),
        length_B=jnp.array([4, 3]),
        fps_B=jnp.array([12.0, 120.0]),
        drop_text_B=jnp.array([False, True]),
    )
    plain, other = make(), make(**changes)
    expected = plain(*arguments, **settings)
    np.testing.assert_allclose(other(*arguments, **settings), expected, atol=1e-5)  # rounding


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"model.width=30 with model.heads=4"):
        make(width=30, heads=4)
