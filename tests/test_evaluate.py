"""Accuracies, their intervals and the command that measures them."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.embedded import vocabulary
from data_pipelines.media import encoding, video_io
from data_pipelines.shards import builder
from tests import toy_runs
from vidgen import evaluate, report

WANTED = vocabulary.Attributes("circle", "red", "left", "slow", "small", "black")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return toy_runs.text_to_video(tmp_path_factory.mktemp("evaluate"))


def test_bootstrap_of_two_clips():
    """Resamples of (right, wrong) have means 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    low_C, high_C = evaluate.bootstrap(np.array([[True, True], [False, True]]))
    assert low_C.tolist() == [0, 1] and high_C.tolist() == [1, 1]


def test_bootstrap_agrees_with_the_normal_interval_on_many_clips():
    right_NC = np.arange(400)[:, None] < 100
    low_C, high_C = evaluate.bootstrap(right_NC)
    spread = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    # half a clip: percentiles fall on whole clips; and 2000 resamples
    np.testing.assert_allclose([low_C[0], high_C[0]], [0.25 - spread, 0.25 + spread], atol=0.005)


def test_accuracies_count_what_the_judge_read():
    right = vars(WANTED)
    seen = [right, right | {"colour": "blue"}, right | {"shape": None, "size": "large"}, right]
    got = evaluate.accuracies(seen, [WANTED] * 4)
    assert {name: row["accuracy"] for name, row in got.items()} == {
        **{"shape": 0.75, "colour": 0.75, "direction": 1.0, "speed": 1.0, "size": 0.75},
        **{"background": 1.0, "all": 0.5},
    }
    assert got["direction"]["low"] == got["direction"]["high"] == 1
    assert 0 <= got["all"]["low"] < 0.5 < got["all"]["high"] <= 1
    assert got["colour"]["chance"] == 1 / 6
    assert got["all"]["chance"] == pytest.approx(1 / (3 * 6 * 4 * 2 * 2 * 3))
    assert evaluate.accuracies([], [WANTED]) == {}


def test_psnr_by_hand():
    video_BTHWC = np.zeros((2, 2, 3, 4, 3), np.uint8)
    other_BTHWC = video_BTHWC.copy()
    other_BTHWC[0] = 255  # 0 dB; the other clip is equal: 100 dB
    assert evaluate.psnr(video_BTHWC, other_BTHWC) == pytest.approx(50)


def test_prompts_that_training_showed_are_refused(tmp_path):
    ((held_out, wanted),) = vocabulary.held_out_prompts(1, seed=0)
    seen = vocabulary.sample_attributes(np.random.default_rng(0))
    record = lambda text: {
        **{"id": text, "text": text, "fps": 12.0, "num_frames": 1, "height": 2, "width": 2},
        "video": encoding.encode_png(np.zeros((2, 2, 3), np.uint8)),
    }
    for name, texts in {
        "good": ["a dog", vocabulary.caption(seen)],
        "bad": ["a", held_out],
    }.items():
        rows = [record(text) for text in texts]
        builder.write_shards(tmp_path / name, "video", 1, lambda _, rows=rows: iter(rows), key="")
    assert evaluate.check_unseen(tmp_path / "good", [wanted]) == 2
    with pytest.raises(ValueError, match=f"such as a {wanted.shape} {wanted.colour}"):
        evaluate.check_unseen(tmp_path / "bad", [wanted])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_frames": 34}, "would leave the picture after"),
        ({"num_frames": 1}, "too few for the judge"),
        ({"height": 30}, "height=30 is no multiple"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_what_cannot_be_judged_is_refused(run, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate.Evaluation(run, videos=8, **changes)


def test_the_command_writes_results_videos_and_pictures(run, tmp_path):
    out = tmp_path / "results.json"
    settings = ["--videos=5", "--raw_videos=2", "--shown=3", "--steps=1"]
    line = [sys.executable, "-m", "vidgen.evaluate", f"--workdir={run}", f"--out={out}", *settings]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert (results["videos"], results["raw_videos"]) == (5, 2)
    for name in ("prompt_following", "prompt_following_raw", "judge", "judge_through_vae"):
        assert list(results[name]) == list(evaluate.COLUMNS)
    assert results["judge"]["background"] == 1  # of real clips, whatever the model is
    assert 0 < results["vae_psnr"] < 60
    assert results["settings"]["step"] == 4 and results["settings"]["num_frames"] == 17
    expected = vocabulary.held_out_prompts(5, seed=0)[:3]
    assert [clip["prompt"] for clip in results["clips"]] == [prompt for prompt, _ in expected]
    for clip, (_, wanted) in zip(results["clips"], expected, strict=True):
        assert clip["wanted"] == dataclasses.asdict(wanted)
        assert set(clip["read"]) == set(vocabulary.ATTRIBUTES)
        for kind in ("generated", "real", "vae"):
            assert video_io.decode(tmp_path / clip[kind]).shape == (17, 32, 32, 3)
    for name in ("samples.webp", "samples.png"):
        assert (tmp_path / "results_videos" / name).stat().st_size > 1000
    for name in (*evaluate.COLUMNS, "PSNR", "seconds"):
        assert name in done.stdout
    page = report.write(tmp_path / "report.html", run=run, results=out).read_text("utf-8")
    assert page.count("<video") == 3 * 3 + 3
