"""Checkpoints come back to the last bit, or not at all."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests import processes
from vidgen.training import checkpoint
from vidgen.weights import digests, tree_files


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: jax.Array
    params: dict
    ema: dict | None
    opt_state: tuple

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)


TX = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.masked(optax.adamw(1e-3), {"block": {"kernel": True, "bias": False}, "scale": True}),
)


def make_state(mesh, step=0, width=4):
    keys = jax.random.split(jax.random.key(step), 3)
    params = {
        "block": {
            "kernel": jax.random.normal(keys[0], (8, width)),
            "bias": jax.random.normal(keys[1], (6,), jnp.bfloat16),
        },
        "scale": jax.random.normal(keys[2], ()),
    }
    place = lambda x: jax.device_put(
        x, NamedSharding(mesh, PartitionSpec(*("data", "fsdp")[: x.ndim] if x.size > 8 else ()))
    )
    params = jax.tree.map(place, params)
    opt_state = jax.tree.map(place, TX.init(params))
    ema = jax.tree.map(lambda x: x * 2, params)
    return State(place(jnp.int32(step)), params, ema, opt_state)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def saved(tmp_path, mesh):
    """A working folder with steps 10, 20 and 30."""
    ckpt = checkpoint.Checkpointer(tmp_path)
    for step in (10, 20, 30):
        ckpt.save(step, make_state(mesh, step), {"position": step})
    ckpt.close()
    return tmp_path


def restore(workdir, mesh):
    ckpt = checkpoint.Checkpointer(workdir)
    try:
        return ckpt.restore(abstract(make_state(mesh)))
    finally:
        ckpt.close()


def test_a_sharded_state_comes_back_to_the_last_bit_and_in_place(saved, mesh):
    state, meta = restore(saved, mesh)
    wanted = make_state(mesh, 30)
    assert_same(state, wanted)
    assert meta == {"position": 30, "step": 30}
    same = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), state, wanted)
    assert all(jax.tree.leaves(same))


def test_a_state_comes_back_onto_another_mesh(saved):
    one = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1])
    state, _ = restore(saved, one)
    assert_same(state, make_state(one, 30))


def test_an_empty_folder_restores_to_none(tmp_path, mesh):
    assert restore(tmp_path, mesh) is None


def test_saving_copies_the_arrays_before_it_returns(tmp_path, mesh):
    state = make_state(mesh, 1)
    kernel = np.asarray(state.params["block"]["kernel"]).copy()
    ckpt = checkpoint.Checkpointer(tmp_path)
    ckpt.save(1, state, {})
    jax.tree.map(lambda x: x.delete(), state)  # as donation does
    ckpt.close()
    np.testing.assert_array_equal(
        checkpoint.load_params(tmp_path, "params")["block"]["kernel"], kernel
    )


def test_retention_keeps_the_newest_and_every_nth(tmp_path, mesh):
    ckpt = checkpoint.Checkpointer(tmp_path, keep=2, keep_every=3)
    for step in range(1, 9):
        assert ckpt.save(step, make_state(mesh, step), {})
    assert not ckpt.save(8, make_state(mesh, 8), {})
    ckpt.wait()
    assert ckpt.steps() == [3, 6, 7, 8]
    assert ckpt.latest_step() == 8
    ckpt.close()


def test_weights_are_read_without_the_optimizer(saved, mesh):
    shutil.rmtree(saved / "checkpoints" / "30" / "opt_state")
    wanted = make_state(mesh, 30)
    ema = checkpoint.load_params(saved)
    assert isinstance(ema["block"]["kernel"], np.ndarray)
    assert_same(ema, jax.device_get(wanted.ema))
    assert_same(checkpoint.load_params(saved, "params"), jax.device_get(wanted.params))
    assert_same(checkpoint.load_params(saved, step=10), jax.device_get(make_state(mesh, 10).ema))
    with pytest.raises(FileNotFoundError, match="it has 10, 20, 30"):
        checkpoint.load_params(saved, step=15)


def test_weights_without_a_moving_average_are_the_last_ones(tmp_path, mesh):
    state = dataclasses.replace(make_state(mesh, 3), ema=None)
    ckpt = checkpoint.Checkpointer(tmp_path)
    ckpt.save(3, state, {})
    ckpt.wait()
    restored, _ = ckpt.restore(abstract(state))
    ckpt.close()
    assert_same(restored, state)
    assert_same(checkpoint.load_params(tmp_path), jax.device_get(state.params))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def remove(path):
    path.unlink()


def grow(path):
    path.write_bytes(path.read_bytes() + b"0")


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, remove, grow])
def test_damage_to_any_file_is_found(saved, damage, tmp_path_factory):
    folder = saved / "checkpoints" / "30"
    files = [path for path in folder.rglob("*") if path.is_file()]
    digested = [path for path in files if path.name not in digests.UNDIGESTED]
    assert len(digested) > 15
    assert digests.verify(folder) == ""
    for path in [*digested, folder / digests.DIGESTS]:
        before = path.read_bytes()
        damage(path)
        assert digests.verify(folder) != "", path
        path.write_bytes(before)
    assert digests.verify(folder) == ""


def test_every_flipped_bit_is_found_or_harmless(saved, mesh):
    folder = saved / "checkpoints" / "30"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    rng = np.random.default_rng(0)
    for _ in range(500):
        path = files[rng.integers(len(files))]
        before = path.read_bytes()
        data = bytearray(before)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        if path.parent == folder and path.name in digests.UNDIGESTED[1:]:
            state, _ = restore(saved, mesh)  # Orbax's own notes, which nothing reads
            assert_same(state, make_state(mesh, 30))
        else:
            assert digests.verify(folder) != "", path
        path.write_bytes(before)


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(saved, mesh, caplog):
    for step in (20, 30):
        flip_a_bit(next((saved / "checkpoints" / str(step) / "params" / "d").iterdir()))
    ckpt = checkpoint.Checkpointer(saved)
    state, meta = ckpt.restore(abstract(make_state(mesh)))
    assert_same(state, make_state(mesh, 10))
    assert meta["step"] == 10
    assert "DAMAGED" in caplog.text and "step 10 instead" in caplog.text
    assert sorted(path.name for path in (saved / "damaged").iterdir()) == ["20", "30"]
    assert ckpt.save(20, make_state(mesh, 20), {})  # the run can go the same way again
    ckpt.close()
    assert ckpt.steps() == [10, 20]


def test_damaged_weights_give_way_too_unless_the_step_is_named(saved, mesh):
    flip_a_bit(next((saved / "checkpoints" / "30" / "ema" / "d").iterdir()))
    assert_same(checkpoint.load_params(saved), jax.device_get(make_state(mesh, 20).ema))
    with pytest.raises(checkpoint.DamagedError, match="steps 30 differ"):
        checkpoint.load_params(saved, step=30)


def test_without_a_sound_checkpoint_the_error_says_what_to_do(saved, mesh):
    for step in (10, 20, 30):
        (saved / "checkpoints" / str(step) / digests.DIGESTS).unlink()
    with pytest.raises(checkpoint.DamagedError, match="30, 20, 10.*backup.*another workdir"):
        restore(saved, mesh)


def test_a_half_written_step_does_not_count(saved, mesh):
    shutil.copytree(saved / "checkpoints/30", saved / "checkpoints/40.orbax-checkpoint-tmp")
    _, meta = restore(saved, mesh)
    assert meta["step"] == 30
    assert not list((saved / "checkpoints").glob("*tmp*"))


def test_another_tree_is_refused_with_all_differences(saved, mesh):
    state = make_state(mesh, width=6)
    state.params["extra"] = state.params["scale"]
    ckpt = checkpoint.Checkpointer(saved)
    with pytest.raises(ValueError) as error:
        ckpt.restore(abstract(state))
    ckpt.close()
    assert "params/block/kernel: float32[8, 4] there, float32[8, 6] here" in str(error.value)
    assert "params/extra: absent there, float32[] here" in str(error.value)
    assert "opt_state/1/inner_state/0/mu/block/kernel" in str(error.value)


def test_a_full_disk_is_told_before_anything_is_written(saved, mesh, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 500, 500)
    ckpt = checkpoint.Checkpointer(saved)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(checkpoint.SaveError, match="step 40 was NOT written.*intact") as error:
            ckpt.save(40, make_state(mesh, 40), {})
    assert error.value.step == 40 and error.value.free_bytes == 500
    assert (
        error.value.needed_bytes
        == sum(x.nbytes for x in jax.tree.leaves(make_state(mesh)) if x is not None) - 4
    )  # the step itself is in meta
    assert ckpt.steps() == [10, 20, 30]
    assert ckpt.save(40, make_state(mesh, 40), {})
    ckpt.close()


def test_a_folder_that_is_gone_is_told_as_storage(tmp_path, mesh):
    ckpt = checkpoint.Checkpointer(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(checkpoint.SaveError, match="the folder cannot be used"):
        ckpt.save(1, make_state(mesh), {})


def test_a_save_that_fails_in_the_background_is_told_and_leaves_the_rest(saved, mesh, monkeypatch):
    def fail(folder):
        raise OSError(28, "No space left on device")

    ckpt = checkpoint.Checkpointer(saved)
    with monkeypatch.context() as patch:
        patch.setattr(digests, "write", fail)
        ckpt.save(40, make_state(mesh, 40), {})
        with pytest.raises(checkpoint.SaveError, match="step 40.*the disk is full.*10, 20, 30"):
            while True:
                ckpt.check()
    assert not list((saved / "checkpoints").glob("*tmp*"))
    assert ckpt.save(40, make_state(mesh, 40), {})  # works again when there is room
    ckpt.close()
    _, meta = restore(saved, mesh)
    assert meta["step"] == 40


def test_safetensors_round_trip_and_appear_whole(tmp_path, mesh):
    params = make_state(mesh, 5).params
    path = tmp_path / "new" / "model.safetensors"
    tree_files.save_safetensors(params, path, {"step": "5"})
    assert_same(checkpoint.load_params(path), jax.device_get(params))
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]
    header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    assert json.loads(header)["__metadata__"] == {"step": "5"}
    with pytest.raises(ValueError, match="separates levels"):
        tree_files.save_safetensors({"a/b": np.zeros(2)}, path)


def test_weights_that_are_not_there_say_what_is_needed(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match="working folder .* or a .safetensors file"):
        checkpoint.load_params(tmp_path / "none")
    with pytest.raises(ValueError, match='use "ema" or "params"'):
        checkpoint.load_params(saved, "weights")


def test_two_processes_save_verify_and_fall_back_together(tmp_path):
    code = f"""
    import dataclasses, pathlib
    import jax, jax.numpy as jnp, numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import PartitionSpec
    from tests.test_checkpoint import State, abstract
    from vidgen.process import runtime
    from vidgen.training import checkpoint, sharding

    runtime.start(heartbeat_seconds=10)
    mesh = sharding.make_mesh({{"data": 1, "fsdp": -1}})
    cut = jax.NamedSharding(mesh, PartitionSpec("fsdp"))
    make = jax.jit(
        lambda step: State(step, {{"w": jnp.arange(8.0) + step}}, None, ()),
        out_shardings=State(sharding.replicated(mesh), {{"w": cut}}, None, ()),
    )
    ckpt = checkpoint.Checkpointer("{tmp_path}")
    for step in (1, 2):
        ckpt.save(step, make(step), {{"position": step}})
    ckpt.wait()
    if jax.process_index() == 0:
        folder = pathlib.Path("{tmp_path}/checkpoints/2")
        for process in range(2):  # each has files of its own
            assert any((folder / f"params/ocdbt.process_{{process}}/d").iterdir())
        for path in folder.glob("params/ocdbt.process_1/d/*"):
            path.unlink()
    multihost_utils.sync_global_devices("damaged")
    state, meta = ckpt.restore(abstract(make(0)))
    whole = multihost_utils.process_allgather(state.params["w"], tiled=True)
    np.testing.assert_array_equal(whole, np.arange(8.0) + 1)
    assert (meta["position"], int(state.step)) == (1, 1)
    assert ckpt.save(2, make(2), {{}})
    ckpt.close()
    print("done", ckpt.steps())
    """
    for process in processes.spawn_two(code):
        out, err = process.communicate(timeout=100)
        assert "done [1, 2]" in out, err
