"""Writes the results of an evaluation as one HTML file that needs nothing else.

    python -m vidgen.report --run=outputs/quickstart --out=outputs/quickstart/report.html
    python -m vidgen.report --run=outputs/stdit --results=outputs/results.json --out=report.html

It holds the kept videos, accuracies, loss curves, timings, machine, config and commands. The page's
skeleton and style are `assets/report.html`.
"""

import base64
import html
import io
import itertools
import json
import os
import pathlib
import shlex
import string
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from PIL import Image

from data_pipelines import shapes, video_io
from vidgen import charts, command_line, digests, runs

_TEMPLATE = pathlib.Path(__file__).parent / "assets" / "report.html"
_COLOURS = 6  # --p0 ... --p5 of the style
_KINDS = {"generated": "generated", "real": "real clip", "vae": "after VAE"}
_WALL = 9  # clips beside the headline
_PHASES = {  # of the quickstart
    "clips": "drawing the data set",
    "shards": "checking and sharding it",
    "vae": "training the autoencoder",
    "latents": "encoding to latents",
    "train": "training the STDiT",
    "evaluate": "evaluation",
}


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
    if "prompt_following" not in found:
        raise ValueError(f"{results} holds no results of vidgen.evaluate: it has no accuracies.")
    lines = {"Video autoencoder": read_metrics(vae_run)} if vae_run else {}
    lines = {name: x for name, x in (lines | {"STDiT": read_metrics(run)}).items() if len(x) > 1}
    if seconds is None:
        seconds = {f"training, {name}": x[-1]["time"] - x[0]["time"] for name, x in lines.items()}
        seconds |= {"evaluation": found["seconds"]["all"]}
    seconds = {_PHASES.get(name, name): value for name, value in seconds.items()}
    seconds.pop("report", None)  # of a report before this one
    best = found["prompt_following"]["all"]
    share = _percent(best["accuracy"], short=True)
    headline = f"{share} of the clips show everything that the prompt asks for"
    page = string.Template(_TEMPLATE.read_text("utf-8")).substitute(
        title=html.escape(f"vidgen: {headline}"),
        kicker="Text to video, trained from scratch",
        headline=html.escape(headline),
        summary=_summary(found),
        wall="".join(
            _video(results.parent / clip["generated"], "", lazy=True)
            for clip in found["clips"][:_WALL]
        ),
        figures=_figures(found, seconds),
        sections="\n".join(
            [
                _clips(found, results.parent),
                _accuracies(found),
                _losses(lines),
                _timings(seconds),
                _origin(found, config, commands or _commands(found, out, results, run)),
            ]
        ),
        footer=_footer(found),
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
        found["seconds"] = _read_json(folder / "seconds.json", "the times of the phases")
    return found | {"commands": ["bash launch/quickstart.sh"]}


def read_metrics(run: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that have a loss; [] where there is no such file."""
    path = pathlib.Path(run) / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a run that was cut short
            continue
        if isinstance(row.get("loss"), float | int):
            rows.append(row)
    return rows


def _read_json(path: pathlib.Path, what: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}, {what}, cannot be read ({error}).") from error


def _summary(found: Mapping[str, Any]) -> str:
    best, judge, bound = (
        found[name]["all"] for name in ("prompt_following", "judge", "judge_through_vae")
    )
    parameters = count(found["parameters"]["model"])
    return (
        f"A model of {parameters} parameters drew {found['videos']} clips of combinations of "
        "shape, colour and direction that its training never showed. "
        "A judge that measures pixels, without any model, read all six attributes right in "
        f"{_percent(best['accuracy'])} of them (95% interval {_percent(best['low'])} to "
        f"{_percent(best['high'])}), where guessing would reach {_percent(best['chance'])}. "
        f"On real clips of the same prompts it reads {_percent(judge)} right, and "
        f"{_percent(bound)} once they have been through the video autoencoder, which is as far "
        "as a model on this autoencoder can come."
    )


def _figures(found, seconds) -> str:
    rows = found["prompt_following"]
    each = sum(rows[name]["accuracy"] for name in shapes.ATTRIBUTES) / len(shapes.ATTRIBUTES)
    settings = found["settings"]
    size = "&thinsp;×&thinsp;".join(str(settings[k]) for k in ("num_frames", "height", "width"))
    entries = [
        ("of single attributes are as the prompt says", _percent(each)),
        (f"pixels a clip, at {settings['fps']:g} frames per second", size),
        ("PSNR of the autoencoder's round trip", f"{found['vae_psnr']:.1f} dB"),
        (f"for everything{_where(found['machine'])}", duration(sum(seconds.values()))),
    ]
    return "\n".join(
        f'<div><dd class="value">{value}</dd><dt>{name}</dt></div>' for name, value in entries
    )


def _where(machine: Mapping[str, Any]) -> str:
    devices, cores = machine.get("devices"), machine.get("cores")
    if devices:
        return f", on {len(devices)} × {devices[0]}"
    return f", on {cores} processor core{'s' * (cores != 1)}" if cores else ""


def _clips(found, folder: pathlib.Path) -> str:
    if not found["clips"]:
        return ""
    cards = "\n".join(_card(number, clip, folder) for number, clip in enumerate(found["clips"]))
    return f"""<section aria-labelledby="clips">
<h2 id="clips">The first {len(found["clips"])} clips, none of them chosen</h2>
<div class="bar"><p>Each prompt's generated clip stands beside a real one of the same prompt, which
starts somewhere else, and the real one after the autoencoder's round trip. The marks tell what the
judge read in the generated clip.</p><button id="motion" type="button" hidden>Pause all</button>
</div>
<ul class="clips">
{cards}
</ul>
</section>"""


def _card(number: int, clip, folder: pathlib.Path) -> str:
    prompt = clip["prompt"]
    figures = "".join(
        f"<figure>{_video(folder / clip[kind], f'{label}: {prompt}', lazy=kind != 'generated')}"
        f"<figcaption>{label}</figcaption></figure>"
        for kind, label in _KINDS.items()
    )
    marks = "".join(
        _mark(name, clip["wanted"][name], clip["read"][name]) for name in shapes.ATTRIBUTES
    )
    return f"""<li class="clip" id="clip-{number}">
<div class="media">{figures}</div>
<p class="prompt">{html.escape(prompt)}</p>
<ul class="marks" aria-label="What the judge read">{marks}</ul>
</li>"""


def _mark(name: str, wanted: str, read: str | None) -> str:
    wanted = html.escape(wanted)
    if read == wanted:
        return f'<li><span class="hidden">{name} right:</span>✓&nbsp;{wanted}</li>'
    read = html.escape(read or "nothing")
    return (
        f'<li class="wrong"><span class="hidden">{name} wrong, asked for</span>✗&nbsp;'
        f'<s>{wanted}</s> <span class="hidden">but read</span>{read}</li>'
    )


def _video(path: pathlib.Path, label: str, *, lazy: bool) -> str:
    try:
        data = path.read_bytes()
        first_HWC = video_io.decode(data, [0])[0]
    except (OSError, video_io.MediaError) as error:
        raise ValueError(f"{path}, a video of the results, cannot be read ({error}).") from error
    buffer = io.BytesIO()
    Image.fromarray(first_HWC).save(buffer, "PNG", optimize=True)
    height, width, _ = first_HWC.shape
    # Browsers play some 75 videos a page: the lazy ones play while they are in sight.
    start = 'preload="none"' if lazy else "autoplay"
    named = f'aria-label="{html.escape(label)}"' if label else 'tabindex="-1"'
    return (
        f'<video {start} muted loop playsinline width="{width}" height="{height}" '
        f'{named} poster="{_data_url("image/png", buffer.getvalue())}" '
        f'src="{_data_url("video/mp4", data)}"></video>'
    )


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _accuracies(found) -> str:
    rows = "\n".join(_row(found, name) for name in (*shapes.ATTRIBUTES, "all"))
    raw = found["raw_videos"]
    last = f" “Last update” are the weights without averaging, on {raw} clips." if raw else ""
    return f"""<section aria-labelledby="accuracy">
<h2 id="accuracy">How often the judge agrees with the prompt</h2>
<table>
<caption>Share of {found["videos"]} generated clips. Bracket: 95% interval. Tall line: what real
clips reach through the autoencoder. Small box: chance.{last}</caption>
<thead><tr><th scope="col">Attribute</th><th scope="col">Averaged weights</th>
<th scope="col" class="number">Right, with interval</th><th scope="col" class="number">Last
update</th><th scope="col" class="number">Real clips</th><th scope="col" class="number">Through
VAE</th><th scope="col" class="number">Chance</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</section>"""


def _row(found, name: str) -> str:
    row = found["prompt_following"][name]
    raw = found["prompt_following_raw"]
    bound = found["judge_through_vae"][name]
    at = lambda share: f"{100 * share:.2f}%"
    gauge = (
        f'<i class="fill" style="width:{at(row["accuracy"])}"></i>'
        f'<i class="chance" style="left:{at(row["chance"])}"></i>'
        f'<i class="span" style="left:{at(row["low"])};right:{at(1 - row["high"])}"></i>'
        f'<i class="bound" style="left:{at(bound)}"></i>'
    )
    shares = {
        "Last update": raw[name]["accuracy"] if raw else None,
        "Real clips": found["judge"][name],
        "Through VAE": bound,
        "Chance": row["chance"],
    }
    cells = "".join(
        f'<td class="number low" data-label="{label}">'
        f"{'–' if share is None else _percent(share)}</td>"
        for label, share in shares.items()
    )
    interval = f"{_percent(row['low'])} to {_percent(row['high'])}"
    kind, label = ("all", "all six") if name == "all" else ("one", name)
    return (
        f'<tr class="{kind}"><th scope="row">{label}</th>'
        f'<td class="gauge" aria-hidden="true"><div>{gauge}</div></td>'
        f'<td class="number main">{_percent(row["accuracy"])} '
        f'<span class="unit">{interval}</span></td>{cells}</tr>'
    )


def _losses(lines: Mapping[str, list[dict]]) -> str:
    figures = []
    for name, rows in lines.items():
        steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
        title = f"Loss of the {name} over {steps[-1]:,} steps"
        curve = charts.loss_curve(
            steps, losses, x_label="step", y_label="loss (log scale)", title=title
        )
        took = rows[-1].get("step_seconds")
        speed = f", {1000 * took:,.0f} ms a step" if took else ""
        figures.append(
            f"<figure><h3>{html.escape(name)}</h3>{curve}<figcaption>{steps[-1]:,} steps{speed}. "
            "Faint: each step. Strong: smoothed.</figcaption></figure>"
        )
    if not figures:
        return ""
    return f"""<section aria-labelledby="loss">
<h2 id="loss">How the loss fell</h2>
<div class="charts">
{"".join(figures)}
</div>
</section>"""


def _timings(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    colour = lambda number: f"background:var(--p{number % _COLOURS})"
    bar = "".join(
        f'<i style="flex:{max(value, 0):.3f};{colour(i)}"></i>'
        for i, value in enumerate(seconds.values())
    )
    legend = "".join(
        f'<li><i style="{colour(i)}"></i>{html.escape(name)} <b>{duration(value)}</b></li>'
        for i, (name, value) in enumerate(seconds.items())
    )
    return f"""<section aria-labelledby="time">
<h2 id="time">Where {duration(sum(seconds.values()))} went</h2>
<div class="phases" aria-hidden="true">{bar}</div>
<ul class="legend">{legend}</ul>
</section>"""


def _origin(found, config, commands: Sequence[str]) -> str:
    machine = dict(found["machine"])
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cores = machine.get("cores")
    facts = {
        "Processor": f"{machine.get('processor', 'unknown')}"
        + (f", {cores} core{'s' * (cores != 1)} in use" if cores else ""),
        "Memory": f"{machine['memory_gib']} GiB" if "memory_gib" in machine else "unknown",
        "Accelerators": ", ".join(machine.get("devices", [])) or "none",
        "System": f"{machine['system']}, Python {machine['python']}",
        "Versions": versions,
    }
    rows = "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    shown = lambda tree: html.escape(
        "\n".join(
            f"{name} = {value!r}"
            for name, value in command_line.dotted(tree).items()
            if not isinstance(value, Mapping)
        )
    )
    return f"""<section aria-labelledby="origin">
<h2 id="origin">Make it again</h2>
<pre class="commands">{html.escape(chr(10).join(commands))}</pre>
<dl class="facts">{rows}</dl>
<br>
<details><summary>Settings of the evaluation</summary><pre tabindex="0">{
        shown(found["settings"])
    }</pre></details>
<details><summary>Config of the run</summary><pre tabindex="0">{shown(config.to_dict())}</pre>
</details>
</section>"""


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


def _footer(found) -> str:
    captions = found["settings"]["unseen_in_captions"]
    places = itertools.product(shapes.SHAPES, shapes.COLOURS, shapes.DIRECTIONS)
    unseen = sum(shapes.held_out(shapes.Attributes(*p, "slow", "small", "black")) for p in places)
    checked = f" None of the {captions:,} training captions names one of them." if captions else ""
    return (
        f"<p>The prompts are drawn from {unseen} combinations of shape, colour and direction that "
        f"the training data leaves out.{checked} Intervals are percentiles of 2,000 bootstrap "
        "resamples of the clips.</p>"
    )


def count(number: int) -> str:
    """1.2 million, 346,000."""
    return f"{number / 1e6:.3g} million" if number >= 1e6 else f"{round(number, -3):,}"


def duration(seconds: float) -> str:
    """48 s, 13 min 5 s, 2 h 10 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _percent(share: float, short: bool = False) -> str:
    """84.6%, or 85% where that says enough; only what is whole is 100%."""
    digits = 0 if short and 0.01 <= share < 0.995 else 1
    return "100%" if share == 1 else f"{100 * share:.{digits}f}%"


def main(argv):
    values = flags.FLAGS
    with runs.refusing("report"):
        if argv[1:]:
            raise ValueError(f"{' '.join(argv[1:])!r} belongs to no flag.")
        arguments = find(values.run)
        for name in ("results", "vae_run"):
            if values[name].value:
                arguments[name] = values[name].value
        if values.seconds:
            arguments["seconds"] = _read_json(pathlib.Path(values.seconds), "the phases")
        print(write(values.out, **arguments))


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
