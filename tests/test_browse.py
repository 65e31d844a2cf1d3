"""The page of a data set: what is written, that it harms nobody, and that it is found again."""

import base64
import hashlib
import http.client
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from data_pipelines.browse import __main__ as command
from data_pipelines.browse import columns, page, previews, serve, thumbnail
from data_pipelines.loading import assignment, buckets
from data_pipelines.media import encoding, video_io
from data_pipelines.shards import builder, records
from data_pipelines.stages import ledger

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOSTILE = (
    '</script><img src=x onerror="alert(1)">',
    "\u202eevil \u2066 marks\u2028 and lines",
    "long " * 2000,
    "' \" ` ${x} \\ \0 & <!-- ]]>",
    "__proto__",
)
BUCKETS = page.Buckets("toy", {"32": {17: (0.5, 2), 9: (0.6, 2)}, "64": {17: (0.5, 2)}})
KEPT = 9  # the last of them an image


def clip(number: int, frames: int = 20, side: int = 32) -> np.ndarray:
    """A bright square on its way over a dark ground, which tells its number by its colour."""
    video_THWC = np.full((frames, side, side + 8, 3), 30, np.uint8)
    for t in range(frames):
        video_THWC[t, 4:20, t % 16 : t % 16 + 12] = (250, 25 * number, 120)
    return video_THWC


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight videos and an image in shards; five clips that were left out, one of them watchable."""
    folder = tmp_path_factory.mktemp("browse")
    kept, rows = [], []
    for i in range(KEPT):
        is_image = i == KEPT - 1
        video_THWC = clip(i, 20 - i if i < 6 else 5, 32 + 32 * (i % 2))
        content = (
            encoding.encode_png(video_THWC[0])
            if is_image
            else encoding.encode_mp4(video_THWC, 24.0 if i % 3 else 12.0)
        )
        probe = video_io.check(content)
        facts = {k: getattr(probe, k) for k in ("num_frames", "height", "width", "fps")}
        text = HOSTILE[i] if i < len(HOSTILE) else f"clip number {i}"
        record = {"id": f"clips/{i}", "text": text, "video": content, **facts}
        kept.append(record)
        row = {"id": f"clips/{i}", "source": "folder", "file": "/nowhere", "kind": probe.kind}
        row |= {"text": text, "status": "kept", "bytes": len(content), "motion": i / 10, **facts}
        rows.append(row | {"given": json.dumps({"aesthetic": 4 + i, "camera": "pan"})})
    good = folder / "good.mp4"
    good.write_bytes(kept[0]["video"])
    (folder / "text.mp4").write_text("no video")
    (folder / "cut.mp4").write_bytes(kept[1]["video"][:700])
    for name, rule, given in (
        ("good", "motion >= 0.1", {}),
        ("text", "unknown format", {}),
        ("cut", "damaged", {}),
        ("gone", "missing file", {}),
        ("good", "refused", {"refused": "outside: its path leaves the root"}),
    ):
        row = {"id": f"bad/{rule}", "source": "web", "file": str(folder / f"{name}.mp4")}
        row |= {"status": "left out", "rule": rule, "message": f"{rule} <b>", "text": "a bad one"}
        rows.insert(1, row | {"given": json.dumps(given), "motion": 0.05})
    builder.write_shards(folder / "data", "video", 1, lambda _: kept, key="k")
    ledger.write(folder / "data" / ledger.NAME, rows)
    return folder / "data"


@pytest.fixture(scope="module")
def out(data):
    folder = data.parent / "page"
    page.write(data, folder, bucket_config=BUCKETS, clips=None, num_workers=1)
    return folder


def call(path: pathlib.Path) -> tuple[str, list]:
    """Reads a data script back: the function that it calls, and the arguments."""
    content = path.read_text("ascii").replace(",\n]", "]")  # JSON has no comma at the end
    found = re.fullmatch(r"browse\.(\w+)\((.*)\);\n", content, re.DOTALL)
    return found[1], json.loads(f"[{found[2]}]")


def table(out: pathlib.Path) -> dict:
    """The manifest with all columns and texts, put together as the page does."""
    (folder,) = out.glob("table-*")
    manifest = call(folder / "manifest.js")[1][0]
    chunks = [call(path)[1][1] for path in sorted(folder.glob("columns-*.js"))]
    read = lambda parts, kind: np.concatenate(
        [np.frombuffer(base64.b64decode(p), kind) for p in parts]
    )
    for i, number in enumerate(manifest["numbers"]):
        number["values"] = read([c["numbers"][i] for c in chunks], "<f4")
    for i, label in enumerate(manifest["labels"]):
        codes = read([c["labels"][i] for c in chunks], "<u2")
        label["values"] = [label["words"][code] for code in codes]
    texts = [call(path)[1][1] for path in sorted(folder.glob("text-*.js"))]
    return {
        "manifest": manifest,
        "preview": read([c["preview"] for c in chunks], "<i4"),
        "numbers": {x["name"]: x for x in manifest["numbers"]},
        "labels": {x["name"]: x["values"] for x in manifest["labels"]},
        "texts": {k: list(itertools.chain(*(t[k] for t in texts))) for k in texts[0]},
    }


def test_the_page_holds_what_the_ledger_holds(data, out):
    rows, found = ledger.read(data), table(out)
    assert found["manifest"]["count"] == len(rows) == KEPT + 5
    for name in ("motion", "height", "bytes"):
        wanted = [np.nan if x is None else x for x in rows[name].to_pylist()]
        np.testing.assert_array_equal(found["numbers"][name]["values"], np.float32(wanted))
    for name in ("status", "rule", "source", "kind"):
        assert found["labels"][name] == [word or "" for word in rows[name].to_pylist()]
    assert found["texts"]["id"] == rows["id"].to_pylist()
    for shown, text in zip(found["texts"]["caption"], rows["text"].to_pylist(), strict=True):
        assert shown == (text if len(text) <= columns.MAX_TEXT else f"{text[:3999]}…")
    assert "aesthetic" not in found["numbers"]  # nobody measured it
    given = found["numbers"]["given.aesthetic"]
    assert given["known"] == KEPT and np.nanmax(given["values"]) == 4 + KEPT - 1


def test_an_image_has_no_duration_and_no_frame_rate(out):
    found = table(out)
    image = found["labels"]["kind"].index("image")
    for name in ("fps", "seconds", "num_frames"):
        assert np.isnan(found["numbers"][name]["values"][image])
    assert np.isfinite(found["numbers"]["height"]["values"][image])


def test_histograms_count_every_value_once(out):
    for number in table(out)["manifest"]["numbers"]:
        values = number["values"][np.isfinite(number["values"])]
        assert sum(number["counts"]) == number["known"] == len(values)
        assert (number["low"], number["high"]) == (values.min(), values.max())
        assert len(number["counts"]) == columns.BINS and number["counts"][0]


def test_values_over_decades_get_a_log_scale():
    sizes = columns.Number("bytes", "", "B", np.float32([10, 11, 12, 13, 100_000])).describe()
    assert sizes["scale"] == "log" and sizes["counts"][:2] == [3, 1] and sizes["counts"][-1] == 1
    flat = columns.Number("fps", "", "", np.float32([24, 25, 30])).describe()
    assert flat["scale"] == "linear" and flat["counts"][0] == 1 and flat["counts"][8] == 1


def test_no_data_can_end_a_script_or_become_markup(out):
    for path in out.glob("*-*/*.js"):
        content = path.read_bytes()
        assert content.isascii() and b"<" not in content, path
    page_html = (out / "index.html").read_text()
    assert "alert(" not in page_html and "style=" not in page_html and "onclick" not in page_html
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page_html)[1]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy


def test_the_page_needs_nothing_from_elsewhere_and_never_writes_markup(out):
    for path in page.ASSETS.iterdir():
        content = path.read_text("utf-8")
        assert not re.findall(r"https?://|url\(|@import", content), path
        words = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function"
        assert not re.findall(words, content), path
        if path.suffix != ".html":
            assert (out / path.name).read_text("utf-8") == content
    for name in re.findall(r'(?:src|href)="([^"]*)"', (out / "index.html").read_text()):
        assert name == "data:," or (out / name).is_file()


def pack(out, kind) -> dict:
    (folder,) = out.glob("previews-*")
    name, (found, number, head, lines) = call(folder / f"{kind}-00000.js")
    assert (name, found, number) == ("pack", kind, 0)
    return {"head": head, "files": [base64.b64decode(line) for line in lines]}


def test_previews_show_the_first_seconds_of_their_clip(data, out):
    found, posters, motions = table(out), pack(out, "posters"), pack(out, "motions")
    for row, name in enumerate(found["texts"]["id"]):
        if not name.startswith("clips/"):
            continue
        number, preview = int(name.removeprefix("clips/")), found["preview"][row]
        height, width = (found["numbers"][k]["values"][row] for k in ("height", "width"))
        poster = np.asarray(Image.open(io.BytesIO(posters["files"][preview])).convert("RGB"))
        assert poster.shape == (height, width, 3)
        assert abs(int(poster[8:16, 12].mean(0)[1]) - 25 * number) < 40 or number == KEPT - 1
        motion = motions["files"][preview]
        if found["labels"]["kind"][row] == "image":
            assert motion == b""
            continue
        fps = found["numbers"]["fps"]["values"][row]
        probe = video_io.check(motion)
        assert probe.fps == pytest.approx(fps if fps == 12 else fps / 2)
        frames = found["numbers"]["num_frames"]["values"][row]
        assert probe.num_frames == (frames if fps == 12 else -(-frames // 2))


def test_clips_that_were_left_out_are_shown_from_their_file_or_say_why_not(out):
    found, posters = table(out), pack(out, "posters")
    notes = dict(zip(found["texts"]["id"], found["labels"]["preview"], strict=True))
    assert notes["bad/motion >= 0.1"] == "" and notes["bad/refused"] == "refused"
    assert notes["bad/unknown format"] == "unknown format"
    assert notes["bad/missing file"] == "file not here" and notes["bad/damaged"]
    for name, place in zip(found["texts"]["id"], found["preview"], strict=True):
        assert (place >= 0 and posters["files"][place] != b"") == (notes[name] == "")


def test_the_bytes_of_one_preview_lie_where_places_says(out):
    (folder,) = out.glob("previews-*")
    places = call(folder / "places.js")[1][0]
    for kind in ("posters", "motions"):
        content = (folder / f"{kind}-00000.js").read_bytes()
        at = places[kind]["heads"][0]
        sizes = np.frombuffer(base64.b64decode(places[kind]["sizes"]), "<u4")
        for size, file in zip(sizes.tolist(), pack(out, kind)["files"], strict=True):
            assert base64.b64decode(content[at + 1 : at + 1 + size]) == file
            at += size + 4


def test_previews_are_small_of_large_clips_and_start_where_the_clip_does():
    video_THWC = np.zeros((40, 180, 480, 3), np.uint8)
    video_THWC[20:] = 255
    content = encoding.encode_mp4(video_THWC, 10.0)
    first, second = (
        thumbnail.make(thumbnail.Task(content)),
        thumbnail.make(thumbnail.Task(content, 2.0)),
    )
    probe = video_io.check(first.motion)
    assert (probe.height, probe.width, probe.num_frames) == (90, 240, 30)
    assert Image.open(io.BytesIO(first.poster)).size == (240, 90)
    assert video_io.decode(second.motion).min() > 230
    assert video_io.check(thumbnail.make(thumbnail.Task(content, 2.0, 2.5)).motion).num_frames == 5
    assert thumbnail.make(thumbnail.Task(content, 9.0)).note == "too short"


def test_a_larger_sample_holds_the_smaller_one():
    ids = [f"clips/{i}" for i in range(50)]
    small, large = previews.sample(ids, 10), previews.sample(ids, 20)
    assert len(small) == 10 and set(small) < set(large) and list(large) == sorted(large)
    assert list(previews.sample(ids, None)) == list(previews.sample(ids, 50)) == list(range(50))
    moved = previews.sample(ids[::-1], 10)
    assert {ids[i] for i in small} == {ids[::-1][i] for i in moved}


def test_rows_that_were_refused_take_no_place_in_the_sample(data, tmp_path):
    rows = ledger.read(data).to_pylist()
    lost = {"status": "left out", "given": json.dumps({"refused": "missing file: of a part"})}
    rows += [rows[0] | lost | {"id": f"lost/{i}", "rule": "missing file"} for i in range(200)]
    ledger.write(tmp_path / "ledger.parquet", rows)
    page.write(tmp_path / "ledger.parquet", tmp_path / "page", clips=5, num_workers=1)
    notes = table(tmp_path / "page")["labels"]["preview"]
    assert notes.count("refused") == 201 and notes.count("not in the sample") == KEPT + 4 - 5


def test_every_kept_clip_is_in_the_bucket_of_a_run_or_has_a_reason(out):
    found = table(out)
    rule = buckets.Table(BUCKETS.table)
    names = {bucket["name"] for bucket in found["manifest"]["buckets"]["buckets"]}
    assert names == {bucket.name for bucket in rule.all_buckets()}
    for row, name in enumerate(found["texts"]["id"]):
        word = found["labels"]["bucket"][row]
        if name.startswith("bad/"):
            assert word == page.NO_SHARD
            continue
        number = int(name.removeprefix("clips/"))  # the clip's row in the shards
        facts = [found["numbers"][k]["values"][row] for k in ("num_frames", "height", "width")]
        facts = [1 if np.isnan(fact) else int(fact) for fact in facts]
        bucket, reason = rule.place(*facts, row=number, epoch=0, seed=0)
        assert word == (bucket.name if bucket else reason)
    assert {"too short", "no bucket of its kind", "32/17/1.00"} <= set(found["labels"]["bucket"])


def test_buckets_hold_the_clips_that_a_loader_puts_there(data, out):
    found, rule = table(out), buckets.Table(BUCKETS.table)
    words = dict(zip(found["texts"]["id"], found["labels"]["bucket"], strict=True))
    rows_of = assignment.Assignment(records.Reader(data), rule, BUCKETS.seed)(0)
    for bucket, rows in zip(rule.all_buckets(), rows_of, strict=True):
        shown = sorted(name for name, word in words.items() if word == bucket.name)
        assert shown == [f"clips/{row}" for row in rows]


def tree(folder: pathlib.Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_a_stopped_page_goes_on_and_ends_with_the_same_bytes(data, tmp_path, monkeypatch):
    monkeypatch.setattr(previews, "PACK", 4)
    whole = tmp_path / "whole"
    page.write(data, whole, clips=None, num_workers=1)
    make, asked = page._task_maker, []

    def stopping(*args):
        task_of = make(*args)

        def stop(row):
            asked.append(row)
            if len(asked) == 11:
                raise KeyboardInterrupt
            return task_of(row)

        return stop

    monkeypatch.setattr(page, "_task_maker", stopping)
    with pytest.raises(KeyboardInterrupt):
        page.write(data, tmp_path / "stopped", clips=None, num_workers=1)
    packs = sorted(path.name for path in tmp_path.glob("stopped/previews-*/*"))
    assert packs and not (tmp_path / "stopped" / "index.html").exists()
    first = next(tmp_path.glob("stopped/previews-*/posters-00000.js"))
    written = first.stat().st_mtime_ns
    page.write(data, tmp_path / "stopped", clips=None, num_workers=1)
    assert asked[11] >= 4 and first.stat().st_mtime_ns == written  # not from the beginning
    assert tree(whole) == tree(tmp_path / "stopped")


def test_another_bucket_table_keeps_the_previews_and_drops_the_old_table(data, out, tmp_path):
    shutil.copytree(out, tmp_path / "page")
    before = {path.name for path in tmp_path.glob("page/*-*")}
    done = page.write(data, tmp_path / "page", clips=None, num_workers=1)
    after = {path.name for path in tmp_path.glob("page/*-*")}
    assert len(after) == 2 and len(before & after) == 1 and done["bucketed"] is None
    assert table(tmp_path / "page")["manifest"]["buckets"] is None


def test_a_ledger_alone_and_no_previews_make_a_page(data, tmp_path):
    shutil.copy(data / ledger.NAME, tmp_path / "some.parquet")
    done = page.write(tmp_path / "some.parquet", tmp_path / "page", clips=0, num_workers=1)
    assert (done["clips"], done["kept"], done["previews"]) == (KEPT + 5, KEPT, 0)
    assert set(table(tmp_path / "page")["labels"]["preview"]) == {"not in the sample", "refused"}


def test_wrong_folders_are_refused_before_any_work(data, tmp_path):
    with pytest.raises(ValueError, match="no ledger"):
        page.write(tmp_path, tmp_path / "page")
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="mine.txt"):
        page.write(data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture(scope="module")
def server(out):
    (out.parent / "secret.js").write_text("secret")
    (out / "link.js").symlink_to(out.parent / "secret.js")
    server = serve.make_server(out, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    (out / "link.js").unlink()


def ask(server, target, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.putrequest(method, target, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.headers


def test_the_server_gives_files_and_ranges_of_them(server, out):
    content = (out / "store.js").read_bytes()
    status, body, headers = ask(server, "/store.js")
    assert (status, body) == (200, content)
    assert (
        headers["X-Content-Type-Options"] == "nosniff" and "javascript" in headers["Content-Type"]
    )
    assert ask(server, "/")[1] == (out / "index.html").read_bytes()
    assert ask(server, "/store.js", "HEAD")[1] == b""
    for wanted, part in (("5-20", content[5:21]), ("-7", content[-7:]), ("9-", content[9:])):
        status, body, headers = ask(server, "/store.js", Range=f"bytes={wanted}")
        assert (status, body) == (206, part)
    assert headers["Content-Range"] == f"bytes 9-{len(content) - 1}/{len(content)}"
    assert ask(server, "/store.js", Range=f"bytes={len(content)}-")[0] == 416
    assert ask(server, "/store.js", Range="bytes=1-2,5-6")[:2] == (200, content)


@pytest.mark.parametrize(
    "target",
    ["/../secret.js", "/%2e%2e/secret.js", "/..%2fsecret.js", "/a/../../secret.js", "/link.js"]
    + ["//secret.js", "/store.js%00", "/..\\secret.js", "/etc/passwd", "/table-x/", "/nothing.js"],
)
def test_the_server_gives_nothing_from_outside(server, target):
    assert ask(server, target)[:2] == (404, b"")


def test_the_server_answers_to_its_own_name_only(server):
    assert ask(server, "/store.js", Host="localhost:8000")[0] == 200
    assert ask(server, "/store.js", Host="evil.example")[:2] == (403, b"")
    assert ask(server, "/store.js", "POST")[0] == 501


def test_buckets_come_from_a_config_or_from_json(tmp_path):
    found = command.read_buckets(str(ROOT / "configs" / "quickstart.py"), None)
    wanted = quickstart.get_config().data.buckets.to_dict()
    assert found.table == {"32": {int(k): tuple(v) for k, v in wanted["32"].items()}}
    text = '{"240p": {"2s": [[0.5, 0.25], 4]}}'
    (tmp_path / "b.json").write_text(text)
    inline, file = (command.read_buckets(None, x) for x in (text, str(tmp_path / "b.json")))
    assert inline.table == file.table == {"240p": {51: ((0.5, 0.25), 4)}}
    assert command.read_buckets(None, None) is None
    for bad in ("{", "{}", '{"33": {"17": [1, 2]}}', '{"32": {"17": 3}}', "[1]", "no.json"):
        with pytest.raises(ValueError):
            command.read_buckets(None, bad)
    with pytest.raises(ValueError, match="get_config"):
        command.read_buckets(str(tmp_path / "none.py"), None)


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipelines.browse", *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_writes_a_page_and_serves_it(data, tmp_path):
    wrong = start(f"--data={tmp_path}", f"--out={tmp_path / 'page'}")
    process = start(
        *(f"--data={data}", f"--out={tmp_path / 'page'}", "--num_workers=1", "--clips=3"),
        *("--config=configs/quickstart.py", "--serve", "--port=0"),
    )
    try:
        summary, address = process.stdout.readline(), process.stdout.readline()
        assert f"{KEPT + 5} clips ({KEPT} kept, " in summary and " in a bucket), " in summary
        port = int(re.search(r"localhost:(\d+)/", address)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/index.html")
        assert b"<title>data: clips</title>" in connection.getresponse().read()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
    _, message = wrong.communicate()
    assert wrong.returncode == 2 and "give the --out folder of data_pipelines.pipeline" in message


def test_the_command_ends_with_one_line_where_it_is_stopped_or_cannot_serve(
    data, tmp_path, monkeypatch, capsys
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            command.main(
                [f"--data={data}", f"--out={tmp_path}", "--clips=0", "--serve", f"--port={port}"]
            )
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"error: 127.0.0.1:{port} cannot be served at" in said

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "write", stop)
    with pytest.raises(SystemExit) as ended:
        command.main([f"--data={data}", f"--out={tmp_path / 'page'}"])
    assert ended.value.code == 75
    assert capsys.readouterr().err == "\nstopped: the same command goes on.\n"


class Browser:
    """Chromium, told what to do over the pipes of its DevTools protocol."""

    def __init__(self, folder: pathlib.Path):
        (theirs_in, self.out), (self.into, theirs_out) = os.pipe(), os.pipe()
        words = f"""exec {shutil.which("chromium")} --headless --no-sandbox --disable-gpu \
            --user-data-dir={folder} --window-size=1300,2000 --remote-debugging-pipe about:blank \
            3<&{theirs_in} 4>&{theirs_out}"""
        self.process = subprocess.Popen(
            ["bash", "-c", words], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.answers = os.fdopen(self.into, "rb")
        self.number, self.session = 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]

    def call(self, method: str, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        content = bytearray()
        while byte := self.answers.read(1):
            if byte != b"\0":
                content += byte
                continue
            answer = json.loads(content)
            content.clear()
            if answer.get("id") == self.number:
                return answer["result"]
        raise RuntimeError("Chromium ended.")

    def shows(self, url: str, test: str) -> bool:
        """Opens a page and says whether a JavaScript expression becomes true within 30 s."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = self.call("Runtime.evaluate", expression=test)["result"]
            if found.get("value") is True:
                return True
            time.sleep(0.1)
        return False


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.process.kill()
    browser.process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.parametrize("way", ["file", "http"])
