"""Measures how well a model does what a prompt says, on the embedded data set.

    python -m vidgen.evaluate --workdir=outputs/stdit --out=outputs/results.json --videos=240

The prompts name combinations of shape, colour and direction that training never shows. A judge
without any model (`data_pipelines.embedded.judge`) reads the six attributes back from each video.
It also reads real clips of the same prompts, as they are and after a round trip through the VAE,
which bounds what a model on that VAE can reach. Beside the results come the first videos of the
list (never chosen), and pictures of them.
"""

import collections
import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags

from data_pipelines.embedded import drawing, judge, vocabulary
from data_pipelines.loading import mixture
from vidgen import sample
from vidgen.process import command_line, machine, runtime
from vidgen.reporting import contact_sheet
from vidgen.tasks import runs
from vidgen.weights import digests

COLUMNS = (*vocabulary.ATTRIBUTES, "all")  # "all": every attribute of a clip is right
CHANCE = {name: 1 / len(values) for name, values in vocabulary.VALUES.items()}
CHANCE["all"] = math.prod(CHANCE.values())
_RESAMPLES = 2000
_PEAK_PSNR = 100.0  # dB, of equal clips
_NAMES = {"ema": "averaged weights", "params": "raw weights"}


def define_flags() -> None:
    """Defines the command's flags; called once, so that other commands can import this one."""
    flags.DEFINE_string("workdir", None, "Working folder of a text-to-video run.")
    flags.DEFINE_string("out", None, "JSON file for the results.")
    flags.DEFINE_integer("videos", 240, "Videos drawn with the averaged weights.", lower_bound=1)
    flags.DEFINE_integer("raw_videos", None, "Videos drawn with the raw weights.", lower_bound=0)
    flags.DEFINE_integer("shown", 24, "Videos that are kept.", lower_bound=0)
    flags.DEFINE_integer("step", None, "Checkpoint; by default the newest.", lower_bound=0)
    flags.DEFINE_string("vae", "", "Weights of the VAE, if they are not where the run had them.")
    flags.DEFINE_integer("height", None, "Pixels; by default as vidgen.sample.", lower_bound=1)
    flags.DEFINE_integer("width", None, "Pixels; by default as vidgen.sample.", lower_bound=1)
    flags.DEFINE_integer("num_frames", None, "By default as vidgen.sample.", lower_bound=1)
    flags.DEFINE_float("fps", None, "Frames per second.", lower_bound=1, upper_bound=1000)
    flags.DEFINE_integer("steps", None, "Denoising steps.", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Of the text; 1 is no amplification.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Of prompts, noise and real clips.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 32, "Videos drawn at once.", lower_bound=1)
    flags.mark_flags_as_required(["workdir", "out"])
    command_line.writes_file("out")


