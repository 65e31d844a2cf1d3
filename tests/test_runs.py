"""A working folder gives back its config, its models and its newest sound weights."""

import json

import jax
import numpy as np
import pytest

from configs import opensora, tiny
from tests import toy_runs
from vidgen.tasks import runs
from vidgen.training import checkpoint, workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return toy_runs.text_to_video(tmp_path_factory.mktemp("runs"))


def test_the_config_comes_back_with_its_tuples(tmp_path):
    config = tiny.get_config()
    workdir.Run(tmp_path, config, "data").keep()
    assert runs.load_config(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "content, message",
    [(None, "give the working folder of a run"), ("{", "is damaged"), ("{}", "is damaged")],
)
def test_a_folder_without_a_readable_config_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        runs.load_config(tmp_path)


def test_runs_that_draw_no_videos_are_refused(tmp_path, run):
    with pytest.raises(ValueError, match="task='autoencoder'"):
        runs.text_to_video(toy_runs.autoencoder(tmp_path / "vae"))
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "run.json").write_text((run / "run.json").read_text())
    with pytest.raises(ValueError, match="has no checkpoint yet.* after 2 steps"):
        runs.text_to_video(fresh)


def test_a_missing_vae_is_named_and_can_be_given(run, tmp_path):
    with pytest.raises(ValueError, match="gone.safetensors.*--vae"):
        runs.text_to_video(run, vae=str(tmp_path / "gone.safetensors"))
    config, _ = runs.text_to_video(run, vae=str(run.parent / "vae.safetensors"))
    assert config.vae.weights.endswith("vae.safetensors")


def test_the_newest_sound_weights_are_loaded(run, tmp_path):
    _, task = runs.text_to_video(run)
    raw, step = runs.load_params(run, task, "params")
    ema, _ = runs.load_params(run, task, "ema")
    older, older_step = runs.load_params(run, task, "ema", step=2)
    assert (step, older_step) == (4, 2)
    for a, b, c in zip(*map(jax.tree.leaves, (raw, ema, older)), strict=True):
        np.testing.assert_allclose(a, b + 0.01, rtol=1e-6)  # as toy_runs made them
        assert a.shape == c.shape
    assert any(np.any(b != c) for b, c in zip(*map(jax.tree.leaves, (ema, older)), strict=True))
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 3: it has 2, 4"):
        runs.load_params(run, task, "ema", step=3)


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    run = toy_runs.text_to_video(tmp_path)
    _, task = runs.text_to_video(run)
    damaged = max((run / "checkpoints/4/ema").rglob("*"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert runs.load_params(run, task, "ema")[1] == 2
    with pytest.raises(checkpoint.DamagedError):
        runs.load_params(run, task, "ema", step=4)


def test_weights_of_another_model_are_refused(run, tmp_path):
    other = tmp_path / "run"
    content = json.loads((run / "run.json").read_text())
    content["config"]["model"]["width"] = 24
    other.mkdir()
    (other / "checkpoints").symlink_to(run / "checkpoints")
    (other / "run.json").write_text(json.dumps(content))
    _, task = runs.text_to_video(other)
    with pytest.raises(ValueError, match="step 4"):
        runs.load_params(other, task, "ema")


def test_settings_come_from_the_call_then_previews_then_buckets():
    config = tiny.get_config()
    got = runs.sampling_settings(config)
    assert got == {"height": 32, "width": 32, "num_frames": 17}
    config.preview.settings = {"fps": 12.0, "height": 48, "prompts": ("a",)}
    got = runs.sampling_settings(config, height=None, steps=3)
    assert got == {"height": 48, "width": 32, "num_frames": 17, "fps": 12.0, "steps": 3}


@pytest.mark.parametrize("stage, frames, pixels", [(1, 51, 360), (2, 51, 1024), (3, 51, 1024)])
def test_a_sample_is_a_video_of_a_size_that_was_trained(stage, frames, pixels):
    """And not the largest image of the recipe, 2048 x 2048."""
    got = runs.sampling_settings(opensora.get_config(f"stage={stage}"))
    assert got["num_frames"] == frames
    assert got["height"] * got["width"] == pytest.approx(
        {360: 360 * 640, 1024: 1024**2}[pixels], rel=0.2
    )
