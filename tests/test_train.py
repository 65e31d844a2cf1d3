"""The training command refuses what does not fit, says why, and loses nothing."""

import ast
import inspect
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from tests import processes
from tests import toy_training as toy
from vidgen import convert, train
from vidgen.process import exit_codes
from vidgen.training import checkpoint
from vidgen.weights import tree_files


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def shards(root):
    return toy.data(root)


@pytest.fixture(scope="module")
def latents(root):
    return toy.random_latents(root / "latents")


@pytest.fixture(scope="module")
def vae(root):
    return toy.vae(root)


@pytest.fixture(scope="module")
def finished(root, latents, vae):
    """The workdir of a run that has done all its steps; the tests work on copies."""
    err = toy.run(toy.text_to_video(latents, root / "finished", vae))
    assert re.search(r"^0:\d\d:\d\d in 1 start: .*step \d+\.\d%", err, re.MULTILINE), err
    return root / "finished"


@pytest.fixture
def copy(finished, tmp_path):
    return pathlib.Path(shutil.copytree(finished, tmp_path / "copy"))


def refused(command, message, code=exit_codes.REFUSED, **hooks):
    err = toy.run(command, expect=code, **hooks)
    assert message in err.replace("\n", " "), err
    assert "Traceback" not in err


def test_the_loop_fits_on_two_screens_and_knows_no_task():
    source = inspect.getsource(train.train)
    assert len(source.splitlines()) < 90
    assert len(inspect.getsource(train).splitlines()) < 160
    tree = ast.parse(source)
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not attributes & {"task", "kinds", "TextToVideo", "Autoencoder"}  # config.task
    assert not names & {"isinstance", "hasattr", "getattr", "type"}


def test_a_run_starts_from_weights_that_went_out_and_in(finished, latents, vae, tmp_path):
    convert.to_open_sora(finished, tmp_path / "export")
    convert.to_vidgen(str(tmp_path / "export"), "stdit", tmp_path / "ours")
    command = toy.text_to_video(latents, tmp_path / "run", vae)
    command += [f"--config.start_from={tmp_path}/ours", "--config.num_steps=1"]
    toy.run([*command, "--config.schedule.lr=0.0"])  # so the weights stay as they came
    started = tree_files.flatten(checkpoint.load_params(tmp_path / "run", "params"))
    for name, value in tree_files.flatten(checkpoint.load_params(finished)).items():
        np.testing.assert_array_equal(started[name], value, err_msg=name)
    again = toy.text_to_video(latents, tmp_path / "other", vae)
    refused(
        [*again, "--config.start_from=nowhere"], "start_from=nowhere is no file: give the --out"
    )
    refused(
        [*again, f"--config.start_from={vae}"], "vae.safetensors holds the weights of another model"
    )
    assert not (tmp_path / "other/run.json").exists()


FRAMES_16 = '{"32": {"16": (1.0, 2), "1": (1.0, 2)}}'
FRAMES_102 = '{"32": {"102": (1.0, 2)}}'


@pytest.mark.parametrize(
    "change, message",
    [
        (f"--config.data.buckets={FRAMES_16}", "data.buckets.32: frames=16 does not fit the VAE"),
        (f"--config.data.buckets={FRAMES_102}", "none of the 36 clips of"),
        ("--config.microbatches=0", "microbatches=0: use 1 or more"),
        ("--config.accumulate.batches=0", "accumulate.batches=0: use 1 or more"),
        ("--config.accumulate.weighting=rank", "is unknown: use one of batch, clip, token"),
        ("--config.checkpoint.keep=0", "checkpoint.keep=0: use 1 or more"),
        ("--config.schedule.lr=inf", "schedule.lr=inf: use a finite number"),
        ("--config.ema_decay=1.5", "ema_decay=1.5: use 0 to 1"),
        ("--config.data.path=SHARDS/none", "is no finished data set"),
        ("--config.data.path=SHARDS/..", "is no finished data set"),
        ("--config.data.path=LATENTS", "holds latent shards, and task='autoencoder' learns from"),
        ("--config.optim.freeze=('rope_freqs',)", "['rope_freqs'], which match no parameter"),
        ("--config.mesh.fsdp=3", "does not fit 1 devices"),
    ],
)
def test_what_the_autoencoder_cannot_use_is_refused(change, message, shards, latents, tmp_path):
    change = change.replace("SHARDS", str(shards)).replace("LATENTS", str(latents))
    refused(toy.autoencoder(shards, tmp_path / "run", change), message)
    assert not (tmp_path / "run").exists()  # so the corrected command can have it


