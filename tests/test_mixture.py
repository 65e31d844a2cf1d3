"""Several data sets are trained on as one, in the shares that were asked for."""

import collections
import json

import numpy as np
import pytest

from data_pipelines.loading import assignment, buckets, loader, mixture
from data_pipelines.shards import builder, records
from data_pipelines.stages import ingest
from tests import data_sets
from tests import toy_training as toy

SHAPE = (5, 4, 4, 4)
TABLE = {"32": {17: (1.0, 8), 1: (1.0, 16)}}


def write(folder, name, rows, clips=None, images=0.2):
    """A data set of latents; `clips` are what their frames are known by."""

    def make(row):
        is_image = row < images * rows
        frames = 1 if is_image else 17
        latent = np.zeros((1 if is_image else SHAPE[0], *SHAPE[1:]), np.float16)
        record = {"id": f"clip{row}", "text": f"{name} {row}", "fps": 12.0, "num_frames": frames}
        record |= {"height": 32, "width": 32, "resolution": "32", "aspect": "1.00"}
        record |= {"latent": latent, "latent_std": latent}
        record["text_emb"] = np.zeros((2, 4), np.float16)
        mark = records.mark(name, row) if clips is None else clips[row]
        return record | {"clip": mark, "record": mark}

    builder.write_shards(folder / name, "latent", 1, lambda _: map(make, range(rows)), key=name)
    return folder / name


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write(root, "many", 300)
    write(root, "few", 60)
    return root


def make(path, **options):
    options = {"buckets": TABLE, "seed": 3, "text_tokens": 8} | options
    return loader.Loader(path, **options)


def taken(loader, steps):
    """How often each record came, by (data set, id)."""
    rows = np.concatenate([loader.rows(step) for step in range(steps)])
    sets = np.searchsorted(loader.reader.firsts, rows, side="right") - 1
    return collections.Counter(
        zip(sets.tolist(), loader.reader.index["id"][rows].tolist(), strict=True)
    )


@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.5, 0.5), (0.02, 0.98)])
def test_shares_are_those_of_the_clips(shares, root):
    path = f"{root}/many={shares[0]},{root}/few={shares[1]}"
    made = make(path)
    counts = taken(made, 2000)
    of_set = [sum(n for (s, _), n in counts.items() if s == number) for number in (0, 1)]
    assert of_set[0] / sum(of_set) == pytest.approx(shares[0] / sum(shares), abs=0.01)
    for number in (0, 1):  # and within a set, every clip comes as often as any other
        found = [n for (s, _), n in counts.items() if s == number]
        spread = made._rows_of.epochs[number] + 1  # the last epoch of the mixture is cut
        assert max(found) - min(found) <= spread and len(found) == (300, 60)[number]


def test_epochs_are_told_by_number(root):
    made = make(f"{root}/many*1,{root}/few*2.5")
    for epoch, times in ((0, {2, 3}), (1, {2, 3})):
        rows = np.concatenate(made._rows_of(epoch))
        assert len(set(rows.tolist())) == 360
        counts = collections.Counter(rows.tolist())
        assert {counts[row] for row in range(300)} == {1}
        assert {counts[row] for row in range(300, 360)} == times
    two = np.concatenate([np.concatenate(made._rows_of(epoch)) for epoch in (0, 1)])
    counts = collections.Counter(two.tolist())
    assert {counts[row] for row in range(300, 360)} == {5}  # 2.5 epochs twice


def test_without_numbers_it_is_one_data_set_after_the_other(root):
    made = make(f"{root}/many,{root}/few")
    assert made._rows_of.is_fixed and made.num_rows == 360
    rows = np.sort(np.concatenate(made._rows_of(7)))
    assert np.array_equal(rows, np.arange(360))
    batch = made.batch(0)
    assert batch["latent"].shape[0] == made.bucket(0).batch_size


def test_a_step_is_the_same_on_any_number_of_hosts_and_after_a_resume(root):
    path = f"{root}/many=0.4,{root}/few=0.6"
    whole = make(path)
    steps = [*range(0, 30), 400, 401]
    wanted = {step: whole.batch(step)["row"].tolist() for step in steps}
    for count in (2, 4, 8):
        parts = [make(path, process_index=i, process_count=count) for i in range(count)]
        for step in (0, 17, 401):  # at once, as a run that goes on asks for it
            rows = [row for part in parts for row in part.batch(step)["row"].tolist()]
            assert rows == wanted[step]
    assert make(path).batch(401)["row"].tolist() == wanted[401]


