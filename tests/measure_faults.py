"""Repeats one fault many times: how often is the end right, and how soon does it come.

    python -m tests.measure_faults --series=hang --count=50 --json=docs/benchmarks/faults.json

The processes are real, of one machine, and small, so that a series takes minutes; `tests.chaos`
does the same to whole runs. A series that stands in FILE already is made anew.

    hang      one of three is stuck: in Python, holding the lock, or stopped; limit 1 s
    write     one of two cannot write from a random byte of a save on; seconds until both have ended
    stop      a signal, a stop file or a time limit; both of two end after the same step
    damage    a file of a checkpoint of four processes is damaged; the older one is used, or it is
              harmless
    kill      both of two are killed inside of a save; the newest committed step comes back
"""

import argparse
import functools
import json
import math
import os
import pathlib
import random
import shutil
import signal
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from tests import chaos, processes, test_phases, test_runtime, toy_training
from tests.test_checkpoint import State, abstract
from vidgen.process import exit_codes, machine, stacks
from vidgen.training import checkpoint, sharding

SAVES = """
import pathlib, resource, sys, time
import jax
from tests import measure_faults
from vidgen.process import endings, ranks, runtime
from vidgen.training import checkpoint
endings.end_on_error()
runtime.start(heartbeat_seconds=60)
ckpt = checkpoint.Checkpointer("{folder}", keep=2)
step = ckpt.latest_step() or 0
"""
WRITE = """
ckpt.save(1, measure_faults.state(1), {{}})
ckpt.wait()
print("saved", flush=True)
if ranks.index() == {which}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
ckpt.save(2, measure_faults.state(2), {{}})
while True:
    ckpt.check()
    time.sleep(0.05)
"""
KILL = """
while True:
    step += 1
    ckpt.save(step, measure_faults.state(step), {{}})
    ckpt.wait()
    print("saved", step, flush=True)
"""
FOUR = """
for step in (1, 2):
    ckpt.save(step, measure_faults.state(step), {{}})
ckpt.close()
ranks.finish()
"""


@functools.cache
def _maker():
    mesh = sharding.make_mesh({"data": 1, "fsdp": -1})
    cut = jax.NamedSharding(mesh, jax.P("fsdp"))

    def make(step):
        w = jax.random.normal(jax.random.key(step), (4000,))
        return State(step, {"w": w, "s": w[0]}, {"w": -w, "s": w[1]}, ())

    both = {"w": cut, "s": sharding.replicated(mesh)}
    return jax.jit(make, out_shardings=State(sharding.replicated(mesh), both, both, ()))


def state(step: int) -> State:
    """What a run has after a step, cut among all devices of all processes."""
    return _maker()(jnp.int32(step))


