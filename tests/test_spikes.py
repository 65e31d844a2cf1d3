"""A spike of the loss takes a run back, past its batches, to the bits of a run without them."""

import json
import shutil
import signal
import types

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.loading import buckets
from tests import processes
from tests import toy_training as toy
from vidgen.process import exit_codes
from vidgen.training import events, micro_steps, rewinds, spikes

BUCKETS = [buckets.Bucket("32", frames, "1.00", 32, 32, 2) for frames in (1, 17)]
SETTINGS = {"z": 6.0, "in_a_row": 2, "skip": 3, "limit": 1}


class Rule:
    """The rule of a run in a folder, that looks at losses from step 1 on."""

    def __init__(self, folder, restored=None, **settings):
        folder.mkdir(exist_ok=True)
        self.run = types.SimpleNamespace(restored=restored or {}, noted={})
        self.rewinds = rewinds.Rewinds(folder)
        self.spikes = spikes.Spikes(self.run, self.rewinds, **SETTINGS | settings)
        self.events = events.Events(folder, lambda number: [f"clip{number}"])

    def look(self, step, *losses):
        """Losses of (bucket, loss), each of a batch in two slices."""
        number, plan, values = 10 * step, [], []
        for which, loss in losses:
            for part in range(2):
                plan.append(micro_steps.MicroStep(number, part, 2, BUCKETS[which], 0.5))
                values.append(np.float32(loss + (part - 0.5) * loss))
            number += 1
        names = ("loss", "grad_norm", "param_norm", "lr")
        metrics = dict.fromkeys(names, jnp.ones(())) | {"losses": values}
        self.spikes.look(step, metrics, plan, self.events, lambda: None)


def noise(steps, seed=0, batches=1):
    """Losses of two buckets as a flow model has them: skewed, falling, 20 % and 40 % of noise."""
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        which = rng.integers(2, size=batches)
        level = np.where(which, 0.6, 3.0) * (0.3 + 0.7 * np.exp(-step / 300))
        yield list(
            zip(which, level * np.exp(rng.normal(size=batches) * (0.2 + 0.2 * which)), strict=True)
        )


@pytest.mark.parametrize("batches", [1, 8])
def test_ordinary_noise_is_no_spike(batches, tmp_path):
    rule = Rule(tmp_path)
    for step, losses in enumerate(noise(3000, batches=batches), 1):
        rule.look(step, *losses)
    assert not rule.rewinds.done
    high = toy.lines(tmp_path / "events.jsonl")
    assert len(high) <= 3  # single ones, which the rule lets pass


def test_what_is_high_for_its_own_bucket_is_a_spike_and_is_told(tmp_path):
    rule = Rule(tmp_path)
    for step, losses in enumerate(noise(100), 1):
        rule.look(step, *losses)
    rule.look(101, (1, 3.0))  # ordinary for the other bucket
    assert rule.spikes.began == 101
    with pytest.raises(spikes.RewindError, match="of 2 updates in a row, 101 to 102,") as error:
        rule.look(102, (1, 3.0))
    assert error.value.exit_code == exit_codes.REWIND == 81
    one, two, rewind = toy.lines(tmp_path / "events.jsonl")
    assert [one["step"], two["step"]] == [101, 102] and one["event"] == "spike"
    assert one["clips"] == {"1010": ["clip1010"]} and one["buckets"] == ["32/17/1.00"]
    assert one["z"] > 6 and one["recent"]["32/17/1.00"] < 1
    assert rewind["event"] == "rewind" and rewind["batches"] == [99, 102]
    assert json.loads((tmp_path / "rewinds.json").read_text())["rewinds"][0]["back"] == 99


def test_high_updates_with_others_between_are_none(tmp_path):
    rule = Rule(tmp_path)
    for step, losses in enumerate(noise(100), 1):
        rule.look(step, *losses)
    for step in range(101, 131):
        rule.look(step, (1, 3.0 if step % 2 else 0.2))
    assert not rule.rewinds.done and rule.spikes.began is None


def test_a_bucket_that_is_hardly_known_says_nothing(tmp_path):
    rule = Rule(tmp_path)
    for step in range(1, 60):
        rule.look(step, (0, 1.0 + step % 3 / 10))
    rule.look(60, (0, 30.0))
    rule.look(61, (1, 1e6))  # neither a spike nor an end of one
    with pytest.raises(spikes.RewindError, match="60 to 62"):
        rule.look(62, (0, 30.0))


def test_one_of_many_batches_has_to_be_far_out(tmp_path):
    rule = Rule(tmp_path, in_a_row=1)
    for step in range(1, 60):
        rule.look(step, *[(0, 1.0 + (step + i) % 3 / 10) for i in range(16)])
    others = [(0, 1.1)] * 15
    rule.look(60, (0, 2.0), *others)  # 11 deviations, and 2.8 of the update
    with pytest.raises(spikes.RewindError):
        rule.look(61, (0, 5.0), *others)