@pytest.mark.parametrize(
    "change, message",
    [
        ("--config.vae.weights=", "config.vae.weights is empty: give the working folder"),
        ("--config.vae.weights=/none", "No weights at /none: give a working folder"),
        ("--config.vae.weights=FOLDER/clips.csv", "is damaged or no safetensors file"),
        (
            "--config.vae.model.temporal.filters=8",
            "temporal/encoder/conv_in/kernel: (3, 3, 3, 4, 4) there, (3, 3, 3, 4, 8) in the config",
        ),
    ],
)
def test_what_text_to_video_cannot_encode_with_is_refused(change, message, shards, vae, tmp_path):
    (vae.parent / "clips.csv").write_text("path,text\n")
    change = change.replace("FOLDER", str(vae.parent))
    refused(toy.text_to_video(shards, tmp_path / "run", vae, change), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ("--config.preview.every=2", "preview.settings do not fit generate.Sampler"),
        ("--config.text.max_tokens=8", "has texts of up to 14 tokens, but text_tokens=8: use 14"),
        ("--config.flow.sample_method=lognormal", "use 'uniform' or 'logit-normal'"),
        ("--config.model.in_channels=8", "do not fit together: in bucket 32/"),
        ("--config.text.model.width=48", "do not fit together: in bucket 32/"),
    ],
)
def test_what_text_to_video_cannot_use_is_refused(change, message, latents, vae, tmp_path):
    refused(toy.text_to_video(latents, tmp_path / "run", vae, change), message)
    assert not (tmp_path / "run").exists()


def test_latents_need_no_encoder(latents, tmp_path):
    toy.run(toy.text_to_video(latents, tmp_path / "run", "/none", "--config.num_steps=1"))
    assert checkpoint.steps(tmp_path / "run") == [1]


def test_how_and_where_may_change_when_a_run_goes_on(copy, latents, vae, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(latents, moved)
    changes = ["--config.num_steps=9", "--config.model.remat=False", "--config.microbatches=1"]
    err = toy.run(toy.text_to_video(moved, copy, vae, *changes))
    assert "microbatches: 2 before, 1 now" in err and f"data.path: {latents} before" in err
    assert [line["step"] for line in toy.lines(copy / "metrics.jsonl")] == list(range(1, 10))


def test_a_stretched_cosine_is_said(latents, vae, tmp_path):
    command = toy.text_to_video(latents, tmp_path / "run", vae, "--config.schedule.decay=cosine")
    toy.run([*command, "--config.num_steps=4"])
    err = toy.run([*command, "--config.num_steps=6"])
    assert "num_steps: 4 before, 6 now" in err and "the learning rate is stretched" in err


def test_steps_that_are_not_finite_end_a_run_and_harm_no_checkpoint(copy, latents, vae):
    """At a learning rate that no parameter survives, from a checkpoint that stands."""
    change = ["--config.num_steps=30", "--config.schedule.lr=1e38", "--config.max_refused=12"]
    change += ["--accept=schedule.lr"]
    err = toy.run(toy.text_to_video(latents, copy, vae, *change), expect=exit_codes.NUMBERS)
    assert "13 updates in a row were refused" in err and "Traceback" not in err
    before = checkpoint.load_params(copy, "params", 20)  # the 6th save without a good update
    for name, value in tree_files.flatten(checkpoint.load_params(copy, "params")).items():
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(tree_files.flatten(before)[name], value)
    accepted, *events = toy.lines(copy / "events.jsonl")
    assert accepted["field"] == "schedule.lr"
    assert [event["step"] for event in events] == list(range(9, 22))
    assert all(event["clips"] and event["buckets"] for event in events)


def test_a_wrong_command_line_names_what_is_right(shards, tmp_path):
    usage = exit_codes.USAGE
    command = toy.autoencoder(shards, tmp_path / "run")
    wrong = [*command, "--config.schedule.lrr=1"]
    refused(wrong, 'no field "schedule.lrr"; did you mean "schedule.lr"', usage)
    missing = ["train", "--config=/none/here.py", f"--workdir={tmp_path / 'run'}"]
    refused(missing, "/none/here.py", usage)
    refused(command[:1], "--config", usage)
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_config_or_of_other_data_is_refused(copy, latents, vae, tmp_path):
    before = toy.contents(copy)
    other = toy.text_to_video(latents, copy, vae, "--config.schedule.lr=0.5")
    refused(other, "schedule.lr: 0.0001 there, 0.5 here")
    moved = latents.rename(latents.with_name("moved"))
    try:
        toy.random_latents(latents, seed=1)
        refused(toy.text_to_video(latents, copy, vae), "The data are others")
    finally:
        shutil.rmtree(latents)
        moved.rename(latents)
    assert toy.contents(copy) == before


def cut_short(workdir, step):
    path = max((workdir / f"checkpoints/{step}/params/d").iterdir(), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])


