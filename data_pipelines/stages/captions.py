"""Captions from any endpoint that speaks OpenAI's chat completions: vLLM, SGLang, Ollama, OpenAI.

A clip is shown as a few JPEG files (`examine.Options.num_stills`). Answers are kept in a file, so a
run that was stopped asks nothing twice.
"""

import base64
import concurrent.futures
import hashlib
import json
import os
import pathlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

import requests

from data_pipelines.stages import text

PROMPT = (
    "These pictures are frames of one video clip, in the order of time. Write one caption of at "
    "most five sentences for it: who or what is seen, what it does and how it changes over time, "
    "where it happens, and how it is filmed (light, style, motion of the camera). Describe "
    "what is visible and guess nothing. Begin with the subject, and do not speak of frames, "
    "pictures, a video or a clip."
)
_MAX_CHARACTERS = 2000  # of a caption: 300 tokens are about 1,200
_MAX_ANSWER_BYTES = 1 << 20
_CONNECT_SECONDS = 10.0
_LONGEST_WAIT = 60.0  # seconds before another try, whatever the server says


class CaptionError(ValueError):
    """A clip that got no caption."""


class EndpointError(ValueError):
    """An endpoint that gives no captions at all: wrong address, key or model, or it is down."""


class Captioner:
    """Asks a vision language model for captions, several clips at a time.

    Args:
        url: Base address of the API, "http://localhost:8000/v1".
        model: Name that the endpoint knows the model by.
        prompt: What is asked. It comes before the frames.
        key_env: Environment variable with the API key; none is sent where it is not set.
        num_frames: Stills that are shown of a clip, at most.
        max_tokens: Length of an answer.
        timeout: Seconds for one request.
        retries: Further tries after a busy or broken answer, each after twice the wait.
        parallel: Requests at the same time.
        wait: Seconds before the second try.
        cache: JSONL file of answers, one {"key", "caption"} a line, which several processes may
            share; None: nothing is kept.
    """

    def __init__(
        self,
        url: str,
        model: str,
        prompt: str = PROMPT,
        *,
        key_env: str = "OPENAI_API_KEY",
        num_frames: int = 3,
        max_tokens: int = 300,
        timeout: float = 120.0,
        retries: int = 5,
        parallel: int = 8,
        wait: float = 1.0,
        cache: str | os.PathLike | None = None,
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the caption endpoint {url!r} has to begin with http:// or https://.")
        self.url, self.model, self.prompt = url.rstrip("/"), model, prompt
        self.key_env, self.num_frames, self.max_tokens = key_env, num_frames, max_tokens
        self.timeout, self.retries, self.parallel, self.wait = timeout, retries, parallel, wait
        self.session, self.lock = requests.Session(), threading.Lock()
        self.session.mount(self.url, requests.adapters.HTTPAdapter(pool_maxsize=parallel))
        self.cache = None if cache is None else pathlib.Path(cache)
        self.known = _read_cache(self.cache) if self.cache else {}

    def caption_rows(self, rows: Iterable[dict]) -> Iterator[dict]:
        """Gives each ledger row its `caption`, in order.

        Rows need `sha256` and `stills` (from `examine`); rows that are left out already, or that
        have no stills, pass as they are. A clip without an answer keeps its row, with `message`
        saying why and no caption.

        Raises:
            EndpointError: If the endpoint refuses every request, or as many clips one after the
                other fail as are asked at a time, before any had an answer.
        """
        answered, failed = False, 0
        for row, caption in self._map(rows):
            if isinstance(caption, CaptionError):
                failed += not answered
                if failed >= max(2, self.parallel):
                    raise EndpointError(f"{self.url} gave no caption to {failed} clips: {caption}")
                row = row | {"message": f"no caption from {self.model}: {caption}"}
            elif caption is not None:
                answered = True
                row = row | {"caption": caption}
            yield row

    def _map(self, rows):
        """Yields (row, caption or CaptionError or None), keeping `parallel` requests under way."""

        def work(row):
            if row.get("status") == "left out" or not row.get("stills"):
                return None
            try:
                return self.caption(row["stills"], clip_key(row))
            except CaptionError as error:
                return error

        with concurrent.futures.ThreadPoolExecutor(self.parallel) as threads:
            waiting = []
            try:
                for row in rows:
                    waiting.append((row, threads.submit(work, row)))
                    if len(waiting) > 2 * self.parallel:
                        row, future = waiting.pop(0)
                        yield row, future.result()
                for row, future in waiting:
                    yield row, future.result()
            finally:  # an error in one is no reason to ask for the rest
                threads.shutdown(wait=False, cancel_futures=True)

    def caption(self, stills: Sequence[bytes], clip: str) -> str:
        """Returns the caption of one clip: asked for once, one line, at most 2,000 characters.

        Args:
            stills: JPEG files in the order of time.
            clip: What names the clip's content, such as its sha256.

        Raises:
            CaptionError: If there is no usable answer after all tries.
            EndpointError: If the endpoint would refuse any clip.
        """
        asked = [clip, self.model, self.prompt, self.num_frames, self.max_tokens]
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        if key not in self.known:
            caption = self._ask(_spread(stills, self.num_frames))
            with self.lock:
                self.known[key] = caption
                if self.cache:
                    _append(self.cache, {"key": key, "caption": caption})
        return self.known[key]

    def _ask(self, stills: Sequence[bytes]) -> str:
        content = [{"type": "text", "text": self.prompt}]
        for still in stills:
            url = "data:image/jpeg;base64," + base64.b64encode(still).decode()
            content.append({"type": "image_url", "image_url": {"url": url}})
        request = {"model": self.model, "max_tokens": self.max_tokens, "temperature": 0}
        request["messages"] = [{"role": "user", "content": content}]
        for attempt in range(self.retries + 1):
            try:
                return self._post(request)
            except _Again as error:
                reason = error
            if attempt < self.retries:
                time.sleep(min(_LONGEST_WAIT, max(reason.after, self.wait * 2**attempt)))
        raise CaptionError(f"{reason} ({self.retries + 1} tries)")

    def _post(self, request: dict) -> str:
        key, begin = os.environ.get(self.key_env, ""), time.monotonic()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with self.session.post(
                f"{self.url}/chat/completions",
                json=request,
                auth=lambda prepared: (prepared.headers.update(headers), prepared)[1],  # no .netrc
                timeout=(min(_CONNECT_SECONDS, self.timeout), self.timeout),
                stream=True,
                allow_redirects=False,  # a key goes where the user sent it, and nowhere else
            ) as response:
                body = b""
                for piece in response.iter_content(1 << 16):
                    body += piece
                    if len(body) > _MAX_ANSWER_BYTES:
                        raise CaptionError(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
                    if time.monotonic() - begin > self.timeout:
                        raise _Again(f"no whole answer in {self.timeout:g} seconds")
        except requests.RequestException as error:
            raise _Again(f"{type(error).__name__}: {error}") from error
        self._check_status(response, body)
        try:
            caption = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise _Again(f"an answer that is no chat completion: {body[:100]!r}") from error
        caption = text.one_line(caption, _MAX_CHARACTERS) if isinstance(caption, str) else ""
        caption = text.strip_prefix(caption)
        if not caption:
            raise CaptionError("an empty answer")
        return caption

    def _check_status(self, response: requests.Response, body: bytes):
        status, said = response.status_code, body[:200].decode(errors="replace")
        if status in (408, 409, 429) or status >= 500:
            after = response.headers.get("Retry-After", "")
            raise _Again(f"status {status}: {said}", float(after) if after.isdecimal() else 0.0)
        if status in (401, 403):
            raise EndpointError(
                f"{self.url} refuses the request ({status}: {said}): set {self.key_env} to a valid "
                "key."
            )
        if status == 404 or 300 <= status < 400:
            raise EndpointError(
                f"{self.url} has no /chat/completions or no model {self.model} ({status}: {said}): "
                "give the address up to /v1, and a name that its /models lists."
            )
        if status != 200:
            raise CaptionError(f"status {status}: {said}")


class _Again(Exception):
    """A failure that may pass; `after` is how many seconds the server asks to wait."""

    def __init__(self, message: str, after: float = 0.0):
        super().__init__(message)
        self.after = after


def clip_key(row: dict) -> str:
    """Names the content of a ledger row: its file's digest, and which part of it."""
    return f"{row['sha256']} {row.get('start')} {row.get('end')}"


def _spread(stills: Sequence[bytes], number: int) -> list[bytes]:
    number = min(number, len(stills))
    return [stills[int((i + 0.5) * len(stills) / number)] for i in range(number)]


def _append(path: pathlib.Path, answer: dict):
    """Writes one line; several processes may write to the same file."""
    line = b"\n" + json.dumps(answer).encode() + b"\n"  # the first ends what a kill left unfinished
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


def _read_cache(path: pathlib.Path) -> dict[str, str]:
    """Reads the answers of earlier runs; a line that a kill left half written is no answer."""
    answers = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            answer = json.loads(line)
            answers[answer["key"]] = answer["caption"]
        except (ValueError, LookupError, TypeError):
            continue
    return answers
