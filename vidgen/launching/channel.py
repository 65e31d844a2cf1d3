"""Lines of JSON between two supervisors, over a connection that may be lost at any time."""

import hashlib
import hmac
import json
import select
import socket
import time
from collections.abc import Iterable

BEAT_SECONDS = 1.0  # between two signs of life
MAX_BYTES = 1 << 18  # of a line
MAX_UNSENT = 1 << 21  # bytes; the other side does not read
HELLO_SECONDS = 10.0  # for the other side to say who it is

# The fields of each kind of message. A machine has proven that it knows the token with its hello,
# the leader with its welcome; before that nothing that is said has an effect.
KINDS: dict[str, dict[str, type | tuple]] = {
    # to a machine
    "challenge": {"nonce": str},
    "welcome": {"proof": str},
    "unknown": {},  # its proof is wrong
    "prepare": {},  # it has process 0: which port is free there?
    "start": {"number": int, "first": int, "total": int, "coordinator": str},
    "end": {"seconds": (int, float)},  # what is left then is killed
    "finish": {"code": int, "text": str},
    # from a machine
    "hello": {"nonce": str, "proof": str, "host": str, "name": str, "pid": int, "processes": int}
    | {"command": list},
    "port": {"port": int},
    "ended": {"code": int, "process": int, "last_lines": str, "stack": str},
    "gone": {},  # none of its processes is left
    # both ways
    "signal": {"number": int},  # one came there, or is to be passed on
    "beat": {},
}


class Channel:
    """One end of a connection. It never blocks, and never raises because of the other side.

    Attributes:
        closed: Why it is closed, or "".
    """

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._in, self._out = bytearray(), bytearray()
        self._silence, self._tended, self._beaten = 0.0, time.monotonic(), 0.0
        self.closed = ""

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, kind: str, **fields) -> None:
        """Sends a message, as soon as the other side takes it."""
        if not self.closed:
            self._out += json.dumps({"kind": kind, **fields}).encode() + b"\n"
            self.flush()

    def flush(self) -> None:
        """Hands over what is not sent yet, as far as that does not block."""
        try:
            while self._out and not self.closed:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            if len(self._out) > MAX_UNSENT:
                self.close("it does not read what it is sent")
        except OSError as error:
            self.close(f"its connection broke ({error.strerror})")

    def receive(self) -> list[dict]:
        """The messages that have come; none of them is malformed."""
        if not self.closed:
            try:
                data = self._socket.recv(1 << 16)
                self._in += data
                self._silence = 0.0
                if not data:
                    self.close("its connection was closed")
            except BlockingIOError:
                pass
            except OSError as error:
                self.close(f"its connection broke ({error.strerror})")
        *lines, rest = self._in.split(b"\n")
        self._in = rest
        if max(map(len, [*lines, rest])) > MAX_BYTES:
            lines = []
            self.close(f"it sent a line of more than {MAX_BYTES} bytes")
        try:
            return [parse(line) for line in lines]
        except ValueError as error:
            self.close(f"it sent what is no message of ours: {error}")
            return []

    def tend(self, silent_seconds: float) -> None:
        """Gives a sign of life when it is time, and closes where none has come for so long.

        Only time in which this side was awake counts: it may have been stopped itself.
        """
        now = time.monotonic()
        self._silence += min(now - self._tended, BEAT_SECONDS)
        self._tended = now
        if self._silence > silent_seconds:
            self.close(f"no word from it for {silent_seconds:g} s")
        elif now - self._beaten > BEAT_SECONDS:
            self._beaten = now
            self.send("beat")

    @property
    def is_sent(self) -> bool:
        return bool(self.closed) or not self._out

    def close(self, why: str) -> None:
        """Closes it, for the first reason that is given."""
        if not self.closed:
            self.closed = why
            self._socket.close()


def parse(line: bytes) -> dict:
    """One message.

    Raises:
        ValueError: If it is none.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{bytes(line[:60])!r} is no JSON") from error
    if not isinstance(message, dict) or message.get("kind") not in list(KINDS):
        raise ValueError(f"{bytes(line[:60])!r} has no known kind")
    for name, kind in KINDS[message["kind"]].items():
        if not isinstance(message.get(name), kind):
            raise ValueError(f"{message['kind']} has no right {name}: {bytes(line[:60])!r}")
        if kind is str:
            message[name].encode()  # a half of a character is a ValueError too
    return message


def wait(ends: Iterable, seconds: float) -> set[int]:
    """Waits until something has come to one of several sockets or channels; returns their files."""
    poll = select.poll()
    for end in ends:
        if end.fileno() >= 0:  # or it is closed
            poll.register(end.fileno(), select.POLLIN)
    return {file for file, _ in poll.poll(1000 * seconds)}


def proof(token: str, who: str, *nonces: str) -> str:
    """Shows that `who`, "leader" or "machine", knows the token, without telling it."""
    return hmac.new(token.encode(), " ".join([who, *nonces]).encode(), hashlib.sha256).hexdigest()


def is_proof(given: str, token: str, who: str, *nonces: str) -> bool:
    """Whether a proof is right."""
    return hmac.compare_digest(given.encode(), proof(token, who, *nonces).encode())
