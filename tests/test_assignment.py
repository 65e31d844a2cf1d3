"""Rows of buckets as arrays, beside the rule for one clip after the other."""

import dataclasses
import io

import numpy as np
import pytest
import scalar_rule

from data_pipelines.loading import assignment, buckets
from tests import measure_assignment

TABLE = {
    "64": {17: ((0.5, 0.6), 4), 9: (0.7, 4), 1: (0.4, 4)},
    "32": {33: (0.0, None), 17: ((1.0, 0.5), 4), 9: (0.8, 4), 1: (1.0, 4)},
}
COUNT = 300


@dataclasses.dataclass
class Reader:
    """What an assignment asks of `records.Reader`."""

    kind: str
    index: dict
    meta: dict = dataclasses.field(default_factory=dict)
    clips: dict = dataclasses.field(default_factory=dict)
    folder: str = "latents"

    def __len__(self):
        return len(self.index["id"])

    def file(self, name):
        assert name == assignment.CLIPS
        content = io.BytesIO()
        np.savez(content, **self.clips)
        return content.getvalue()


def columns(seed=0):
    rng = np.random.default_rng(seed)
    side = rng.choice([16, 24, 40, 64, 80], (2, COUNT)).astype(np.int32)
    frames = rng.choice([1, 9, 12, 20, 40], COUNT).astype(np.int32)
    ids = np.array([f"clip{i}" for i in rng.permutation(COUNT)])
    return {"id": ids, "num_frames": frames, "height": side[0], "width": side[1]}


def placed(table, clips, epoch, seed):
    """{clip: name of its bucket} by the rule for one clip."""
    facts = zip(*(clips[k].tolist() for k in ("num_frames", "height", "width")), strict=True)
    rule = lambda row, size: scalar_rule.place(table, *size, row=row, epoch=epoch, seed=seed)[0]
    found = {row: rule(row, size) for row, size in enumerate(facts)}
    return {row: name for row, name in found.items() if name}


def encoded(table, clips, rng):
    """The index of latents of every bucket; some clips are left out, and the order is any."""
    clips_M, numbers_M = table.fitting(*(clips[k] for k in ("num_frames", "height", "width")))
    kept = rng.permutation(np.flatnonzero(clips_M % 7 != 3))
    clips_M, made = clips_M[kept], [table.all_buckets()[n] for n in numbers_M[kept]]
    names = {k: np.array([getattr(b, k) for b in made]) for k in ("resolution", "aspect")}
    names["num_frames"] = np.array([b.num_frames for b in made], np.int32)
    return {"id": clips["id"][clips_M]} | names


def names_of(table):
    return [(b.resolution, b.num_frames, b.aspect) for b in table.all_buckets()]


def check(rows_of, table, wanted, epoch):
    """`wanted`: [(row, name of its bucket)]."""
    for number, name in enumerate(names_of(table)):
        rows = sorted(row for row, found in wanted if found == name)
        assert rows_of.rows(epoch, number).tolist() == rows
    for number, name in enumerate(names_of(table)):
        rows = rows_of(epoch)[number]
        assert rows.tolist() == sorted(row for row, found in wanted if found == name)
        assert rows.dtype == np.int32


def test_videos_are_where_the_rule_puts_them():
    table, clips = buckets.Table(TABLE), columns()
    rows_of = assignment.Assignment(Reader("video", clips), table, 7)
    for epoch in (0, 3, 20):
        wanted = placed(table, clips, epoch, 7)
        assert 20 < len(wanted) < COUNT - 20
        check(rows_of, table, wanted.items(), epoch)
    assert not rows_of.is_fixed


def test_latents_of_every_bucket_are_chosen_as_the_videos_are():
    table, clips = buckets.Table(TABLE), columns()
    index = encoded(table, clips, np.random.default_rng(0))
    reader = Reader("latent", index, {"buckets": "all"}, clips)
    rows_of = assignment.Assignment(reader, table, 7)
    known = (index[k].tolist() for k in ("id", "resolution", "num_frames", "aspect"))
    row_of = {key: row for row, key in enumerate(zip(*known, strict=True))}
    for epoch in (0, 5):
        named = placed(table, clips, epoch, 7).items()
        keys = [((str(clips["id"][clip]), *name), name) for clip, name in named]
        found = [(row_of[key], name) for key, name in keys if key in row_of]
        assert 0 < len(found) < len(keys)
        check(rows_of, table, found, epoch)


def test_a_clip_without_the_latent_of_its_bucket_is_an_error():
    table, clips = buckets.Table(TABLE), columns()
    index = encoded(table, clips, np.random.default_rng(0))
    is_lost = (index["resolution"] == "32") & (index["num_frames"] == 9)
    index = {name: column[~is_lost] for name, column in index.items()}
    reader = Reader("latent", index, {"buckets": "all"}, clips)
    with pytest.raises(ValueError, match=r"has clip 'clip\d+', but not for bucket 32/9/"):
        assignment.Assignment(reader, table, 7)(0)


def test_other_latents_stay_where_they_are():
    table, clips = buckets.Table(TABLE), columns()
    index = encoded(table, clips, np.random.default_rng(0))
    rows_of = assignment.Assignment(Reader("latent", index), table, 7)
    names = zip(*(index[k].tolist() for k in ("resolution", "num_frames", "aspect")), strict=True)
    check(rows_of, table, list(enumerate(names)), 4)
    assert rows_of.is_fixed and rows_of(0) is rows_of(9)
    smaller = buckets.Table({"32": TABLE["32"]})
    numbers = assignment.bucket_numbers(Reader("latent", index), smaller)
    np.testing.assert_array_equal(numbers < 0, index["resolution"] == "64")


def test_one_rare_bucket_of_an_old_epoch_does_not_cost_the_epoch(monkeypatch):
    table, clips = buckets.Table(TABLE), columns()
    rows_of = assignment.Assignment(Reader("video", clips), table, 7)
    drawn = []
    real = buckets.Table.assign_all
    monkeypatch.setattr(
        buckets.Table,
        "assign_all",
        lambda self, *facts, **place: drawn.append(len(facts[0])) or real(self, *facts, **place),
    )
    for number in range(len(table.all_buckets())):
        rows_of.rows(2, number)
    assert drawn[-1] == COUNT and sum(drawn) <= 1.5 * COUNT  # in the end all at once
    rows_of(2)
    assert drawn.count(COUNT) == 1


@pytest.mark.slow
def test_ten_million_clips_start_and_resume_within_a_minute_and_4_gb(tmp_path):
    measure_assignment.write_index(tmp_path, 10_000_000)
    parts = {
        name: measure_assignment.measure(tmp_path, name, 20) for name in ("start", "pass", "resume")
    }
    assert parts["resume"]["first_step"] > 19 * 1000
    for name, part in parts.items():
        assert part["peak_bytes"] < 4e9, name
    assert max(parts["start"]["cpu_seconds"], parts["resume"]["cpu_seconds"]) < 60


def test_the_measured_resume_gives_what_a_walk_through_all_epochs_does(tmp_path):
    measure_assignment.write_index(tmp_path, 20_000)
    walked = measure_assignment.run(tmp_path, "resume", 6)  # no counts are kept so far
    (tmp_path / "epoch_counts.txt").unlink()
    measure_assignment.run(tmp_path, "pass", 6)
    resumed = measure_assignment.run(tmp_path, "resume", 6)
    for name in ("first_step", "rows_sha256"):
        assert resumed[name] == walked[name]
