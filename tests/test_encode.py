"""Shards of latents hold what the models make of the clips, in the same bytes each time."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.loading import batches, buckets, loader, reads
from data_pipelines.media import video_io
from data_pipelines.shards import builder, records
from tests import toy_training as toy
from vidgen import encode
from vidgen.diffusion import encoders
from vidgen.reporting import decode_check
from vidgen.training import sharding
from vidgen.weights import tree_files


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("encode")


@pytest.fixture(scope="module")
def config(root):
    config = toy.config()
    config.vae.weights = str(toy.vae(root))
    return config


@pytest.fixture(scope="module")
def shards(root):
    return toy.data(root)


@pytest.fixture(scope="module")
def encode_batch(models, frozen):
    """The encoders, compiled once for all tests."""
    return encode._make_encode_batch(models, frozen, sharding.make_mesh())


@pytest.fixture(scope="module")
def latents(config, shards, root, encode_batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "SHARD_CLIPS", 8)
        patch.setattr(encode, "_make_encode_batch", lambda *_: encode_batch)
        meta = encode.encode(config, str(shards), str(root / "latents"))
    assert (meta["kind"], meta["num_records"], meta["left_out"]) == ("latent", 36, 0)
    assert len(meta["shards"]) == 5
    return root / "latents"


@pytest.fixture(scope="module")
def models(config):
    return encoders.Encoders(config)


@pytest.fixture(scope="module")
def frozen(models):
    return models.load()


def made_of(row, shards, latents):
    """The record of the latents that were made of a clip."""
    name = records.Reader(shards).index["id"][row]
    made = records.Reader(latents)
    return made[made.index["id"].tolist().index(name)]


def clip_of(row, config, shards):
    """(record of kind video, its bucket, its pixels [1, T, H, W, 3] as encode takes them)."""
    record = records.Reader(shards)[row]
    table = buckets.Table(encoders.bucket_table(config), None, 1)
    facts = (record[name] for name in ("num_frames", "height", "width"))
    bucket = table.assign(*facts, row=row, epoch=0, seed=config.seed)
    choice = encoders.clip_choice(config, row, bucket)
    content = records.Reader(shards).content(row)
    return record, bucket, batches.video_sample(content, *choice)["video"][None]


@pytest.mark.parametrize("row", [0, 11, 23, 35])
def test_a_record_is_what_the_models_make_of_the_clip(row, config, shards, latents, models, frozen):
    record, bucket, video_1THWC = clip_of(row, config, shards)
    found = made_of(row, shards, latents)
    for name in ("id", "text"):
        assert found[name] == record[name]
    for name in ("resolution", "num_frames", "aspect", "height", "width"):
        assert found[name] == getattr(bucket, name)
    assert found["fps"] == (120 if bucket.num_frames == 1 else record["fps"] // 1)
    mean, std = models.encode_video(frozen, video_1THWC)
    assert found["latent"].shape == models.latent_shape(*video_1THWC.shape[1:4])
    # float16 keeps 11 bits; the rest is another order of sums
    np.testing.assert_allclose(found["latent"], mean[0], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found["latent_std"], std[0], rtol=2e-3, atol=2e-3)
    ids_1L, mask_1L = models.tokenize([record["text"]])
    text_1LE = models.encode_text(frozen, ids_1L, mask_1L)
    assert len(found["text_emb"]) == mask_1L.sum()
    np.testing.assert_allclose(
        found["text_emb"], text_1LE[0, : mask_1L.sum()], rtol=2e-3, atol=2e-3
    )


def psnr(video, other):
    return 10 * np.log10(255**2 / np.square(video.astype(float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize("row", [0, 23])
def test_latents_of_a_shard_decode_as_well_as_fresh_ones(
    row, config, shards, latents, models, frozen
):
    _, bucket, video_1THWC = clip_of(row, config, shards)
    fresh, _ = models.encode_video(frozen, video_1THWC)
    kept = made_of(row, shards, latents)["latent"][None].astype(np.float32)
    decode = lambda latent: models.decode_video(frozen, latent, bucket.num_frames)
    assert psnr(decode(fresh), decode(kept)) > 45  # float16 costs a level of 255 here and there
    np.testing.assert_allclose(
        psnr(video_1THWC, decode(kept)), psnr(video_1THWC, decode(fresh)), atol=0.02
    )


def test_the_loader_takes_the_shards(config, latents):
    made = loader.Loader(
        latents,
        buckets=encoders.bucket_table(config),
        seed=0,
        text_tokens=config.text.max_tokens,
        time_stride=2,
    )
    batch = made.batch(0)
    assert batch["latent"].shape[0] == made.bucket(0).batch_size
    assert np.isfinite(batch["latent"]).all() and (batch["latent_std"] > 0).all()


def contents(folder):
    files = filter(pathlib.Path.is_file, folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_is_done_stays_and_other_inputs_are_refused(config, shards, latents):
    before = contents(latents)
    meta = encode.encode(config, str(shards), str(latents))
    assert meta == json.loads((latents / "meta.json").read_text())
    other = config.copy_and_resolve_references()
    other.text.seed = 1
    with pytest.raises(ValueError, match="holds a data set made from other inputs"):
        encode.encode(other, str(shards), str(latents))
    assert contents(latents) == before


def test_clips_without_a_bucket_are_counted(config, shards, root, monkeypatch):
    monkeypatch.setattr(encode, "_make_encode_batch", no_models)
    config = config.copy_and_resolve_references()
    config.data.buckets = {"32": {"17": (1.0, 2)}}
    meta = encode.encode(config, str(shards), str(root / "videos"))
    assert (meta["num_records"], meta["left_out"]) == (24, 12)  # the images


@pytest.mark.parametrize("what", ["vae", "text"])
def test_other_weights_make_other_latents(what, config, models, frozen):
    """The key would else take latents of another VAE or text encoder for these."""
    key = lambda frozen: encode._family(config, models, frozen, False, False)
    (path, value), *rest = tree_files.flatten(frozen[what]).items()
    one_bit = value.at[(0,) * value.ndim].add(1e-3)
    other = frozen | {what: tree_files.unflatten({path: one_bit, **dict(rest)})}
    assert key(other) != key(frozen) == key(jax.tree.map(jnp.copy, frozen))


def test_how_and_where_latents_are_made_is_not_in_their_key(config, models, frozen, mesh):
    key = lambda config, frozen: encode._family(config, models, frozen, False, False)
    other = config.copy_and_resolve_references()
    other.vae.weights, other.vae.slice_pixels, other.data.workers = "elsewhere", 1000, 3
    other.data.buckets["32"]["17"] = (1.0, 64)
    spread = models.load(mesh)  # on eight devices
    assert key(other, spread) == key(config, frozen)
    other.data.buckets["32"]["17"] = (0.5, 64)
    assert key(other, frozen) != key(config, frozen)


@pytest.mark.parametrize("most", [1, 16, 24, 64, 512])
@pytest.mark.parametrize("before", [0, 1, 212, 500])
def test_few_clips_are_computed_for_nothing(most, before):
    """Of a bucket whose clips begin after `before` others in their first shard."""
    for in_bucket in [*range(1, 200), 512, 900, 1024, 4001]:
        ends = [0, *range(encode.SHARD_CLIPS - before, in_bucket, encode.SHARD_CLIPS), in_bucket]
        parts = [b - a for a, b in itertools.pairwise(ends)]
        plans = [encode.plan_batches(clips, most, in_bucket) for clips in parts]
        assert [sum(count for count, _ in plan) for plan in plans] == parts
        assert sum(size for plan in plans for _, size in plan) <= 1.05 * in_bucket
        assert all(count == size for plan in plans for count, size in plan[:-1])


def test_a_large_bucket_needs_one_program():
    parts = 300, 512, 512, 77
    sizes = {size for n in parts for _, size in encode.plan_batches(n, 64, 10_000)}
    assert sizes == {64}


def no_models(models, frozen, mesh):
    def encode_batch(video, ids, mask):
        shape = len(video), *models.latent_shape(*video.shape[1:4])
        return np.zeros(shape), np.ones(shape), np.zeros((*ids.shape, 4))

    return encode_batch


@pytest.mark.parametrize(
    "source, table, message",
    [
        ("latents", {"32": {"17": (1.0, 2)}}, "holds latent shards already: give shards of videos"),
        ("shards", {"32": {"102": (1.0, 2)}}, "none of the 36 clips of .* fits a bucket"),
        ("shards", {"32": {"16": (1.0, 2)}}, "frames=16 does not fit the VAE"),
        ("none", {"32": {"17": (1.0, 2)}}, "no finished data set"),
    ],
)
def test_sources_that_cannot_be_encoded_are_refused(source, table, message, config, latents, root):
    config = config.copy_and_resolve_references()
    config.data.buckets = table
    with pytest.raises(ValueError, match=message):
        encode.encode(config, str(root / source), str(root / "new"))
    assert not (root / "new").exists()


def test_the_command_refuses_in_one_message(latents, root, config):
    command = toy.encode(latents, root / "new", config.vae.weights)
    err = toy.run(command, expect=80)
    assert "holds latent shards already" in err and "Traceback" not in err


@pytest.mark.parametrize("order", [(0, 1), (2, 0, 3, 1)])
def test_processes_share_the_shards(order, config, shards, latents, encode_batch, root):
    out = root / f"latents-{len(order)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "SHARD_CLIPS", 8)
        patch.setattr(encode, "_make_encode_batch", lambda *_: encode_batch)
        run = lambda i: encode.encode(
            config, str(shards), str(out), process_index=i, process_count=len(order)
        )
        for index in order[:-1]:
            assert run(index) is None and not out.exists()
        assert run(order[0]) is None  # has nothing left to do
        meta = run(order[-1])
        assert meta == run(0)
    assert contents(out) == contents(latents)
    with pytest.raises(ValueError, match=r"process_index=2 is not in 0\.\.1"):
        encode.encode(config, str(shards), str(out), process_index=2, process_count=2)


TWO_RESOLUTIONS = {"32": {"17": (0.5, 4)}, "16": {"17": (0.7, 4), "1": (1.0, 4)}}


def test_latents_of_every_bucket_are_drawn_like_the_videos(config, shards, root, monkeypatch):
    monkeypatch.setattr(encode, "_make_encode_batch", no_models)
    config = config.copy_and_resolve_references()
    config.data.buckets = TWO_RESOLUTIONS
    out = str(root / "every")
    meta = encode.encode(config, str(shards), out, every_bucket=True)
    assert (meta["num_records"], meta["buckets"], meta["left_out"]) == (24 * 2 + 12, "all", 0)
    settings = {"buckets": encoders.bucket_table(config), "seed": 3, "text_tokens": 72}
    video = loader.Loader(str(shards), **settings)
    latent = loader.Loader(out, **settings, time_stride=2)
    both = [(made, made.reader.index["id"]) for made in (video, latent)]
    for step in range(40):
        assert video.bucket(step) == latent.bucket(step)
        one, two = (index[made.rows(step)].tolist() for made, index in both)
        assert one == two
    assert video.epoch(39) == latent.epoch(39) >= 3
    settings["buckets"]["32"][9] = (1.0, 4)  # the clips that are not considered at 17
    settings["buckets"]["32"][17] = ((0.5, 0.5), 4)
    with pytest.raises(ValueError, match="not for bucket 32/9/.*encode the clips again"):
        loader.Loader(out, **settings, time_stride=2)


def test_a_sample_is_one_draw_of_the_posterior(config, shards, latents, root, encode_batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "_make_encode_batch", lambda *_: encode_batch)
        encode.encode(config, str(shards), str(root / "sampled"), sampled=True)
    sampled, whole = records.Reader(root / "sampled"), records.Reader(latents)
    for row in (0, 17, 35):
        one, other = sampled[row], whole[row]
        assert one["latent_std"].size == 0 and one["id"] == other["id"]
        noise = (one["latent"].astype(float) - other["latent"]) / other["latent_std"]
        assert abs(noise.mean()) < 0.2 and 0.8 < noise.std() < 1.2
    table = encoders.bucket_table(config)
    batch = loader.Loader(
        root / "sampled", buckets=table, seed=0, text_tokens=72, time_stride=2
    ).batch(0)
    assert batch["latent_std"].shape == batch["latent"].shape and not batch["latent_std"].any()


def test_damaged_clips_are_left_out_up_to_a_limit(config, shards, root, monkeypatch):
    monkeypatch.setattr(encode, "_make_encode_batch", no_models)
    reader = records.Reader(shards)
    clips = [reader[row] for row in range(36)]
    clips[5]["video"] = clips[5]["video"][:-100]
    builder.write_shards(root / "hurt", "video", 1, lambda _: iter(clips), key="")
    with pytest.raises(RuntimeError, match=f"1 of 36 records .*{clips[5]['id']}"):
        encode.encode(config, str(root / "hurt"), str(root / "from-hurt"))
    config = config.copy_and_resolve_references()
    config.data.bad_limit = 0.05
    meta = encode.encode(config, str(root / "hurt"), str(root / "from-hurt"))
    assert meta["num_records"] == 35
    ids = records.Reader(root / "from-hurt").index["id"].tolist()
    assert sorted(ids) == sorted(clip["id"] for row, clip in enumerate(clips) if row != 5)


def test_the_share_of_damaged_clips_is_of_those_that_were_read(config, shards, root, monkeypatch):
    monkeypatch.setattr(encode, "_make_encode_batch", no_models)
    monkeypatch.setattr(reads, "_FIRST_ROWS", 1)
    config = config.copy_and_resolve_references()
    config.data.bad_limit = 0.1
    config.data.buckets = {"32": {"17": (1.0, 2), "1": (1.0, 2)}}
    reader = records.Reader(shards)
    clips = [reader[row] for row in range(36)]
    clips[35]["video"] = clips[35]["video"][:-100]
    builder.write_shards(root / "last", "video", 1, lambda _: iter(clips), key="")
    meta = encode.encode(config, str(root / "last"), str(root / "from-last"))
    assert meta["num_records"] == 35  # one of ten or more, and not one of one


def test_a_check_decodes_samples_beside_their_originals(config, shards, latents):
    found = decode_check.check(config, str(shards), str(latents), 3)
    reader, files = records.Reader(shards), sorted((latents.parent / "latents.check").iterdir())
    ids = reader.index["id"].tolist()
    rows = [ids.index(name) for name, _, _ in found]
    assert len(set(rows)) == 3
    for file, (_, _, value), row in zip(files, found, rows, strict=True):
        _, bucket, video_1THWC = clip_of(row, config, shards)
        shown = video_io.decode(file.read_bytes(), list(range(bucket.num_frames)))
        original, decoded = np.split(shown, 2, axis=2)
        assert psnr(original, video_1THWC[0]) > 25  # the file is compressed
        assert abs(psnr(decoded, original) - value) < 1


def test_the_command_fails_below_the_least_psnr(config, shards, latents):
    command = toy.encode(shards, latents, config.vae.weights, "--check=2", "--min_psnr=99")
    err = toy.run(command, expect=1, HOOK_SHARD_CLIPS="8")
    assert "dB, less than --min_psnr=99" in err
