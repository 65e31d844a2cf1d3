import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import builder, records


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
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    source = tfds.builder_from_directory(folder).as_data_source(builder.SPLIT)
    assert len(source) == 7
    assert source[4]["id"] == b"2/0"
    np.testing.assert_array_equal(source[4]["latent"], latent(2, 0)["latent"])


def test_the_tfds_builder_itself_writes_the_same_records(folder, tmp_path):
    clips = builder.Clips("latent", 3, make_shard, data_dir=tmp_path)
    clips.download_and_prepare()
    source, reader = clips.as_data_source(builder.SPLIT), records.Reader(folder)
    assert [x["id"].decode() for x in source] == [reader[i]["id"] for i in range(7)]
    for row in range(7):
        np.testing.assert_array_equal(source[row]["latent"], reader[row]["latent"])


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


def test_flipped_bits_of_a_shard_raise(folder, tmp_path):
    rng = np.random.default_rng(0)
    for trial in range(10):
        out = tmp_path / str(trial)
        shutil.copytree(folder, out)
        reader = records.Reader(folder)
        shard = sorted(out.glob("*array_record*"))[0]
        content = bytearray(shard.read_bytes())
        at = content.index(reader[1]["latent"].tobytes()) + int(rng.integers(100))
        content[at] ^= 1 << int(rng.integers(8))
        shard.write_bytes(content)
        with pytest.raises(Exception, match=r"(?i)corrupt|hash|crc|invalid|data"):
            records.Reader(out)[1]
