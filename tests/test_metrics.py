"""Metrics are complete on disk, late by one step, and never in the way."""

import json
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.media import video_io
from vidgen.training import metrics, trackers


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(folder, steps, total=6, start=0, **settings):
    log = metrics.Logger(folder, total, start, tensorboard=False, **settings)
    for step in steps:
        log.step(step, {"loss": jnp.float32(step) / 4}, tokens=100, labels=("a",))
    return log


def test_values_are_fetched_one_step_late(tmp_path):
    log = run(tmp_path, [1, 2, 3])
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]  # on disk at once
    log.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (1, 0.25),
        (2, 0.5),
        (3, 0.75),
    ]


def test_a_flush_reports_the_step_before_a_checkpoint_of_it(tmp_path):
    log = run(tmp_path, [1, 2])
    log.flush()
    log.flush()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    log.step(3, {"loss": jnp.float32(0)})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_a_resumed_run_reports_the_same_steps(tmp_path):
    run(tmp_path / "a", range(1, 7)).close()
    run(tmp_path / "b", range(1, 6))  # killed: not closed
    with open(tmp_path / "b" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')  # while it wrote a line
    run(tmp_path / "b", range(4, 7), start=3).close()
    both = [[(x["step"], x["loss"]) for x in lines(tmp_path / name)] for name in "ab"]
    assert both[0] == both[1]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    log = metrics.Logger(tmp_path, 1, tensorboard=False)
    log.step(1, {"loss": jnp.float32("nan"), "bins": jnp.array([1.0, jnp.inf]), "skips": 2})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert (line["loss"], line["bins"], line["skips"]) == ("nan", [1.0, "inf"], 2)


def test_steps_that_compile_do_not_count():
    rates, now = metrics.Rates(), 0.0
    #          label, seconds from the end of the step before it to its own end
    history = [("a", 9), ("a", 2), ("a", 2), ("b", 2), ("a", 9), ("b", 1), ("a", 2)]
    for index, (label, seconds) in enumerate(history):
        rates.started((label,)) if index == 0 else None
        following = history[index + 1][0] if index + 1 < len(history) else "a"
        clean = rates.started(following)  # compiled before the end of this step is fetched
        now += seconds
        work = {"tokens": 100 if label == "a" else 50, "samples": 0, "flops": 1e12}
        rates.finished(work, clean and index > 0, now)
    summary = rates.summary()
    assert summary["step_seconds"] == 2
    assert summary["tokens_per_second"] == 50
    assert summary["flops_per_second"] == 5e11
    assert "samples_per_second" not in summary


def test_the_first_step_without_labels_compiles_too():
    rates = metrics.Rates()
    assert [rates.started(()) for _ in range(3)] == [False, True, True]


def test_the_line_of_progress_tells_loss_speed_and_time_left(tmp_path, capsys):
    values = {"loss": 0.51234, "tokens_per_second": 2e4, "flops_per_second": 3.1e12}
    text = metrics.describe(1800, {**values, "step_seconds": 2.5})
    assert text == "loss 0.5123  2e+04 tokens/s  3.1 TFLOP/s  2.5 s/step  1:15:00 left"
    log = run(tmp_path, range(1, 7), line_seconds=1000)
    log.note("a checkpoint")
    log.close()
    err = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in err] == ["step 1/6", "a checkpoint", "step 6/6"]


def test_a_terminal_gets_a_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    run(tmp_path, range(1, 7)).close()
    assert "6/6 |" in capsys.readouterr().err


VIDEO = np.full((5, 16, 18, 3), 99, np.uint8)


def test_previews_are_files_that_play(tmp_path):
    log = metrics.Logger(tmp_path, 9, tensorboard=False)
    log.video(3, "a red ball / left", VIDEO)
    log.video(3, "two", [VIDEO, VIDEO[:1]])
    log.close()
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == ["00000003-a_red_ball_left.mp4", "00000003-two-0.mp4", "00000003-two-1.png"]
    probe = video_io.probe((tmp_path / "previews" / names[0]).read_bytes())
    assert (probe.num_frames, probe.height, probe.width) == (5, 16, 18)
    assert Image.open(tmp_path / "previews" / names[2]).size == (18, 16)


