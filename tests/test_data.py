"""Each device gets its rows, and each batch is handed out once."""

import jax
import numpy as np
import pytest

from tests import processes
from vidgen.training import data, sharding


def test_a_batch_is_cut_along_its_first_axis(mesh):
    batch = {"x": np.arange(48, dtype=np.float32).reshape(16, 3), "row": np.arange(16)}
    placed = data.to_global(batch, mesh)
    np.testing.assert_array_equal(placed["x"], batch["x"])
    assert placed["x"].sharding.is_equivalent_to(sharding.batch(mesh), 2)
    assert {shard.data.shape for shard in placed["row"].addressable_shards} == {(2,)}


@pytest.mark.parametrize("size, shard", [(4, 1), (12, 3), (3, 3)])
def test_a_batch_that_does_not_divide_is_cut_less(mesh, size, shard):
    placed = data.to_global({"x": np.arange(size)}, mesh)
    np.testing.assert_array_equal(placed["x"], np.arange(size))
    assert {piece.data.shape for piece in placed["x"].addressable_shards} == {(shard,)}


def test_a_batch_of_two_sizes_is_refused(mesh):
    with pytest.raises(ValueError, match="'a': 4, 'b': 5"):
        data.to_global({"a": np.zeros(4), "b": np.zeros(5)}, mesh)


def test_the_next_batch_is_placed_before_this_one_is_used():
    placed = []
    batches = data.Prefetch(iter("abc"), lambda x: placed.append(x) or x)
    assert (placed, batches.position) == ([], 0)
    assert next(batches) == "a"
    assert (placed, batches.position) == (["a", "b"], 1)
    assert list(batches) == ["b", "c"]
    assert (placed, batches.position) == (["a", "b", "c"], 3)


def test_an_error_comes_when_its_batch_is_due():
    def batches():
        yield 1
        raise OSError("clip 7 is broken")

    prefetch = data.Prefetch(batches(), lambda x: x)
    assert next(prefetch) == 1
    with pytest.raises(OSError, match="clip 7"):
        next(prefetch)
    assert prefetch.position == 1


def test_two_processes_join_their_parts_of_a_batch():
    code = """
    import jax, numpy as np
    from jax.experimental import multihost_utils
    from vidgen.process import runtime
    from vidgen.training import data, sharding
    runtime.start(heartbeat_seconds=10)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 2})
    mine = np.arange(8).reshape(4, 2) + 100 * jax.process_index()
    x = data.to_global({"x": mine}, mesh)["x"]
    print(x.shape, multihost_utils.process_allgather(x, tiled=True)[:, 0].tolist())
    try:
        data.to_global({"x": mine[:1]}, mesh)
    except ValueError as error:
        print(error)
    """
    flags = "--xla_force_host_platform_device_count=2"
    for process in processes.spawn_two(code, XLA_FLAGS=flags):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        shape, message = out.splitlines()[-2:]  # gloo says hello before
        assert shape == "(8, 2) [0, 2, 4, 6, 100, 102, 104, 106]"
        assert "batch of 2 cannot be divided among 4 devices" in message


def test_a_placed_batch_feeds_a_compiled_step(mesh):
    batches = data.Prefetch(
        ({"x": np.full((8, 2), i, np.float32)} for i in range(3)),
        lambda batch: data.to_global(batch, mesh),
    )
    total = jax.jit(lambda batch: batch["x"].sum())
    assert [float(total(batch)) for batch in batches] == [0, 16, 32]
