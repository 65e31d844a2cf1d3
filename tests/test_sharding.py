"""Arrays live where the rules say."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

from vidgen.training import sharding

RULES = [("blocks/.*kernel", (None, "fsdp")), ("embed", (("data", "fsdp"),)), (".*", ())]
PARAMS = {
    "blocks": {"attn": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}},
    "embed": jnp.ones((16, 3)),
    "odd": {"blocks": {"kernel": jnp.ones((2, 5))}},
}


def specs(tree):
    return jax.tree.map(lambda x: x.spec, tree)


def test_one_size_of_the_mesh_takes_the_rest(mesh):
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.make_mesh({"data": 8}).shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.make_mesh({"fsdp": -1}).shape) == {"data": 1, "fsdp": 8}
    one = sharding.make_mesh({"data": -1, "fsdp": 1}, devices=jax.devices()[:1])
    assert dict(one.shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize(
    "shape", [{"data": 3, "fsdp": -1}, {"data": 4}, {"data": -1, "fsdp": -1}, {"data": 0}]
)
def test_a_mesh_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match="mesh="):
        sharding.make_mesh(shape)


def test_the_first_rule_that_matches_places_an_array(mesh):
    assert specs(sharding.by_path(PARAMS, RULES, mesh)) == {
        "blocks": {"attn": {"kernel": PartitionSpec(None, "fsdp"), "bias": PartitionSpec()}},
        "embed": PartitionSpec(("data", "fsdp")),
        "odd": {"blocks": {"kernel": PartitionSpec(None, None)}},  # 5 is odd: it stays whole
    }


def test_the_optimizer_is_placed_as_the_parameters(mesh):
    opt_state = jax.eval_shape(optax.adam(1e-3).init, PARAMS)
    placed = sharding.by_path(opt_state, RULES, mesh)
    assert specs(placed[0].mu) == specs(sharding.by_path(PARAMS, RULES, mesh))
    assert placed[0].count.spec == PartitionSpec()


def test_shapes_carry_their_places(mesh):
    abstract = jax.eval_shape(lambda: PARAMS)
    placed = sharding.placed(abstract, sharding.by_path(abstract, RULES, mesh))
    assert placed["embed"].shape == (16, 3)
    assert placed["embed"].sharding.spec == PartitionSpec(("data", "fsdp"))


def test_rules_that_do_not_fit_are_told_together(mesh):
    with pytest.raises(ValueError) as error:
        sharding.by_path(PARAMS, [("kernel", (None, "model")), ("embed", ())], mesh)
    assert "blocks/attn/kernel: axes ['model'], the mesh has ['data', 'fsdp']" in str(error.value)
    assert "blocks/attn/bias: no rule matches" in str(error.value)