class Evaluation:
    """An evaluation with everything loaded and checked; see the flags for the arguments.

    Raises:
        ValueError, FileNotFoundError, checkpoint.DamagedError: If run or settings are refused.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        videos: int = 240,
        raw_videos: int | None = None,
        shown: int = 24,
        step: int | None = None,
        vae: str = "",
        seed: int = 0,
        batch_size: int = 32,
        **chosen: Any,
    ):
        self.seconds: dict[str, float] = {}
        with self._timed("load"):
            self.config, self.task = runs.text_to_video(workdir, vae)
            settings = {"fps": 12.0, "steps": 30, "guidance": 7.0}
            settings |= runs.sampling_settings(self.config, **chosen)
            self.settings = settings | {"seed": seed, "batch_size": min(batch_size, videos)}
            self.prompts, self.wanted = zip(*vocabulary.held_out_prompts(videos, seed), strict=True)
            self.raw_videos = videos if raw_videos is None else min(raw_videos, videos)
            self.shown = min(shown, videos)
            self._check_shape()
            data = self.config.data.path
            self.captions = check_unseen(data, self.wanted) if mixture.is_here(data) else 0
            self.params = {"ema": {}, "params": {}} if self.raw_videos else {"ema": {}}
            for weights in self.params:
                loaded = runs.load_params(workdir, self.task, weights, step)
                self.params[weights], step = loaded
            self.frozen = self.task.load_frozen()
        self.made_by = {"workdir": str(workdir), "step": step, "vae": self.config.vae.weights}

    def run(self, out: str | os.PathLike) -> dict[str, Any]:
        """Draws, judges and writes `out`; returns its content.

        The kept videos go into a folder beside it, named after it. `clips` tells their files, what
        each prompt wants and what the judge read. Accuracies are shares in 0..1.
        """
        started = time.perf_counter()
        with self._timed("real clips"):
            real = self._real()
        with self._timed("VAE round trip"):
            through_vae = self._through_vae(real)
        drawn = {}
        for weights in self.params:
            with self._timed(f"drawing, {_NAMES[weights]}"):
                drawn[weights] = self._draw(weights)
        with self._timed("judging"):
            look = lambda videos, name: read(videos, self.settings["fps"], name)
            seen = {weights: look(videos, _NAMES[weights]) for weights, videos in drawn.items()}
            seen_real, seen_vae = look(real, "real"), look(through_vae, "VAE")
        results = {
            "prompt_following": accuracies(seen["ema"], self.wanted),
            "prompt_following_raw": accuracies(seen.get("params", []), self.wanted),
            "judge": _shares(seen_real, self.wanted),
            "judge_through_vae": _shares(seen_vae, self.wanted),
            "vae_psnr": psnr(real, through_vae),
            "videos": len(self.prompts),
            "raw_videos": self.raw_videos,
            "settings": self.settings | self.made_by | {"unseen_in_captions": self.captions},
            "parameters": {"model": _count(self.params["ema"]), "vae": _count(self.frozen["vae"])},
            "machine": machine.describe(),
        }
        out = pathlib.Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with self._timed("writing"):
            videos = {"generated": drawn["ema"], "real": real, "vae": through_vae}
            results["clips"] = self._write_videos(out, videos, seen["ema"])
        self.seconds["all"] = self.seconds["load"] + time.perf_counter() - started
        results["seconds"] = {name: round(value, 2) for name, value in self.seconds.items()}
        digests.write_atomically(out, (json.dumps(results, indent=1) + "\n").encode())
        return results

    def _check_shape(self):
        shape = {name: self.settings[name] for name in ("height", "width", "num_frames")}
        self.task.sampler.check(self.prompts, **shape, steps=self.settings["steps"])
        if shape["num_frames"] < 3 or min(shape["height"], shape["width"]) < 24:
            raise ValueError(
                f"{shape['num_frames']} frames of {shape['height']}x{shape['width']} pixels are "
                "too few for the judge, which needs 3 frames and 24 pixels a side: use more."
            )
        size = shape["height"], shape["width"], self.settings["fps"]
        longest = min(drawing.max_frames(wanted, *size) for wanted in self.wanted)
        if shape["num_frames"] > longest:
            raise ValueError(
                f"num_frames={shape['num_frames']} at fps={self.settings['fps']:g}: an object of "
                f"the prompts would leave the picture after {longest} frames. Use fewer frames or "
                "more frames per second."
            )

    def _real(self) -> np.ndarray:
        """A real clip of each prompt; the start of the motion is random."""
        render = lambda number, wanted: drawing.render(
            wanted,
            *(self.settings[name] for name in ("height", "width", "num_frames", "fps")),
            np.random.default_rng((self.settings["seed"], number)),
        )
        return np.stack([render(number, wanted) for number, wanted in enumerate(self.wanted)])

    def _through_vae(self, video_BTHWC: np.ndarray) -> np.ndarray:
        size = self.settings["batch_size"]

        @jax.jit
        def round_trip(frozen, part_BTHWC):
            encoders = self.task.encoders
            mean_Bthwc, _ = encoders.encode_video(frozen, part_BTHWC, None)
            return encoders.decode_video(frozen, mean_Bthwc, part_BTHWC.shape[1])

        parts = []
        for start in tqdm.trange(0, len(video_BTHWC), size, desc="VAE round trip", unit="batch"):
            part = video_BTHWC[start : start + size]
            padding = [(0, size - len(part))] + [(0, 0)] * 4  # one shape, one program
            whole = jnp.asarray(np.pad(part, padding))
            parts.append(np.asarray(round_trip(self.frozen, whole))[: len(part)])
        return np.concatenate(parts)

    def _draw(self, weights: str) -> np.ndarray:
        prompts = self.prompts if weights == "ema" else self.prompts[: self.raw_videos]
        return sample.draw(
            self.task.sampler,
            self.params[weights],
            self.frozen,
            prompts,
            label=f"drawing, {_NAMES[weights]}",
            **self.settings,
        )

    def _write_videos(self, out, videos, seen) -> list[dict[str, Any]]:
        folder, clips = out.parent / f"{out.stem}_videos", []
        folder.mkdir(exist_ok=True)
        for number in range(self.shown):
            wanted = {name: getattr(self.wanted[number], name) for name in vocabulary.ATTRIBUTES}
            clip = {"prompt": self.prompts[number], "wanted": wanted, "read": seen[number]}
            for kind, of_kind in videos.items():
                path = folder / f"{number:03d}-{kind}.mp4"
                sample.write_video(path, of_kind[number], self.settings["fps"])
                clip[kind] = f"{folder.name}/{path.name}"
            clips.append(clip)
        if self.shown:
            shown = list(videos["generated"][: self.shown])
            for suffix in (".webp", ".png"):
                contact_sheet.contact_sheet(
                    shown, self.prompts, folder / f"samples{suffix}", fps=self.settings["fps"]
                )
        return clips

    @contextlib.contextmanager
    def _timed(self, phase: str):
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start


def check_unseen(data: str | os.PathLike, wanted: Sequence[vocabulary.Attributes]) -> int:
    """Makes sure that no caption of a data set shows what the prompts test.

    Returns:
        The number of captions.

    Raises:
        ValueError: If one has shape, colour and direction of a prompt.
    """
    reader = mixture.read(data)
    key = lambda attributes: tuple(attributes[name] for name in ("shape", "colour", "direction"))
    tested = {key(vars(attributes)) for attributes in wanted}
    counts = collections.Counter()
    for row in tqdm.trange(len(reader), desc="captions of the data", unit="caption"):
        found = key(vocabulary.parse(reader[row]["text"]))
        counts.update([found] if found in tested else [])
    if counts:
        raise ValueError(
            f"{data} shows {sum(counts.values())} clips of what the prompts test, such as a "
            f"{' '.join(counts.most_common(1)[0][0])}: results would not tell composition from "
            "memory. Train on the clips of data_pipelines.shapes, which leave them out."
        )
    return len(reader)


def read(videos: Sequence[np.ndarray], fps: float, name: str) -> list[dict[str, str | None]]:
    """What the judge reads in each video, uint8 [T, H, W, 3]."""
    bar = tqdm.tqdm(videos, desc=f"judging, {name}", unit="clip", mininterval=0.5)
    return [judge.judge(video_THWC, fps) for video_THWC in bar]


def hits(seen: Sequence[dict], wanted: Sequence[vocabulary.Attributes]) -> np.ndarray:
    """Whether each of COLUMNS is right, bool [clips, 7]."""
    right = np.array(
        [
            [found[name] == getattr(attributes, name) for name in vocabulary.ATTRIBUTES]
            for found, attributes in zip(seen, wanted, strict=False)  # raw weights may have fewer
        ],
        bool,
    ).reshape(-1, len(vocabulary.ATTRIBUTES))
    return np.concatenate([right, right.all(1, keepdims=True)], axis=1)


def bootstrap(right_NC: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of the mean of each column, by resampling the rows (percentile method)."""
    count = len(right_NC)
    rng = np.random.default_rng(seed)
    times_RN = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    low_C, high_C = np.percentile(times_RN @ right_NC / count, [2.5, 97.5], axis=0)
    return low_C, high_C


