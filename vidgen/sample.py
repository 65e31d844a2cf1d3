"""Draws videos of prompts with a trained model.

    python -m vidgen.sample --workdir=outputs/stdit --out=outputs/samples \\
        --prompt="a small red circle moves left slowly on a black background"

A video has the size of the run's previews (preview.settings of its config); where they name none,
that of a square of the largest resolution that it learned videos in, at the shortest length.
--height, --width and --num_frames set it.

Writes an mp4 a video (a png an image), and samples.json with all that it takes to draw them again:
the same run, settings and machine give the same bytes.
"""

import dataclasses
import json
import os
import pathlib
import re
import sys
from typing import Any

import jax
import tqdm
from absl import flags

from data_pipelines.media import encoding
from data_pipelines.process import text_files
from vidgen.diffusion import generate
from vidgen.process import command_line, runtime
from vidgen.tasks import runs
from vidgen.weights import digests


def define_flags() -> None:
    """Defines the command's flags; called once, so that other commands can import this one."""
    flags.DEFINE_string("workdir", None, "Working folder of a text-to-video run.")
    flags.DEFINE_string("out", None, "Folder for the videos.")
    flags.DEFINE_multi_string("prompt", [], "What a video should show; may come several times.")
    flags.DEFINE_string("prompt_file", None, "A text file with a prompt a line.")
    flags.DEFINE_integer("step", None, "Checkpoint; by default the newest.", lower_bound=0)
    flags.DEFINE_enum("weights", "ema", ["ema", "params"], "Moving average or last update.")
    flags.DEFINE_string("vae", "", "Weights of the VAE, if they are not where the run had them.")
    flags.DEFINE_integer("height", None, "Pixels; see above for the default.", lower_bound=1)
    flags.DEFINE_integer("width", None, "Pixels; see above for the default.", lower_bound=1)
    flags.DEFINE_integer("num_frames", None, "1 is an image; default above.", lower_bound=1)
    flags.DEFINE_float("fps", None, "Frames per second.", lower_bound=1, upper_bound=1000)
    flags.DEFINE_integer("steps", None, "Denoising steps.", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Of the text; 1 is no amplification.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0)
    flags.DEFINE_integer("samples", 1, "Videos of each prompt.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 8, "Videos drawn at once.", lower_bound=1)
    flags.mark_flags_as_required(["workdir", "out"])
    command_line.writes_folder("out")


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be drawn, with everything loaded and checked."""

    sampler: generate.Sampler
    params: dict[str, Any]
    frozen: dict[str, Any]
    prompts: list[str]
    settings: dict[str, Any]  # of the sampler
    made_by: dict[str, Any]  # what the videos depend on besides


def prepare(
    workdir, prompts, *, step=None, weights="ema", vae="", seed=0, samples=1, **chosen
) -> Job:
    """Loads a run and checks prompts and settings; see the flags for the arguments.

    Raises:
        ValueError, FileNotFoundError, checkpoint.DamagedError: If any of them is refused.
    """
    config, task = runs.text_to_video(workdir, vae)
    settings = {"fps": 24.0, "steps": 30, "guidance": 7.0, "batch_size": 8}
    settings |= runs.sampling_settings(config, **chosen) | {"seed": seed, "samples": samples}
    settings["batch_size"] = min(settings["batch_size"], len(prompts) * samples)
    shape = {name: settings[name] for name in ("height", "width", "num_frames")}
    task.sampler.check(prompts, **shape, steps=settings["steps"])
    params, step = runs.load_params(workdir, task, weights, step)
    made_by = {"workdir": str(workdir), "step": step, "weights": weights}
    made_by |= {"vae": config.vae.weights, "jax": jax.__version__}
    made_by["device"] = jax.devices()[0].device_kind
    return Job(task.sampler, params, task.load_frozen(), list(prompts), settings, made_by)


def write(job: Job, out: str | os.PathLike) -> list[pathlib.Path]:
    """Draws the videos and writes them with samples.json; returns their paths."""
    videos = draw(job.sampler, job.params, job.frozen, job.prompts, **job.settings)
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths, entries = [], []
    for number, video_THWC in enumerate(videos):
        prompt, sample = divmod(number, job.settings["samples"])
        text = job.prompts[prompt]
        path = out / f"{number:04d}-{slug(text)}{'.png' if len(video_THWC) == 1 else '.mp4'}"
        write_video(path, video_THWC, job.settings["fps"])
        paths.append(path)
        entries.append({"file": path.name, "prompt": text, "sample": sample})
    note = job.made_by | {"settings": job.settings, "prompts": job.prompts, "videos": entries}
    text = json.dumps(note, indent=1, ensure_ascii=False) + "\n"
    digests.write_atomically(out / "samples.json", text.encode())
    return paths


def draw(sampler, params, frozen, prompts, *, label="drawing", **settings):
    """Calls a `generate.Sampler` under a progress bar over the denoising steps of all videos."""
    total = len(prompts) * settings.get("samples", 1) * settings["steps"]
    with tqdm.tqdm(total=total, desc=label, unit="step", mininterval=0.5) as bar:
        return sampler(params, frozen, prompts, on_step=bar.update, **settings)


def slug(prompt: str) -> str:
    """A short file name that tells the prompt: "A red circle!" -> "a-red-circle"."""
    words = re.findall(r"\w+", prompt.lower())
    name = ""
    for word in words:
        if len(f"{name}-{word}".encode()) > 60:
            break
        name = f"{name}-{word}" if name else word
    return name or "video"


def write_video(path: pathlib.Path, video_THWC, fps: float) -> None:
    """Writes a video as mp4, or one frame as png, whole or not at all."""
    one = len(video_THWC) == 1
    data = encoding.encode_png(video_THWC[0]) if one else encoding.encode_mp4(video_THWC, fps)
    digests.write_atomically(path, data)


def read_prompts(prompts: list[str], path: str | None) -> list[str]:
    """The prompts of the command line, then those of a file, without its empty lines.

    Raises:
        ValueError: If the file cannot be read, or there is no prompt at all.
    """
    if path:
        try:
            lines = text_files.read_lines(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prompt_file={path} cannot be read as UTF-8 ({error}).") from error
        prompts = prompts + [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError('there is no prompt: give --prompt="..." or --prompt_file=FILE.')
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("--prompt is empty: write what the video should show.")
    return prompts


def main(argv):
    del argv
    values = flags.FLAGS
    names = ("step", "weights", "vae", "height", "width", "num_frames", "fps", "steps")
    names += ("guidance", "seed", "samples", "batch_size")
    with runs.refusing("sample"):
        runtime.compile_cache()
        prompts = read_prompts(values.prompt, values.prompt_file)
        settings = {name: values[name].value for name in names}
        job = prepare(values.workdir, prompts, **settings)
    size = "{height}x{width} pixels, {num_frames} frames at {fps:g} a second".format(**job.settings)
    print(f"drawing {size}: --height, --width, --num_frames, --fps change it", file=sys.stderr)
    for path in write(job, values.out):
        print(path)


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
