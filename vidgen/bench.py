"""Measures the training step of a config on this machine: time, tokens/s, model FLOP/s, memory.

    python -m vidgen.bench --config=configs/quickstart.py

Needs no data: batches are random, of each bucket's shape. Model FLOPs come from the analytic count
of `vidgen.models.flops`; beside it stands XLA's own count of the same forward
pass, so that neither has to be believed.
"""

import dataclasses
import functools
import json
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from data_pipelines.loading import buckets
from vidgen import tasks
from vidgen.diffusion import encoders
from vidgen.process import command_line, phases, runtime
from vidgen.tasks import runs
from vidgen.training import data, micro_steps, numbers, rewinds, sharding, tiers, train_state
from vidgen.training import workdir as workdir_lib
from vidgen.weights import digests


class Step:
    """The training step of one bucket, on a random batch.

    Args:
        config: The experiment.
        bucket: The shape of its batches.
    """

    def __init__(self, config, bucket: buckets.Bucket):
        self.task, tx = tasks.make_task(config), train_state.make_optimizer(config)
        self.mesh = sharding.make_mesh(config.mesh.to_dict())
        devices = sharding.batch_devices(self.mesh)
        self.parts = micro_steps.slices(bucket.batch_size, devices, config.microbatches)
        part = dataclasses.replace(bucket, batch_size=bucket.batch_size // self.parts)
        init = functools.partial(train_state.init_state, task=self.task, tx=tx)
        places = sharding.by_path(
            jax.eval_shape(init, jax.random.key(0)), config.sharding, self.mesh
        )
        with jax.set_mesh(self.mesh):
            self.state = jax.jit(init, out_shardings=places)(jax.random.key(0))
            example = self.task.example_batch(part, np.random.default_rng(0))
            example = data.to_global(self.task.collate(example, part), self.mesh)
            self.batch = self.task.prepare({}, example, part, jax.random.key(0))
        self._update = train_state.Update(self.task, tx, config, places)

    def __call__(self) -> dict[str, jax.Array]:
        """Does a step; returns its metrics when it is done."""
        with jax.set_mesh(self.mesh):
            taken = [(self.batch, i, 1 / self.parts) for i in range(self.parts)]
            self.state, found = self._update(self.state, {}, taken)
            return jax.block_until_ready((self.state, found))[1]


def measure(config, bucket: buckets.Bucket, repeats: int) -> dict[str, float]:
    """Times the training step of one bucket.

    Args:
        config: The experiment.
        bucket: The shape of its batches.
        repeats: Timed steps after the first, which compiles; the median counts.

    Returns:
        compile_seconds, step_seconds, tokens_per_second, model_flops (of a step, forward and
        backward), model_flops_per_second, xla_share (XLA's count of the forward pass as a share of
        ours) and, where the device tells, peak_bytes.
    """
    step, seconds = Step(config, bucket), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    step_seconds = statistics.median(seconds[1:])
    padded_flops = step.task.forward_flops(bucket, padded=True)
    model_flops = 3 * bucket.batch_size * step.task.forward_flops(bucket)
    xla_flops = xla_forward_flops(config, step.batch)
    found = {
        "compile_seconds": seconds[0] - step_seconds,
        "step_seconds": step_seconds,
        "tokens_per_second": bucket.batch_size * step.task.tokens(bucket) / step_seconds,
        "model_flops": model_flops,
        "model_flops_per_second": model_flops / step_seconds,
        "xla_share": xla_flops / (bucket.batch_size // step.parts * padded_flops),
    }
    memory = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in memory:
        found["peak_bytes"] = memory["peak_bytes_in_use"]
    return found


def watched(config, bucket: buckets.Bucket, repeats: int) -> dict[str, float]:
    """What the limits, the ledger, the checks of numbers and the snapshots cost beside the steps.

    Steps with and without them take turns; snapshots are taken as often as `config.snapshot` says.

    Args:
        config: The experiment, with a folder for snapshots.
        bucket: The shape of its batches.
        repeats: Steps of each kind.

    Returns:
        watch_share, the seconds that the loop spends in them as a share of its steps' seconds;
        watch_cpu_ratio, the processor time of all threads with them and without; and snapshots.
    """
    step, calls, saves, cpu, snapshots = Step(config, bucket), 0.0, 0.0, [0.0, 0.0], 0
    plan = [micro_steps.MicroStep(0, 0, 1, bucket, 1.0)]
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(step.mesh):
        run = workdir_lib.Run(folder, config, None)
        watch = phases.Phases(config.limits)
        watch.open(folder)
        kept = tiers.Tiers(run, config, rewinds.Rewinds(folder))
        checked = numbers.Numbers(folder, 0, lambda number: [], print)
        step()
        checked.check(step.state)  # compiles
        begin = time.perf_counter()
        for number in range(1, repeats + 1):
            cpu_begin = time.process_time()
            step()
            cpu[0] += time.process_time() - cpu_begin
            cpu_begin, call_begin = time.process_time(), time.perf_counter()
            watch.enter("data", number)
            watch.enter("step", number, [bucket.name])
            calls += time.perf_counter() - call_begin
            found = step()
            call_begin = time.perf_counter()
            checked.step(number, found, plan)
            kept.check()
            runtime.should_stop()
            is_due = kept.is_due(number, False)
            calls += time.perf_counter() - call_begin
            if is_due:
                call_begin = time.perf_counter()
                watch.enter("save")
                checked.check(step.state)
                kept.save(number, step.state, False, None)
                saves += time.perf_counter() - call_begin
                snapshots += 1
            cpu[1] += time.process_time() - cpu_begin
        seconds = time.perf_counter() - begin - calls - saves
        kept.finish()
        watch.close()
    # half of the steps are watched, and snapshots are as frequent as all of them allow
    share = 2 * calls / seconds + saves / seconds
    return {"watch_share": share, "watch_cpu_ratio": cpu[1] / cpu[0], "snapshots": snapshots}


def xla_forward_flops(config, batch) -> float:
    """XLA's count of a forward pass, before its optimisations.

    It counts the body of a loop once, so the blocks are unrolled for the count.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.unroll, config.model.remat = True, False
    task = tasks.make_task(config)
    params = jax.eval_shape(task.init, jax.random.key(0))
    forward = lambda params, batch: task.loss(params, {}, batch, jax.random.key(0))[0]
    return jax.jit(forward).lower(params, batch).cost_analysis()["flops"]


def table(rows: list[dict]) -> str:
    """The measurements as text."""
    lines = [
        f"{'bucket':>14} {'batch':>6} {'compile s':>10} {'step ms':>9} {'tokens/s':>11} "
        f"{'GFLOP/step':>11} {'GFLOP/s':>9} {'XLA/ours':>9}"
    ]
    for row in rows:
        lines.append(
            f"{row['bucket']:>14} {row['batch_size']:>6} {row['compile_seconds']:>10.1f} "
            f"{1e3 * row['step_seconds']:>9.1f} {row['tokens_per_second']:>11,.0f} "
            f"{row['model_flops'] / 1e9:>11.2f} {row['model_flops_per_second'] / 1e9:>9.1f} "
            f"{row['xla_share']:>9.3f}"
        )
    return "\n".join(lines)


def watched_table(rows: list[dict]) -> str:
    """What `watched` found, as text."""
    lines = [f"{'bucket':>14} {'batch':>6} {'snapshots':>10} {'share':>8} {'CPU ratio':>10}"]
    for row in rows:
        lines.append(
            f"{row['bucket']:>14} {row['batch_size']:>6} {row['snapshots']:>10} "
            f"{row['watch_share']:>8.3%} {row['watch_cpu_ratio']:>10.4f}"
        )
    return "\n".join(lines)


def define_flags() -> None:
    """Defines the command's flags."""
    config_flags.DEFINE_config_file("config", None, "File of the experiment.")
    flags.DEFINE_integer("repeats", 5, "Timed steps of each bucket.", lower_bound=1)
    flags.DEFINE_bool("watched", False, "Measure what watching the run and snapshots cost instead.")
    flags.DEFINE_string("out", None, "JSON file for the measurements.")
    flags.mark_flags_as_required(["config"])
    command_line.writes_file("out")


def used_buckets(config) -> list[buckets.Bucket]:
    """The square buckets of a config that hold clips, from large to small.

    Raises:
        ValueError: If the config does not give a training step.
    """
    if config.microbatches < 1:
        raise ValueError(f"microbatches={config.microbatches}: use 1 or more.")
    table = encoders.bucket_table(config)
    found = buckets.Table(table, ["1.00"]).all_buckets()
    task, tx = tasks.make_task(config), train_state.make_optimizer(config)
    jax.eval_shape(functools.partial(train_state.init_state, task=task, tx=tx), jax.random.key(0))
    return found


def main(argv) -> None:
    del argv
    runtime.compile_cache()
    config, rows = flags.FLAGS.config, []
    with runs.refusing("bench"):
        chosen = used_buckets(config)
    print(runtime.describe())
    for bucket in chosen:
        name = f"{bucket.resolution} x {bucket.num_frames}"
        found = (watched if flags.FLAGS.watched else measure)(config, bucket, flags.FLAGS.repeats)
        rows.append({"bucket": name, "batch_size": bucket.batch_size} | found)
    print(watched_table(rows) if flags.FLAGS.watched else table(rows))
    if flags.FLAGS.out:
        found = {"machine": runtime.describe(), "rows": rows}
        digests.write_atomically(
            pathlib.Path(flags.FLAGS.out), json.dumps(found, indent=1).encode()
        )


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