def accuracies(seen: Sequence[dict], wanted: Sequence[vocabulary.Attributes]) -> dict[str, dict]:
    """Accuracy, its 95 % interval and chance of each of COLUMNS; {} without clips."""
    if not len(seen):
        return {}
    right_NC = hits(seen, wanted)
    low_C, high_C = bootstrap(right_NC)
    columns = zip(COLUMNS, right_NC.mean(0), low_C, high_C, strict=True)
    return {
        name: {
            "accuracy": float(mean),
            "low": float(low),
            "high": float(high),
            "chance": CHANCE[name],
        }
        for name, mean, low, high in columns
    }


def _shares(seen, wanted) -> dict[str, float]:
    return dict(zip(COLUMNS, hits(seen, wanted).mean(0).tolist(), strict=True))


def _count(params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def psnr(video_BTHWC: np.ndarray, other_BTHWC: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 clips in dB, the mean over the clips."""
    difference = video_BTHWC.astype(np.float32) - other_BTHWC
    error_B = np.square(difference).mean((1, 2, 3, 4), dtype=np.float64)
    floor = 255**2 / 10 ** (_PEAK_PSNR / 10)
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error_B, floor))))


def table(results: dict[str, Any]) -> str:
    """The results as lines of text."""
    ema, raw = results["prompt_following"], results["prompt_following_raw"]
    lines = [
        f"{results['videos']} videos of held-out prompts, step {results['settings']['step']}; "
        f"accuracy in % [95 % interval]",
        f"{'':<12}{'averaged weights':>22}{'raw weights':>22}{'real':>8}{'VAE':>8}{'chance':>8}",
    ]
    show = lambda x: f"{100 * x['accuracy']:.1f} [{100 * x['low']:5.1f}, {100 * x['high']:5.1f}]"
    for name in COLUMNS:
        last = f"{show(raw[name]) if raw else '-':>22}"
        bounds = (results["judge"][name], results["judge_through_vae"][name], CHANCE[name])
        shares = "".join(f"{100 * share:8.1f}" for share in bounds)
        lines.append(f"{name:<12}{show(ema[name]):>22}{last}{shares}")
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in results["seconds"].items())
    lines += [f"VAE round trip: {results['vae_psnr']:.2f} dB PSNR", f"seconds: {seconds}"]
    return "\n".join(lines)


def main(argv):
    del argv
    values = flags.FLAGS
    names = ("videos", "raw_videos", "shown", "step", "vae", "height", "width", "num_frames")
    names += ("fps", "steps", "guidance", "seed", "batch_size")
    with runs.refusing("evaluate"):
        runtime.compile_cache()
        evaluation = Evaluation(values.workdir, **{name: values[name].value for name in names})
    print(table(evaluation.run(values.out)))


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
