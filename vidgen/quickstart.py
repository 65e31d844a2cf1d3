"""The whole way on one machine: data, latents, training, videos, numbers, a page to look at.

    bash launch/quickstart.sh

Runs the project's own commands one after the other, as anyone would, and keeps the time of each.
Stopped at any moment and started again, it goes on where it was.
"""

import json
import pathlib
import subprocess
import sys
import time

from absl import flags

from vidgen.process import command_line
from vidgen.weights import digests

FOLDER = pathlib.Path("outputs/quickstart")  # configs/quickstart.py reads its data there


def phases(folder: pathlib.Path, *, clips: int, images: int, videos: int, train_vae: bool):
    """Returns [(phase, command)], each a module of ours with its arguments."""
    vae = [
        "vidgen.train",
        "--config=configs/quickstart_vae.py",
        f"--workdir={folder}/vae",
        f"--config.data.path={folder}/shards",
    ]
    own_vae = [f"--config.vae.weights={folder}/vae"] if train_vae else []
    config = ["--config=configs/quickstart.py", f"--config.data.path={folder}/latents", *own_vae]
    data = [f"--out={folder}/clips", f"--clips={clips}", f"--images={images}"]
    shards = [f"--source={folder}/clips/clips.csv", f"--out={folder}/shards"]
    latents = [f"--source={folder}/shards", f"--out={folder}/latents"]
    results = [f"--out={folder}/results.json", f"--videos={videos}"]
    return [
        ("clips", ["data_pipelines.shapes", *data]),
        ("shards", ["data_pipelines.pipeline", *shards]),
        *([("vae", vae)] if train_vae else []),
        ("latents", ["vidgen.encode", *config, *latents]),
        ("train", ["vidgen.train", *config, f"--workdir={folder}/stdit"]),
        ("evaluate", ["vidgen.evaluate", f"--workdir={folder}/stdit", *results]),
        ("report", ["vidgen.report", f"--run={folder}", f"--out={folder}/report.html"]),
    ]


def run(folder: pathlib.Path, steps) -> int:
    """Runs the phases that are not done yet; returns the exit code of the first that fails, or 0.

    `seconds.json` holds the time of each finished phase. A phase that was stopped counts from its
    last start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "seconds.json"
    seconds = json.loads(record.read_text()) if record.exists() else {}
    for number, (phase, command) in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] {phase}: python -m {' '.join(command)}", flush=True)
        if phase == "evaluate" and _evaluated(folder):
            print("done before")
            continue
        began = time.monotonic()
        code = subprocess.run([sys.executable, "-m", *command], check=False).returncode
        if code:
            print(f"{phase} ended with exit code {code}; start again to go on.", file=sys.stderr)
            return code if code > 0 else 1
        spent = time.monotonic() - began
        seconds[phase] = max(spent, seconds.get(phase, 0.0))  # a phase done before takes no time
        digests.write_atomically(record, json.dumps(seconds, indent=1).encode())
    results = json.loads((folder / "results.json").read_text())
    results["seconds"] = seconds | {"all": sum(seconds.values())}
    digests.write_atomically(folder / "results.json", json.dumps(results, indent=1).encode())
    return 0


def _evaluated(folder: pathlib.Path) -> bool:
    """Whether the results are of the last checkpoint."""
    results, last = folder / "results.json", folder / "stdit" / "checkpoints"
    return results.exists() and results.stat().st_mtime > last.stat().st_mtime


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_integer("clips", 4000, "Video clips of the data set.", lower_bound=64)
    flags.DEFINE_integer("images", 400, "Still images of the data set.", lower_bound=64)
    flags.DEFINE_integer("videos", 240, "Videos that are judged.", lower_bound=1)
    flags.DEFINE_bool("train_vae", False, "Train the video VAE too, instead of the shipped one.")


def main(argv) -> int:
    del argv
    chosen = {name: flags.FLAGS[name].value for name in ("clips", "images", "videos", "train_vae")}
    code = run(FOLDER, phases(FOLDER, **chosen))
    if code == 0:
        print(
            f"\nOpen {FOLDER}/report.html in a browser; the numbers are in {FOLDER}/results.json."
        )
    return code


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