def test_trackers_get_where_the_time_goes_with_each_checkpoint(tmp_path, capsys):
    got = []
    tracker = types.SimpleNamespace(
        scalars=lambda step, values: got.append((step, values)), close=lambda: None
    )
    account = types.SimpleNamespace(shares=lambda: {"step": 0.9}, describe=lambda: "0:00:10 in all")
    settings = {"trackers": [lambda: tracker], "account": account, "tensorboard": False}
    log = metrics.Logger(tmp_path, 9, **settings)
    log.step(1, {"loss": 1.0})
    log.step(2, {"loss": 1.0})
    log.flush()
    log.flush()  # nothing new
    log.close()
    assert (2, {"time/step": 0.9}) in got and len(got) == 3
    assert "0:00:10 in all" in capsys.readouterr().err


def test_tensorboard_gets_scalars_and_videos(tmp_path):
    log = metrics.Logger(tmp_path, 2, line_seconds=1000)
    log.step(1, {"loss": jnp.float32(0.5)})
    log.video(1, "ball", VIDEO)
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data = path.read_bytes()
    assert b"loss" in data and b"ball" in data and b"GIF89a" in data


class Broken:
    """A tracker whose service is gone."""

    def scalars(self, step, values):
        raise ConnectionError("no route")

    video = scalars

    def close(self):
        raise ConnectionError("no route")


class Hanging:
    def scalars(self, step, values):
        time.sleep(1000)


class Kept:
    def __init__(self):
        self.steps = []

    def scalars(self, step, values):
        self.steps.append(step)

    def close(self):
        self.steps.append("end")


def test_a_tracker_that_fails_or_hangs_never_stops_training(tmp_path, caplog, monkeypatch):
    def unreachable():
        raise OSError("no service")

    kept = Kept()
    monkeypatch.setattr(trackers.Guarded.close, "__defaults__", (0.2,))
    start = time.monotonic()
    log = run(tmp_path, range(1, 2000), 2000, trackers=[Broken, Hanging, unreachable, lambda: kept])
    log.close()
    assert time.monotonic() - start < 20
    assert len(lines(tmp_path)) == 1999
    assert kept.steps[0] == 1 and kept.steps[-1] == "end"
    assert "metrics.jsonl goes on" in caplog.text


def test_logging_does_not_wait_for_the_step_that_runs(tmp_path):
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 60, lambda _, y: jnp.tanh(y @ y), x).mean())
    x = jnp.ones((400, 400))
    slow(x).block_until_ready()
    start = time.monotonic()
    slow(x).block_until_ready()
    alone = time.monotonic() - start
    log = metrics.Logger(tmp_path, 9, tensorboard=False)
    start = time.monotonic()
    log.step(1, {"loss": slow(x)})
    assert time.monotonic() - start < max(alone / 2, 0.01)
    log.close()


def test_wandb_goes_on_with_the_run_of_the_folder(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finish")

    wandb = types.SimpleNamespace(
        init=lambda **settings: calls.append(settings) or Run(),
        Video=lambda clip, format: (format, clip.read()[4:8]),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for _ in range(2):
        log = metrics.Logger(tmp_path, 1, tensorboard=False, wandb="project")
        log.step(1, {"loss": jnp.float32(0.5)})
        log.video(1, "ball", VIDEO)
        log.close()
    first, *first_calls = calls[:4]
    second = calls[4]
    assert first == second and (first["project"], first["resume"]) == ("project", "allow")
    assert first_calls == [(1, {"ball": ("mp4", b"ftyp")}), (1, {"loss": 0.5}), "finish"]
