"""Stopped or killed at any moment and started again, a command ends as if nothing had happened."""

import functools
import itertools
import signal
import time

import numpy as np
import pytest

from data_pipelines.loading import loader
from tests import toy_training as toy
from vidgen.process import exit_codes

STEPS = toy.STEPS
SLOW_SEEDS = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def shards(root):
    return toy.data(root)


@pytest.fixture(scope="module")
def vae(root):
    return toy.vae(root)


@pytest.fixture(scope="module")
def latents(root, shards, vae):
    """Shards of latents, made without interruption."""
    toy.run(toy.encode(shards, root / "latents", vae), HOOK_SHARD_CLIPS="8")
    return root / "latents"


@pytest.fixture(scope="module")
def commands(shards, latents, vae):
    """{task: workdir -> command}."""
    return {
        "autoencoder": lambda workdir: toy.autoencoder(shards, workdir),
        "text_to_video": lambda workdir: toy.text_to_video(latents, workdir, vae),
    }


@pytest.fixture(scope="module")
def reference(root, commands):
    """Task -> the workdir of a run that nothing interrupted."""

    @functools.cache
    def of(task):
        toy.run(commands[task](root / task))
        return root / task

    return of


@pytest.fixture(scope="module")
def seconds(root, commands, reference):
    """Task -> how long a run takes whose programs are compiled already."""

    @functools.cache
    def of(task):
        began = time.monotonic()
        toy.run(commands[task](root / f"{task}-again"))
        spent = time.monotonic() - began
        toy.assert_same_run(root / f"{task}-again", reference(task))
        return spent

    return of


class Consumed:
    """The batches that the training loops of one workdir took, by HOOK_ROWS.

    `since` gives those of the last process: its steps, which have to follow each other from
    `first`, and whose rows have to be those of the loader.
    """

    def __init__(self, path, data):
        self.hook = {"HOOK_ROWS": str(path)}
        self._path, self._seen = path, 0
        table = {"32": {17: (1.0, 2), 1: (1.0, 4)}}  # of configs/tiny.py
        self._loader = loader.Loader(data, buckets=table, seed=0, text_tokens=72, time_stride=2)

    def since(self, first: int) -> int:
        """Returns the step after the last one."""
        new = toy.lines(self._path)[self._seen :]
        self._seen += len(new)
        taken = [
            (step, [row for line in slices for row in line["rows"]])
            for step, slices in itertools.groupby(new, lambda line: line["step"])
        ]
        for expected, (step, rows) in enumerate(taken, first):
            whole = self._loader.rows(step).tolist()
            is_cut_short = step == first + len(taken) - 1  # by a kill between two slices
            assert step == expected and rows == (whole[: len(rows)] if is_cut_short else whole)
        return first + len(taken)


def test_updates_of_several_buckets_go_on_where_they_were_killed(latents, vae, root):
    more = ["--config.accumulate.batches=2", "--config.accumulate.weighting=token"]
    whole = toy.text_to_video(latents, root / "mixed", vae, *more)
    toy.run(whole)
    labels = {line["label"] for line in toy.lines(root / "mixed" / "metrics.jsonl")}
    assert any("+" in label for label in labels)  # images and videos in one update
    workdir = root / "mixed-killed"
    command = toy.text_to_video(latents, workdir, vae, *more)
    code, err = toy.kill(toy.start(command), lambda: len(toy.saved_steps(workdir)) > 0)
    assert code == -signal.SIGKILL, err
    toy.run(command)
    toy.assert_same_run(workdir, root / "mixed")


