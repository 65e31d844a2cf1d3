"""Commands of several processes that make one run: they agree, or all end for the same reason."""

import os

import pytest

from tests import processes
from tests import toy_training as toy
from vidgen.process import exit_codes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def data(root):
    """Latents, other latents, weights of a VAE and of another."""
    weights = []
    for seed, name in enumerate(("vae", "other_vae")):
        (root / name).mkdir()
        weights.append(toy.vae(root / name, seed))
    return toy.random_latents(root / "a"), toy.random_latents(root / "b", 1), *weights


def ends(commands, **hooks):
    """[(exit code, stderr)] of commands that are started as one run."""
    places = processes.several(len(commands))
    started = [toy.start(c, **place, **hooks) for c, place in zip(commands, places, strict=True)]
    texts = [process.communicate(timeout=300)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, texts, strict=True)]


@pytest.mark.parametrize(
    "what",
    ["seed: 0 on process 0", "fingerprint", "content of vae.weights", "is shared", "num_steps"],
)
def test_processes_that_were_started_differently_all_refuse(what, data, tmp_path):
    latents, other_latents, vae, other_vae = data
    one = [latents, tmp_path / "run", vae]
    two, more = list(one), []
    if what == "fingerprint":
        two[0] = other_latents
    elif what == "is shared":
        two[1] = tmp_path / "elsewhere"
    elif what == "content of vae.weights":
        two[2] = other_vae
    elif what == "num_steps":
        more = ["--config.num_steps=9"]
    else:
        more = ["--config.seed=5"]
    found = ends([toy.text_to_video(*one), toy.text_to_video(*two, *more)])
    for code, err in found:
        assert code == exit_codes.REFUSED, err
        assert what in err and "process 1 on" in err and "Traceback" not in err
    assert not any(tmp_path.rglob("*.*")), list(tmp_path.rglob("*"))


def test_what_one_refuses_all_refuse_with_its_reason(data, tmp_path):
    latents, _, vae, _ = data
    bad = toy.text_to_video(tmp_path / "nothing", tmp_path / "run", vae)
    found = ends([toy.text_to_video(latents, tmp_path / "run", vae), bad])
    assert [code for code, _ in found] == [exit_codes.REFUSED] * 2, found
    assert "process 1 on" in found[0][1] and str(tmp_path / "nothing") in found[0][1]
    assert not os.path.exists(tmp_path / "run")


def test_a_second_run_in_the_same_folder_is_refused(data, tmp_path):
    latents, _, vae, _ = data
    command = toy.text_to_video(latents, tmp_path / "run", vae, "--config.num_steps=100000")
    first = toy.start(command)
    try:
        while not toy.lines(tmp_path / "run" / "metrics.jsonl"):
            assert first.poll() is None, first.communicate()
        before = (tmp_path / "run" / "run.json").read_text()
        err = toy.run(command, expect=exit_codes.REFUSED)
        assert f"in use by process {first.pid} on" in err and "Traceback" not in err
        assert (tmp_path / "run" / "run.json").read_text() == before
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
