"""A sound checkpoint always stays, whatever happens to the others, to a disk or to a clock."""

import time
import types

import pytest

from tests import processes
from tests.test_checkpoint import flip_a_bit, make_state, restore
from vidgen.process import exit_codes
from vidgen.training import checkpoint, retention


def kept(folder, steps, keep=2, every=None, suspicious=None):
    policy = retention.Sound(folder / "checkpoints", keep, every)
    policy.suspicious = suspicious
    found = policy.should_preserve([types.SimpleNamespace(step=s) for s in steps], context=None)
    return [step for step, stays in zip(steps, found, strict=True) if stays]


def test_the_newest_sound_ones_are_kept(tmp_path):
    folder = tmp_path / "checkpoints"
    assert kept(tmp_path, [1, 2, 3, 4]) == [3, 4]
    retention.write_mark(folder, 4, "w is changed")
    assert kept(tmp_path, [1, 2, 3, 4]) == [2, 3]
    retention.forget(folder, 4)
    assert kept(tmp_path, [1, 2, 3, 4], every=2, keep=1) == [2, 4]


def test_one_from_before_the_last_suspicious_step_is_kept(tmp_path):
    assert kept(tmp_path, [10, 20, 30, 40], suspicious=25) == [20, 30, 40]
    assert kept(tmp_path, [10, 20, 30, 40], suspicious=45) == [30, 40]
    assert kept(tmp_path, [30, 40], suspicious=5) == [30, 40]
    retention.write_mark(tmp_path / "checkpoints", 20, "changed")
    assert kept(tmp_path, [10, 20, 30, 40], suspicious=25) == [10, 30, 40]


def test_rot_is_found_between_saves_and_leaves_a_sound_one(tmp_path, mesh, monkeypatch):
    monkeypatch.setattr(retention, "REMOVAL_SECONDS", 0.0)
    ckpt = checkpoint.Checkpointer(tmp_path, keep=1)
    for step in (10, 20):
        ckpt.save(step, make_state(mesh, step), {})
        ckpt.wait()
        ckpt._scrubber.wait()
    assert ckpt.steps() == [20]
    flip_a_bit(
        max((tmp_path / "checkpoints/20/params").rglob("d/*"), key=lambda p: p.stat().st_size)
    )
    ckpt.save(30, make_state(mesh, 30), {})
    ckpt.wait()
    ckpt._scrubber.wait()  # looks at 30; 20 is gone, as it should be
    flip_a_bit(
        max((tmp_path / "checkpoints/30/params").rglob("d/*"), key=lambda p: p.stat().st_size)
    )
    ckpt._scrubber.look([30])
    ckpt._scrubber.wait()
    assert "is changed" in retention.mark(ckpt.folder, 30).read_text()
    ckpt.save(40, make_state(mesh, 40), {})
    ckpt.wait()
    assert 40 in ckpt.steps()
    ckpt.save(30, make_state(mesh, 30), {})  # written anew: the mark is gone
    ckpt.close()
    assert not retention.mark(ckpt.folder, 30).exists()


def test_a_file_that_cannot_be_read_for_a_moment_marks_nothing(tmp_path, mesh, monkeypatch):
    ckpt = checkpoint.Checkpointer(tmp_path)
    ckpt.save(10, make_state(mesh, 10), {})
    ckpt.wait()
    ckpt._scrubber.wait()

    def fail(path, sync=False):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(retention.digests, "sha256", fail)
        ckpt._scrubber.look([10, 99])  # 99 is not there
        ckpt._scrubber.wait()
    assert not retention.mark(ckpt.folder, 10).exists()
    ckpt.close()


def test_a_step_under_another_name_is_not_used(tmp_path, mesh):
    ckpt = checkpoint.Checkpointer(tmp_path)
    for step in (10, 20):
        ckpt.save(step, make_state(mesh, step), {})
    ckpt.close()
    (tmp_path / "checkpoints/10").rename(tmp_path / "checkpoints/99")
    _, meta = restore(tmp_path, mesh)
    assert meta["step"] == 20
    assert (tmp_path / "damaged/99").is_dir()


def test_a_meta_that_only_another_process_looked_at_is_a_problem_and_no_error(tmp_path, mesh):
    ckpt = checkpoint.Checkpointer(tmp_path)
    ckpt.save(10, make_state(mesh, 10), {})
    ckpt.close()
    meta = tmp_path / "checkpoints/10/meta/metadata"
    assert checkpoint._renamed(tmp_path / "checkpoints/10") == ""
    meta.write_text(meta.read_text()[:-3])
    assert "meta is not readable" in checkpoint._renamed(tmp_path / "checkpoints/10")
    meta.unlink()
    assert "meta is not readable" in checkpoint._renamed(tmp_path / "checkpoints/10")


@pytest.mark.parametrize("jump", [3600, -3600, 2, -2])
def test_a_clock_that_jumps_harms_no_save(jump, tmp_path, mesh, monkeypatch):
    real, moved = time.time, [0]
    monkeypatch.setattr(time, "time", lambda: real() + moved[0])
    ckpt = checkpoint.Checkpointer(tmp_path)
    ckpt.save(1, make_state(mesh, 1), {})
    moved[0] = jump
    ckpt.wait()
    ckpt.save(2, make_state(mesh, 2), {})
    moved[0] = 0
    ckpt.close()
    assert ckpt.steps() == [1, 2]


def test_a_save_that_takes_too_long_is_told(tmp_path, mesh, monkeypatch):
    ckpt = checkpoint.Checkpointer(tmp_path, limit_seconds=0.3)
    monkeypatch.setattr(checkpoint.digests, "write", lambda folder: time.sleep(1.5))
    ckpt.save(1, make_state(mesh, 1), {})
    with pytest.raises(checkpoint.SaveError, match="it is not written after 0.3 s"):
        ckpt.wait()


@pytest.mark.parametrize("which, limit", [(0, 0), (0, 5000), (1, 0), (1, 5000)])
def test_a_write_error_on_one_process_ends_all_with_its_reason(which, limit, tmp_path):
    code = f"""
    import resource, time
    import jax, jax.numpy as jnp
    from jax.sharding import PartitionSpec
    from tests.test_checkpoint import State
    from vidgen.process import endings, ranks, runtime
    from vidgen.training import checkpoint, sharding

    endings.end_on_error()
    runtime.start(heartbeat_seconds=60)
    mesh = sharding.make_mesh({{"data": 1, "fsdp": -1}})
    cut = jax.NamedSharding(mesh, PartitionSpec("fsdp"))
    make = jax.jit(
        lambda i: State(i, {{"w": jax.random.normal(jax.random.key(i), (40000,))}}, None, ()),
        out_shardings=State(sharding.replicated(mesh), {{"w": cut}}, None, ()),
    )
    ckpt = checkpoint.Checkpointer("{tmp_path}")
    ckpt.save(1, make(1), {{}})
    ckpt.wait()
    if ranks.index() == {which}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
    ckpt.save(2, make(2), {{}})
    while True:
        ckpt.check()
        time.sleep(0.05)
    """
    begin = time.monotonic()
    started = processes.spawn_two(code)
    texts = [process.communicate(timeout=100)[1] for process in started]
    assert [p.returncode for p in started] == [exit_codes.STORAGE] * 2, texts
    assert time.monotonic() - begin < 40
    assert "checkpoint of step 2 was NOT written" in texts[which]
    assert f"process {which} on" in texts[1 - which] and "NOT written" in texts[1 - which]
    assert checkpoint.steps(tmp_path) == [1]
