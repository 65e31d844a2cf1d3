"""What a step means for each task: prepared batches, losses and previews."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.loading import buckets
from tests import toy_runs
from tests import toy_training as toy
from vidgen import tasks
from vidgen.tasks.autoencoder import _kl
from vidgen.weights import tree_files

BUCKET = buckets.Bucket("32", 3, "1.00", 10, 14, 2)  # odd latents: 5 x 7 at stride 2


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = toy.config()
    config.vae.weights = str(toy.vae(tmp_path_factory.mktemp("tasks")))
    config.model.remat = False
    config.preview.every = 1
    config.preview.settings = {"prompts": ("a circle", "a square"), "height": 10, "width": 14}
    config.preview.settings.update({"num_frames": 3, "steps": 2, "batch_size": 2})
    return config


@pytest.fixture(scope="module")
def task(config):
    return tasks.make_task(config)


@pytest.fixture(scope="module")
def params(task):
    return jax.tree.map(jnp.asarray, toy_runs.random_params(task, 1))


@pytest.fixture(scope="module")
def frozen(task):
    return task.load_frozen()


@pytest.fixture(scope="module")
def clips(task):
    """A batch of the loader, of videos."""
    rng = np.random.default_rng(0)
    ids_BL, mask_BL = task.encoders.tokenize(["a small circle", "a large square"])
    return {
        "video": rng.integers(0, 256, (2, 3, 10, 14, 3), np.uint8),
        "text_ids": ids_BL,
        "text_mask": mask_BL,
        "mask": np.array([[True, True], [False, True]]),
        "drop_text": np.array([False, True]),
        "fps": np.array([12.0, 24.0], np.float32),
        "size": np.full((2, 2), [10, 14], np.float32),
        "row": np.arange(2),
        "slot": np.arange(2, dtype=np.int32),
    }


@pytest.fixture(scope="module")
def latents(task, frozen, clips):
    """The same batch, of latents and text features."""
    mean, std = task.encoders.encode_video(frozen, clips["video"], None)
    text = task.encoders.encode_text(frozen, clips["text_ids"], clips["text_mask"])
    rest = {k: v for k, v in clips.items() if k not in ("video", "text_ids")}
    made = {"latent": mean, "latent_std": std, "text_emb": text}
    return rest | {name: np.asarray(x) for name, x in made.items()}


def prepare(task, frozen, batch, bucket, key):
    """As the loop does it: cut into patches on the host, and the rest on the devices."""
    return task.prepare(frozen, task.collate(batch, bucket), bucket, key)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task='t2v' is unknown: use one of text_to_video, autoen"):
        tasks.make_task(types.SimpleNamespace(task="t2v"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompts": ("",)}, "prompt 0 is empty"),
        ({"height": 11}, "height=11 is no multiple"),
        ({"num_frames": 2}, "num_frames=2 does not fit"),
        ({"stepz": 2}, "preview.settings do not fit .*stepz"),
    ],
)
def test_previews_are_checked_before_training(config, change, message):
    config = config.copy_and_resolve_references()
    config.preview.settings = config.preview.settings.to_dict() | change
    with pytest.raises(ValueError, match=message):
        tasks.make_task(config)


def test_clips_are_prepared_as_their_latents_are(task, frozen, clips, latents):
    of_video = prepare(task, frozen, clips, BUCKET, jax.random.key(0))
    of_latents = prepare(task, frozen, latents, BUCKET, jax.random.key(0))
    shapes = lambda batch: {name: (x.shape, x.dtype) for name, x in batch.items()}
    assert shapes(of_video) == shapes(of_latents)
    for name in of_video.keys() - {"tokens"}:
        np.testing.assert_allclose(of_video[name], of_latents[name], atol=1e-5, err_msg=name)
    assert task.tokens(BUCKET) == 2 * 3 * 4  # of 5 x 7 cells: 3 x 4 patches, without the padding
    assert of_video["text_length"].tolist() == clips["text_mask"].sum(-1).tolist()
    assert len(set(np.asarray(of_video["ratio"]).tolist())) == 1


def test_latents_are_drawn_from_their_posterior_at_each_step(task, frozen, latents):
    draw = lambda key, **changes: np.asarray(
        prepare(task, frozen, latents | changes, BUCKET, jax.random.key(key))["tokens"]
    )
    mean = draw(0, latent_std=np.zeros_like(latents["latent_std"]))
    np.testing.assert_array_equal(mean, task.encoders.to_tokens(latents["latent"]))
    unit = np.ones_like(latents["latent_std"])
    first, second = draw(0, latent_std=unit) - mean, draw(1, latent_std=unit) - mean
    cells = first != 0
    assert cells.sum() == latents["latent"].size  # padding stays zero
    assert abs(first[cells].std() - 1) < 0.15 and abs((first * second)[cells].mean()) < 0.15


def test_the_two_draws_of_a_clip_are_independent(task, frozen, clips, monkeypatch):
    """The image latent's and the video latent's: equal keys would give equal numbers."""
    seen = {}

    def encode_video(frozen, video, key):
        shape = 2, *task.encoders.latent_shape(3, 10, 14)
        seen["noise"] = jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(key)
        return jnp.zeros(shape), jnp.ones(shape)

    monkeypatch.setattr(task.encoders, "encode_video", encode_video)
    with jax.disable_jit():
        tokens = prepare(task, frozen, clips, BUCKET, jax.random.key(0))["tokens"]
    first = np.asarray(task.encoders.to_tokens(seen["noise"]))
    cells = first != 0
    assert abs(np.corrcoef(first[cells], np.asarray(tokens)[cells])[0, 1]) < 0.2


@pytest.fixture(scope="module")
def loss(task, params):
    return jax.jit(lambda batch, key: task.loss(params, {}, batch, key)[0])


def test_only_what_the_model_may_see_counts_in_the_loss(task, frozen, latents, loss):
    prepared = prepare(task, frozen, latents, BUCKET, jax.random.key(0))
    key, rng = jax.random.key(1), np.random.default_rng(0)
    value = float(loss(prepared, key))
    assert np.isfinite(value) and value == float(loss(prepared, key))
    assert value != float(loss(prepared, jax.random.key(2)))

    def changed(name, where):
        x = np.asarray(prepared[name])
        return float(loss(prepared | {name: np.where(where, rng.normal(size=x.shape), x)}, key))

    length = np.asarray(prepared["text_length"])[:, None, None]
    beyond = np.arange(prepared["text"].shape[1])[None, :, None] >= length
    clip = np.arange(2)[:, None, None]
    assert changed("text", beyond) == value
    assert changed("text", clip == 1) == value  # its caption is dropped
    assert changed("text", ~beyond & (clip == 0)) != value
    is_padding = np.broadcast_to(np.asarray(prepared["real"]) == 0, prepared["tokens"].shape)
    assert is_padding.any()
    given = (clip == 1)[..., None] & (np.arange(2)[None, :, None, None] == 0)
    assert changed("tokens", given & ~is_padding) != value  # a given frame is seen
    assert changed("fps", np.array([True, False])) != value


def test_previews_are_videos_of_the_prompts(task, params, frozen, config):
    videos = task.preview(params, frozen, {})
    assert list(videos) == ["sample"]
    assert videos["sample"].shape == (2, 3, 10, 14, 3) and videos["sample"].dtype == np.uint8


@pytest.fixture(scope="module")
def autoencoder(config):
    config = config.copy_and_resolve_references()
    config.task = "autoencoder"
    return tasks.make_task(config)


def test_a_preview_of_the_vae_shows_the_clip_above_what_it_makes_of_it(autoencoder, frozen, clips):
    batch = prepare(autoencoder, {}, clips, BUCKET, None)
    assert autoencoder.tokens(BUCKET) == 3 * 10 * 14
    (video,) = autoencoder.preview(frozen["vae"], {}, batch).values()
    assert video.shape == (2, 3, 20, 14, 3) and video.dtype == jnp.uint8
    np.testing.assert_array_equal(video[:, :, :10], clips["video"])


def test_each_term_teaches_its_own_part_of_the_vae(autoencoder, frozen, clips):
    batch = {name: jnp.asarray(clips[name]) for name in ("video", "slot")}

    @jax.jit
    def grad(params, weights):
        autoencoder.weights = weights | {"pixel": 0.0}
        return jax.value_and_grad(autoencoder.loss, has_aux=True)(
            params, {}, batch, jax.random.key(0)
        )

    names = ("image", "latent", "image_kl", "kl", "statistics")
    taught, values = {}, {}
    for name in names:
        (total, terms), grads = grad(frozen["vae"], {n: float(n == name) for n in names})
        np.testing.assert_allclose(total, terms[name], rtol=1e-6)
        values[name] = float(total)
        flat = tree_files.flatten(grads)
        parts = {path: path.split("/")[0] for path in flat}
        taught[name] = {parts[path] for path, x in flat.items() if np.any(np.asarray(x))}
    assert all(np.isfinite(value) and value > 0 for value in values.values()), values
    assert taught == {
        "image": {"spatial"},
        "latent": {"temporal"},
        "image_kl": {"spatial"},
        "kl": {"temporal"},
        "statistics": {"shift", "scale"},
    }


def test_the_divergence_of_a_standard_normal_is_zero():
    zero, one = jnp.zeros((2, 3)), jnp.ones((2, 3))
    assert _kl(zero, zero) == 0
    np.testing.assert_allclose(_kl(one, zero), 0.5)
    np.testing.assert_allclose(_kl(zero, jnp.log(4 * one)), 0.5 * (4 - 1 - np.log(4)), 1e-6)