def test_what_the_rule_knows_goes_through_a_checkpoint(tmp_path):
    losses = list(noise(120, seed=1))
    whole = Rule(tmp_path / "whole")
    first = Rule(tmp_path / "first")
    for step, pairs in enumerate(losses, 1):
        whole.look(step, *pairs)
        if step <= 70:
            first.look(step, *pairs)
    second = Rule(tmp_path / "second", json.loads(json.dumps(first.run.noted)))
    for step, pairs in enumerate(losses[70:], 71):
        second.look(step, *pairs)
    assert second.run.noted == whole.run.noted
    second.look(121, (1, 9.0))  # a checkpoint in the midst of a spike
    third = Rule(tmp_path / "third", json.loads(json.dumps(second.run.noted)))
    assert third.spikes.began == 121
    with pytest.raises(spikes.RewindError, match="121 to 122"):
        third.look(122, (1, 9.0))


def test_there_is_a_limit_of_rewinds(tmp_path):
    for limit, error in ((1, spikes.RewindError), (1, spikes.SpikeError)):
        rule = Rule(tmp_path, in_a_row=1, limit=limit)
        for step in range(1, 40):
            rule.look(step, (0, 1.0 + step % 3 / 10))
        with pytest.raises(error) as found:
            rule.look(40, (0, 50.0))
    assert found.value.exit_code == exit_codes.NUMBERS
    assert "the run has gone back 1 times (spike.limit)" in str(found.value)


def test_without_a_rule_nothing_is_read(tmp_path):
    rule = Rule(tmp_path, z=0.0)
    rule.spikes.look(1, None, None, None, None)
    assert rule.run.noted["rewinds"] == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("spikes")


@pytest.fixture(scope="module")
def command(root):
    """workdir -> command of 40 steps that go back from batches 30 and 31, and clip batch 38."""
    latents, vae = toy.random_latents(root / "latents"), toy.vae(root)
    more = ["--config.num_steps=40", "--config.checkpoint_every=10", "--config.microbatches=1"]
    more += ["--config.spike.z=6", "--config.spike.in_a_row=2", "--config.spike.skip=4"]
    more += ["--config.optim.clip_recent=2.5", "--config.optim.clip=100", "--config.replay_every=7"]
    more += [f"--config.snapshot.folder={root}/snapshots", "--config.snapshot.share=0.9"]
    return lambda workdir, *extra: toy.text_to_video(latents, workdir, vae, *more, *extra)


POISON = {"HOOK_POISON": "30,31,38"}


@pytest.fixture(scope="module")
def known(root, command):
    """The run whose list of batches was known from the begin, and that replays nothing."""
    skip = ["--config.data.skip_batches=((28,32),)", "--config.replay_every=0"]
    toy.run(command(root / "known", *skip), **POISON)
    line = toy.reported(root / "known")[34]  # of batch 38
    assert line["clipped"] and line["grad_norm"] > 100 > line["clip_threshold"]
    assert [event["step"] for event in toy.lines(root / "known/events.jsonl")] == [35]
    return root / "known"


def test_a_supervised_run_goes_back_and_ends_with_the_bits_of_one_that_knew(root, command, known):
    workdir = root / "supervised"
    flags = ["--give_up_after=1", "--", "tests.hooked"]
    process = toy.start_module("vidgen.launch", [*flags, *command(workdir)], **POISON)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    starts = toy.lines(workdir / "launch/starts.jsonl")
    assert [start["code"] for start in starts] == [exit_codes.REWIND, 0]
    assert not (workdir / "launch/hosts.jsonl").exists()  # no machine is to blame
    assert "batches 28 to 31 are passed over" in err and "Traceback" not in err
    toy.assert_same_run(workdir, known)


def test_kills_while_a_run_goes_back_leave_no_trace(root, command, known):
    workdir = root / "killed"
    err = toy.run(command(workdir), expect=exit_codes.REWIND, **POISON)
    assert "31 to 32, was above" in err and "Traceback" not in err
    assert toy.saved_steps(workdir) == [20]
    told = [event["event"] for event in toy.lines(workdir / "events.jsonl")]
    assert told == ["spike", "spike", "rewind"]
    shutil.move(workdir / "rewound/1-30", workdir / "checkpoints/30")  # killed before it went
    is_saving = lambda: toy.is_saving(workdir)
    code, err = toy.kill(toy.start(command(workdir), **POISON), is_saving)
    assert code == -signal.SIGKILL, err
    toy.run(command(workdir), **POISON)
    toy.assert_same_run(workdir, known)


@pytest.mark.slow
def test_two_processes_go_back_alike(root, command):
    def ends(workdir, *extra, expect):
        two = [toy.start(command(workdir, *extra), **p, **POISON) for p in processes.several(2)]
        for process in two:
            _, err = process.communicate(timeout=300)
            assert process.returncode == expect, err

    ends(root / "two-known", "--config.data.skip_batches=((28,32),)", expect=0)
    ends(root / "two", expect=exit_codes.REWIND)
    ends(root / "two", expect=0)
    toy.assert_same_run(root / "two", root / "two-known")
