"""Shards behind a URL are read through copies: checked, shared, and within a budget."""

import hashlib
import multiprocessing

import fsspec
import numpy as np
import pytest
from test_records import latent

from data_pipelines.shards import builder, records, shard_cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("remote") / "latents"
    make_shard = lambda shard: (latent(shard, number) for number in range(3))
    builder.write_shards(out, "latent", 4, make_shard, key="a")
    return out


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(shard_cache.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory(folder):
    """The data set at a URL that no process but this one can read."""
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe_file(f"/data/{path.name}", path.read_bytes())
    yield "memory://data"
    files.rm("/data", recursive=True)


def kept(cache):
    return {p.name: p.stat().st_size for p in cache.iterdir() if p.suffix != ".lock"}


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_remote_data_set_reads_like_a_local_one(protocol, folder, cache, memory):
    url = memory if protocol == "memory" else f"file://{folder}/"
    local, remote = records.Reader(folder), records.Reader(url)
    assert remote.meta == local.meta and remote.is_remote and not local.is_remote
    for row in (11, 0, 5, 11):
        assert remote.content(row) == local.content(row)
    shards = [local.meta["shards"][i] for i in (0, 1, 3)]
    assert kept(cache) == {shard["sha256"]: shard["bytes"] for shard in shards}
    for name in kept(cache):
        assert hashlib.sha256((cache / name).read_bytes()).hexdigest() == name


def test_a_copy_is_made_once_for_all_processes(folder, cache):
    url = f"file://{folder}"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert sum(pool.map(make_copies, [url] * 3)) == 4
    assert len(kept(cache)) == 4


def make_copies(url):
    reader = records.Reader(url)
    return sum(reader._remote.fetch(shard)[1] for shard in reader.meta["shards"])


def test_what_was_not_used_for_longest_makes_room(folder, cache, memory, monkeypatch):
    sizes = [shard["bytes"] for shard in records.Reader(folder).meta["shards"]]
    monkeypatch.setenv(shard_cache.BUDGET, str(2 * max(sizes) + 10))
    reader, local = records.Reader(memory), records.Reader(folder)
    names = [shard["sha256"] for shard in reader.meta["shards"]]
    rng = np.random.default_rng(0)
    last_used = []
    for row in rng.integers(12, size=40).tolist():
        assert reader.content(row) == local.content(row)
        last_used = [n for n in last_used if n != names[row // 3]] + [names[row // 3]]
        assert set(kept(cache)) == set(last_used[-2:])
    monkeypatch.setenv(shard_cache.BUDGET, "1000")
    with pytest.raises(RuntimeError, match="VIDGEN_SHARD_CACHE_BYTES=1,000"):
        records.Reader(f"file://{folder}").content((names.index(last_used[0])) * 3)


def test_a_damaged_copy_is_never_used(folder, cache, memory):
    files = fsspec.filesystem("memory")
    name = records.Reader(folder).meta["shards"][1]["name"]
    content = bytearray(files.cat_file(f"/data/{name}"))
    content[len(content) // 2] ^= 4
    files.pipe_file(f"/data/{name}", bytes(content))
    reader = records.Reader(memory)
    assert reader[0]["id"] == "0/0"
    with pytest.raises(OSError, match=f"memory://data/{name} is damaged.*Upload it again"):
        reader.content(3)
    assert len(kept(cache)) == 1
    files.pipe_file(f"/data/{name}", (folder / name).read_bytes())
    assert reader[3]["id"] == "1/0"


def test_errors_name_the_url_and_the_variable(cache, monkeypatch):
    with pytest.raises(ValueError, match="memory://none is no finished data set"):
        records.Reader("memory://none")
    with pytest.raises(ValueError, match="ftpx://a"):
        records.Reader("ftpx://a")
    monkeypatch.setenv(shard_cache.BUDGET, "much")
    with pytest.raises(ValueError, match="VIDGEN_SHARD_CACHE_BYTES='much'"):
        records.Reader("memory://none")
