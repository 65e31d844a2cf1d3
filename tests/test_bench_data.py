"""The rates of the loader stand beside what a GPU takes, for data of the right shapes."""

import json
import math

import pytest

from data_pipelines.loading import buckets, loader
from data_pipelines.media import video_io
from data_pipelines.shards import records
from tests import toy_training as toy
from vidgen import bench_data
from vidgen.models import flops


def test_the_buckets_are_those_of_the_spec():
    found = {b.name: b for b in bench_data.spec_buckets()}
    assert len(found) == 37
    assert found["144p/1/0.56"].batch_size == 475
    for name, shape in {
        "144p/1/0.56": (1, 18, 32),
        "240p/51/0.56": (15, 30, 53),
        "512/408/1.00": (120, 64, 64),
        "2048/1/1.00": (1, 256, 256),
    }.items():
        assert bench_data.latent_size(found[name]) == shape


def test_a_gpu_takes_what_its_flops_allow():
    """240p x 51: 812 TFLOP for 20 clips, three times the forward pass, counted by hand."""
    bucket = next(b for b in bench_data.spec_buckets() if b.name == "240p/51/0.56")
    forward = bench_data.xl_forward_flops(bucket)
    parts = flops.stdit_forward_flops(latent_frames=15, tokens=15 * 27, **bench_data.XL)
    assert forward == sum(parts.values())
    assert 3 * 20 * forward == pytest.approx(812e12, rel=0.01)
    assert bench_data.demand(forward) == pytest.approx(0.4 * 989e12 / 812e12 * 20, rel=0.01)


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(bench_data, "_DATA_BYTES", 1 << 20)
    monkeypatch.setitem(bench_data.XL, "text_width", 64)
    return buckets.Bucket("32", 17, "1.00", 32, 32, 6)


def test_the_data_that_are_made_fit_their_bucket(bucket, tmp_path):
    bench_data.write_latents(tmp_path / "latents", bucket, 20)
    bench_data.write_videos(tmp_path / "videos", bucket)
    reader = records.Reader(tmp_path / "latents")
    lengths = reader.index["text_length"]
    assert len(reader) >= 6 and 10 <= lengths.min() < 16 and 24 < lengths.max() <= 30
    assert reader[0]["latent"].shape == (5, 4, 4, 4) and (reader.index["place"] >= 0).all()
    video = records.Reader(tmp_path / "videos")[0]
    assert video_io.decode(video["video"], list(range(18))).shape == (18, 32, 32, 3)
    for kind, size in (("latents", 6), ("videos", 1)):
        table = {"32": {17: (1.0, size)}}
        made = loader.Loader(tmp_path / kind, buckets=table, seed=0, text_tokens=300, cache_bytes=0)
        found = bench_data.measure(made, made.bucket(0), 2)
        assert found["batches_per_second"] * size == pytest.approx(found["clips_per_second"])
        assert found["bytes_per_second"] == pytest.approx(
            found["clips_per_second"] * found["record_bytes"]
        )
    assert found["record_bytes"] >= len(video["video"])


def test_the_command_measures_a_data_set_of_ones_own(tmp_path):
    toy.random_latents(tmp_path / "latents")
    out = tmp_path / "found.json"
    command = ["bench_data", *toy.TINY, f"--data={tmp_path / 'latents'}", f"--out={out}"]
    toy.run([*command, "--repeats=1"])
    found = json.loads(out.read_text())
    assert {row["bucket"] for row in found["rows"]} == {"32/17/1.00", "32/1/1.00"}
    assert found["command"].startswith("python -m vidgen.bench_data --config=")
    for row in found["rows"]:
        ratio = row["latents"]["clips_per_second"] / row["h100_clips_per_second"]
        assert math.isclose(row["latents"]["h100s"], ratio)
    err = toy.run(["bench_data", f"--data={tmp_path}"], expect=80)
    assert "--config and --data belong together" in err
