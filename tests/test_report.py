"""The report is one file with everything in it."""

import base64
import dataclasses
import html
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from configs import tiny
from data_pipelines.embedded import drawing, vocabulary
from vidgen import evaluate, report, sample
from vidgen.process import machine
from vidgen.reporting import report_page
from vidgen.training import workdir

KINDS = ("generated", "real", "vae")


def row(accuracy):
    return {"accuracy": accuracy, "low": accuracy / 2, "high": accuracy, "chance": 0.25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's working folder with results of three clips, the last of which shows nothing."""
    folder = tmp_path_factory.mktemp("report") / "run"
    workdir.Run(folder, tiny.get_config(), "none").keep()
    lines = [{"step": i, "time": 10.0 + i, "loss": 1 / i} for i in range(1, 31)]
    cut = '{"step": 31, "lo'
    (folder / "metrics.jsonl").write_text("\n".join([*map(json.dumps, lines), cut]))
    clips = []
    for number, (prompt, wanted) in enumerate(vocabulary.held_out_prompts(3, seed=0)):
        video_THWC = drawing.render(wanted, 32, 32, 17, 12.0, np.random.default_rng(number))
        wanted = dataclasses.asdict(wanted)
        read = wanted if number < 2 else wanted | {"shape": None, "size": "<huge>"}
        clips.append({"prompt": prompt, "wanted": wanted, "read": read})
        for shade, kind in enumerate(KINDS):
            sample.write_video(folder / f"{number}-{kind}.mp4", video_THWC // (1 + shade), 12.0)
            clips[-1][kind] = f"{number}-{kind}.mp4"
    columns = evaluate.COLUMNS
    results = {
        "prompt_following": {name: row(0.75) for name in columns},
        "prompt_following_raw": {name: row(0.625) for name in columns},
        "judge": dict.fromkeys(columns, 1.0),
        "judge_through_vae": dict.fromkeys(columns, 0.875),
        **{"vae_psnr": 31.25, "videos": 240, "raw_videos": 60, "clips": clips},
        "settings": {"height": 32, "width": 32, "num_frames": 17, "fps": 12.0, "steps": 30}
        | {"guidance": 4.0, "seed": 0, "step": 30, "unseen_in_captions": 44},
        "parameters": {"model": 346_123, "vae": 1},
        "machine": machine.describe(),
        "seconds": {"all": 95.0},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="module")
def page(folder):
    arguments = {"run": folder, "results": folder / "results.json", "vae_run": folder}
    seconds = {"training": 300.0, "a <phase>": 42.0}
    return report.write(folder / "r.html", **arguments, seconds=seconds).read_text("utf-8")


def test_every_video_and_prompt_is_in_the_page(folder, page):
    results = json.loads((folder / "results.json").read_text())
    for clip in results["clips"]:
        assert f'<p class="prompt">{html.escape(clip["prompt"])}</p>' in page
        for kind in KINDS:
            assert base64.b64encode((folder / clip[kind]).read_bytes()).decode() in page
    assert page.count("<video") == 3 * 3 + 3  # and a wall of the generated ones
    assert page.count('<li class="wrong">') == 2 and "&lt;huge&gt;" in page
    assert page.count("right:</span>") == 3 * 6 - 2


def test_the_page_loads_nothing(page):
    for name in ("src", "href", "poster", "srcset", "data", "action"):
        for value in re.findall(rf'\s{name}\s*=\s*"([^"]*)"', page):
            assert value.startswith("data:"), value[:80]
    for word in ("http:", "https:", "//cdn", "@import", "url(", "<link", "fetch(", "<script src"):
        assert word not in page, word


def test_the_page_is_well_formed_and_has_all_numbers(page):
    for tag in ("div", "section", "figure", "ul", "li", "table", "td", "svg", "details", "video"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag
    identifiers = re.findall(r'\sid="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))
    for reference in re.findall(r'aria-labelledby="([^"]*)"', page):
        assert reference in identifiers
    for text in ("75% of the clips", "37.5% to 75.0%", "62.5%", "87.5%", "31.2 dB", "346,000"):
        assert text in page, text
    for text in (
        "5 min 42 s",
        "a &lt;phase&gt;",
        "None of the 44 training captions",
        "model.width",
    ):
        assert text in page, text
    assert page.count("<svg") == 2 and "$" not in page.split("</style>")[1].split("<script>")[0]


def test_results_that_are_not_there_are_refused(folder, tmp_path):
    arguments = {"run": folder, "results": folder / "results.json"}
    with pytest.raises(ValueError, match="run.json cannot be read"):
        report.write(tmp_path / "r.html", **arguments | {"run": tmp_path})
    with pytest.raises(ValueError, match="gone.json.*cannot be read"):
        report.write(tmp_path / "r.html", **arguments | {"results": tmp_path / "gone.json"})
    with pytest.raises(ValueError, match="holds no results of vidgen.evaluate: it lacks"):
        report.write(tmp_path / "r.html", **arguments | {"results": folder / "run.json"})
    (tmp_path / "results.json").write_bytes((folder / "results.json").read_bytes())
    with pytest.raises(ValueError, match="0-generated.mp4, a video of the results"):
        report.write(tmp_path / "r.html", **arguments | {"results": tmp_path / "results.json"})
    assert not (tmp_path / "r.html").exists()


def test_the_command_takes_results_and_times_from_the_run(folder):
    out = folder / "command.html"
    line = [sys.executable, "-m", "vidgen.report", f"--run={folder}", f"--out={out}"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    page = out.read_text("utf-8")
    assert "training, STDiT <b>29 s</b>" in page and "evaluation <b>1 min 35 s</b>" in page


def test_the_folder_of_the_quickstart_is_understood(folder, tmp_path):
    (tmp_path / "stdit").symlink_to(folder)
    (tmp_path / "results.json").symlink_to(folder / "results.json")
    (tmp_path / "seconds.json").write_text('{"clips": 61.0, "train": 120.0, "report": 2.0}')
    found = report.find(tmp_path)
    assert set(found) == {"run", "results", "seconds", "commands"}
    page = report.write(tmp_path / "r.html", **found | {"results": folder / "results.json"})
    text = page.read_text("utf-8")
    assert "Where 3 min 1 s went" in text and "training the STDiT <b>2 min</b>" in text
    assert "bash launch/quickstart.sh" in text


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59.6, "1 min"), (95, "1 min 35 s"), (3600, "1 h"), (7500, "2 h 5 min")],
)
def test_durations_are_short(seconds, text):
    assert report_page.duration(seconds) == text