def test_another_mixture_is_another_run(root):
    prints = {
        make(path).fingerprint
        for path in (
            f"{root}/many,{root}/few",
            f"{root}/few,{root}/many",
            f"{root}/many=0.5,{root}/few=0.5",
            f"{root}/many=0.6,{root}/few=0.4",
            f"{root}/many*1,{root}/few*2",
        )
    }
    assert len(prints) == 5


def test_a_clip_that_several_have_comes_from_the_first(tmp_path):
    write(tmp_path, "a", 6, clips=[1, 2, 3, 4, 5, 5])
    write(tmp_path, "b", 4, clips=[5, 9, 1, 9])
    made = make(f"{tmp_path}/a,{tmp_path}/b", buckets={"32": {17: (1.0, 1), 1: (1.0, 1)}})
    # row 8 is a copy of row 0 in frames, but an image is another bucket's latent than a video
    assert made.reader.index["num_frames"].tolist() == [1, 1] + [17] * 4 + [1] + [17] * 3
    assert np.flatnonzero(made.reader.copies()).tolist() == []
    write(tmp_path, "c", 4, clips=[1, 9, 5, 9])
    made = make(f"{tmp_path}/a,{tmp_path}/c", buckets={"32": {17: (1.0, 1), 1: (1.0, 1)}})
    assert np.flatnonzero(made.reader.copies()).tolist() == [6, 8]
    rows = np.sort(np.concatenate(made._rows_of(0))).tolist()
    assert rows == [0, 1, 2, 3, 4, 5, 7, 9]  # what a set has twice itself is its own affair


def test_the_rows_of_one_bucket_are_those_of_the_whole(root):
    reader = mixture.read(f"{root}/many=0.9,{root}/few=0.1")
    table = buckets.Table(TABLE, None, 1)
    one, other = (mixture.MixedAssignment(reader, table, 5) for _ in range(2))
    for epoch in (0, 1, 9):
        for bucket in range(len(table.all_buckets())):
            assert np.array_equal(one.rows(epoch, bucket), other(epoch)[bucket])
    assert sum(one.epochs) == pytest.approx(0.9 * 360 / 300 + 0.1 * 360 / 60)
    assert isinstance(mixture.assign(reader.readers[0], table, 5), assignment.Assignment)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{0}/many=0.7,{0}/few", "give each data set a share"),
        ("{0}/many=0.7,{0}/few*2", "give each data set a share"),
        ("{0}/many=0,{0}/few=1", "needs a number above 0"),
        ("{0}/many=x,{0}/few=1", "needs a number above 0"),
        ("{0}/many*nan,{0}/few*1", "needs a number above 0"),
        ("{0}/many,{0}/none", "is no finished data set"),
    ],
)
def test_what_makes_no_mixture_is_said(path, words, root):
    with pytest.raises(ValueError, match=words):
        mixture.read(path.format(root))


def test_a_folder_with_a_comma_is_a_folder(tmp_path):
    write(tmp_path, "a,b=2", 6)
    assert isinstance(mixture.read(tmp_path / "a,b=2"), records.Reader)


def test_openvid_and_miradata_go_from_their_own_files_to_one_run(tmp_path):
    for name, make_set in (
        ("openvid", data_sets.write_openvid),
        ("miradata", data_sets.write_miradata),
    ):
        found = make_set(tmp_path / name)
        ingest.run(f"{name}:{found.folder}", tmp_path / f"{name}-shards", num_workers=2)
    path = f"{tmp_path}/openvid-shards=0.7,{tmp_path}/miradata-shards=0.3"
    command = ["train", *toy.TINY, f"--config.data.path={path}", "--config.num_steps=2"]
    vae = toy.vae(tmp_path)
    toy.run([*command, f"--workdir={tmp_path}/run", f"--config.vae.weights={vae}"])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    other = f"--config.data.path={path.replace('0.7', '0.6')}"
    more = [f"--workdir={tmp_path}/run", f"--config.vae.weights={vae}", other]
    assert "The data are others" in toy.run([*command, *more], expect=80)
