"""Snapshots come back to the last bit in every process, or are not used."""

import dataclasses
import json
import os
import pathlib
import shutil
import threading

import jax
import numpy as np
import pytest

from tests import processes, toy_training
from tests.test_checkpoint import abstract, assert_same, make_state
from vidgen.training import sharding, snapshots

RUN = "abc"


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh({"data": 2, "fsdp": 4})


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "snapshots")


def files(folder) -> list[pathlib.Path]:
    return sorted(pathlib.Path(f"{folder}-{os.getuid()}").rglob("*.snapshot"))


def addresses(x) -> list[int]:
    return [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]


def take(folder, state, step, saved=None):
    snaps = snapshots.Snapshots(RUN, folder=folder)
    snaps.take(step, state, {"position": step}, saved)
    snaps._thread.join()
    return snaps


def restore(folder, like, saved=None, run=RUN):
    checked = []
    snaps = snapshots.Snapshots(run, folder=folder)
    found = snaps.restore(abstract(like), lambda meta, path: checked.append(meta), saved)
    assert (found is None) == (checked == [])
    return found


def test_what_a_rewind_took_back_is_removed(folder, mesh):
    for step in (7, 9):
        take(folder, make_state(mesh, step), step)
    snaps, like = snapshots.Snapshots(RUN, folder=folder), abstract(make_state(mesh))
    state, _ = snaps.restore(like, lambda meta, path: None, None, lambda step, meta: step < 8)
    assert int(state.step) == 7 and [path.stem for path in files(folder)] == ["7"]


def test_a_sharded_state_comes_back_to_the_last_bit_and_in_place(folder, mesh):
    state = make_state(mesh, 7)
    take(folder, state, 7)
    again, meta = restore(folder, state)
    assert_same(state, again)
    assert meta == {"position": 7}
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        assert x.sharding == y.sharding
    # each part is there once, however many devices hold it
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    assert sum(path.stat().st_size for path in files(folder)) < size + 64 * 64 + 20_000


def test_the_state_is_copied_before_the_devices_go_on(folder, mesh, monkeypatch):
    go_on, write = threading.Event(), snapshots.Snapshots._write
    wait = lambda self, *args: (go_on.wait(60), write(self, *args))
    monkeypatch.setattr(snapshots.Snapshots, "_write", wait)
    state = make_state(mesh, 3)
    before = jax.tree.map(np.array, state)
    snaps = snapshots.Snapshots(RUN, folder=folder)
    snaps.take(3, state, {}, None)
    following = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    places = addresses(state.params["block"]["kernel"])
    state = jax.block_until_ready(following(state))
    assert addresses(state.params["block"]["kernel"]) == places  # in the same memory
    go_on.set()
    snaps.close()
    assert_same(before, jax.tree.map(np.asarray, restore(folder, make_state(mesh, 0))[0]))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "renamed"])
