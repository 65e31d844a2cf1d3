"""Captions come from an endpoint that may be slow, busy or hostile, and are asked for once."""

import base64
import collections
import http.server
import json
import threading
import time

import pytest

from data_pipelines.media import video_io
from data_pipelines.stages import captions, examine
from tests.moving_textures import camera_move, clip, mp4


class Endpoint(http.server.ThreadingHTTPServer):
    """Answers with `answers` in turn, the last one for ever: texts, bytes, or (status, headers)."""

    daemon_threads = True

    def __init__(self, *answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests, self.lock = list(answers), [], threading.Lock()
        self.busy, self.busiest = 0, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append((self.path, dict(self.headers), body))
            answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        status, headers = 200, {}
        if callable(answer):
            answer = answer(body)
        if isinstance(answer, tuple):
            (status, headers), answer = answer, b'{"error": "no"}'
        if isinstance(answer, str):
            answer = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
        with server.lock:
            server.busy -= 1
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        except OSError:  # the other side has had enough
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    servers = []

    def start(*answers):
        servers.append(Endpoint(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def captioner(server, **options):
    return captions.Captioner(server.url, "m", **{"wait": 0.001, "retries": 3} | options)


def row(name, **fields):
    return {"id": name, "sha256": name, "stills": [b"jpeg of " + name.encode()]} | fields


def test_a_clips_frames_go_to_the_model_and_its_answer_into_the_row(endpoint, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    server = endpoint("The video shows a dog\n\nthat runs.")
    options = examine.Options(num_stills=3, still_side=64)
    (found,) = examine.examine(mp4(camera_move(20, 96, 160, right=4)), clip(), options)
    asker = captioner(server, key_env="SOME_KEY", prompt="What is it?")
    (found,) = asker.caption_rows([found])
    assert found["caption"] == "A dog that runs."
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "m" and body["max_tokens"] == 300
    words, *pictures = body["messages"][0]["content"]
    assert words["text"] == "What is it?" and len(pictures) == 3
    for picture in pictures:
        head, _, data = picture["image_url"]["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        assert video_io.decode(base64.b64decode(data)).shape[0] == 1


def test_answers_are_kept_and_nothing_is_asked_twice(endpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server, cache = endpoint("one", "two", "three"), tmp_path / "captions.jsonl"
    rows = [row("a"), row("b", status="left out"), row("a", start=1.0), row("c", stills=[])]
    first = [*captioner(server, cache=cache, parallel=1).caption_rows(rows)]
    assert [r.get("caption") for r in first] == ["one", None, "two", None]
    assert "Authorization" not in server.requests[0][1]
    with open(cache, "ab") as file:
        file.write(b'{"key": "half a li')
    again = [*captioner(server, cache=cache).caption_rows(rows)]
    assert again == first and len(server.requests) == 2
    assert captioner(server, cache=cache, prompt="other").caption([b"x"], "a") == "three"
    assert captioner(server, cache=cache, prompt="other").caption([b"x"], "a") == "three"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {"Retry-After": "0"}),
        (500, {}),
        (503, {"Retry-After": "soon"}),
        b"<html>busy</html>",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(endpoint, trouble):
    server = endpoint(trouble, trouble, "a dog")
    assert captioner(server).caption([b"x"], "a") == "a dog"
    assert len(server.requests) == 3


def test_tries_end_and_say_why(endpoint):
    server = endpoint((500, {}))
    with pytest.raises(captions.CaptionError, match="status 500.*3 tries"):
        captioner(server, retries=2).caption([b"x"], "a")
    assert len(server.requests) == 3


def test_the_wait_doubles_and_a_server_may_ask_for_more(endpoint, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server = endpoint(
        (429, {}), (429, {}), (429, {"Retry-After": "7"}), (429, {"Retry-After": "9999"}), "a dog"
    )
    captioner(server, wait=1.0, retries=4).caption([b"x"], "a")
    assert waits == [1, 2, 7, 60]


def test_a_slow_answer_and_a_huge_one_are_given_up(endpoint):
    server = endpoint(lambda _: time.sleep(1.0) or "late")
    with pytest.raises(captions.CaptionError, match="Timeout|0.2 seconds"):
        captioner(server, timeout=0.2, retries=0).caption([b"x"], "a")
    server = endpoint(b"[" * (10 << 20))
    with pytest.raises(captions.CaptionError, match="more than 1048576 bytes"):
        captioner(server).caption([b"x"], "a")
    assert len(server.requests) == 1
    server = endpoint("word " * 10_000)
    assert len(captioner(server).caption([b"x"], "a")) <= 2000


def test_one_clip_that_is_refused_does_not_stop_the_others(endpoint):
    def answer(body):
        shown = base64.b64decode(body["messages"][0]["content"][1]["image_url"]["url"][23:])
        return (400, {}) if shown == b"jpeg of 1" else shown.decode()

    found = [*captioner(endpoint(answer)).caption_rows([row(str(i)) for i in range(4)])]
    assert [r.get("caption") for r in found] == ["jpeg of 0", None, "jpeg of 2", "jpeg of 3"]
    assert "status 400" in found[1]["message"]


@pytest.mark.parametrize(
    "answer, match",
    [
        ((401, {}), "SOME_KEY"),
        ((404, {}), "no model m"),
        ((302, {"Location": "http://127.0.0.1:1/"}), "no /chat/completions"),
        ((400, {}), "no caption to 3 clips.*status 400"),
    ],
)
def test_an_endpoint_that_refuses_all_stops_the_run(endpoint, answer, match):
    server = endpoint(answer)
    asker = captioner(server, key_env="SOME_KEY", parallel=3)
    with pytest.raises(captions.EndpointError, match=match):
        list(asker.caption_rows([row(str(i)) for i in range(100)]))
    assert len(server.requests) < 20


def test_an_endpoint_that_is_not_there_stops_the_run():
    asker = captions.Captioner("http://127.0.0.1:9/v1", "m", retries=0, parallel=2)
    with pytest.raises(captions.EndpointError, match="127.0.0.1:9.*ConnectionError"):
        list(asker.caption_rows([row(str(i)) for i in range(5)]))
    with pytest.raises(ValueError, match="has to begin with http"):
        captions.Captioner("file:///etc/passwd", "m")


def test_so_many_requests_at_a_time_and_rows_stay_in_order(endpoint):
    def answer(body):
        shown = base64.b64decode(body["messages"][0]["content"][1]["image_url"]["url"][23:])
        time.sleep(0.02 * (3 - int(shown[-1:]) % 4))
        return shown.decode()

    server = endpoint(answer)
    rows = [row(str(i)) for i in range(10, 30)]
    found = [*captioner(server, parallel=4).caption_rows(rows)]
    assert [r["caption"] for r in found] == [f"jpeg of {i}" for i in range(10, 30)]
    assert 1 < server.busiest <= 4
    assert collections.Counter(len(body["messages"]) for _, _, body in server.requests) == {1: 20}


def test_rows_are_taken_as_they_are_needed(endpoint):
    taken = []
    rows = (taken.append(i) or row(str(i)) for i in range(1000))
    found = captioner(endpoint("a dog"), parallel=2).caption_rows(rows)
    assert next(found)["caption"] == "a dog" and len(taken) <= 5
