"""Writes the results of an evaluation as one HTML file that needs nothing else.

    python -m vidgen.report --run=outputs/quickstart --out=outputs/quickstart/report.html
    python -m vidgen.report --run=outputs/stdit --results=outputs/results.json --out=report.html

It holds the kept videos, accuracies, loss curves, timings, machine, config and commands;
`report_page` lays them out.
"""

import json
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from vidgen.process import command_line
from vidgen.reporting import report_page
from vidgen.tasks import runs
from vidgen.weights import digests

RESULTS = ("prompt_following", "prompt_following_raw", "judge", "judge_through_vae", "vae_psnr")
RESULTS += ("videos", "raw_videos", "settings", "parameters", "machine", "clips", "seconds")


def define_flags() -> None:
    """Defines the command's flags; called once, so that other commands can import this one."""
    flags.DEFINE_string("run", None, "Folder of the quickstart, or of a text-to-video run.")
    flags.DEFINE_string("out", None, "HTML file to write.")
    flags.DEFINE_string("results", None, "Of vidgen.evaluate; by default results.json in --run.")
    flags.DEFINE_string("vae_run", None, "Working folder of the VAE's run, for its loss curve.")
    flags.DEFINE_string(
        "seconds", None, "JSON file: how long each phase took; by default the folder's."
    )
    flags.mark_flags_as_required(["run", "out"])
    command_line.writes_file("out")


def write(
    out: str | os.PathLike,
    *,
    run: str | os.PathLike,
    results: str | os.PathLike,
    vae_run: str | os.PathLike | None = None,
    seconds: Mapping[str, float] | None = None,
    commands: Sequence[str] | None = None,
) -> pathlib.Path:
    """Writes the report.

    Args:
        out: The HTML file.
        run: Working folder of the text-to-video run, for its config and loss curve.
        results: The JSON file of `vidgen.evaluate`; the videos that it names lie beside it.
        vae_run: Working folder of the VAE's run, if its loss curve is to be shown.
        seconds: How long each phase took; by default the training times that the metrics tell,
            and the evaluation.
        commands: What makes the results again; by default the training, evaluation and report.

    Returns:
        The path of the file.

    Raises:
        ValueError: If a file that is needed is missing or no result of an evaluation.
    """
    out, run, results = pathlib.Path(out), pathlib.Path(run), pathlib.Path(results)
    config = runs.load_config(run)
    found = _read_json(results, "the results of vidgen.evaluate")
    if missing := [name for name in RESULTS if name not in found]:
        raise ValueError(
            f"{results} holds no results of vidgen.evaluate: it lacks {', '.join(missing)}. Give "
            "its --out."
        )
    losses = {"Video autoencoder": read_metrics(vae_run)} if vae_run else {}
    losses["STDiT"] = read_metrics(run)
    losses = {name: rows for name, rows in losses.items() if len(rows) > 1}
    if seconds is None:
        took = lambda rows: rows[-1]["time"] - rows[0]["time"]
        seconds = {f"training, {name}": took(rows) for name, rows in losses.items()}
        seconds |= {"evaluation": found["seconds"]["all"]}
    page = report_page.render(
        found,
        folder=results.parent,
        config=config,
        losses=losses,
        seconds={name: x for name, x in seconds.items() if name != "report"},  # of one before this
        commands=commands or _commands(found, out, results, run),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    digests.write_atomically(out, page.encode())
    return out


def find(folder: str | os.PathLike) -> dict[str, Any]:
    """Arguments of `write` for a folder: what the quickstart left there, or one run.

    Raises:
        ValueError: If the record of its phases cannot be read.
    """
    folder = pathlib.Path(folder)
    if not (folder / "stdit" / "run.json").exists():
        return {"run": folder, "results": folder / "results.json"}
    found = {"run": folder / "stdit", "results": folder / "results.json"}
    if (folder / "vae" / "metrics.jsonl").exists():
        found["vae_run"] = folder / "vae"
    if (folder / "seconds.json").exists():
        found["seconds"] = _read_seconds(folder / "seconds.json")
    return found | {"commands": ["bash launch/quickstart.sh"]}


def read_metrics(run: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that have a loss; [] where there is no such file."""
    path = pathlib.Path(run) / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a run that was cut short
            continue
        if isinstance(row, dict) and isinstance(row.get("loss"), float | int):
            rows.append(row)
    return rows


def _read_seconds(path: pathlib.Path) -> dict[str, float]:
    found = _read_json(path, "the times of the phases")
    if not isinstance(found, dict) or not all(isinstance(x, int | float) for x in found.values()):
        raise ValueError(f'{path} has no times of phases: give JSON such as {{"train": 763.0}}.')
    return found


def _read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}, {what}, cannot be read ({getattr(error, 'strerror', None) or error}): give a "
            "whole JSON file of them."
        ) from error


def _commands(found, out, results, run) -> list[str]:
    settings = found["settings"]
    names = ("videos", "raw_videos")
    chosen = {name: found[name] for name in names} | {
        name: settings[name]
        for name in ("step", "height", "width", "num_frames", "fps", "steps", "guidance", "seed")
    }
    flags_given = " ".join(f"--{name}={value}" for name, value in chosen.items())
    run, results, out = (shlex.quote(str(path)) for path in (run, results, out))
    return [
        f"python -m vidgen.evaluate --workdir={run} --out={results} \\\n    {flags_given}",
        f"python -m vidgen.report --run={run} --results={results} --out={out}",
    ]


def main(argv):
    del argv
    values = flags.FLAGS
    with runs.refusing("report"):
        arguments = find(values.run)
        for name in ("results", "vae_run"):
            if values[name].value:
                arguments[name] = values[name].value
        if values.vae_run and not read_metrics(values.vae_run):
            raise ValueError(
                f"--vae_run={values.vae_run} has no metrics.jsonl with a loss: give the --workdir "
                "that vidgen.train had for the VAE, or leave it out."
            )
        if values.seconds:
            arguments["seconds"] = _read_seconds(pathlib.Path(values.seconds))
        print(write(values.out, **arguments))


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