def test_what_is_damaged_is_never_used(damage, folder, mesh):
    state = make_state(mesh, 7)
    take(folder, state, 7)
    (path,) = files(folder)
    whole = path.read_bytes()
    padding = set()
    if damage == "flip":
        arrays = snapshots._Snapshot(path).index["arrays"]
        used = {at for *_, start, size, _ in arrays for at in range(start, start + size)}
        padding = set(range(whole.rindex(b'{"step"'))) - used
    changed = {
        "flip": [whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :]
                 for at in range(0, len(whole), 7) if at not in padding],
        "cut": [whole[:at] for at in (1, 20, len(whole) // 2, len(whole) - 1)],
        "empty": [b""],
        "renamed": [whole],
    }[damage]  # fmt: skip
    for data in changed:
        path.unlink()
        (path.with_stem("9") if damage == "renamed" else path).write_bytes(data)
        assert restore(folder, state) is None
        path.touch()


def test_an_older_one_takes_the_place_of_one_that_is_damaged(folder, mesh):
    snaps = take(folder, make_state(mesh, 7), 7)
    snaps.take(9, make_state(mesh, 9), {"position": 9}, None)
    snaps._thread.join()
    assert [path.stem for path in files(folder)] == ["7", "9"]
    os.truncate(files(folder)[1], 100)
    assert restore(folder, make_state(mesh))[1] == {"position": 7}


def test_two_are_kept_at_most_and_none_after_an_orderly_end(folder, mesh):
    snaps = snapshots.Snapshots(RUN, folder=folder)
    for step in range(1, 6):
        snaps.take(step, make_state(mesh, step), {"position": step}, None)
        assert len(files(folder)) <= 2
    snaps.close()
    snaps.remove()
    assert files(folder) == []


def test_other_devices_or_arrays_have_no_use_for_it(folder, mesh):
    state = make_state(mesh, 7)
    take(folder, state, 7)
    assert restore(folder, make_state(mesh, 7, width=8)) is None
    assert restore(folder, make_state(sharding.make_mesh({"data": 8}), 7)) is None
    assert restore(folder, state, run="another") is None
    half = dataclasses.replace(state, ema=jax.tree.map(lambda x: x.astype("bfloat16"), state.ema))
    assert restore(folder, half) is None
    assert restore(folder, state) is not None


def test_a_newer_checkpoint_comes_first_and_one_that_was_removed_is_gone_back_behind(folder, mesh):
    state = make_state(mesh, 7)
    take(folder, state, 7, saved=5)
    assert restore(folder, state, saved=5)[1] == {"position": 7}
    assert restore(folder, state, saved=6)[1] == {"position": 7}
    for saved in (7, 8, 3, None):
        assert restore(folder, state, saved=saved) is None


def test_without_room_the_run_goes_on_without_them(folder, mesh, monkeypatch, caplog):
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(snapshots.shutil, "disk_usage", lambda path: usage)
    snaps = snapshots.Snapshots(RUN, folder=folder)
    assert snaps.is_due(10_000) is False and snaps.is_due(10_004)
    snaps.take(10_004, make_state(mesh), {}, None)
    assert "No snapshots are taken any more: process 0" in caplog.text
    assert "of room" in caplog.text and "snapshot.folder" in caplog.text
    assert not snaps.is_due(20_000) and files(folder) == []


def test_a_folder_that_cannot_be_made_or_written_is_told(tmp_path, mesh, caplog):
    (tmp_path / "file").write_text("")
    snaps = snapshots.Snapshots(RUN, folder=str(tmp_path / "file/x"))
    assert snaps.restore(abstract(make_state(mesh)), None, None) is None
    snaps.take(1, make_state(mesh), {}, None)
    assert "Not a directory" in caplog.text and not snaps.is_due(100)


def test_they_are_taken_as_often_as_their_share_of_the_time_allows(folder, mesh, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(snapshots.time, "monotonic", lambda: now[0])
    copies = snapshots._copies

    def slowly(state):
        now[0] += 0.5
        return copies(state)

    monkeypatch.setattr(snapshots, "_copies", slowly)
    monkeypatch.setattr(snapshots.time, "thread_time", lambda: 0.0)
    snaps, state = snapshots.Snapshots(RUN, folder=folder, share=0.01), make_state(mesh)
    taken = []
    for step in range(1, 301):
        now[0] += 1.0
        if snaps.is_due(step):
            taken.append(step)
            snaps.take(step, state, {}, None)
    assert taken[:2] == [snapshots.FIRST, 2 * snapshots.FIRST]
    gaps = np.diff(taken[1:])
    assert set(gaps.tolist()) <= set(range(40, 51)) and len(gaps) > 3  # 0.5 s in 50 of a second


def test_what_a_run_left_that_died_long_ago_is_removed(folder, mesh):
    take(folder, make_state(mesh), 1)
    old, (mine,) = pathlib.Path(f"{folder}-{os.getuid()}/old/0-of-1"), files(folder)
    old.mkdir(parents=True)
    (old / "5.snapshot").write_bytes(b"x")
    for path in (old / "5.snapshot", old, old.parent):
        os.utime(path, (1, 1))
    (mine.parent / "9.part").write_bytes(b"x")
    snapshots.Snapshots(RUN, folder=folder)
    assert not old.parent.exists() and mine.exists() and not list(mine.parent.glob("*.part"))
    snapshots.Snapshots("other", folder=folder)
    assert mine.exists()


TWO = """
import json, os, sys
import jax
from vidgen.process import endings, ranks, runtime
endings.end_on_error()
runtime.start(heartbeat_seconds=20)
import numpy as np
from tests.test_checkpoint import abstract
from vidgen.training import sharding, snapshots
mesh = sharding.make_mesh({"fsdp": -1})
values_84 = np.arange(32.0).reshape(8, 4)
place = lambda place: jax.make_array_from_callback((8, 4), place, lambda at: values_84[at])
state = {"cut": place(sharding.batch(mesh)), "whole": place(sharding.replicated(mesh))}
snaps = snapshots.Snapshots("abc", folder=sys.argv[1])
for step in (7, 9):
    snaps.take(step, state, {"position": step}, None)
    snaps._thread.join()
if ranks.index() == 1 and sys.argv[2] != "none":
    path = snaps._files()[9]
    os.unlink(path) if sys.argv[2] == "gone" else os.truncate(path, 200)
ranks.meet("damaged")
found = snaps.restore(abstract(state), lambda *_: None, None)
for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(found[0])):
    assert all((a.data == b.data).all() for a, b in zip(x.addressable_shards, y.addressable_shards))
print(json.dumps(found[1]))
ranks.finish()
"""


@pytest.mark.parametrize(("damage", "step"), [("none", 9), ("gone", 7), ("cut", 7)])
def test_all_processes_go_on_from_the_newest_that_is_sound_in_all(damage, step, folder):
    code = TWO.replace("sys.argv[1]", repr(folder)).replace("sys.argv[2]", repr(damage))
    started = [processes.spawn(code, **place) for place in processes.several(2)]
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert json.loads(out.splitlines()[-1]) == {"position": step}


def test_a_run_that_is_killed_goes_on_from_its_snapshot_with_the_same_bits(tmp_path):
    latents, vae = toy_training.random_latents(tmp_path / "latents"), toy_training.vae(tmp_path)
    snapshot = [f"--config.snapshot.folder={tmp_path}/snapshots", "--config.snapshot.share=0.5"]
    command = lambda name: toy_training.text_to_video(
        latents, tmp_path / name, vae, "--config.checkpoint_every=100", *snapshot
    )
    toy_training.run(command("whole"))
    assert files(tmp_path / "snapshots") == []
    process = toy_training.start(command("killed"))
    toy_training.kill(process, lambda: files(tmp_path / "snapshots"))
    step = int(files(tmp_path / "snapshots")[-1].stem)
    assert toy_training.saved_steps(tmp_path / "killed") == [] and step >= snapshots.FIRST
    err = toy_training.run(command("killed"))
    assert f"step {step + 1}/" in err and "step 1/" not in err
    toy_training.assert_same_run(tmp_path / "whole", tmp_path / "killed")
    ledger = [
        json.loads(line)
        for path in sorted((tmp_path / "killed/ledger").iterdir())
        for line in path.read_text().splitlines()
    ]
    assert [line["goes_on_from"] for line in ledger if "goes_on_from" in line] == [0, step]