def _is(found: State, step: int) -> bool:
    """To the last bit."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(state(step)), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def hang(rng: random.Random, folder: pathlib.Path) -> tuple[bool, float]:
    kind = rng.choice(list(test_phases.KINDS))
    codes, _, seconds = test_phases.run(kind, 3, folder)
    (odd, frames), *_ = stacks.group(folder, 0)
    is_named = odd == [2] and "stuck_here" in " ".join(frames)
    ends = [exit_codes.HANG, exit_codes.HANG]
    return codes[:2] == ends and is_named and seconds <= 1 + 5, seconds


def write(rng: random.Random, folder: pathlib.Path) -> tuple[bool, float]:
    code = (SAVES + WRITE).format(folder=folder, which=rng.randrange(2), limit=rng.randrange(7000))
    started = processes.spawn_two(code)
    for process in started:
        process.stdout.readline()
    begin = time.monotonic()
    texts = [process.communicate(timeout=100)[1] for process in started]
    seconds, codes = time.monotonic() - begin, [process.returncode for process in started]
    is_told = all("checkpoint of step 2 was NOT written" in text for text in texts)
    is_kept = checkpoint.steps(folder) == [1]
    return codes == [exit_codes.STORAGE] * 2 and is_told and is_kept, seconds


def stop(rng: random.Random, folder: pathlib.Path) -> tuple[bool, float]:
    kind = rng.choice(("SIGTERM", "SIGINT", "SIGUSR1", "file", "time"))
    limit = rng.uniform(0.2, 1) if kind == "time" else 0
    begins = f"    runtime.stop_when('{folder}', {limit})\n    for step"
    started = processes.spawn_two(test_runtime.LOOP.replace("    for step", begins))
    for process in started:
        test_runtime.wait_for(process, "training")
    time.sleep(rng.uniform(0, 0.5))
    if kind == "file":
        (folder / "STOP").touch()
    elif kind != "time":
        rng.choice(started).send_signal(getattr(signal, kind))
    begin = time.monotonic()
    outs = [process.communicate(timeout=60)[0] for process in started]
    is_right = [process.returncode for process in started] == [exit_codes.REQUEUE] * 2
    return is_right and outs[0] == outs[1] != "", time.monotonic() - begin


def damage(rng: random.Random, folder: pathlib.Path) -> tuple[bool, float]:
    whole = folder.parent / "four"
    if not whole.exists():
        code = (SAVES + FOUR).format(folder=whole)
        for process in [processes.spawn(code, **place) for place in processes.several(4)]:
            assert process.wait(100) == 0, process.stderr.read()
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    files = [path for path in (folder / "checkpoints/2").rglob("*") if path.is_file()]
    change = rng.choice(list(chaos.STORAGE.values()))
    change(rng.choice(sorted(path for path in files if path.stat().st_size)), rng)
    begin = time.monotonic()
    ckpt = checkpoint.Checkpointer(folder)
    found, meta = ckpt.restore(abstract(state(0)))
    ckpt.close()
    return _is(found, meta["step"]) and int(found.step) == meta["step"], time.monotonic() - begin


def kill(rng: random.Random, folder: pathlib.Path) -> tuple[bool, float]:
    folder = folder.parent / "killed"  # one run goes on through all of them
    started = processes.spawn_two((SAVES + KILL).format(folder=folder))
    said = [next(line for line in process.stdout if "saved" in line) for process in started]
    until = time.monotonic() + 20
    while not toy_training.is_saving(folder) and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))
    for process in started:
        process.send_signal(signal.SIGKILL)
    said += [process.communicate()[0] for process in started]
    committed = max(int(words.split()[0]) for words in "".join(said).split("saved ")[1:])
    begin = time.monotonic()
    ckpt = checkpoint.Checkpointer(folder, keep=2)
    found, meta = ckpt.restore(abstract(state(0)))
    ckpt.close()
    return meta["step"] >= committed and _is(found, meta["step"]), time.monotonic() - begin


SERIES = {f.__name__: f for f in (hang, write, stop, damage, kill)}


def run(name: str, count: int, seed: int) -> dict:
    """A series, as it is written down."""
    seconds, failed = [], []
    with tempfile.TemporaryDirectory() as root:
        for number in range(seed, seed + count):
            folder = pathlib.Path(root, str(number))
            folder.mkdir()
            is_right, took = SERIES[name](random.Random(number), folder)
            seconds.append(took)
            failed += [] if is_right else [number]
            shutil.rmtree(folder)
    seconds.sort()
    at = lambda share: round(seconds[math.ceil(share * count) - 1], 2)
    found = {"count": count, "first_seed": seed, "right": count - len(failed), "failed": failed}
    return found | {"seconds_p50": at(0.5), "seconds_p95": at(0.95), "seconds_most": at(1.0)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", choices=SERIES, action="append", help="by default all")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    record = {"machine": machine.describe(), "series": {}}
    if args.json and args.json.exists():
        record["series"] = json.loads(args.json.read_text())["series"]
    for name in args.series or SERIES:
        record["series"][name] = run(name, args.count, args.seed)
        print(name, record["series"][name], flush=True)
        if args.json:
            args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
