"""A gradient that is computed twice has the same bits, or the place of what is wrong is named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.loading import buckets
from tests import hooked, processes, test_train_state
from tests import toy_training as toy
from vidgen import tasks
from vidgen.process import exit_codes
from vidgen.training import events, micro_steps, replay, sharding, train_state

BUCKET = buckets.Bucket("32", 17, "1.00", 32, 32, 2)
PLAN = [micro_steps.MicroStep(7, 0, 1, BUCKET, 1.0)]


@pytest.fixture
def log(tmp_path):
    log = events.Events(tmp_path, lambda number: [f"clip{number}"])
    log.told = lambda: toy.lines(tmp_path / "events.jsonl")
    return log


@pytest.fixture(scope="module")
def parts(mesh):
    """(places, params, gradient, zeros, batch): weights cut in two, four times, and a bias."""
    params = {"bias": jnp.arange(3.0), "kernel": jnp.arange(24.0).reshape(4, 6) / 7}
    places = sharding.by_path(params, [("kernel", (None, "fsdp")), (".*", ())], mesh)
    params = jax.device_put(params, places)
    x = jax.device_put(np.random.default_rng(0).normal(size=(16, 4)), sharding.batch(mesh))

    def loss(params, x):
        return jnp.square(x @ params["kernel"]).mean() + jnp.square(params["bias"]).sum()

    def gradient(params, total, x):
        value, grads = jax.value_and_grad(loss)(params, x)
        return (jax.tree.map(jnp.add, total[0], grads), total[1] + value), value

    gradient = jax.jit(gradient, donate_argnums=1, out_shardings=((places, None), None))
    zeros = lambda: (jax.device_put(jax.tree.map(jnp.zeros_like, params), places), jnp.zeros(()))
    return places, params, gradient, zeros, x


class Flipping:
    """A gradient, of which some calls come out with a wrong bit: {call: [(name, device)]}."""

    def __init__(self, gradient, flips):
        self._gradient, self._flips, self.calls = gradient, flips, 0

    def __call__(self, *args):
        (grads, value), loss = self._gradient(*args)
        self.calls += 1
        for name, device in self._flips.get(self.calls, ()):
            grads = grads | {name: hooked.flip(grads[name], device)}
        return (grads, value), loss


def test_the_gradient_that_is_used_is_the_one_of_a_single_time(parts, log):
    places, params, gradient, zeros, x = parts
    watch = replay.Replay(3, places, log)
    expected = jax.device_get(gradient(params, zeros(), x))
    replayed = []
    for step in range(5, 14):
        given = zeros()
        first = watch.at(step, PLAN)
        if first is None:
            continue
        replayed.append(step)
        sums = [given[0]]
        spy = lambda *args, sums=sums: sums.append((out := gradient(*args))[0][0]) or out
        found = first(spy, params, given, x)
        assert all(x.is_deleted() for x in jax.tree.leaves(sums[:2]))  # no second copy is held
        assert found[0][0]["kernel"].sharding == places["kernel"]
        for x1, x2 in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            assert np.asarray(x1).tobytes() == np.asarray(x2).tobytes()
    assert replayed == [5, 6, 9, 12] and not log.told()
    assert replay.Replay(0, places, log).at(3, PLAN) is None


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("name, device", [("kernel", 5), ("bias", 0)])
def test_one_wrong_bit_names_its_device(call, name, device, parts, log):
    places, params, gradient, zeros, x = parts
    watch = replay.Replay(1, places, log)
    watch.at(1, PLAN)(gradient, params, zeros(), x)
    wrong = Flipping(gradient, {call: [(name, device)]})
    with pytest.raises(replay.ReplayError, match=rf"devices {device}\).*equal: step 1;") as error:
        watch.at(2, PLAN)(wrong, params, zeros(), x)
    assert error.value.exit_code == exit_codes.NUMBERS
    (event,) = log.told()
    assert event["event"] == "replay" and event["step"] == 2 and event["equal_at"] == 1
    assert event["devices"] == [device] and event["clips"] == {"7": ["clip7"]}
    assert event["buckets"] == ["32/17/1.00"] and "gradient again" in event["differ"]


def test_copies_of_the_parameters_that_differ_name_the_odd_one(parts, log):
    places, params, gradient, zeros, x = parts
    params = params | {"kernel": hooked.flip(params["kernel"], 6)}
    with pytest.raises(replay.ReplayError, match=r"devices 6\)"):
        replay.Replay(1, places, log).at(1, PLAN)(gradient, params, zeros(), x)
    assert log.told()[0]["differ"][0] == "parameters"


def everywhere(device_count=8):
    return [("kernel", device) for device in range(device_count)]


def test_what_is_wrong_in_a_sum_is_said_to_be_anywhere(parts, log):
    places, params, gradient, zeros, x = parts
    wrong = Flipping(gradient, {1: everywhere()})
    with pytest.raises(replay.ReplayError, match="on all devices alike, so it was wrong before"):
        replay.Replay(1, places, log).at(1, PLAN)(wrong, params, zeros(), x)
    assert wrong.calls == 3  # and the third time was as the second


def test_a_program_that_never_repeats_itself_is_no_corruption(parts, log):
    places, params, gradient, zeros, x = parts
    told = []
    watch = replay.Replay(1, places, log, told.append)
    wrong = Flipping(gradient, {1: everywhere(), 2: everywhere(), 3: everywhere()})
    wrong._flips[2] = [(name, d) for d in range(8) for name in ("kernel", "bias")]
    wrong._flips[3] = [("bias", d) for d in range(8)]
    watch.at(1, PLAN)(wrong, params, zeros(), x)
    assert "does not repeat itself" in told[0] and log.told()[0]["event"] == "no replay"
    assert watch.at(2, PLAN) is None
    other = [micro_steps.MicroStep(7, 0, 1, buckets.Bucket("32", 1, "1.00", 32, 32, 2), 1.0)]
    assert watch.at(2, other) is not None


def test_once_it_has_repeated_itself_three_ways_are_corruption(parts, log):
    places, params, gradient, zeros, x = parts
    watch = replay.Replay(1, places, log)
    watch.at(1, PLAN)(gradient, params, zeros(), x)
    wrong = Flipping(gradient, {1: everywhere(), 2: everywhere() + [("bias", d) for d in range(8)]})
    with pytest.raises(replay.ReplayError):
        watch.at(2, PLAN)(wrong, params, zeros(), x)


def test_any_bit_of_any_place_changes_the_digest():
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(5, 7)).astype(np.float32), "b": np.ones(3, jnp.bfloat16)}
    digest = jax.jit(replay.fold)
    seen = {int(digest(tree)[0])}
    for name, bits in (("a", 32), ("b", 16)):
        for place in range(tree[name].size):
            for bit in range(0, bits, 5):
                changed = {k: x.copy() for k, x in tree.items()}
                words = changed[name].reshape(-1).view(f"uint{bits}")
                words[place] ^= 1 << bit
                value = int(digest(changed)[0])
                assert value != int(digest(tree)[0])
                seen.add(value)
    swapped = tree | {"a": tree["a"][::-1].copy()}
    assert int(digest(swapped)[0]) != int(digest(tree)[0]) and len(seen) > 200


def test_the_stdit_repeats_itself_on_eight_devices(mesh, log):
    from configs import tiny

    config = tiny.get_config()
    task, tx = tasks.make_task(config), train_state.make_optimizer(config)
    with jax.set_mesh(mesh):
        state = train_state.init_state(jax.random.key(0), task=task, tx=tx)
        places = sharding.by_path(state, config.sharding, mesh)
        once, twice = (jax.device_put(state, places) for _ in range(2))
        once, twice = jax.tree.map(jnp.copy, (once, twice))
        batch = jax.device_put(test_train_state.batch_of(task, config), sharding.batch(mesh))
        update = train_state.Update(task, tx, config, places)
        watch = replay.Replay(1, places.params, log)
        for step in range(1, 13):
            taken = [(batch, 2 * step, 0.5), (batch, 2 * step + 1, 0.5)]
            once, metrics = update(once, {}, taken)
            twice, others = update(twice, {}, taken, watch.at(step, PLAN))
        found, expected = jax.tree.leaves((twice, others)), jax.tree.leaves((once, metrics))
        for x, y in zip(found, expected, strict=True):
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    assert not log.told()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("replay")


@pytest.fixture(scope="module")
def command(root):
    latents, vae = toy.random_latents(root / "latents"), toy.vae(root)
    return lambda name, *more: toy.text_to_video(latents, root / name, vae, *more)


def ends(command, **hooks):
    two = [toy.start(command, **place, **hooks) for place in processes.several(2)]
    texts = [process.communicate(timeout=300)[1] for process in two]
    return [(process.returncode, text) for process, text in zip(two, texts, strict=True)]


def test_a_wrong_bit_in_one_of_two_processes_ends_both_and_names_it(root, command):
    # update 1 takes gradients 1 and 2, and update 4 takes 5 and 6
    wrong = command("wrong", "--config.replay_every=4", "--config.checkpoint_every=3")
    for code, err in ends(wrong, HOOK_FLIP="1-5"):
        assert code == exit_codes.NUMBERS, err
        assert "SILENT CORRUPTION on process 1 on" in err and "Traceback" not in err
    assert toy.saved_steps(root / "wrong") == [3]  # and not what was wrong
    (event,) = toy.lines(root / "wrong/events.jsonl")
    assert event["step"] == 4 and event["equal_at"] == 1 and len(event["devices"]) == 1
    assert json.dumps(event["hosts"]).count("process") == 1


@pytest.mark.slow
def test_two_processes_that_replay_each_update_raise_no_alarm(root, command):
    for name, every in (("each", 1), ("none", 0)):
        for code, err in ends(command(name, f"--config.replay_every={every}")):
            assert code == 0, err
    assert not (root / "each/events.jsonl").exists()
    toy.assert_same_run(root / "each", root / "none")
