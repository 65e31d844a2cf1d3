"""The report's page: results of an evaluation as HTML that holds its videos and curves.

Skeleton and style are `assets/report.html`.
"""

import base64
import html
import io
import itertools
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from data_pipelines.embedded import vocabulary
from data_pipelines.media import video_io
from vidgen.process import command_line
from vidgen.reporting import charts

_TEMPLATE = pathlib.Path(__file__).parent.parent / "assets" / "report.html"
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


def render(
    found: Mapping[str, Any],
    *,
    folder: pathlib.Path,
    config,
    losses: Mapping[str, list[dict]],
    seconds: Mapping[str, float],
    commands: Sequence[str],
) -> str:
    """Returns the page.

    Args:
        found: The results of `vidgen.evaluate`.
        folder: Where the videos that they name lie.
        config: Of the run.
        losses: By model the lines of its metrics that have a loss.
        seconds: How long each phase took.
        commands: What makes the results again.
    """
    seconds = {_PHASES.get(name, name): value for name, value in seconds.items()}
    share = _percent(found["prompt_following"]["all"]["accuracy"], short=True)
    headline = f"{share} of the clips show everything that the prompt asks for"
    sections = [
        _clips(found, folder),
        _accuracies(found),
        _losses(losses),
        _timings(seconds),
        _origin(found, config, commands),
    ]
    return string.Template(_TEMPLATE.read_text("utf-8")).substitute(
        title=html.escape(f"vidgen: {headline}"),
        kicker="Text to video, trained from scratch",
        headline=html.escape(headline),
        summary=_summary(found),
        wall="".join(
            _video(folder / clip["generated"], "", lazy=True) for clip in found["clips"][:_WALL]
        ),
        figures=_figures(found, seconds),
        sections="\n".join(sections),
        footer=_footer(found),
    )


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
    each = sum(rows[name]["accuracy"] for name in vocabulary.ATTRIBUTES) / len(
        vocabulary.ATTRIBUTES
    )
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
        _mark(name, clip["wanted"][name], clip["read"][name]) for name in vocabulary.ATTRIBUTES
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
    rows = "\n".join(_row(found, name) for name in (*vocabulary.ATTRIBUTES, "all"))
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


def _footer(found) -> str:
    captions = found["settings"]["unseen_in_captions"]
    places = itertools.product(vocabulary.SHAPES, vocabulary.COLOURS, vocabulary.DIRECTIONS)
    unseen = sum(
        vocabulary.held_out(vocabulary.Attributes(*p, "slow", "small", "black")) for p in places
    )
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
