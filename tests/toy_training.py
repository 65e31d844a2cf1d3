"""Training and encoding as commands at toy size: data, settings, and what a run leaves behind.

The commands are `tests.hooked`, which is the project's own command with hooks of the environment.
All of them share a cache of compiled programs, because compiling takes longer than all their steps.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from configs import tiny
from data_pipelines import shapes
from data_pipelines.shards import builder
from data_pipelines.stages import ingest
from tests import processes, toy_runs
from vidgen.tasks.autoencoder import Autoencoder
from vidgen.training import checkpoint, sharding
from vidgen.weights import tree_files

# A video VAE of few layers: its program has half the size, and compiles in a third of the time.
VAE = {
    "spatial.channels": (4, 4),
    "spatial.layers_per_block": 0,
    "temporal.filters": 4,
    "temporal.channel_multipliers": (1, 1),
    "temporal.temporal_downsample": (True,),
    "temporal.num_res_blocks": 0,
}
STEPS = 8
TINY = [f"--config={processes.ROOT}/configs/tiny.py", "--config.log.tensorboard=False"]
TINY += [f"--config.num_steps={STEPS}", "--config.schedule.decay=constant"]
TINY += [f"--config.vae.model.{name}={value}" for name, value in VAE.items()]


def data(folder: pathlib.Path) -> pathlib.Path:
    """Shards of 24 clips and 12 images in `folder/shards`."""
    source = shapes.write(folder / "clips", clips=24, images=12, seed=0)
    ingest.run(source, folder / "shards", num_workers=1)
    return folder / "shards"


def random_latents(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Shards of 12 latents that no VAE made, in `folder`: 9 videos and 3 images of 32 x 32."""

    def make(row):
        rng = np.random.default_rng((seed, row))
        num_frames, t = (17, 9) if row % 4 else (1, 1)
        record = {"id": f"clip{row}", "text": f"text {row}", "fps": 12.0 if row % 4 else 120.0}
        record |= {"num_frames": num_frames, "height": 32, "width": 32}
        record |= {"resolution": "32", "aspect": "1.00"}
        record["latent"] = rng.normal(size=(t, 16, 16, 4)).astype(np.float16)
        record["latent_std"] = np.full((t, 16, 16, 4), 0.1, np.float16)
        record["text_emb"] = rng.normal(size=(3 + row, 64)).astype(np.float16)
        return record

    builder.write_shards(folder, "latent", 1, lambda shard: map(make, range(12)), key=f"{seed}")
    return folder


def config():
    """configs/tiny.py with the small VAE."""
    config = tiny.get_config()
    config.vae.model.update_from_flattened_dict(VAE)
    return config


def vae(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Random weights of the video VAE."""
    params = toy_runs.random_params(Autoencoder(config()), seed)
    tree_files.save_safetensors(params, folder / "vae.safetensors")
    return folder / "vae.safetensors"


def autoencoder(shards, workdir, *more) -> list[str]:
    """The command that trains the VAE."""
    flags = ["--config.task=autoencoder", "--config.optim.freeze=()", f"--workdir={workdir}"]
    return ["train", *TINY, *flags, f"--config.data.path={shards}", *more]


def text_to_video(shards, workdir, vae, *more) -> list[str]:
    """The command that trains the STDiT."""
    flags = [f"--workdir={workdir}", f"--config.vae.weights={vae}"]
    return ["train", *TINY, *flags, f"--config.data.path={shards}", *more]


def encode(shards, out, vae, *more) -> list[str]:
    """The command that makes latents."""
    return [
        "encode",
        *TINY,
        f"--source={shards}",
        f"--out={out}",
        f"--config.vae.weights={vae}",
        *more,
    ]


def start(command: list[str], **hooks: str) -> subprocess.Popen:
    """Starts a command on one CPU device and one thread, in a process group of its own."""
    return start_module("tests.hooked", command, **hooks)


def start_module(module: str, command: list[str], stderr=None, **hooks: str) -> subprocess.Popen:
    """Starts a module as `start` does; what it writes may go to a file."""
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(processes.ROOT / ".pytest_cache" / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        **hooks,
    }
    return subprocess.Popen(
        [sys.executable, "-m", module, *command],
        cwd=processes.ROOT,
        env=env,
        stdout=stderr or subprocess.PIPE,
        stderr=stderr or subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(command: list[str], expect: int = 0, **hooks: str) -> str:
    """Runs a command to its end, which has to be `expect`; returns what it wrote to stderr."""
    process = start(command, **hooks)
    _, err = process.communicate(timeout=300)
    assert process.returncode == expect, err
    return err


def kill(process: subprocess.Popen, when, number: int = signal.SIGKILL) -> tuple[int, str]:
    """Sends a signal as soon as `when()` is true; returns (exit code, stderr)."""
    while not when() and process.poll() is None:
        time.sleep(0.002)
    if process.poll() is None:
        os.killpg(process.pid, number)
    _, err = process.communicate(timeout=300)
    return process.returncode, err


def lines(path: pathlib.Path) -> list[dict]:
    """The whole lines of a .jsonl file; none where there is no file."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    """All files by their place, but for the account that each start leaves of itself."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in files if path.parts[0] not in ("ledger", "stacks", "run.lock")]
    return {path: (folder / path).read_bytes() for path in kept}


def saved_steps(workdir: pathlib.Path) -> list[int]:
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def is_saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is half written."""
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def final_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of the newest checkpoint by name: params, ema and opt_state."""
    folder = workdir / "checkpoints" / str(saved_steps(workdir)[-1])
    arrays = {}
    for item in checkpoint.ITEMS:
        like = ocp.StandardCheckpointHandler().metadata(folder / item).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            args = ocp.args.PyTreeRestore(restore_args=as_numpy)
            tree = reader.restore(folder / item, args=args)
        arrays |= {
            f"{item}/{sharding.path_name(path)}": x for path, x in jax.tree.leaves_with_path(tree)
        }
    return arrays


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    """Both runs ended with the same bits, and reported the same steps with the same numbers."""
    first, second = final_state(one), final_state(other)
    assert saved_steps(one)[-1] == saved_steps(other)[-1]
    assert first.keys() == second.keys() and len(first) > 30
    for name, array in first.items():
        assert array.dtype == second[name].dtype, name
        assert array.tobytes() == second[name].tobytes(), name
    assert reported(one) == reported(other)


def reported(workdir: pathlib.Path) -> list[dict]:
    """What metrics.jsonl says of each step, without times and rates."""
    timing = ("time", "step_seconds", "tokens_per_second", "flops_per_second")
    lines_ = lines(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines_]
