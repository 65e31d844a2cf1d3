"""A machine of a run: does what the supervisor that leads says, and tells it what happens here."""

import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Sequence

from vidgen.launching import channel as channel_lib
from vidgen.launching import local as local_lib
from vidgen.launching.channel import Channel
from vidgen.launching.ended import Ended
from vidgen.launching.local import Local
from vidgen.launching.terminal import say
from vidgen.process import exit_codes

POLL_SECONDS = 0.05
SILENT_SECONDS = 8.0  # of the leader; less than its own limit, so that nothing is left here then
RETRY_SECONDS = 1.0  # between two tries to reach it
_OTHER_TOKEN = (
    "it has another token: all need the same VIDGEN_LAUNCH_TOKEN, or the same working folder"
)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Member:
    """The supervisor of this machine. It takes the stop signals; make it in the main thread.

    Args:
        command: The module and flags that each process runs.
        processes: How many run here.
        host: The name of this machine.
        local: They.
        dial: Connects to the leader, or raises OSError.
        token: Reads the token, or raises OSError or ValueError.
        leader: Who leads, in words.
        silent_seconds: It is lost after so long without a word.
        wait_seconds: How long to try to reach it, from the start on or once it is lost; 0 is once.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        host: str,
        local: Local,
        *,
        dial: Callable[[], socket.socket],
        token: Callable[[], str],
        leader: str,
        wait_seconds: float,
        silent_seconds: float = SILENT_SECONDS,
    ):
        self._silent_seconds = silent_seconds
        self._command, self._processes, self._host = list(command), processes, host
        self._local, self._dial, self._token = local, dial, token
        self._leader, self._wait_seconds = leader, wait_seconds
        self._name = secrets.token_hex(8)
        self._channel: Channel | None = None
        self._known, self._nonces, self._is_welcome = "", ("", ""), False
        self._finish: tuple[int, str] | None = None
        self._is_busy = False  # since a start, until `gone` was told
        self._signals: list[int] = []
        self._asked = 0  # signals that came
        self._why = ""
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, frame: self._signals.append(number))

    def go(self) -> int:
        """Serves until the run is over, or the leader does not come back; returns the exit code."""
        until = time.monotonic() + self._wait_seconds
        while True:
            if self._connect():
                until = self._serve(until)
            if self._finish:
                code, text = self._finish
                if text:
                    say(text)
                return code
            self._end_all()
            if self._asked or self._signals:
                return exit_codes.REQUEUE
            if time.monotonic() > until:
                say(
                    f"{self._leader}, which leads, cannot be reached: {self._why}. Tried for "
                    f"{self._wait_seconds:g} s; no process is left here. Start the same command "
                    "on all machines, the one that leads among them."
                )
                return exit_codes.ERROR
            time.sleep(min(RETRY_SECONDS, max(0.0, until - time.monotonic())))

    def _connect(self) -> bool:
        try:
            self._channel = Channel(self._dial())
            self._is_welcome = False
            return True
        except OSError as error:
            self._say_why(error.strerror or str(error))
            return False

    def _serve(self, until: float) -> float:
        """Serves over one connection. Returns until when to try again, once it is lost."""
        begin = time.monotonic()
        while not self._channel.closed and not self._finish:
            channel_lib.wait([self._channel], POLL_SECONDS)
            for message in self._channel.receive():
                self._hear(message)
            self._pass_signals_on()
            self._tell(self._local.poll())
            self._channel.flush()
            self._channel.tend(self._silent_seconds)
            if not self._is_welcome and time.monotonic() - begin > channel_lib.HELLO_SECONDS:
                self._channel.close("what answers there is no supervisor of a run")
        if self._is_welcome:
            until = time.monotonic() + self._wait_seconds
        if not self._finish:
            self._say_why(self._channel.closed)
        self._channel.close("the end")
        return until

    def _hear(self, message: dict) -> None:
        kind = message["kind"]
        if kind == "challenge" and not self._is_welcome:
            self._say_hello(message["nonce"])
        elif kind == "unknown":
            self._channel.close(_OTHER_TOKEN)
        elif kind == "welcome":
            proof = message["proof"]
            self._is_welcome = channel_lib.is_proof(proof, self._known, "leader", *self._nonces)
            if not self._is_welcome:
                self._channel.close(_OTHER_TOKEN)
        elif self._is_welcome:
            self._obey(kind, message)

    def _say_hello(self, nonce: str) -> None:
        self._nonces = nonce, secrets.token_hex(16)
        try:
            self._known = self._token()
        except (OSError, ValueError) as error:
            self._channel.close(f"no token: {error}")
            return
        self._channel.send(
            "hello",
            nonce=self._nonces[1],
            proof=channel_lib.proof(self._known, "machine", *self._nonces),
            host=self._host,
            name=self._name,
            pid=os.getpid(),
            processes=self._processes,
            command=self._command,
        )

    def _obey(self, kind: str, message: dict) -> None:
        if kind == "prepare":
            self._channel.send("port", port=local_lib.free_port())
        elif kind == "start":
            self._is_busy = True
            fields = [message[name] for name in ("number", "first", "total", "coordinator")]
            self._start(*fields)
        elif kind == "end":
            self._local.end(message["seconds"])
        elif kind == "signal":
            self._local.signal(message["number"])
        elif kind == "finish":
            self._finish = message["code"], message["text"]

    def _start(self, number: int, first: int, total: int, coordinator: str) -> None:
        try:
            self._local.start(number, first, self._processes, total, coordinator)
        except OSError as error:
            reason = f"a process could not be started: {error}"
            self._tell([Ended(exit_codes.ERROR, first, self._host, reason)])
            self._local.end(0)

    def _pass_signals_on(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            self._asked += 1
            self._local.signal(number)
            self._channel.send("signal", number=number)

    def _tell(self, ends: Sequence[Ended]) -> None:
        for ended in ends:
            fields = {"process": ended.process, "code": ended.code}
            fields |= {"last_lines": ended.last_lines, "stack": ended.stack}
            self._channel.send("ended", **fields)
        if self._is_busy and not self._local.is_running:
            self._is_busy = False
            self._channel.send("gone")

    def _end_all(self) -> None:
        """Ends the processes here, at once."""
        self._is_busy = False
        self._local.end(0)
        while self._local.is_running:
            self._local.poll()
            time.sleep(POLL_SECONDS / 5)

    def _say_why(self, why: str) -> None:
        if why != self._why and self._wait_seconds:
            say(f"{self._leader}, which leads, cannot be reached: {why}. Trying again.")
        self._why = why


def once(connection: socket.socket) -> Callable[[], socket.socket]:
    """A `dial` that succeeds once: the leader in the same process does not come back."""
    left = [connection]

    def dial() -> socket.socket:
        with contextlib.suppress(IndexError):
            return left.pop()
        raise OSError("it has failed")

    return dial
