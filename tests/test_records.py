import contextlib
import hashlib
import json
import pathlib
import shutil
import tempfile
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines.shards import builder, records, tfds_clips


def latent(shard, number):
    rng = np.random.default_rng((shard, number))
    return {
        "id": f"{shard}/{number}",
        "text": "größe",
        "fps": 12.0,
        "num_frames": 17,
        "height": 24,
        "width": 40,
        "resolution": "32",
        "aspect": "0.60",
        "latent": rng.normal(size=(5, 3, 5, 4)).astype(np.float16),
        "latent_std": rng.random((5, 3, 5, 4)).astype(np.float16),
        "text_emb": rng.normal(size=(7 + number, 6)).astype(np.float16),
    }


def make_shard(shard):
    return (latent(shard, number) for number in range((4, 0, 3)[shard]))


def contents(folder):
    files = filter(pathlib.Path.is_file, folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("records") / "latents"
    builder.write_shards(out, "latent", 3, make_shard, key="a", extra={"vae": "tiny"})
    return out


def test_records_come_back_with_their_types(folder):
    reader = records.Reader(folder)
    expected = [latent(0, i) for i in range(4)] + [latent(2, i) for i in range(3)]
    assert len(reader) == 7 and reader.kind == "latent" and reader.meta["vae"] == "tiny"
    for row, want in enumerate(expected):
        got = reader[row]
        assert set(got) == set(want)
        for field, value in want.items():
            np.testing.assert_array_equal(got[field], value)
        assert got["latent"].dtype == np.float16 and isinstance(got["text"], str)
    assert reader.index["text_length"].tolist() == [7, 8, 9, 10, 7, 8, 9]
    assert reader.index["id"].tolist() == [want["id"] for want in expected]
    with pytest.raises(IndexError):
        reader[7]


def test_videos_keep_their_bytes():
    video = bytes(range(256)) * 3
    record = {"id": "a", "text": "b", "fps": 29.97, "num_frames": 18, "height": 32, "width": 48}
    got = records.decode("video", records.encode("video", record | {"video": video}))
    assert got["video"] == video
    assert got["fps"] == np.float32(29.97) and got["num_frames"] == 18


def test_tfds_opens_the_folder_without_tensorflow(folder):
    source = tfds.builder_from_directory(folder).as_data_source(tfds_clips.SPLIT)
    assert len(source) == 7
    assert source[4]["id"] == b"2/0"
    np.testing.assert_array_equal(source[4]["latent"], latent(2, 0)["latent"])


def test_the_tfds_builder_itself_writes_the_same_records(folder, tmp_path):
    clips = tfds_clips.Clips("latent", 3, make_shard, data_dir=tmp_path)
    clips.download_and_prepare()
    source, reader = clips.as_data_source(tfds_clips.SPLIT), records.Reader(folder)
    assert [x["id"].decode() for x in source] == [reader[i]["id"] for i in range(7)]
    for row in range(7):
        np.testing.assert_array_equal(source[row]["latent"], reader[row]["latent"])


def test_writing_asks_no_server_and_leaves_nothing_behind(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tfds.core.utils.gcs_utils, "gcs_dataset_info_files", asked.append)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    builder.write_shards(tmp_path / "out", "latent", 3, make_shard, key="")
    assert not asked and not list((tmp_path / "temporary").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"out", "temporary"}


def test_a_full_disk_is_an_error_of_the_system():
    writer = records.Writer("/dev/full")
    with pytest.raises(OSError, match="a shard cannot be written: .*No space left"):
        for _ in range(100):
            writer.write(bytes(100_000))
        writer.close()


def test_a_stopped_writer_goes_on_and_gives_equal_bytes(folder, tmp_path):
    out, asked = tmp_path / "latents", []

    def stopping(shard):
        asked.append(shard)
        for number, record in enumerate(make_shard(shard)):
            if shard == 2 and number == 1 and asked.count(2) < 3:
                raise KeyboardInterrupt
            yield record

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            builder.write_shards(out, "latent", 3, stopping, key="a", extra={"vae": "tiny"})
        assert not out.exists()
    builder.write_shards(out, "latent", 3, stopping, key="a", extra={"vae": "tiny"})
    assert asked == [0, 1, 2, 2, 2]
    assert contents(out) == contents(folder)
    assert not builder.work_folder(out).exists()
    meta = builder.write_shards(out, "latent", 3, lambda shard: 1 / 0, key="a")
    assert meta == records.Reader(folder).meta


def test_shards_of_other_inputs_are_not_mixed_in(folder, tmp_path):
    def stop_at_one(shard):
        if shard == 1:
            raise KeyboardInterrupt
        return iter([latent(9, 9)])

    out = tmp_path / "latents"
    with pytest.raises(KeyboardInterrupt):
        builder.write_shards(out, "latent", 3, stop_at_one, key="other")
    builder.write_shards(out, "latent", 3, make_shard, key="a", extra={"vae": "tiny"})
    assert contents(out) == contents(folder)
    with pytest.raises(ValueError, match="made from other inputs"):
        builder.write_shards(out, "latent", 3, make_shard, key="b")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="other files"):
        builder.write_shards(tmp_path / "mine", "latent", 3, make_shard, key="a")
    with pytest.raises(ValueError, match="every shard is empty"):
        builder.write_shards(tmp_path / "none", "latent", 2, lambda shard: [], key="a")


