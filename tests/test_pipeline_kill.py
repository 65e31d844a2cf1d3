"""Killed anywhere, with all it started, and run again, the ingest ends with the same bytes."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines import shapes
from data_pipelines.media import encoding
from data_pipelines.shards import builder
from tests import moving_textures

FLAGS = ["--num_workers=2", "--config.cuts.enabled=true", "--config.scores=phash"]
FLAGS += ["--config.dedup.exact=true", "--config.dedup.near=4", "--config.shards.bytes=60000"]
FLAGS += ["--config.rules=num_frames >= 1; height < 100"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty clips and images, films to cut, copies, and files that are broken."""
    folder = tmp_path_factory.mktemp("source")
    table = shapes.write(folder, clips=48, images=12, seed=0)
    lines = [table.read_text()]
    clip = (folder / "clips/000001.mp4").read_bytes()
    for number in range(4):
        moves = [moving_textures.camera_move(20, 32, 48, right=1, seed=s) for s in (0, number + 1)]
        content = encoding.encode_mp4(np.concatenate(moves), 10)
        (folder / f"film{number}.mp4").write_bytes(content)
        (folder / f"copy{number}.mp4").write_bytes((clip, b"", clip[:500], content)[number])
        lines += [f"film{number}.mp4,a film\n", f"copy{number}.mp4,a copy\n"]
    table.write_text("".join(lines))
    return table


def start(source, out):
    command = [sys.executable, "-m", "data_pipelines.pipeline", f"--source={source}"]
    command += [f"--out={out}", *FLAGS]
    # a process group of its own: the kill takes all of it
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def contents(folder):
    files = filter(pathlib.Path.is_file, folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """(bytes of an uninterrupted run, seconds until its work folder was there, seconds in all)."""
    out = tmp_path_factory.mktemp("whole") / "a"
    began, at_work = time.monotonic(), None
    process = start(folder, out)
    while process.poll() is None:
        if at_work is None and (builder.work_folder(out) / "plan.json").exists():
            at_work = time.monotonic() - began
        time.sleep(0.01)
    said = process.stdout.read().decode()
    assert process.returncode == 0, process.stderr.read().decode()
    assert "no caption" not in said and "near duplicate" in said and "broken header" in said
    return contents(out), at_work or 0.0, time.monotonic() - began


def kill_and_go_on(folder, out, whole, rng, kills):
    """Kills the run at random moments, as often as asked, and lets the last one end."""
    wanted, at_work, in_all = whole
    done = 0
    while done < kills:
        process = start(folder, out)
        # one kill in ten comes while Python is still loading
        first = 0.0 if rng.random() < 0.1 else 0.9 * at_work
        try:
            process.wait(rng.uniform(first, in_all))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            done += 1
        process.communicate()
        if out.exists():  # it was done before
            assert contents(out) == wanted
            shutil.rmtree(out)
    process = start(folder, out)
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()
    assert contents(out) == wanted
    assert not builder.work_folder(out).exists()


def test_killed_at_random_points_it_goes_on_to_the_same_bytes(folder, whole, tmp_path):
    kill_and_go_on(folder, tmp_path / "a", whole, np.random.default_rng(0), kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_killed_twenty_times_it_goes_on_to_the_same_bytes(folder, whole, tmp_path, seed):
    rng = np.random.default_rng(seed)
    for number in range(5):
        kill_and_go_on(folder, tmp_path / str(number), whole, rng, kills=4)