def test_a_checkpoint_that_was_cut_short_gives_way_to_the_older_one(copy, finished, latents, vae):
    assert toy.saved_steps(copy) == [6, 8]
    cut_short(copy, 8)
    err = toy.run(toy.text_to_video(latents, copy, vae))
    assert "The checkpoint of step 8" in err and "DAMAGED" in err
    assert (copy / "damaged" / "8").is_dir()
    toy.assert_same_run(copy, finished)


def test_without_a_sound_checkpoint_the_run_ends_and_leaves_all(copy, latents, vae):
    for step in (6, 8):
        cut_short(copy, step)
    before = toy.contents(copy)
    storage = exit_codes.STORAGE
    refused(toy.text_to_video(latents, copy, vae), "start again in another workdir", storage)
    assert toy.contents(copy) == before


@pytest.fixture
def small_disk(tmp_path):
    """(a folder, hooks, a function that makes room): a disk with room for a checkpoint or two.

    A real one where this process may mount it; else commands are told of a disk with less room.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = lambda size: ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    if subprocess.run(mount("size=2500k"), capture_output=True).returncode:
        hooks = {"HOOK_FREE_BYTES": "100000"}
        yield folder, hooks, hooks.clear
        return
    try:
        yield folder, {}, lambda: subprocess.run(mount("remount,size=50m"), check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_it_goes_on_when_there_is_room(
    small_disk, latents, vae, finished
):
    folder, hooks, make_room = small_disk
    command = toy.text_to_video(latents, folder / "run", vae)
    refused(command, "was NOT written", exit_codes.STORAGE, **hooks)
    make_room()
    toy.run(command)
    toy.assert_same_run(folder / "run", finished)


@pytest.mark.slow
def test_two_processes_train_as_one(finished, latents, vae, tmp_path):
    command = toy.text_to_video(latents, tmp_path / "run", vae)
    pair = [toy.start(command, **env) for env in processes.several(2)]
    for process in pair:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    one, two = toy.reported(finished), toy.reported(tmp_path / "run")
    assert [line["step"] for line in two] == [*range(1, toy.STEPS + 1)]
    for line, other in zip(one, two, strict=True):  # sums in another order, and then Adam
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-2), line["step"]
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-5)
    state, other = toy.final_state(finished), toy.final_state(tmp_path / "run")
    assert {k: x.shape for k, x in state.items()} == {k: x.shape for k, x in other.items()}
