"""A data set grows: of what changes, only what differs is decoded, encoded and written."""

import collections
import csv
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import fsspec
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import data
from data_pipelines import shapes
from data_pipelines.media import encoding
from data_pipelines.shards import builder, records
from data_pipelines.stages import ingest, ledger, measured, parts, select
from data_pipelines.workers import children
from tests import moving_textures, processes
from tests import toy_training as toy
from vidgen import encode
from vidgen.training import sharding

CLIPS, IMAGES = 12, 4
ALL = CLIPS + IMAGES


class Data:
    """A source in `root`, its data set and its latents."""

    def __init__(self, root: pathlib.Path, vae: pathlib.Path):
        self.root, self.csv = root, root / "source" / "clips.csv"
        self.out, self.latents = root / "clips", root / "latents"
        self.sources, self.shrink = [self.csv], False
        self.config, self.model = data.base(), toy.config()
        self.config.scores, self.config.rules = ("phash",), ("height >= 8",)
        self.model.vae.weights = str(vae)

    def lines(self) -> list[list[str]]:
        with open(self.csv, newline="") as file:
            return list(csv.reader(file))

    def write(self, lines: list[list[str]]):
        with open(self.csv, "w", newline="") as file:
            csv.writer(file).writerows(lines)

    def run(self) -> tuple[int, int, int, int]:
        """Clips decoded, clips encoded, shards of videos and shards of latents that were written.

        Shards that were there have the same bytes afterwards.
        """
        before, encoded, batch = self.shards(), [], encode._Clips._encode_batch
        num_decoded = self.grow()

        def encode_batch(clips, bucket, found, size):
            encoded.extend(found)
            return batch(clips, bucket, found, size)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encode._Clips, "_encode_batch", encode_batch)
            encode.encode(self.model, str(self.out), str(self.latents), shrink=self.shrink)
        after = self.shards()
        assert {name: after[name] for name in before} == before
        new = [folder for folder, name in after if (folder, name) not in before]
        return num_decoded, len(encoded), new.count("clips"), new.count("latents")

    def grow(self) -> int:
        """Clips that were decoded for the data set."""
        decoded, call = [], children.Pool.__call__

        def decode(pool, *args):
            decoded.append(args)
            return call(pool, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(children.Pool, "__call__", decode)
            how = {"num_workers": 2, "shrink": self.shrink}
            ingest.run(self.sources, self.out, self.config, **how)
        return len(decoded)

    def shards(self) -> dict[tuple[str, str], bytes]:
        found = [path for f in (self.out, self.latents) for path in f.glob("*array_record*")]
        return {(path.parent.name, path.name): path.read_bytes() for path in found}

    def rows(self) -> dict[str, dict]:
        return {row["id"]: row for row in ledger.read(self.out).to_pylist()}


def texts(folder) -> dict[str, str]:
    reader = records.Reader(folder)
    return {record["id"]: record["text"] for record in reader}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return toy.vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def made(vae, tmp_path_factory):
    """Made once; tests change copies."""
    root = tmp_path_factory.mktemp("made")
    shapes.write(root / "source", clips=CLIPS, images=IMAGES, seed=0)
    assert Data(root, vae).run() == (ALL, ALL, 1, 1)
    return root


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Encoders are compiled once for each config and mesh: their weights here are the same."""
    made, make = {}, encode._make_encode_batch

    def make_once(models, frozen, mesh):
        key = models.config.to_json_best_effort(), mesh
        return made.get(key) or made.setdefault(key, make(models, frozen, mesh))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "_make_encode_batch", make_once)
        yield


@pytest.fixture
def grown(made, vae, tmp_path):
    """A copy, whose files lie elsewhere than when they were examined."""
    shutil.copytree(made, tmp_path / "copy")
    return Data(tmp_path / "copy", vae)


def add_rows(grown):
    shapes.write(grown.root / "more", clips=3, images=1, seed=1)
    for kind in ("clips", "images"):
        for path in (grown.root / "more" / kind).iterdir():
            shutil.copy(path, grown.csv.parent / kind / f"new-{path.name}")
    with open(grown.root / "more" / "clips.csv", newline="") as file:
        _, *lines = csv.reader(file)
    for line in lines:
        line[0] = line[0].replace("/", "/new-")
    grown.write(grown.lines() + lines)


def remove_a_row(grown):
    grown.write(grown.lines()[:-1])


def remove_a_file(grown):
    (grown.csv.parent / grown.lines()[2][0]).unlink()


def edit_a_caption(grown):
    lines = grown.lines()
    lines[3][1] = "another caption"
    grown.write(lines)


def another_rule(grown):
    grown.config.rules = ("kind == 'video'",)


def a_higher_limit(grown):
    grown.config.limits.max_frames *= 2


def one_more_score(grown):
    grown.config.scores = ("phash", "sharpness")


def move_the_folder(grown):
    os.rename(grown.csv.parent, grown.root / "elsewhere")
    grown.sources = [grown.root / "elsewhere" / "clips.csv"]


def shuffle(grown):
    head, *lines = grown.lines()
    random.Random(0).shuffle(lines)
    grown.write([head, *lines])


def a_second_source(grown):
    grown.sources.append(shapes.write(grown.root / "second", clips=2, images=1, seed=2))


def fewer_devices(grown):
    make = sharding.make_mesh
    grown.patch.setattr(sharding, "make_mesh", lambda *_: make({"data": 2}, jax.devices()[:2]))


def smaller_batches(grown):
    grown.patch.setattr(encode, "BATCH_CLIPS", 1)


# decoded, encoded, new shards of videos and of latents
CHANGES = {
    add_rows: (4, 4, 1, 1),
    remove_a_row: (0, 0, 0, 0),
    remove_a_file: (0, 0, 0, 0),
    edit_a_caption: (0, 1, 1, 1),
    another_rule: (0, 0, 0, 0),
    a_higher_limit: (0, 0, 0, 0),
    one_more_score: (ALL, 0, 0, 0),
    move_the_folder: (0, 0, 0, 0),
    shuffle: (0, 0, 0, 0),
    a_second_source: (3, 3, 1, 1),
    fewer_devices: (0, 0, 0, 0),
    smaller_batches: (0, 0, 0, 0),
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_costs_what_differs(change, grown, monkeypatch):
    grown.patch = monkeypatch
    change(grown)
    assert grown.run() == CHANGES[change]
    assert grown.run() == (0, 0, 0, 0)
    kept = {id: row["caption"] for id, row in grown.rows().items() if row["status"] == "kept"}
    assert texts(grown.out) == texts(grown.latents) == kept


def test_another_encoder_makes_other_latents_and_nothing_else(grown):
    grown.model.vae.weights = str(toy.vae(grown.root))  # the same weights at another place
    assert grown.run() == (0, 0, 0, 0)
    grown.model.vae.model.shift = tuple(x + 1 for x in grown.model.vae.model.shift)
    with pytest.raises(ValueError, match="made from other inputs"):
        grown.run()
    grown.latents = grown.root / "others" / "latents"
    assert grown.run() == (0, ALL, 0, 1)


def test_the_ledger_tells_which_run_added_what_and_what_left(grown):
    first, second = grown.lines()[1][0], grown.lines()[2][0]
    add_rows(grown)
    grown.grow()
    grown.write([line for line in grown.lines() if line[0] != first])
    grown.grow()
    rows = grown.rows()
    assert (rows[first]["rule"], rows[first]["run"]) == ("removed", 1)
    assert rows[first]["message"] == "not in the source of run 3."
    assert (rows[second]["status"], rows[second]["run"]) == ("kept", 1)
    assert {row["run"] for id, row in rows.items() if "new-" in id} == {2}


def test_what_comes_back_is_not_written_again(grown):
    lines = grown.lines()
    edit_a_caption(grown)
    grown.grow()
    grown.write(lines)
    grown.grow()
    assert {row["run"] for row in grown.rows().values()} == {1}  # its record lies there
    remove_a_row(grown)
    grown.run()
    assert len(records.Reader(grown.out)) == len(records.Reader(grown.latents)) == ALL - 1
    grown.write(lines)
    assert grown.run() == (0, 0, 0, 0)
    assert len(records.Reader(grown.out)) == len(records.Reader(grown.latents)) == ALL


def test_an_earlier_run_can_be_read(grown):
    before = texts(grown.out)
    edit_a_caption(grown)
    grown.run()
    remove_a_row(grown)
    grown.run()
    assert texts(f"{grown.out}@1") == texts(f"{grown.latents}@1") == before
    assert len(texts(f"{grown.out}@2")) == ALL and len(texts(grown.out)) == ALL - 1
    assert texts(f"{grown.out}@2") != before
    with pytest.raises(ValueError, match="of its runs, 1 to 3, 4 is none"):
        records.Reader(f"{grown.out}@4")


def test_measurements_serve_where_they_would_be_the_same(grown):
    store = lambda: measured.Store(
        sorted((grown.out / "measured").glob("*")), plan_of(grown.config), []
    )
    good = lambda: len(store()._by_content)
    assert good() == ALL
    grown.config.scores = ()
    assert good() == ALL  # more was measured than is wanted
    sizes = [row["height"] * row["width"] for row in grown.rows().values()]
    grown.config.limits.max_pixels = max(sizes) - 1
    assert good() == sum(size < max(sizes) for size in sizes) < ALL
    grown.config.limits.max_pixels = max(sizes)
    assert good() == ALL
    grown.config.limits.max_uneven = 0.05  # no row tells how uneven a video is
    assert good() == 0
    grown.config.limits.max_uneven = 0.2
    assert good() == ALL
    grown.config.cuts.enabled = True
    assert good() == IMAGES


def plan_of(config):
    from data_pipelines.stages import plan

    return plan.measurement(plan.check(config))


def test_a_refusal_is_kept_unless_a_limit_made_it(grown):
    lines = grown.lines()
    damaged = grown.csv.parent / lines[1][0]
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    grown.config.limits.max_bytes = sorted(row["bytes"] for row in grown.rows().values())[-3]
    grown.out = grown.root / "fresh"
    grown.grow()
    rules = {id: row["rule"] for id, row in grown.rows().items()}
    assert rules[lines[1][0]] in ("damaged", "broken header")
    too_large = sum(rule == "too large" for rule in rules.values())
    assert 0 < too_large <= 2
    grown.config.limits.max_bytes = 1 << 30
    assert grown.grow() == too_large
    assert grown.rows()[lines[1][0]]["rule"] == rules[lines[1][0]]
    assert grown.rows()[lines[1][0]]["sha256"]  # what was found until then


def test_a_data_set_does_not_lose_most_of_its_clips_by_accident(grown):
    os.rename(grown.csv.parent / "clips", grown.csv.parent / "away")  # a disk that is not there
    with pytest.raises(ValueError, match="12 of its 16 clips would go.*--shrink"):
        grown.run()
    assert len(records.Reader(grown.out)) == ALL
    grown.shrink = True
    assert grown.run() == (0, 0, 0, 0)
    assert len(records.Reader(grown.out)) == len(records.Reader(grown.latents)) == IMAGES
    assert grown.rows()["clips/000000.mp4"]["rule"] == "missing file"


def killed_at(path, grown):
    """Lets the data set grow, and ends the run where this file would get its name."""
    replace = os.replace

    def dies(source, target):
        if pathlib.Path(target) == path:
            raise KeyboardInterrupt
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            grown.grow()


@pytest.mark.parametrize("name", ["index-0002.npz", "0002-ledger.parquet", "meta-0001.json"])
def test_a_kill_while_it_is_put_together_harms_nothing(name, grown, monkeypatch):
    """The data set is what it was until meta.json is replaced; then it is what it becomes."""
    before = texts(grown.out)
    add_rows(grown)
    killed_at(grown.out / name, grown)
    assert texts(grown.out) == before
    assert set(grown.rows()) == set(before)  # and so is the ledger
    monkeypatch.setattr(parts.Examiner, "clip_rows", lambda *_: 1 / 0)  # nothing is decoded again
    edit_a_caption(grown)
    assert grown.grow() == 0
    assert len(texts(grown.out)) == ALL + 4
    assert not list(grown.out.rglob("*.part"))
    shuffle(grown)
    assert grown.grow() == 0  # what was measured before the kill is known in later runs, too


def test_a_kill_after_it_was_put_together_is_mended(grown):
    add_rows(grown)
    killed_at(grown.out / "ledger.parquet", grown)
    assert len(texts(grown.out)) == ALL + 4 and len(grown.rows()) == ALL
    assert grown.grow() == 0
    assert set(grown.rows()) == set(texts(grown.out))
    source = tfds.builder_from_directory(grown.out).as_data_source("train")
    assert len(source) == ALL + 4


def test_a_data_set_that_was_deleted_while_it_grew_is_made_whole(grown, monkeypatch):
    add_rows(grown)
    with monkeypatch.context() as patch:
        patch.setattr(builder, "finish", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            grown.grow()
    shutil.rmtree(grown.out)
    grown.grow()
    assert len(texts(grown.out)) == ALL + 4


def fresh(grown) -> tuple[dict, dict]:
    """What `now` is of a data set that is made anew from the same source."""
    again = Data(grown.root, pathlib.Path(grown.model.vae.weights))
    again.out, again.config, again.sources = grown.root / "again", grown.config, grown.sources
    shutil.rmtree(again.out, ignore_errors=True)
    again.grow()
    return now(again)


def now(grown) -> tuple[dict, dict]:
    """Captions of the records, and rows of the ledger but for the runs that added them."""
    rows = {id: row | {"run": None} for id, row in grown.rows().items()}
    return texts(grown.out), {id: row for id, row in rows.items() if row["rule"] != "removed"}


def verdicts(grown) -> dict[str, str | None]:
    return {id: row["rule"] for id, row in now(grown)[1].items()}


def test_a_file_that_changes_and_changes_back_is_one_clip(grown):
    path = grown.csv.parent / grown.lines()[-1][0]
    before = path.read_bytes()
    path.write_bytes((grown.csv.parent / grown.lines()[-2][0]).read_bytes())
    grown.grow()
    path.write_bytes(before)
    grown.grow()
    edit_a_caption(grown)
    grown.grow()
    assert now(grown) == fresh(grown)


def test_rows_that_the_source_refuses_stay_refused(grown):
    lines = grown.lines()
    grown.write([*lines, lines[1]])  # the same id again
    grown.grow()
    lines[2][1], lines[3][1] = "", "x" * 30_000
    grown.write([*lines[:-1], lines[1]])
    grown.grow()
    assert now(grown) == fresh(grown)
    assert collections.Counter(verdicts(grown).values()) == {
        None: ALL - 3,
        "duplicate id": 1,
        "no caption": 1,
        "caption too long": 1,
    }


def test_a_lower_limit_is_for_files_and_not_for_their_parts(grown):
    head, first, *lines = grown.lines()
    grown.write([[*head, "start", "end"], [*first, "0", "0.3"], *([*x, "", ""] for x in lines)])
    grown.grow()
    frames = {id: row["num_frames"] for id, row in grown.rows().items()}
    grown.config.limits.max_frames = frames["clips/000000.mp4@0-0.3"] + 2
    grown.shrink = True
    grown.grow()
    assert now(grown) == fresh(grown)
    assert verdicts(grown)["clips/000000.mp4@0-0.3"] == "too long"


def test_new_captions_are_no_loss(grown):
    head, *lines = grown.lines()
    grown.write([head, *([path, f"new {text}"] for path, text in lines)])
    assert grown.run() == (0, ALL, 1, 1)
    assert now(grown) == fresh(grown)


def test_another_size_is_no_loss(grown):
    grown.config.shards.short_side = 16
    grown.grow()
    videos = [record for record in records.Reader(grown.out) if record["num_frames"] > 1]
    assert {min(video["height"], video["width"]) for video in videos} == {16}
    assert now(grown) == fresh(grown)


def test_scenes_of_a_video_stay_together(grown):
    head, *lines = grown.lines()
    for name, seeds in (("one", (1, 2, 3)), ("two", (4, 5))):
        moves = [moving_textures.camera_move(20, 32, 48, right=1, seed=seed) for seed in seeds]
        content = encoding.encode_mp4(np.concatenate(moves), 10)
        (grown.csv.parent / f"{name}.mp4").write_bytes(content)
    grown.config.cuts.enabled, grown.out = True, grown.root / "scenes"
    films = [["one.mp4", "a film"], ["two.mp4", "another film"]]
    grown.write([head, *lines, *films])
    assert grown.grow() >= ALL + 2
    assert [id for id in grown.rows() if "one" in id] == [f"one.mp4#00{i}" for i in range(3)]
    films[0][1] = "a new caption"
    grown.write([head, *films, *lines[:-1]])
    assert grown.grow() == 0  # its scenes are copied
    assert now(grown) == fresh(grown)


def test_a_file_that_was_away_for_a_moment_is_tried_again(grown, monkeypatch):
    path, chosen = grown.csv.parent / "clips/000001.mp4", select.select
    add_rows(grown)
    lines = grown.lines()
    lines[2][1] = "another"  # of this file, whose record is not there to be copied from
    grown.write(lines)
    shutil.rmtree(grown.out)

    def away(*args):
        os.rename(path, grown.root / "away")
        return chosen(*args)

    with monkeypatch.context() as patch:
        patch.setattr(select, "select", away)
        grown.grow()
    os.rename(grown.root / "away", path)
    assert verdicts(grown)["clips/000001.mp4"] == "unreadable when shards were written"
    grown.grow()
    assert now(grown) == fresh(grown)


def test_what_a_url_leads_to_may_change(grown, monkeypatch):
    """Nothing but its name tells, until shards are written; then it is measured again."""
    files, chosen = fsspec.filesystem("memory"), select.select
    contents = [(grown.csv.parent / line[0]).read_bytes() for line in grown.lines()[1:4]]
    files.pipe("/set/clips.csv", b"path,text\na.mp4,one\nb.mp4,two")
    for name, content in zip("ab", contents, strict=False):
        files.pipe(f"/set/{name}.mp4", content)
    grown.sources, grown.out = ["memory://set/clips.csv"], grown.root / "remote"

    def change(*args):
        files.pipe("/set/b.mp4", contents[2])
        return chosen(*args)

    with monkeypatch.context() as patch:
        patch.setattr(select, "select", change)
        assert grown.grow() == 2
    assert verdicts(grown) == {"a.mp4": None, "b.mp4": "file changed"}
    assert grown.grow() == 1
    assert [record["video"] for record in records.Reader(grown.out)] == [contents[0], contents[2]]
    assert grown.grow() == 0


def test_kept_parts_of_other_data_sets_do_no_harm(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        shapes.write(tmp_path / name, clips=1, images=0, seed=seed)
        source, how = tmp_path / name / "clips.csv", {"keep_parts": tmp_path}
        ingest.run(source, tmp_path / f"{name}-out", num_workers=1, **how)
    sources = [tmp_path / name / "clips.csv" for name in "ab"]
    ingest.run(sources, tmp_path / "out", num_workers=1, **how)
    reader = records.Reader(tmp_path / "out")
    for record, name in zip(reader, "ab", strict=True):
        assert record["video"] == (tmp_path / name / "clips/000000.mp4").read_bytes()


def test_writers_of_shards_end_with_the_command(tmp_path):
    source = shapes.write(tmp_path / "s", clips=16, images=0, seed=0)
    command = [sys.executable, "-m", "data_pipelines.pipeline", f"--source={source}"]
    command += [f"--out={tmp_path / 'out'}", "--config.shards.bytes=3000", "--num_workers=2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=processes.ROOT)
    while not list(builder.work_folder(tmp_path / "out").glob("shards/*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=30)  # they hold its stderr


def test_other_tools_see_what_is_in_the_shards(grown):
    add_rows(grown)
    grown.grow()
    source = tfds.builder_from_directory(grown.out).as_data_source("train")
    assert {record["id"].decode() for record in source} == set(texts(grown.out))


def test_a_compact_copy_has_what_counts_and_grows_on(grown, capfd):
    edit_a_caption(grown)
    grown.run()
    remove_a_row(grown)
    grown.run()
    for name, gone in (("clips", 2), ("latents", 2)):
        command = [sys.executable, "-m", "data_pipelines.compact"]
        command += [f"--data={grown.root / name}", f"--out={grown.root / 'compact' / name}"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said.endswith(f"{ALL - 1} records; {gone} that had left are not in it\n")
    copies = grown.root / "compact"
    for name in ("clips", "latents"):
        one, other = records.Reader(grown.root / name), records.Reader(copies / name)
        assert [bytes(one.content(i)) for i in range(len(one))] == [
            bytes(other.content(i)) for i in range(len(other))
        ]
        assert np.array_equal(other.numbers, np.arange(ALL - 1))
    grown.out, grown.latents = copies / "clips", copies / "latents"
    assert grown.run() == (0, 0, 0, 0)
    add_rows(grown)
    assert grown.run() == (4, 4, 1, 1)


def test_sources_that_share_names_are_told_apart(tmp_path):
    for name in ("a", "b"):
        shapes.write(tmp_path / name, clips=2, images=0, seed=ord(name))
    config = data.base()
    sources = [tmp_path / name / "clips.csv" for name in "ab"]
    ingest.run(sources, tmp_path / "out", config, num_workers=1)
    names = ["clips/000000.mp4", "clips/000001.mp4"]
    assert list(texts(tmp_path / "out")) == names + [f"{name}@2" for name in names]
    clip, out = "a/clips/000000.mp4", tmp_path / "ids"
    for name, ids in (("one", ["x"]), ("two", ["x@2", "x"])):  # and the suffix itself may be taken
        lines = [f"{id},{clip},text" for id in ids]
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,path,text", *lines]))
    ingest.run([tmp_path / "one.csv", tmp_path / "two.csv"], out, config, num_workers=1)
    assert list(texts(out)) == ["x", "x@2", "x@2@2"]
