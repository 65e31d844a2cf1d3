"""Prompts in, videos out: the same bytes for the same seed, and refusals before any work."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.media import video_io
from tests import toy_runs
from vidgen import sample

PROMPTS = ["a small red circle", "ein größerer Kreis!"]
SIZE = {"height": 24, "width": 32, "num_frames": 17, "fps": 12.0, "steps": 2}


def command(*arguments):
    line = [sys.executable, "-m", "vidgen.sample", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return toy_runs.text_to_video(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def job(run):
    return sample.prepare(run, PROMPTS, seed=3, **SIZE)


def test_the_same_seed_gives_the_same_bytes_in_another_process(run, job, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"\n{PROMPTS[1]}\n", "utf-8")
    out = tmp_path / "out"
    flags = [f"--{name}={value}" for name, value in SIZE.items()]
    prompts = [f"--prompt={PROMPTS[0]}", f"--prompt_file={tmp_path / 'prompts.txt'}"]
    done = command(f"--workdir={run}", f"--out={out}", "--seed=3", *prompts, *flags)
    assert done.returncode == 0, done.stderr
    names = ["0000-a-small-red-circle.mp4", "0001-ein-größerer-kreis.mp4"]
    assert done.stdout.splitlines() == [str(out / name) for name in names]
    assert "4/4" in done.stderr  # steps of all videos

    paths = sample.write(job, tmp_path / "again")
    assert [path.name for path in paths] == names
    for path in paths:
        assert path.read_bytes() == (out / path.name).read_bytes()
    assert video_io.decode(paths[0]).shape == (17, 24, 32, 3)
    note = json.loads((out / "samples.json").read_text("utf-8"))
    assert note == json.loads((tmp_path / "again/samples.json").read_text("utf-8"))
    assert (note["step"], note["weights"], note["prompts"]) == (4, "ema", PROMPTS)
    assert note["settings"].items() >= (SIZE | {"seed": 3, "guidance": 7.0}).items()

    other = dataclasses.replace(job, settings=job.settings | {"seed": 4})
    different = sample.write(other, tmp_path / "other")
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(paths, different, strict=True))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompts": [" "]}, "prompt 0 is empty"),
        ({"prompts": ["fine", "long " * 40]}, "prompt 1 .* tokens, but the model takes 72"),
        ({"height": 30}, "height=30 is no multiple of the VAE's stride 4: use"),
        ({"num_frames": 7}, "num_frames=7 does not fit the VAE.*use 5 or 9"),
        ({"num_frames": 0}, "num_frames=0 does not fit"),
        ({"step": 3}, "no checkpoint of step 3: it has 2, 4"),
        ({"vae": "gone"}, "'gone', is not there"),
    ],
)
def test_what_cannot_be_drawn_is_refused(run, changes, message):
    arguments = {"prompts": PROMPTS} | SIZE | changes
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sample.prepare(run, arguments.pop("prompts"), **arguments)


def test_refusals_are_one_line_and_an_exit_code(tmp_path):
    done = command(f"--workdir={tmp_path}", f"--out={tmp_path}", "--prompt=x")
    assert done.returncode == 80 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "run.json cannot be read" in done.stderr
    done = command(f"--workdir={tmp_path}", f"--out={tmp_path}", "--promt=x")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "Did you mean: prompt" in done.stderr


def test_prompts_come_from_flags_and_file(tmp_path):
    (tmp_path / "p.txt").write_text("b\n\n  c \n")
    assert sample.read_prompts(["a"], str(tmp_path / "p.txt")) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="give --prompt"):
        sample.read_prompts([], None)
    with pytest.raises(ValueError, match="--prompt_file=.*gone"):
        sample.read_prompts(["a"], str(tmp_path / "gone"))


def test_prompts_are_lines_whatever_wrote_them(tmp_path):
    path = tmp_path / "prompts.txt"
    for content in (
        b"\xef\xbb\xbfa red circle\r\n\r\na blue\xe2\x80\xa8square\r\n",
        "\ufeffa red circle\r  a blue\u2028square".encode("utf-16-be"),
    ):
        path.write_bytes(content)
        assert sample.read_prompts([], path) == ["a red circle", "a blue\u2028square"]
    path.write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match="cannot be read as UTF-8"):
        sample.read_prompts([], path)


@pytest.mark.parametrize(
    "prompt, name",
    [("A red circle!", "a-red-circle"), ("../x", "x"), ("?!", "video"), ("x" * 70, "video")],
)
def test_file_names_tell_the_prompt(prompt, name):
    assert sample.slug(prompt) == name
    assert len(sample.slug("ö " * 100).encode()) <= 60


def test_one_frame_becomes_a_png(tmp_path):
    image_1HWC = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 4, 6, 3)
    sample.write_video(tmp_path / "x.png", image_1HWC, 12.0)
    np.testing.assert_array_equal(video_io.decode(tmp_path / "x.png"), image_1HWC)