def test_fingerprint_is_that_of_the_content(folder, tmp_path):
    def changed(shard):
        for record in make_shard(shard):
            yield record | ({"text": "other"} if record["id"] == "2/1" else {})

    meta = builder.write_shards(tmp_path / "a", "latent", 3, changed, key="k")
    assert meta["fingerprint"] != records.Reader(folder).meta["fingerprint"]
    meta = builder.write_shards(tmp_path / "b", "latent", 3, make_shard, key="k")
    assert meta["fingerprint"] == records.Reader(folder).meta["fingerprint"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_emb": None}, r"missing fields \['text_emb'\]"),
        ({"extra": 1}, r"unknown fields \['extra'\]"),
        ({"latent": np.zeros((3, 4))}, "4 axes"),
        ({"latent": np.full((5, 3, 5, 4), 1e6)}, "float16 can hold"),
        ({"latent": np.zeros((5, 3, 5, 3))}, "differ in shape"),
    ],
)
def test_wrong_records_are_refused_by_name(change, words):
    record = {k: v for k, v in (latent(0, 0) | change).items() if v is not None}
    with pytest.raises(ValueError, match=words) as error:
        records.encode("latent", record)
    assert "'0/0'" in str(error.value)


def test_what_is_no_whole_data_set_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="no finished data set"):
        records.Reader(tmp_path)
    with pytest.raises(ValueError, match="'images' is unknown"):
        records.features("images")
    shutil.copytree(folder, tmp_path / "a")
    shard = next((tmp_path / "a").glob("*array_record*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged"):
        records.Reader(tmp_path / "a")
    shard.unlink()
    with pytest.raises(ValueError, match="has no bytes"):
        records.Reader(tmp_path / "a")
    meta = json.loads((tmp_path / "a/meta.json").read_text()) | {"format": 99}
    (tmp_path / "a/meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="format 99"):
        records.Reader(tmp_path / "a")


def test_no_flipped_bit_of_a_shard_goes_unseen(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a")
    shard = sorted((tmp_path / "a").glob("*array_record*"))[0]
    sound, rng = shard.read_bytes(), np.random.default_rng(0)
    expected = [records.Reader(folder).content(row) for row in range(7)]
    outcomes = {"same": 0, "found": 0}
    end = sound.rindex(expected[3][-16:]) + 16  # padding and an index of records follow
    for at in [*rng.integers(end, size=80), *rng.integers(end, len(sound), size=20)]:
        content = bytearray(sound)
        content[at] ^= 1 << int(rng.integers(8))
        shard.write_bytes(content)
        reader = records.Reader(tmp_path / "a")
        for row in range(7):
            try:
                assert reader.content(row) == expected[row], (at, row)
                outcomes["same"] += 1
            except records.CorruptRecord as error:
                assert f"record {row} ('{0 if row < 4 else 2}/{row % 4}')" in str(error)
                assert row < 4  # the other shard is whole
                outcomes["found"] += 1
    assert outcomes["found"] >= 20 and outcomes["same"] >= 300, outcomes


def test_a_damaged_record_does_not_hide_its_neighbours(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a")
    shard = sorted((tmp_path / "a").glob("*array_record*"))[0]
    whole, content = records.Reader(folder), bytearray(shard.read_bytes())
    content[content.index(whole[1]["latent"].tobytes()) + 30] ^= 1
    shard.write_bytes(content)
    reader = records.Reader(tmp_path / "a")
    for _ in range(2):
        with pytest.raises(records.CorruptRecord, match="record 1 .'0/1'. in clips.* is damaged"):
            reader[1]
        for row in (0, 2, 3, 4, 5, 6):
            assert reader.content(row) == whole.content(row)


def test_records_that_are_whole_but_not_those_of_the_index_are_found(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a")
    shard = sorted((tmp_path / "a").glob("*array_record*"))[1]
    writer = records.Writer(shard)
    for number in (0, 1, 2):
        record = latent(2, number) | ({"text": "GRÖßE"} if number == 1 else {})
        writer.write(records.encode("latent", record))
    writer.close()
    reader = records.Reader(tmp_path / "a")
    assert reader[4]["id"] == "2/0" and reader[6]["id"] == "2/2"
    with pytest.raises(records.CorruptRecord, match="its digest is"):
        reader[5]


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 20_000])
def test_the_digest_changes_with_the_bytes(size):
    rng = np.random.default_rng(size)
    content = rng.bytes(size)
    found = {records.digest(content), records.digest(content + b"\0")}
    for at in rng.integers(max(size, 1), size=50 if size else 0):
        changed = bytearray(content)
        changed[at] ^= 1 << int(rng.integers(8))
        assert records.digest(bytes(changed)) not in found
    if size > 8192:  # a page lost, doubled or moved
        page = lambda i: content[4096 * i : 4096 * i + 4096]
        rest = content[12288:]
        for order in ((0, 2, 1), (1, 0, 2), (0, 0, 2), (0, 1)):
            assert records.digest(b"".join(map(page, order)) + rest) not in found
        assert records.digest(page(0) + bytes(4096) + page(2) + rest) not in found


def test_the_digest_sees_words_that_change_by_opposite_amounts():
    """Sums over rows and columns of a record's words would not."""
    table = np.random.default_rng(0).integers(1 << 40, size=(4, 512), dtype=np.uint64)
    changed = table.copy()
    changed[0, 0] += np.uint64(1)
    changed[0, 7] -= np.uint64(1)
    changed[2, 0] -= np.uint64(1)
    changed[2, 7] += np.uint64(1)
    assert [table.sum(i).tolist() for i in (0, 1)] == [changed.sum(i).tolist() for i in (0, 1)]
    assert records.digest(table.tobytes()) != records.digest(changed.tobytes())


def test_decoding_is_that_of_tfds(folder):
    reader = records.Reader(folder)
    video = {"id": "ä", "text": "", "fps": 29.97, "num_frames": 300, "height": 9, "width": 70_000}
    contents = [(kind, reader.content(3)) for kind in ["latent"]]
    contents.append(("video", records.encode("video", video | {"video": bytes(range(256)) * 9})))
    for kind, content in contents:
        found, theirs = (
            records.decode(kind, content),
            records.features(kind).deserialize_example_np(content),
        )
        assert set(found) == set(theirs)
        for field, value in theirs.items():
            value = value.decode() if isinstance(value, bytes) and field != "video" else value
            assert type(found[field]) is type(value)
            np.testing.assert_array_equal(found[field], value)
    for cut in (1, 2, 50, len(content) - 1):
        with pytest.raises((ValueError, KeyError)):
            records.decode("video", content[:cut])


def test_several_that_finish_a_growing_data_set_at_once_all_succeed(tmp_path):
    for turn in range(20):
        out, family = tmp_path / f"{turn}", {"family": "f"}
        builder.write_shards(out, "latent", 1, make_shard, key="a", extra=family)
        stays = np.ones(len(records.Reader(out)), bool)
        work, errors = builder.start(out, "latent", 1, key="b"), []
        builder.write_shard(work, "latent", 0, 1, make_shard(2))
        how = {"key": "b", "extra": family, "files": {"notes": bytes(1 << 20)}, "stays": stays}

        def finish(out=out, how=how, errors=errors):
            try:
                builder.finish(out, "latent", 1, **how)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=finish) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        reader = records.Reader(out)
        assert reader.meta["run"] == 2 and len(reader) == len(stays) + 3
        assert [reader[row]["id"] for row in range(len(reader))] == [*reader.index["id"]]


def test_shards_written_apart_give_the_same_data_set(folder, tmp_path):
    """Four writers share a job; two of them have the same shards, and all may finish it."""
    out, metas, found = tmp_path / "latents", [], []

    def write(numbers):
        with builder.quicker(out, "a"):
            work = builder.start(out, "latent", 3, key="a")
            for number in numbers:
                facts = builder.write_shard(work, "latent", number, 3, make_shard(number))
                found.append((facts["number"], facts["num_records"]))
        with contextlib.suppress(ValueError):  # not all there yet
            metas.append(builder.finish(out, "latent", 3, key="a", extra={"vae": "tiny"}))

    for _ in range(5):
        threads = [threading.Thread(target=write, args=(n,)) for n in ([0], [1], [2], [1, 2])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert contents(out) == contents(folder)
        assert metas and all(meta == records.Reader(folder).meta for meta in metas)
        assert set(found) == {(0, 4), (1, 0), (2, 3)}
        assert not list(builder.work_folder(out).glob("shards/*.json"))
        shutil.rmtree(out)


def test_an_unfinished_job_is_not_put_together(tmp_path):
    out = tmp_path / "latents"
    with pytest.raises(ValueError, match="call builder.start first"):
        builder.write_shard(builder.work_folder(out), "latent", 0, 3, [])
    work = builder.start(out, "latent", 3, key="a")
    builder.write_shard(work, "latent", 2, 3, make_shard(2))
    assert builder.missing(work, 3) == [0, 1]
    with pytest.raises(ValueError, match="2 of the 3 shards .* the first is 0"):
        builder.finish(out, "latent", 3, key="a")
    assert builder.missing(builder.start(out, "latent", 3, key="b"), 3) == [0, 1, 2]


def test_shards_have_the_digests_of_meta(folder):
    for shard in records.Reader(folder).meta["shards"]:
        content = (folder / shard["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        assert len(content) == shard["bytes"]


def test_data_sets_of_an_older_format_say_how_to_make_them_again(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a")
    meta = json.loads((tmp_path / "a/meta.json").read_text()) | {"format": 1}
    (tmp_path / "a/meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="format 1.*delete it and make it again .*vidgen.encode"):
        records.Reader(tmp_path / "a")
    with pytest.raises(ValueError, match="format 1.*delete it"):
        builder.write_shards(tmp_path / "a", "latent", 3, make_shard, key="a")