@pytest.mark.parametrize("task, stop", [("autoencoder", "SIGTERM"), ("text_to_video", "SIGINT")])
def test_a_stop_and_a_kill_leave_no_trace(task, stop, commands, reference, shards, latents, root):
    expected, workdir = reference(task), root / f"{task}-interrupted"
    command = [*commands[task](workdir), "--config.data.workers=1"]  # signals reach it too
    data = shards if task == "autoencoder" else latents
    consumed = Consumed(root / f"{task}-rows.jsonl", data)

    is_under_way = lambda: len(toy.lines(workdir / "metrics.jsonl")) >= 1
    process = toy.start(command, **consumed.hook)
    code, err = toy.kill(process, is_under_way, signal.Signals[stop])
    assert code == exit_codes.REQUEUE == 75, err
    assert f"{stop}: stopping after this step" in err
    stopped = toy.saved_steps(workdir)[-1]
    assert 1 <= stopped < STEPS
    assert [line["step"] for line in toy.reported(workdir)] == [*range(1, stopped + 1)]
    assert consumed.since(0) == stopped  # so nothing is taken twice

    process = toy.start(command, **consumed.hook)
    code, err = toy.kill(process, lambda: toy.is_saving(workdir))
    assert code == -signal.SIGKILL, err
    killed = toy.saved_steps(workdir)[-1]
    assert stopped <= killed <= consumed.since(stopped)
    assert killed <= len(toy.reported(workdir))  # no checkpoint is ahead of the metrics

    toy.run(command, **consumed.hook)
    assert consumed.since(killed) == STEPS
    assert not toy.is_saving(workdir)
    toy.assert_same_run(workdir, expected)

    before = toy.contents(workdir)
    assert toy.run(command, **consumed.hook) == ""  # all is done: nothing to say
    assert consumed.since(STEPS) == STEPS
    assert before == toy.contents(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["autoencoder", "text_to_video"])
def test_half_and_half_equals_the_whole(task, commands, reference, root):
    expected, workdir = reference(task), root / f"{task}-halves"
    half = STEPS // 2
    toy.run([*commands[task](workdir), f"--config.num_steps={half}"])
    assert toy.saved_steps(workdir)[-1] == half
    toy.run(commands[task](workdir))
    toy.assert_same_run(workdir, expected)


def is_half_done(out):
    return len(list(out.with_name(out.name + ".work").glob("shards/*.json"))) >= 2


def test_encode_goes_on_where_it_was_killed(shards, vae, latents, root):
    out = root / "latents-killed"
    command, hook = toy.encode(shards, out, vae), {"HOOK_SHARD_CLIPS": "8"}
    code, err = toy.kill(toy.start(command, **hook), lambda: is_half_done(out))
    assert code == -signal.SIGKILL, err
    assert not out.exists()
    work = out.with_name(out.name + ".work") / "shards"
    times = lambda: {path.name: path.stat().st_mtime_ns for path in work.glob("*.json")}
    finished = times()
    is_further = lambda: len(times()) > len(finished)
    code, err = toy.kill(toy.start(command, **hook), is_further, signal.SIGTERM)
    assert (code == exit_codes.REQUEUE and not out.exists()) or code == 0, err
    assert code == 0 or times().items() > finished.items()  # what was done is not made again
    toy.run(command, **hook)
    assert toy.contents(out) == toy.contents(latents)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_four_processes_of_encode_that_are_killed_leave_no_trace(seed, shards, vae, latents, root):
    out, rng, hook = root / f"four-{seed}", np.random.default_rng(seed), {"HOOK_SHARD_CLIPS": "8"}
    places = [("--process_count=4", f"--process_index={i}") for i in range(4)]
    start = lambda place: toy.start(toy.encode(shards, out, vae, *place), **hook)
    for _ in range(2):
        end = time.monotonic() + rng.uniform(2, 12)
        for process in [start(place) for place in places]:
            toy.kill(process, lambda end=end: time.monotonic() > end)
    for process in [start(place) for place in places]:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert toy.contents(out) == toy.contents(latents)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["autoencoder", "text_to_video"])
@pytest.mark.parametrize("seed", range(SLOW_SEEDS))
def test_kills_at_random_moments_leave_no_trace(task, seed, commands, reference, seconds, root):
    expected, longest = reference(task), seconds(task)
    workdir, rng = root / f"{task}-{seed}", np.random.default_rng(seed)
    command = commands[task](workdir)
    for _ in range(3):
        end = time.monotonic() + rng.uniform(0, longest)
        toy.kill(toy.start(command), lambda end=end: time.monotonic() > end)
    toy.run(command)
    toy.assert_same_run(workdir, expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SLOW_SEEDS))
def test_kills_of_encode_at_random_moments_leave_no_trace(seed, shards, vae, latents, root):
    out, rng = root / f"latents-{seed}", np.random.default_rng(seed)
    command, hook = toy.encode(shards, out, vae), {"HOOK_SHARD_CLIPS": "8"}
    for _ in range(3):
        end = time.monotonic() + rng.uniform(0, 6)
        toy.kill(toy.start(command, **hook), lambda end=end: time.monotonic() > end)
    toy.run(command, **hook)
    assert toy.contents(out) == toy.contents(latents)
