"""Weights in one file, and whether they are those of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.weights import tree_files

TREE = {
    "blocks": {"0": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "1": {"kernel": jnp.ones((4, 5))}},
    "scale": jnp.array(2.0),
    "table": jnp.arange(3, dtype=jnp.bfloat16),
}


def test_names_and_levels_are_two_views_of_one_tree():
    flat = tree_files.flatten(TREE)
    assert list(flat) == ["blocks/0/kernel", "blocks/1/kernel", "scale", "table"]
    assert tree_files.unflatten(flat) == TREE
    with pytest.raises(ValueError, match='"blocks/a/b" has a "/" in it'):
        tree_files.flatten({"blocks": {"a/b": 1}})


def test_a_file_gives_back_the_same_bits(tmp_path):
    path = tmp_path / "x.safetensors"
    tree_files.save_safetensors(TREE, path)
    loaded = tree_files.flatten(tree_files.load_file(path))
    for name, x in tree_files.flatten(TREE).items():
        assert loaded[name].dtype == x.dtype and loaded[name].shape == x.shape
        assert loaded[name].tobytes() == np.asarray(x).tobytes()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"no"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    tree_files.save_safetensors(TREE, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"x.safetensors is damaged or no safetensors file"):
        tree_files.load_file(path)


def test_weights_of_another_model_are_refused_with_all_differences():
    expected = jax.eval_shape(lambda: TREE)
    tree_files.check_tree(TREE, expected, "here")
    found = {
        "blocks": {"0": {"kernel": jnp.ones((3, 2))}},
        "table": TREE["table"],
        "new": 1 * TREE["scale"],
    }
    with pytest.raises(ValueError) as error:
        tree_files.check_tree(found, expected, "outputs/vae")
    assert str(error.value).splitlines() == [
        "the weights of outputs/vae do not fit the config:",
        "  blocks/1/kernel: missing, (4, 5)",
        "  scale: missing, ()",
        "  new: unexpected, ()",
        "  blocks/0/kernel: (3, 2) there, (2, 3) in the config's model",
        "Use the config that they were trained with.",
    ]


def test_weights_reach_their_devices_a_part_each(tmp_path, mesh):
    tree = {"kernel": np.arange(24.0, dtype=np.float32).reshape(4, 6), "scale": np.float32(2.0)}
    tree_files.save_safetensors(tree, tmp_path / "weights.safetensors")
    places = {
        "kernel": jax.ShapeDtypeStruct(
            (4, 6), jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P("data", "fsdp"))
        ),
        "scale": jax.ShapeDtypeStruct((), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P())),
    }
    got = tree_files.load_placed(tmp_path, places)
    assert got["kernel"].addressable_shards[0].data.shape == (1, 3)
    np.testing.assert_array_equal(got["kernel"], tree["kernel"].astype(jnp.bfloat16))
    assert float(got["scale"]) == 2 and got["kernel"].sharding == places["kernel"].sharding
