"""Downloads from a server as bad as the web end whole, or as a line of failed.csv."""

import csv
import dataclasses
import fcntl
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from data_pipelines import download
from data_pipelines.fetching import fetch, fetch_folder, fetch_lists, web
from data_pipelines.sources import specs
from tests import data_sets, http_server
from tests.http_server import File

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LIMITS = web.Limits(
    allow_private=True, stall_seconds=5.0, file_seconds=20.0, retries=2, backoff_seconds=0.001
)


@pytest.fixture
def server():
    with http_server.Server() as running:
        yield running


def get(server, tmp_path, file, limits=LIMITS, **known):
    """Fetches a file that is served like this, and returns its path."""
    target = tmp_path / "a.bin"
    facts = fetch.fetch(web.Remote(server.add("/a", file), **known), target, limits)
    assert facts["bytes"] == target.stat().st_size
    assert facts["sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    assert os.listdir(tmp_path) == ["a.bin"]
    return target


def fail(server, tmp_path, file, limits=LIMITS, **known):
    """Returns the reason for which a file could not be fetched; nothing has its name."""
    with pytest.raises(web.FetchError) as error:
        get(server, tmp_path, file, limits, **known)
    assert not (tmp_path / "a.bin").exists()
    return error.value.reason


def ranges(server):
    return [request.headers.get("range") for request in server.requests]


@pytest.mark.parametrize(
    "file",
    [
        File(CONTENT),
        File(CONTENT, etag=None),
        File(CONTENT, length=None),
        File(CONTENT, drip=(100_000, 0.05)),
        File(CONTENT, statuses=[503, 429]),
        File(b""),
    ],
)
def test_a_file_arrives_whole(server, tmp_path, file):
    assert get(server, tmp_path, file).read_bytes() == file.content


def test_dropped_connections_go_on_where_they_broke(server, tmp_path):
    file = File(CONTENT, drop_at=[100_000, 0, 0, 50_000, 1])
    assert get(server, tmp_path, file).read_bytes() == CONTENT
    first = ["bytes=100000-"] * 3
    assert ranges(server) == [None, *first, "bytes=150000-", "bytes=150001-"]
    assert {r.headers.get("if-range") for r in server.requests[1:]} == {'"v0"'}
    assert server.sent == len(CONTENT)  # no byte came twice


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_validator_it_starts_anew(server, tmp_path, etag):
    file = File(CONTENT, etag=etag, drop_at=[1000])
    assert get(server, tmp_path, file).read_bytes() == CONTENT
    assert ranges(server) == [None, None]


def test_with_a_known_checksum_no_validator_is_needed(server, tmp_path):
    file = File(CONTENT, etag=None, drop_at=[1000])
    assert get(server, tmp_path, file, sha256=SHA256).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=1000-"]


def test_last_modified_is_a_validator(server, tmp_path):
    when = "Sun, 01 Nov 2026 00:00:00 GMT"
    file = File(CONTENT, etag=None, headers={"Last-Modified": when}, drop_at=[1000])
    file.if_range = False
    assert get(server, tmp_path, file).read_bytes() == CONTENT
    assert server.requests[1].headers["if-range"] == when


@pytest.mark.parametrize("if_range", [True, False])
def test_content_that_changed_meanwhile_is_fetched_anew(server, tmp_path, if_range):
    new = CONTENT[::-1] + b"longer"
    file = File(CONTENT, drop_at=[100_000], versions=[new, new], if_range=if_range)
    if not if_range:  # the server goes on with other bytes, under another ETag
        file.versions = [new] * 9
    assert get(server, tmp_path, file).read_bytes() == new


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    file = File(CONTENT, drop_at=[100_000], ranges=False)
    assert get(server, tmp_path, file).read_bytes() == CONTENT
    assert server.sent == len(CONTENT) + 100_000


def test_a_length_that_is_too_long_fails_without_hanging(server, tmp_path):
    assert fail(server, tmp_path, File(CONTENT, length=100, ranges=False)) == "dropped"


def test_a_length_that_is_too_long_is_corrected_by_the_range_answer(server, tmp_path):
    assert get(server, tmp_path, File(CONTENT, length=100)).read_bytes() == CONTENT


def test_a_length_that_is_too_short_is_found_by_size_or_checksum(server, tmp_path):
    file = File(CONTENT, length=-100)
    assert fail(server, tmp_path, file, size=len(CONTENT)) == "wrong size"
    assert fail(server, tmp_path, file, sha256=SHA256) == "wrong checksum"
    assert len(get(server, tmp_path, file).read_bytes()) == len(CONTENT) - 100  # nobody can know


def test_a_wrong_checksum_is_asked_for_again_and_then_refused(server, tmp_path):
    flipped = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    file = File(flipped, versions=[CONTENT])
    assert get(server, tmp_path, file, sha256=SHA256).read_bytes() == CONTENT
    os.remove(tmp_path / "a.bin")
    assert fail(server, tmp_path, File(flipped), sha256=SHA256) == "wrong checksum"
    md5 = hashlib.md5(CONTENT).hexdigest()
    assert fail(server, tmp_path, File(flipped), md5=md5) == "wrong checksum"
    assert get(server, tmp_path, File(CONTENT), md5=md5).exists()


def test_limits_of_bytes_hold_with_and_without_an_announcement(server, tmp_path):
    limits = dataclasses.replace(LIMITS, max_bytes=200_000)
    assert fail(server, tmp_path, File(CONTENT), limits) == "too large"
    assert not (tmp_path / "a.bin.part").exists()  # it was announced, so none was written
    assert fail(server, tmp_path, File(CONTENT, length=None), limits) == "too large"
    assert fail(server, tmp_path, File(endless=True, length=None), limits) == "too large"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("drip", [(1, 0.02), (1000, 3.0)])
def test_limits_of_time_hold_against_a_slow_server(server, tmp_path, drip):
    limits = dataclasses.replace(LIMITS, file_seconds=1.5, stall_seconds=0.2, retries=0)
    assert fail(server, tmp_path, File(CONTENT, drip=drip), limits) == "too slow"
    assert (tmp_path / "a.bin.part").stat().st_size > 0  # for a later try


def test_a_server_that_never_answers_is_stalled(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        limits = dataclasses.replace(LIMITS, stall_seconds=0.1, retries=1)
        with pytest.raises(web.FetchError) as error:
            fetch.fetch(web.Remote(url), tmp_path / "a", limits)
        assert error.value.reason == "stalled"


def test_a_server_that_drips_its_headers_is_too_slow(tmp_path):
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection = listener.accept()[0]
        try:
            for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000:
                connection.send(bytes([byte]))
                time.sleep(0.02)
        except OSError:
            pass

    threading.Thread(target=drip, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    limits = dataclasses.replace(LIMITS, file_seconds=0.5, retries=0)
    with pytest.raises(web.FetchError) as error:
        fetch.fetch(web.Remote(url), tmp_path / "a", limits)
    assert error.value.reason == "too slow"


@pytest.mark.parametrize(
    ("file", "reason", "tries"),
    [
        (File(statuses=[404] * 9), "not found", 1),
        (File(statuses=[403] * 9), "no permission", 1),
        (File(statuses=[500] * 9), "status 500", 3),
        (File(CONTENT, headers={"Content-Encoding": "gzip"}), "bad answer", 1),
        (File(redirect="/a"), "bad redirect", 6),
        (File(redirect="file:///etc/passwd"), "bad url", 1),
        (File(redirect="ftp://example.com/a"), "bad url", 1),
        (File(redirect="http://[bad/"), "bad url", 1),
    ],
)
def test_bad_answers_have_names_and_an_end(server, tmp_path, file, reason, tries):
    assert fail(server, tmp_path, file) == reason
    assert len(server.requests) == tries


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://example.com/a", "gopher://x/", "a.mp4", "//host/a"),
        *("http://", "http://host:99999/", "http://user:secret@host/", "http://ho st/"),
        *("http://host/a\r\nX: y", "http://höst/", ""),
    ],
)
def test_only_plain_web_addresses_are_fetched(url, tmp_path):
    with pytest.raises(web.FetchError) as error:
        fetch.fetch(web.Remote(url), tmp_path / "a", LIMITS)
    assert error.value.reason == "bad url" and "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *(("93.184.216.34", True), ("2606:4700:4700::1111", True), ("8.8.8.8", True)),
        *(("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False), ("0.0.0.0", False)),
        *(("192.168.1.1", False), ("169.254.169.254", False), ("100.64.0.1", False)),
        *(("224.0.0.1", False), ("255.255.255.255", False), ("192.0.2.1", False)),
        *(("::1", False), ("::", False), ("fe80::1%eth0", False), ("fd00:ec2::254", False)),
        *(("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True), ("::127.0.0.1", False)),
        *(("64:ff9b::a9fe:a9fe", False), ("2002:7f00:1::", False), ("fec0::1", False)),
        *(("ff02::1", False), ("2001:db8::1", False), ("198.18.0.1", False)),
    ],
)
def test_addresses_that_are_not_of_the_open_internet(address, public):
    assert web.is_public(address) == public


def test_private_addresses_are_refused_before_a_connection(server, tmp_path, monkeypatch):
    closed = dataclasses.replace(LIMITS, allow_private=False)
    names = ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]")
    for host in names:
        with pytest.raises(web.FetchError) as error:
            fetch.fetch(web.Remote(server.url("/a", host)), tmp_path / "a", closed)
        assert error.value.reason == "private address"
    assert server.requests == []

    # a name of the open web that leads home: what is checked is what is connected to
    answers = []
    found = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: answers.append(a) or [found])
    with pytest.raises(web.FetchError) as error:
        fetch.fetch(web.Remote("http://videos.example.com/a"), tmp_path / "a", closed)
    assert error.value.reason == "private address" and len(answers) == 1
    assert server.requests == []


@pytest.mark.parametrize("host", ["127.0.0.2", "10.0.0.1", "169.254.169.254", "[::1]", "0.0.0.0"])
def test_redirects_to_private_addresses_are_refused(server, tmp_path, monkeypatch, host):
    real = web.is_public
    monkeypatch.setattr(web, "is_public", lambda a: a == "127.0.0.1" or real(a))
    closed = dataclasses.replace(LIMITS, allow_private=False)
    file = File(redirect=f"http://{host}:{server.port}/secret")
    assert fail(server, tmp_path, file, closed) == "private address"
    assert [request.path for request in server.requests] == ["/a"]
    file = File(redirect=server.add("/b", File(CONTENT)))  # a public one is followed
    assert get(server, tmp_path, file, closed).read_bytes() == CONTENT


def test_a_token_goes_to_its_own_host_alone(server, tmp_path):
    server.add_hub({"data/train/OpenVid-1M.csv": b"video,caption\n"})
    [item] = fetch_lists.openvid("", server.url(""), LIMITS, token="hf_secret")
    assert "hf_secret" not in repr(item)
    fetch.fetch(item.remote, tmp_path / "a", LIMITS)
    seen = {(r.path.split("/")[1], r.headers.get("authorization")) for r in server.requests}
    assert seen == {("api", "Bearer hf_secret"), ("datasets", "Bearer hf_secret"), ("cdn", None)}


def run(*args, **kwargs):
    command = [sys.executable, "-m", "data_pipelines.download", "--allow_private"]
    command += ["--backoff_seconds=0.01", "--retries=1", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


def read_manifest(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_the_command_fetches_lists_and_says_what_failed(server, tmp_path):
    lines = ["# comment", server.add("/good.mp4", File(CONTENT)) + f" deep/good.mp4 {SHA256}"]
    lines += [server.add("/odd%20name.mp4", File(b"odd")), server.url("/none.mp4")]
    lines += [server.add("/bad", File(b"other")) + f" bad.mp4 {SHA256}", "ftp://x/ftp.mp4"]
    (tmp_path / "urls").write_text("\n".join(lines))
    out = tmp_path / "out"
    result = run(f"--urls={tmp_path}/urls", f"--out={out}")
    assert result.returncode == download.SOME_FAILED, result.stderr
    assert "2 of 5 files, 300.0 kB; fetched " in result.stdout
    assert "bad url: 1, not found: 1, wrong checksum: 1" in result.stderr
    with open(out / "failed.csv", newline="") as file:
        failed = {line["path"]: line["reason"] for line in csv.DictReader(file)}
    expected = {"bad.mp4": "wrong checksum", "ftp.mp4": "bad url", "none.mp4": "not found"}
    assert failed == expected
    manifest = {m["path"]: m for m in read_manifest(out)}
    assert manifest["deep/good.mp4"]["sha256"] == SHA256
    assert manifest["deep/good.mp4"]["checked"] == ["sha256"]
    assert (out / "odd name.mp4").read_bytes() == b"odd"

    server.add("/none.mp4", File(b"now"))
    server.add("/bad", File(CONTENT))
    before = len(server.requests)
    (tmp_path / "urls").write_text("\n".join(lines[:-1]))
    result = run(f"--urls={tmp_path}/urls", f"--out={out}")
    assert result.returncode == 0 and not (out / "failed.csv").exists(), result.stderr
    assert {r.path for r in server.requests[before:]} == {"/none.mp4", "/bad"}


def test_a_killed_download_goes_on(server, tmp_path):
    server.add("/big", File(CONTENT, drip=(10_000, 0.1)))
    (tmp_path / "urls").write_text(server.url("/big") + " big.mp4")
    command = [sys.executable, "-m", "data_pipelines.download", "--allow_private"]
    command += [f"--urls={tmp_path}/urls", f"--out={tmp_path}/out"]
    part = tmp_path / "out/big.mp4.part"
    for kill in (signal.SIGKILL, signal.SIGTERM):
        size = part.stat().st_size if part.exists() else 0
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 30
        while not part.exists() or part.stat().st_size < size + 20_000:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(kill)
        _, err = process.communicate()
        assert process.returncode == (-9 if kill == signal.SIGKILL else download.STOPPED), err
        assert not (tmp_path / "out/big.mp4").exists()
    server.files["/big"].drip = None
    assert run(f"--urls={tmp_path}/urls", f"--out={tmp_path}/out").returncode == 0
    assert (tmp_path / "out/big.mp4").read_bytes() == CONTENT
    asked = ranges(server)
    assert asked[0] is None and len(asked) == 3 and None not in asked[1:]


def test_limits_of_a_whole_run_hold(server, tmp_path):
    names = [f"/f{i}" for i in range(6)]
    urls = [server.add(name, File(CONTENT, drip=(50_000, 0.02))) for name in names]
    (tmp_path / "urls").write_text("\n".join(urls))
    out = tmp_path / "out"
    args = (f"--urls={tmp_path}/urls", f"--out={out}", "--jobs=1")
    result = run(*args, "--max_total_gb=0.0007")
    assert result.returncode == download.SOME_FAILED and "total limit: 1" in result.stderr
    assert server.sent < 1_200_000
    assert sum((out / name[1:]).exists() for name in names) == 2
    result = run(*args, "--total_minutes=0.001")
    assert result.returncode == download.SOME_FAILED and "stopped" in result.stderr
    assert run(*args).returncode == 0
    assert all((out / name[1:]).read_bytes() == CONTENT for name in names)


def test_a_file_that_was_tampered_with_is_fetched_again(server, tmp_path):
    url = server.add("/a.mp4", File(CONTENT))
    (tmp_path / "urls").write_text(url)
    args = (f"--urls={tmp_path}/urls", f"--out={tmp_path}/out")
    assert run(*args).returncode == 0
    (tmp_path / "out/a.mp4").write_bytes(CONTENT[:-1])
    with open(tmp_path / "out/manifest.jsonl", "ab") as file:
        file.write(b'{"path": "half a li')
    assert run(*args).returncode == 0
    assert (tmp_path / "out/a.mp4").read_bytes() == CONTENT
    assert [line["path"] for line in read_manifest(tmp_path / "out")] == ["a.mp4", "a.mp4"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "has no lines"),
        ("http://x/a ../a", "leaves its folder"),
        ("http://x/a /etc/a", "leaves its folder"),
        ("http://x/", "is empty"),
        ("http://x/a\nhttp://y/a", "line 2: a stands in an earlier line"),
        ("http://x/a a 12", "is no SHA-256 sum"),
    ],
)
def test_wrong_lists_are_refused_before_anything_is_fetched(lines, words, tmp_path):
    (tmp_path / "urls").write_text(lines)
    with pytest.raises(ValueError, match=words):
        fetch_lists.urls(str(tmp_path / "urls"))


def test_a_table_of_checksums_is_used(server, tmp_path):
    urls = [server.add(name, File(CONTENT)) for name in ("/a", "/b", "/c")]
    (tmp_path / "urls").write_text("\n".join(urls))
    md5 = hashlib.md5(b"other").hexdigest()
    (tmp_path / "sums").write_text(f"{SHA256}  ./a\n{md5} *b\n")
    args = (f"--urls={tmp_path}/urls", f"--out={tmp_path}/out", f"--sums={tmp_path}/sums")
    result = run(*args)
    assert result.returncode == 3 and "wrong checksum: 1" in result.stderr
    assert sorted(os.listdir(tmp_path / "out")) == [
        ".lock",
        "a",
        "c",
        "failed.csv",
        "manifest.jsonl",
    ]
    (tmp_path / "sums").write_text("12  a\n")
    result = run(*args)
    assert result.returncode == 2 and "not of the form 'SUM  PATH'" in result.stderr


def test_links_in_the_folder_lead_nowhere(server, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/deep").symlink_to(tmp_path)
    (tmp_path / "urls").write_text(server.add("/a", File(CONTENT)) + " deep/a")
    result = run(f"--urls={tmp_path}/urls", f"--out={tmp_path}/out")
    assert "outside root: 1" in result.stderr and not (tmp_path / "a").exists()


def serve_openvid(server, folder):
    data = data_sets.write_openvid(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    server.add_hub({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
    return data


def test_openvid_comes_from_the_hub_with_its_checksums(server, tmp_path):
    data = serve_openvid(server, tmp_path / "hub")
    args = ("--source=openvid", f"--hub={server.url('')}", f"--out={tmp_path}/out")
    result = run(*args, "--parts=0,2", "--dry-run")
    assert result.returncode == 0 and "4 files, of which 0 are there; " in result.stdout
    assert "0 of unknown size" in result.stdout and not (tmp_path / "out").exists()
    result = run(*args, "--parts=0,2")
    assert result.returncode == 0, result.stderr
    result = run(*args, "--parts=0-1", "--dry-run")
    assert "3 files, of which 2 are there; to fetch: " in result.stdout
    reasons = ["refused" in clip.given for clip in specs.read(f"openvid:{tmp_path}/out")]
    assert reasons == [i % 3 == 1 for i in range(len(data.present))] + [True]
    assert run(*args, "--parts=all").returncode == 0
    assert sum("refused" in c.given for c in specs.read(f"openvid:{tmp_path}/out")) == 1
    manifest = read_manifest(tmp_path / "out")
    assert len(manifest) == 5 and all(line["checked"] == ["sha256"] for line in manifest)
    result = run(*args, "--parts=0-5")
    assert result.returncode == 2 and "has no part 3, 4, 5" in result.stderr
    result = run(*args, "--parts=5-0")
    assert result.returncode == 2 and "is no list of numbers" in result.stderr


FETCHER = """
import pathlib, shutil, sys
out, url = sys.argv[1:]
if url.endswith("gone"):
    sys.exit("no such video")
shutil.copy({video!r}, out) if "page" not in url else pathlib.Path(out).write_text("<html>")
"""


def test_miradata_takes_files_directly_and_pages_by_a_command(server, tmp_path):
    data = data_sets.write_miradata(tmp_path / "a")
    with open(data.table, newline="") as file:
        lines = list(csv.DictReader(file))
    videos = sorted((tmp_path / "a/raw_video").rglob("*.mp4"))
    direct = server.add("/998.mp4", File(videos[0].read_bytes()))
    watch = "https://www.youtube.com/watch?v="
    for line in lines:
        line["video_url"] = direct if line["clip_id"].startswith("998.") else watch + "1001"
    lines[-1] |= {"clip_id": "5000.0", "video_url": watch + "gone"}
    lines += [lines[0] | {"clip_id": "5001.0", "video_url": watch + "page"}]
    lines += [lines[0] | {"clip_id": "nan"}]
    table = tmp_path / "b/miradata_v1.csv"
    data_sets.write_table(table, data_sets.MIRADATA_COLUMNS, lines)
    (tmp_path / "fetcher.py").write_text(FETCHER.format(video=str(videos[1])))
    args = ("--source=miradata", f"--csv={table}", f"--out={tmp_path}/b")
    result = run(*args, "--fetcher=surely-not-installed {out} {url}")
    assert result.returncode == 2 and not (tmp_path / "b/failed.csv").exists()
    assert result.stderr.count("surely-not-installed is not installed") == 1  # before any work
    result = run(*args, f"--fetcher={sys.executable} {tmp_path}/fetcher.py {{out}} {{url}}")
    assert result.returncode == 3, result.stderr
    assert "bad id: 1, fetcher failed: 1, no video: 1" in result.stderr
    assert "no such video" in (tmp_path / "b/failed.csv").read_text()
    assert "row 7,,bad id," in (tmp_path / "b/failed.csv").read_text()
    found = {c.id: "refused" not in c.given for c in specs.read(f"miradata:{table}")}
    assert [found[clip_id] for clip_id in data.present] == [True] * 4
    assert [found["5000.0"], found["5001.0"]] == [False, False]
    result = run(*args, "--ids=998-1000", "--dry_run")
    assert (
        "1 files, of which 1 are there; to fetch: 0 B in 0, " in result.stdout
        and "0 of unknown size" in result.stdout
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "one of the arguments --source --urls is required"),
        (("--source=miradata",), "--source=miradata needs --csv"),
        (("--urls=none",), "No such file"),
        (("--source=miradata", "--csv=none.csv"), "does not exist"),
        (("--source=openvid", "--hub=http://127.0.0.1:1"), "no connection"),
    ],
)
def test_wrong_usage_ends_with_one_line(args, words, tmp_path):
    result = run(*args, f"--out={tmp_path}/out", cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    if words == "no connection":
        words = "Connection refused"
    assert words in result.stderr


def test_two_downloads_do_not_share_a_folder(server, tmp_path):
    runner = fetch_folder.Download(tmp_path, LIMITS)
    with open(tmp_path / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another download works on"):
            runner.run([], 1)


def test_content_that_changes_for_ever_ends(server, tmp_path):
    versions = [bytes([i]) * (100_000 + i) for i in range(50)]  # each a little longer: "progress"
    file = File(CONTENT, drop_at=[90_000 + i for i in range(50)], versions=versions)
    assert fail(server, tmp_path, file) == "dropped"
    assert len(server.requests) < 10


def test_another_checksum_in_the_list_fetches_a_file_again(server, tmp_path):
    url = server.add("/a.mp4", File(b"old"))
    for content in (b"old", b"new"):
        server.add("/a.mp4", File(content))
        (tmp_path / "urls").write_text(f"{url} a.mp4 {hashlib.sha256(content).hexdigest()}")
        assert run(f"--urls={tmp_path}/urls", f"--out={tmp_path}/out").returncode == 0
        assert (tmp_path / "out/a.mp4").read_bytes() == content


def test_certificates_are_checked(server, tmp_path):
    context = web._tls()
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    limits = dataclasses.replace(LIMITS, retries=0)
    url = server.url("/a").replace("http:", "https:")  # a server that knows no TLS
    with pytest.raises(web.FetchError) as error:
        fetch.fetch(web.Remote(url), tmp_path / "a", limits)
    assert error.value.reason == "no connection" and server.requests == []


def test_files_of_another_tool_are_recognised_by_their_checksum(server, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_bytes(CONTENT)
    (tmp_path / "out/b").write_bytes(CONTENT[:-1] + b"?")
    urls = [f"{server.add(name, File(CONTENT))} {name[1:]} {SHA256}" for name in ("/a", "/b")]
    (tmp_path / "urls").write_text("\n".join(urls))
    assert run(f"--urls={tmp_path}/urls", f"--out={tmp_path}/out").returncode == 0
    assert [request.path for request in server.requests] == ["/b"]
    assert (tmp_path / "out/b").read_bytes() == CONTENT
    assert len(read_manifest(tmp_path / "out")) == 2
