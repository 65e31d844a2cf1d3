"""A run's working folder as its readers see it: config, models and weights.

Everything here is checked before any work, and what is wrong is said in one message (`refusing`).
"""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags, logging
from ml_collections import ConfigDict

from data_pipelines.loading import buckets, resolutions
from vidgen import tasks
from vidgen.process import exit_codes
from vidgen.tasks import text_to_video
from vidgen.training import checkpoint
from vidgen.weights import tree_files


@contextlib.contextmanager
def refusing(command: str) -> Iterator[None]:
    """Ends a command with one message, and exit_codes.REFUSED, where its input is refused.

    Also silences the libraries' warnings from here on, among which a message would be lost, unless
    the command was given a --verbosity.
    """
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.ERROR)
    try:
        yield
    except (ValueError, OSError, ImportError, checkpoint.DamagedError) as error:
        sys.stderr.write(f"{command}: {error}\n")
        raise SystemExit(exit_codes.REFUSED) from error


def load_config(workdir: str | os.PathLike) -> ConfigDict:
    """Returns the config that a run was started with, from `run.json` in its working folder.

    Raises:
        ValueError: If there is no such file, or it cannot be read.
    """
    path = pathlib.Path(workdir) / "run.json"
    try:
        return ConfigDict(_tuples(json.loads(path.read_text())["config"]))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): give the working folder of a run, the "
            "--workdir of vidgen.train."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): it should hold the run's config. Restore it; starting "
            "the run again with its own config writes it where it is missing."
        ) from error


def text_to_video(
    workdir: str | os.PathLike, vae: str = ""
) -> tuple[ConfigDict, text_to_video.TextToVideo]:
    """Returns config and task of a text-to-video run.

    Args:
        workdir: The working folder.
        vae: Weights of the VAE, where they are not at the run's own `config.vae.weights`.

    Raises:
        ValueError: If it is a run of another task, has saved no checkpoint, or the VAE's weights
            are not there.
    """
    config = load_config(workdir)
    if config.task != "text_to_video":
        raise ValueError(
            f"{workdir} is a run with task={config.task!r}, which draws no videos from text: give "
            "the working folder of a run with task='text_to_video'."
        )
    if not checkpoint.steps(workdir):
        raise ValueError(
            f"{workdir} has no checkpoint yet: wait for the first one, which the run saves after "
            f"{config.checkpoint_every} steps."
        )
    if vae:
        config.vae.weights = vae
    if not config.vae.weights or not pathlib.Path(config.vae.weights).exists():
        raise ValueError(
            f"the run's VAE, config.vae.weights={config.vae.weights!r}, is not there (looked from "
            f"{os.getcwd()}): go to the folder that the run was started in, or give its working "
            "folder or .safetensors file with --vae."
        )
    return config, tasks.make_task(config)


def load_params(
    workdir: str | os.PathLike, task, weights: str, step: int | None = None
) -> tuple[dict[str, Any], int]:
    """Returns (params on the device, their step): of `step`, or else the newest sound one.

    Raises:
        FileNotFoundError: If there is no such step.
        checkpoint.DamagedError: If it is damaged, or all are.
        ValueError: If the arrays are not those of the task's model.
    """
    candidates = checkpoint.steps(workdir) if step is None else [step]
    while True:
        chosen = candidates.pop()
        try:
            loaded = checkpoint.load_params(workdir, weights, chosen)
            break
        except checkpoint.DamagedError:
            if not candidates:
                raise
    expected = jax.eval_shape(task.init, jax.random.key(0))
    tree_files.check_tree(loaded, expected, name=f"{workdir}, step {chosen}")
    return jax.tree.map(jnp.asarray, loaded), chosen


def sampling_settings(config: ConfigDict, **chosen: Any) -> dict[str, Any]:
    """Settings of `generate.Sampler`: those chosen, else those of the run's previews and buckets.

    Args:
        config: The run's config.
        **chosen: Settings by name; None leaves one open.

    Returns:
        At least `height`, `width` and `num_frames`: by default of a square video of the largest
        resolution that the run has videos of, at its shortest length; of images where it has none.
    """
    taken = [
        (resolution, buckets.parse_num_frames(frames))
        for resolution, entries in config.data.buckets.to_dict().items()
        for frames, (_, clips) in entries.items()
        if clips  # a bucket without takes none
    ]
    videos = [(resolution, frames) for resolution, frames in taken if frames > 1] or taken
    size = lambda bucket: (resolutions.pixels(bucket[0]), -bucket[1])
    resolution, num_frames = max(videos, key=size)
    height, width = resolutions.sizes(resolution)["1.00"]
    settings = {"height": height, "width": width, "num_frames": num_frames}
    known = ("height", "width", "num_frames", "fps", "steps", "guidance")
    previews = config.preview.settings.to_dict()
    settings |= {name: previews[name] for name in known if name in previews}
    return settings | {name: value for name, value in chosen.items() if value is not None}


def _tuples(value: Any) -> Any:
    """JSON has lists only, where the config had tuples."""
    if isinstance(value, dict):
        return {name: _tuples(x) for name, x in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