def test_a_browser_shows_plays_and_filters_clips(out, server, browser, way):
    page_url = f"file://{out}/index.html"
    if way == "http":
        page_url = f"http://127.0.0.1:{server.server_port}/"
    count = lambda text: f'document.querySelector("#count").textContent === "{text}"'
    images = '[...document.querySelectorAll(".card img")].filter((x) => x.naturalWidth).length'
    assert browser.shows(page_url, f"{images} === {KEPT + 1} && {count(f'{KEPT + 5} clips')}")
    captions = '[...document.querySelectorAll(".caption")].map((x) => x.textContent)'
    for text in HOSTILE[:2]:
        assert browser.shows(page_url, f"{captions}.includes({json.dumps(text)})")
    # nothing of a caption became an element or ran, and nothing went wrong
    calm = 'document.querySelector("#trouble").hidden && !document.querySelector("img[onerror]")'
    assert browser.shows(page_url, calm)
    play = "document.querySelector('.card[tabindex=\"0\"]')?.focus();"
    assert browser.shows(page_url, f'{play} document.querySelector("video")?.currentTime > 0.2')
    few = "#q=clip+number&in.motion=0.55~0.75"
    assert browser.shows(page_url + few, count(f"2 of {KEPT + 5} clips"))
    one = "#is.rule=damaged&is.status=left+out"
    assert browser.shows(page_url + one, count(f"1 of {KEPT + 5} clips"))
    heading = 'document.querySelector("#buckets h2").textContent'
    assert browser.shows(page_url + "#view=buckets", f"{heading}.endsWith('land in a bucket')")
